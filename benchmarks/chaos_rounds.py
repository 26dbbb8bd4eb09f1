"""A round of chaos: one job against one hostile endpoint, disturbed, started again until it ends, checked each time."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import chaos_weather
from benchmarks.chaos_books import PROMISES, Books, Moment
from benchmarks.chaos_disk import disk
from benchmarks.chaos_jobs import KINDS, Step
from benchmarks.chaos_starts import ROOT, Ended, Starter
from benchmarks.chaos_weather import CLUSTER_EVENTS, EVENTS, PRICE, Event
from benchmarks.chaos_written import CHECKS, written
from benchmarks.nodes import Nodes, processes
from benchmarks.simulated import SimulatedTeacher

KEY = "CHAOS_KEY"
CALM = 2
"""Starts that nothing disturbs, at most: the last of them meets an endpoint that works again."""
NODES = 2
ASKS_AGAIN = {"compile", "recycling"}
"""Work that ends well although questions failed for now."""
LINES = 40
"""Of what a start told that broke a promise: so many of stdout and of stderr are told."""


@dataclass
class Tally:
    """Counts over rounds."""

    starts: int = 0
    kills: int = 0
    events: int = 0
    requests: int = 0
    checked: int = 0
    done: int = 0


@dataclass
class Round:
    """The round of `seed`, work of one kind, in the folder `home`. `run` fills `told`, what was drawn and how each
    start ended, and `broken`, each promise that was not kept; `aloud`: it is printed at once."""

    seed: int
    kind: str
    home: Path
    tally: Tally
    aloud: bool = False
    told: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def run(self) -> None:
        rng = self.rng = random.Random(self.seed)
        self.key = chaos_weather.key(rng)
        os.environ[KEY] = self.key  # read by the processes of the server and of Ray; the command's has its own
        with ExitStack() as stack:
            room = stack.enter_context(closing(disk(self.home)))
            self.server = stack.enter_context(SimulatedTeacher(key=KEY))
            nodes = stack.enter_context(Nodes(NODES)) if self.kind == "cluster" else None
            weather, teacher = chaos_weather.endpoint(rng), chaos_weather.teacher(rng, self.server.base_url, KEY)
            caps = chaos_weather.caps(rng, teacher["max_tokens"] * PRICE["completion"] / 1e6)
            job = KINDS[self.kind](rng, teacher, caps)
            self.job = job if nodes is None else job.on(nodes.address)
            environment = self._environment(self.key + rng.choice(["", "", "\n", " "]))
            self.starter = Starter(self.home, environment, room, nodes)
            self.at_once, self.in_flight = int(teacher["concurrency"]) * (1 if nodes is None else NODES), 0
            self.books = Books()
            self._tell([f"{job.kind}, teacher {json.dumps(teacher)}, caps {caps}", f"endpoint {json.dumps(weather)}"])
            job.write(self.home)
            self.server.control(**weather)
            self._work()
            self.tally.requests += self._requests()
            if self.broken:
                shutil.copytree(self.home, self.kept, symlinks=True)
        shutil.rmtree(self.home)

    @property
    def kept(self) -> Path:
        """A copy of the folder, where a promise was broken."""
        return self.home.with_name(f"{self.home.name}-broken")

    def _tell(self, lines: list[str]) -> None:
        self.told += lines
        if self.aloud:
            print("\n".join(lines), flush=True)

    def _environment(self, key: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("REFED_", "CHAOS_"))}
        own = {KEY: key, "PYTHONPATH": str(ROOT), "HOME": str(self.home / "user"), "REFED_TRACK": "false"}
        return {**kept, **own, "PYTHONDONTWRITEBYTECODE": "1"}

    def _work(self) -> None:
        """Each step of the job, disturbed and then to its end; and what can be made of its rows."""
        for step in self.job.steps:
            self.step = step
            self._disturbed(step)
            if not self.broken:
                self._to_its_end(step)
            if self.broken:
                return
        made_of_it = written(self.home, self.job, self.rng)
        if made_of_it is not None and (self.home / "out").exists():
            self.broken += made_of_it.broken(self.rng, self._start)
            self.tally.checked += CHECKS

    def _disturbed(self, step: Step) -> None:
        """The first starts, each with what happens to it."""
        kinds = EVENTS if self.starter.nodes is None else CLUSTER_EVENTS
        for event in chaos_weather.events(self.rng, step.size, kinds):
            ended = self._start(step.words, event, self._requests)
            if self.broken or ended.code == 0:
                return

    def _to_its_end(self, step: Step) -> None:
        """Start it again until it is done, or calls come to a cap."""
        for number in range(CALM):
            if number == CALM - 1:
                self.server.control(**chaos_weather.recovered())
            ended = self._start(step.words, None, self._requests)
            if self.broken:
                return
            if ended.code == 0:
                self.tally.done += 1
                self._once_more(step)
                return

    def _once_more(self, step: Step) -> None:
        """A job that is done is done: the same command sends nothing, unless it asks again what had no answer."""
        if self.kind in ASKS_AGAIN and self.books.unanswered:
            return
        sent = self._requests()
        ended = self._start(step.words, None, self._requests)
        self._check(f"done, and started again: exit code {ended.code}", ended.code == 0)
        self._check(f"done, and started again: {self._requests() - sent} more requests", self._requests() == sent)

    def _start(self, words: str, event: Event | None, happened: Callable[[], int], every: float = 0.02) -> Ended:
        """Start a command, wait for its end, and check every promise."""
        ended = self.starter.start(words, event, happened, every)
        self.tally.starts += 1
        self.tally.events += ended.met
        self.tally.kills += ended.killed
        self._tell([f"start {words.split()[0]}, {event}: code {ended.code}, met {ended.met}: {ended.last[:200]}"])
        if ended.met:  # Ctrl-C settles its calls within two seconds, or leaves them lost as well; so does a full disk
            self.in_flight += 2 * self.at_once
        self._quiet()
        if broken := list(self._promises(ended, of_job=words == self.step.words)):
            self.broken += broken
            self._tell(ended.out.splitlines()[-LINES:] + ended.err.splitlines()[-LINES:])
        rows = self.books.calls > 0
        self.tally.checked += ended.promises + PROMISES + len(self.step.caps) + 2 + rows  # code 2, the key, the rows
        return ended

    def _promises(self, ended: Ended, *, of_job: bool) -> Iterator[str]:
        yield from ended.broken()
        now = Moment(Books.of(self.home / "out"), self.server.stats())
        yield from now.broken(self.books, self.step.caps, self.in_flight)
        if ended.code == 2 and now.books.answers > self.books.answers:
            yield "exit code 2, with answers paid for"
        self.books = now.books
        yield from leaks(self.key, self.home, ended.out + ended.err)
        if self.starter.nodes is not None:
            yield from leaks(self.key, self.starter.nodes.logs)
        if now.books.calls:
            try:
                wrong = self.step.wrong(self.home / "out", of_job and ended.code == 0)
            except (ValueError, KeyError) as error:
                wrong = f"rows cannot be read: {type(error).__name__}: {error}"
            if wrong:
                yield wrong

    def _requests(self) -> int:
        stats = self.server.stats()
        return int(stats["requests"] + stats["batch_requests"])

    def _quiet(self) -> None:
        """Wait until nobody works any more, and the server has noticed that nobody waits for its answers."""
        until = time.monotonic() + 60
        while self.starter.nodes is not None and processes("worker-") and time.monotonic() < until:
            time.sleep(0.1)
        until = time.monotonic() + 5
        while self.server.stats()["in_flight"] and time.monotonic() < until:
            time.sleep(0.05)

    def _check(self, promise: str, kept: bool) -> None:
        self.tally.checked += 1
        if not kept:
            self.broken.append(promise)


def leaks(key: str, home: Path, told: str = "") -> Iterator[str]:
    """Where `key` is, or a long piece of it, in any file below `home` or in what was told."""
    pieces = [key.encode(), key[:28].encode(), key[-28:].encode()]
    if any(piece.decode() in told for piece in pieces):
        yield "the key was printed"
    for path in (path for path in home.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if any(piece in content for piece in pieces):
            yield f"the key is in {path.relative_to(home)}"

"""A round of chaos: one job against one hostile endpoint, disturbed, started again until it ends, checked each time."""

from __future__ import annotations

import json
import os
import random
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import chaos_jobs, chaos_weather
from benchmarks.chaos_books import PROMISES, Books, Moment
from benchmarks.chaos_starts import ROOT, Ended, started
from benchmarks.chaos_weather import Event
from benchmarks.simulated import SimulatedTeacher

KEY = "CHAOS_KEY"
FORMATS = ["jsonl", "parquet", "messages", "sharegpt", "alpaca", "prompt-completion", "preference", "kto"]
CALM = 3
"""Starts that nothing disturbs, at most: the last of them meets an endpoint that works again."""


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
    """The round of `seed`, in the folder `home`. `run` fills `told`, what was drawn and how each start ended, and
    `broken`, each promise that was not kept; `aloud`: it is printed at once."""

    seed: int
    home: Path
    tally: Tally
    aloud: bool = False
    told: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def run(self) -> None:
        rng = self.rng = random.Random(self.seed)
        self.key = chaos_weather.key(rng)
        os.environ[KEY] = self.key  # read by the server's process; the command's has its own
        with SimulatedTeacher(key=KEY) as server:
            self.server = server
            weather, self.caps = chaos_weather.endpoint(rng), chaos_weather.caps(rng)
            teacher = chaos_weather.teacher(rng, server.base_url, KEY)
            job = self.job = chaos_jobs.drawn(rng, teacher, self.caps)
            self.environment = self._environment(self.key + rng.choice(["", "", "\n", " "]))
            self.concurrency, self.in_flight = int(teacher["concurrency"]), 0
            self.books = Books.of(self.home / "out")
            self._tell(f"{job.kind}: refed {job.words}", f"teacher {json.dumps(teacher)}, caps {self.caps}")
            self._tell(f"endpoint {json.dumps(weather)}")
            job.write(self.home)
            server.control(**weather)
            self._disturbed(chaos_weather.events(rng, job.size))
            if not self.broken:
                self._to_its_end()
            if not self.broken:
                self._exported()
            self.tally.requests += int(server.stats()["requests"] + server.stats()["batch_requests"])

    def _tell(self, *lines: str) -> None:
        self.told += lines
        if self.aloud:
            print("\n".join(lines), flush=True)

    def _environment(self, key: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("REFED_", "CHAOS_"))}
        own = {KEY: key, "PYTHONPATH": str(ROOT), "HOME": str(self.home / "user"), "REFED_TRACK": "false"}
        return {**kept, **own, "PYTHONDONTWRITEBYTECODE": "1"}

    def _disturbed(self, events: list[Event]) -> None:
        """The first starts, each with what happens to it."""
        for event in events:
            ended = self._start(self.job.words, event)
            if self.broken or ended.code == 0:
                return

    def _to_its_end(self) -> None:
        """Start it again until it is done, or calls come to a cap."""
        for number in range(CALM):
            if number == CALM - 1:
                self.server.control(**chaos_weather.recovered())
            ended = self._start(self.job.words, None)
            if self.broken:
                return
            if ended.code == 0:
                self.tally.done += 1
                self._once_more()
                return

    def _once_more(self) -> None:
        """A job that is done is done: the same command sends nothing."""
        sent = self._requests()
        ended = self._start(self.job.words, None)
        self._check(f"done, and started again: exit code {ended.code}", ended.code == 0)
        self._check(f"done, and started again: {self._requests() - sent} more requests", self._requests() == sent)

    def _exported(self) -> None:
        """The samples of a run, written while the command is killed, and read."""
        if self.job.kind not in ("run", "batch", "filter", "answers") or not (self.home / "out").exists():
            return
        form = self.rng.choice(FORMATS if self.job.kind in ("run", "batch") else FORMATS[:1])
        words = f"export out --format {form} --out samples.{form} --force"
        self._start(words, Event("kill", seconds=self.rng.uniform(0.3, 2.5)))
        self._check("half an export after a kill", self._readable(form))
        ended = self._start(words, None)
        written = (self.home / f"samples.{form}").exists()
        self._check(f"export: exit code {ended.code}, file {written}", written == (ended.code == 0))
        self._check("an export that cannot be read", self._readable(form))

    def _readable(self, form: str) -> bool:
        """Whether the exported file is there and whole, or not there."""
        path = self.home / f"samples.{form}"
        if not path.exists():
            return True
        try:
            if form == "parquet":
                import pyarrow.parquet

                return bool(pyarrow.parquet.read_table(path).num_rows >= 0)
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        except Exception as error:  # noqa: BLE001 - of any kind: it is what is looked for
            self._tell(f"{type(error).__name__}: {error}")
            return False
        return all(isinstance(row, dict) and row for row in rows)

    def _start(self, words: str, event: Event | None) -> Ended:
        """Start a command, wait for its end, and check every promise."""
        ended = started(shlex.split(words), self.home, self.environment, event, self._requests)
        self.tally.starts += 1
        self.tally.events += ended.met
        self.tally.kills += ended.killed
        last = (ended.err.strip().splitlines() or [""])[-1]
        self._tell(f"start {words.split()[0]}, {event}: code {ended.code}, met {ended.met}: {last[:200]}")
        if ended.met:  # Ctrl-C settles its calls within two seconds, or leaves them lost as well; so does a full disk
            self.in_flight += 2 * self.concurrency
        self._quiet()
        self.broken += self._promises(ended, of_job=words == self.job.words)
        rows = self.books.calls > 0
        self.tally.checked += ended.promises + PROMISES + len(self.caps) + 2 + rows  # exit code 2, the key, the rows
        return ended

    def _promises(self, ended: Ended, *, of_job: bool) -> Iterator[str]:
        yield from ended.broken()
        now = Moment(Books.of(self.home / "out"), self.server.stats())
        yield from now.broken(self.books, self.caps, self.in_flight)
        if ended.code == 2 and now.books.answers > self.books.answers:
            yield "exit code 2, with answers paid for"
        self.books = now.books
        yield from self._leaks(ended)
        if now.books.calls:
            try:
                wrong = self.job.wrong(self.home / "out", of_job and ended.code == 0)
            except (ValueError, KeyError) as error:
                wrong = f"rows cannot be read: {type(error).__name__}: {error}"
            if wrong:
                yield wrong

    def _leaks(self, ended: Ended) -> Iterator[str]:
        """Where the key is, or a long piece of it, in any file of the home or in what was told."""
        pieces = [self.key.encode(), self.key[:28].encode(), self.key[-28:].encode()]
        if any(piece.decode() in ended.out + ended.err for piece in pieces):
            yield "the key was printed"
        for path in (path for path in self.home.rglob("*") if path.is_file()):
            content = path.read_bytes()
            if any(piece in content for piece in pieces):
                yield f"the key is in {path.relative_to(self.home)}"

    def _requests(self) -> int:
        stats: dict[str, Any] = self.server.stats()
        return int(stats["requests"] + stats["batch_requests"])

    def _quiet(self) -> None:
        """Wait until the server has noticed that nobody waits for its answers."""
        until = time.monotonic() + 5
        while self.server.stats()["in_flight"] and time.monotonic() < until:
            time.sleep(0.05)

    def _check(self, promise: str, kept: bool) -> None:
        self.tally.checked += 1
        if not kept:
            self.broken.append(promise)

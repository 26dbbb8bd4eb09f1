"""The workers of one start of a run: one in every slot of every node, for as long as there is work."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refed_dspy.errors import ExportError, InputError, RefedError, RunDirError, RunStopped, one_line
from refed_dspy.files import write_json
from refed_dspy.ledger.summary import LIVE
from refed_dspy.plugins.cluster.coordinator import CoordinatorActor, LastWord, Totals
from refed_dspy.plugins.cluster.leases import NOTHING, Amounts
from refed_dspy.plugins.cluster.ray_cluster import on_node, slots
from refed_dspy.plugins.cluster.worker import PID, REPORTED, Ended, How, work
from refed_dspy.teachers.progress import Progress

SILENT = 30.0
"""Seconds without a word after which a worker's shard goes to another."""
OPENING = 600.0
"""The same of one that has not said a word yet about its shard: it may be loading models, as long as Ray does not say
that it has died."""
SLOW = 15.0
"""Seconds without a word after which those who watch are told."""
LONGEST_LOOK = 2.0
"""Seconds that count at most between two looks: where nobody looked, as while the coordinator began again or this
machine slept, nobody could be heard."""
RATE_OVER = 10.0
"""Seconds over which calls a second are counted."""
log = logging.getLogger("refed_dspy.cluster")
DEATHS = 10
"""Times in a row that workers may die without a sample in between: after that, it is what they work on."""
REST = 5.0
"""Seconds after a death in which no worker begins on that node, since Ray may not know yet that it is gone, and in
which all deaths count as one: a node has many workers, and all of them one coordinator."""
FROZEN = 60.0
"""Seconds after which a worker that was given up is killed, unless it has waked and ended."""
ERRORS = {How.FAILED: RunStopped, How.REFUSED: InputError, How.UNSHARED: RunDirError}
"""What a run ends with whose last worker ended so."""
GRACE = 4.0
"""Seconds that workers get to commit calls in flight and give back their leases when the run must stop."""


@dataclass
class SilentWorkers:
    """How long each worker at a shard has said nothing, by looks at the coordinator's totals, about one a second."""

    looked: float = field(default_factory=time.monotonic)
    quiet: dict[str, float] = field(default_factory=dict)
    words: dict[str, float | None] = field(default_factory=dict)
    """Worker → when it said its last word about its shard, by the coordinator's clock; None: it has not said any."""

    def look(self, holders: Collection[str], words: Mapping[str, LastWord]) -> list[str]:
        """Those of `holders` that have been silent for SILENT seconds, or OPENING before their first word. `words`: of
        those who have said one since they hold their shards."""
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, LONGEST_LOOK), now
        before, quiet = self.words, self.quiet
        self.words = {name: words[name].at if name in words else None for name in holders}
        self.quiet = {
            name: quiet.get(name, 0.0) + passed if before.get(name, 0.0) == at else 0.0
            for name, at in self.words.items()
        }  # fmt: skip
        return [
            name for name, seconds in self.quiet.items() if seconds >= (OPENING if self.words[name] is None else SILENT)
        ]

    def slow(self) -> list[str]:
        """Those who have said nothing for SLOW seconds."""
        return sorted(name for name, seconds in self.quiet.items() if seconds >= SLOW)


@dataclass
class Watching:
    """The `progress` of the work in `folder`, and the file that others read (`ledger.live`). `before`: what was made
    and spent already that the totals do not count."""

    folder: Path
    progress: Progress
    before: Amounts = NOTHING
    said: set[str] = field(default_factory=set)
    """What workers warned of and was passed on."""
    calls_at: deque[tuple[float, int]] = field(default_factory=deque)
    """Moments, and the calls until then."""

    def gains(self, totals: Totals) -> bool:
        """Whether more was made since it was last shown."""
        return self.before.kept + totals.kept > self.progress.kept

    def show(self, totals: Totals, at_work: Mapping[str, Any]) -> None:
        """Show the run's numbers of this moment. `at_work`: `nodes`, `workers`, `deaths` and who is `slow`."""
        progress, kept = self.progress, self.before.kept + totals.kept
        for _ in range(kept - progress.kept):
            progress.keep()
        progress.picodollars, progress.calls = self.before.spent + totals.spent, totals.calls
        told = [word.progress for word in totals.last_words.values()]
        progress.in_flight = sum(each.get("in_flight", 0) for each in told)
        for name, word in totals.last_words.items():
            self.pass_on(name, word.progress.get("warned", ()))
        numbers = {
            "at": time.time(),
            "kept": kept,
            "cost": progress.cost if progress.priced else None,
            "calls": totals.calls,
            "calls_a_second": round(self._rate(totals.calls), 1),
            "in_flight": progress.in_flight,
            "shards": {"all": totals.shards, "done": totals.done, "dry": totals.dry},
        }
        try:
            write_json(self.folder / LIVE, {**numbers, **at_work})
        except ExportError as error:  # the work goes on, whoever cannot watch it
            self.pass_on("refed status", [f"shows older numbers: {error}"])

    def pass_on(self, name: str, texts: Iterable[str]) -> None:
        """Say what a worker, or whoever has this `name`, warned of, each text once."""
        for text in texts:
            if text not in self.said:
                self.said.add(text)
                log.warning("%s: %s", name, text)

    def _rate(self, calls: int) -> float:
        """Calls a second, over the last RATE_OVER seconds."""
        now = time.monotonic()
        self.calls_at.append((now, calls))
        while len(self.calls_at) > 2 and self.calls_at[0][0] < now - RATE_OVER:
            self.calls_at.popleft()
        then, before = self.calls_at[0]
        return (calls - before) / (now - then) if now > then else 0.0


@dataclass
class Crew:
    """The workers at work on the run in `folder`, by their tasks. `mark`: what is written in the folder's mark."""

    ray: Any
    folder: Path
    mark: str
    coordinator: CoordinatorActor
    watching: Watching
    working: dict[asyncio.Future[Any], tuple[str, str]] = field(default_factory=dict)
    """Task → the worker's name, and its node."""
    retired: dict[str, int] = field(default_factory=dict)
    """Node → workers that ended there with an error, and are not replaced."""
    resting: dict[str, float] = field(default_factory=dict)
    """Node → when a worker may begin there again, after one died."""
    error: RefedError | None = None
    """What the last one ended with that failed."""
    begun: int = 0
    deaths: int = 0
    times_in_a_row: int = 0
    """How often workers died since the last sample."""
    died_at: float = -math.inf
    """When workers died last, by the first of those that count as one."""
    fatal: BaseException | None = None
    """What the run ends with, as soon as it is seen: a worker's bug, or too many deaths."""
    silence: SilentWorkers = field(default_factory=SilentWorkers)
    given_up: dict[str, float] = field(default_factory=dict)
    """Workers that were silent for too long, and since when they are given up. Each still has its slot and its shard's
    files: it may be alive."""
    pids: dict[str, int] = field(default_factory=dict)
    """Worker → its process, on its node."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Node → its address."""

    async def run(self) -> None:
        """Return once nothing is left that a worker could do. Raises RunStopped where all workers ended with errors, or
        die one after the other; InputError where the last one could not use what it was given."""
        while not await self.coordinator.ask("finished"):
            await self._fill_slots()
            if not self.working and self.error is not None:
                raise self.error
            await self._look()
            self._raise_fatal()
        await self._see_out(SILENT)
        self._raise_fatal()

    async def stop(self) -> None:
        """End all workers: calls in flight get a moment to be committed, however other workers end meanwhile."""
        await self.coordinator.ask("stop")
        await self._see_out(GRACE)

    def _raise_fatal(self) -> None:
        if self.fatal is not None:
            raise self.fatal from None

    async def _see_out(self, seconds: float) -> None:
        """Wait for the workers' ends, at most so long: one may be frozen."""
        until = time.monotonic() + seconds
        while self.working and time.monotonic() < until:
            await self._look()

    async def _fill_slots(self) -> None:
        """Begin a worker in each slot that has none. New nodes get theirs as they come."""
        listed = await asyncio.to_thread(self.ray.nodes)  # asks the head, which may be slow
        self.hosts |= {node["NodeID"]: str(node["NodeManagerAddress"]) for node in listed}
        nodes = {node["NodeID"]: node for node in listed}
        taken = [node for _, node in self.working.values()]
        new = []
        for node in nodes:
            if time.monotonic() < self.resting.get(node, 0.0):
                continue
            for _ in range(slots(nodes[node]) - taken.count(node) - self.retired.get(node, 0)):
                self.begun += 1
                new.append((f"worker-{self.begun}", node))
        if not new:
            return
        await self._tell_who_is_there([name for name, _ in new])
        for name, node in new:
            task = self.ray.remote(work).options(name=name, max_retries=0, **on_node(nodes[node]))
            folder = str(self.folder.absolute())  # a worker has another working folder
            asked = task.remote(folder, self.mark, name, self.coordinator.actor)
            self.working[asyncio.wrap_future(asked.future())] = name, node

    async def _tell_who_is_there(self, new: list[str]) -> None:
        names = {name for name, _ in self.working.values()} - self.given_up.keys()
        await self.coordinator.ask("workers", [*sorted(names), *new])

    async def _look(self) -> None:
        """Wait a moment, see which workers have ended, and show how far the run is."""
        if not self.working:
            await asyncio.sleep(REPORTED)
        else:
            ended, _ = await asyncio.wait(self.working, timeout=REPORTED, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                self._ended(task, *self.working.pop(task))
            if ended:
                await self._tell_who_is_there([])
        totals: Totals = await self.coordinator.ask("totals")
        if self.watching.gains(totals):
            self.times_in_a_row = 0
        await self._give_up_silent(totals)
        await self._end_frozen()
        nodes = len({node for _, node in self.working.values()})
        at_work = {"nodes": nodes, "workers": len(self.working), "deaths": self.deaths, "slow": self.silence.slow()}
        self.watching.show(totals, at_work)

    async def _give_up_silent(self, totals: Totals) -> None:
        """Have the shards of silent workers leased to others. One that wakes hears that its lease is gone, and ends."""
        known = {name: node for name, node in self.working.values() if name not in self.given_up}
        if silent := self.silence.look(totals.holders.keys() & known.keys(), totals.last_words):
            for name in silent:
                log.warning(
                    "%s: no word for %.0f s; its shard goes to another as soon as it lets go of the files",
                    self._at(name, known[name]), self.silence.quiet[name],
                )  # fmt: skip
            self.given_up |= dict.fromkeys(silent, time.monotonic())
            await self._tell_who_is_there([])
        self.pids |= {name: word.progress[PID] for name, word in totals.last_words.items() if PID in word.progress}

    async def _end_frozen(self) -> None:
        """Kill what has not waked in time: while it lives, nobody else gets its shard's files. The task that does so
        runs on its node, and is not waited for: the node may be out of reach."""
        nodes = {node["NodeID"]: node for node in await asyncio.to_thread(self.ray.nodes)} if self.given_up else {}
        for name, node in self.working.values():
            if time.monotonic() > self.given_up.get(name, math.inf) + FROZEN and node in nodes and name in self.pids:
                there = {**on_node(nodes[node]), "num_cpus": 0, "resources": {}, "max_retries": 0}
                self.ray.remote(_kill).options(**there).remote(self.pids.pop(name))

    def _ended(self, task: asyncio.Future[Any], name: str, node: str) -> None:
        from ray.exceptions import RayTaskError

        try:
            ended: Ended = task.result()
        except RayTaskError as error:  # a bug: in the worker's code, or in the caller's program
            self.fatal = error.as_instanceof_cause()
            log.warning("%s ended: %s", self._at(name, node), one_line(error.cause))
            return
        except Exception as error:  # noqa: BLE001 — it died, or its node: whatever Ray calls it
            self.deaths += 1
            log.warning("%s died; its shard goes to another", self._at(name, node))
            self._gone(node, one_line(error, 300))
            return
        self.watching.pass_on(name, ended.warned)
        if ended.how is How.LOST:
            log.warning("%s ended: %s", self._at(name, node), ended.why)
            self._gone(node, ended.why)
        elif ended.how is not How.DONE:
            self.error = ERRORS[ended.how](f"{self._at(name, node)}: " + ended.why)
            self.retired[node] = self.retired.get(node, 0) + 1
            log.warning("%s ended: %s", self._at(name, node), ended.why)

    def _gone(self, node: str, why: str) -> None:
        """A worker on `node` is gone that another one shall follow."""
        now = time.monotonic()
        self.resting[node] = now + REST
        if now < self.died_at + REST:
            return
        self.died_at, self.times_in_a_row = now, self.times_in_a_row + 1
        if self.times_in_a_row >= DEATHS:
            self.fatal = RunStopped(f"workers died {DEATHS} times without a sample in between, the last one of: {why}")

    def _at(self, name: str, node: str) -> str:
        return f"{name} on {self.hosts.get(node, node)}"


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)

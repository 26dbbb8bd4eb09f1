"""The workers of one start of a run: one in every slot of every node, for as long as there is work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refed_dspy.errors import RunDirError, RunStopped, one_line
from refed_dspy.records import PICO
from refed_dspy.runs.cluster import silence
from refed_dspy.runs.cluster.coordinator import Totals
from refed_dspy.runs.cluster.ray_cluster import place_of, slots
from refed_dspy.runs.cluster.silence import Silence
from refed_dspy.runs.cluster.watching import write_status
from refed_dspy.runs.cluster.worker import REPORTED, Coordinator, Ended, work
from refed_dspy.teachers.progress import Progress

DEATHS = 10
"""Workers in a row that may die without a sample in between: after that, it is what they work on."""
REST = 5.0
"""Seconds after a death in which no worker begins on that node: Ray may not know yet that it is gone."""
GRACE = 4.0
"""Seconds that workers get to commit calls in flight and give back their leases when the run must stop."""
RATE_OVER = 10.0
"""Seconds over which calls a second are counted."""
log = logging.getLogger("refed_dspy.cluster")


@dataclass
class Crew:
    """The workers at work on the run in `folder`, by their tasks. `mark`: what is written in the folder's mark."""

    ray: Any
    folder: Path
    mark: str
    coordinator: Coordinator
    actor: Any
    progress: Progress
    working: dict[asyncio.Future[Any], tuple[str, str]] = field(default_factory=dict)
    """Task → the worker's name, and its node."""
    retired: dict[str, int] = field(default_factory=dict)
    """Node → workers that ended there with an error, and are not replaced."""
    resting: dict[str, float] = field(default_factory=dict)
    """Node → when a worker may begin there again, after one died."""
    error: str = ""
    """What the last one ended with."""
    unshared: bool = False
    """Whether that was because it does not see the run's folder."""
    begun: int = 0
    deaths: int = 0
    deaths_in_a_row: int = 0
    calls_at: deque[tuple[float, int]] = field(default_factory=deque)
    """Moments, and the calls until then."""
    silence: Silence = field(default_factory=Silence)
    given_up: set[str] = field(default_factory=set)
    """Workers that were silent for too long. Each still has its slot: it may be alive."""
    said: set[str] = field(default_factory=set)
    """What workers warned of and was passed on."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Node → its address."""

    async def run(self) -> None:
        """Return once nothing is left that a worker could do. Raises RunStopped where all workers ended with errors, or
        die one after the other; RunDirError where none sees the run's folder."""
        while not await self.coordinator.ask("finished"):
            await self._fill_slots()
            if not self.working and self.error:
                raise (RunDirError if self.unshared else RunStopped)(self.error)
            await self._look()
        await self._see_out(silence.SILENT)

    async def stop(self) -> None:
        """End all workers: calls in flight get a moment to be committed."""
        await self.coordinator.ask("stop")
        await self._see_out(GRACE)

    async def _see_out(self, seconds: float) -> None:
        """Wait for the workers' ends, at most so long: one may be frozen."""
        until = time.monotonic() + seconds
        while self.working and time.monotonic() < until:
            await self._look()

    async def _fill_slots(self) -> None:
        """Begin a worker in each slot that has none. New nodes get theirs as they come."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
        workers = len(new) + len(self.working)
        for name, node in new:
            placed = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
            options = {"name": name, "max_retries": 0, "scheduling_strategy": placed, **place_of(nodes[node])}
            folder = str(self.folder.absolute())  # a worker has another working folder
            asked = self.ray.remote(work).options(**options).remote(folder, self.mark, name, self.actor, workers)
            self.working[asyncio.wrap_future(asked.future())] = name, node

    async def _tell_who_is_there(self, new: list[str]) -> None:
        names = {name for name, _ in self.working.values()} - self.given_up
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
        self._show(totals)
        await self._give_up_silent(totals)

    async def _give_up_silent(self, totals: Totals) -> None:
        """Have the shards of silent workers leased to others. One that wakes hears that its lease is gone, and ends."""
        known = {name: node for name, node in self.working.values() if name not in self.given_up}
        if silent := self.silence.look(totals.holders.keys() & known.keys(), totals.last_words):
            for name in silent:
                log.warning(
                    "%s: no word for %.0f s; its shard goes to another as soon as it lets go of the files",
                    self._at(name, known[name]), silence.SILENT,
                )  # fmt: skip
            self.given_up.update(silent)
            await self._tell_who_is_there([])

    def _ended(self, task: asyncio.Future[Any], name: str, node: str) -> None:
        from ray.exceptions import RayTaskError

        try:
            ended: Ended = task.result()
        except RayTaskError as error:  # a bug: in the worker's code, or in the caller's program
            raise error.as_instanceof_cause() from None
        except Exception as error:  # noqa: BLE001 — it died, or its node: whatever Ray calls it
            self._died(name, node, one_line(error, 300))
            return
        if ended.lost:
            self._died(name, node, ended.error)
        elif ended.error:
            self.error, self.unshared = f"{self._at(name, node)}: {ended.error}", ended.unshared
            self.retired[node] = self.retired.get(node, 0) + 1
            log.warning("%s ended: %s", self._at(name, node), ended.error)

    def _died(self, name: str, node: str, why: str) -> None:
        self.deaths, self.deaths_in_a_row = self.deaths + 1, self.deaths_in_a_row + 1
        self.resting[node] = time.monotonic() + REST
        log.warning("%s died; its shard goes to another", self._at(name, node))
        if self.deaths_in_a_row >= DEATHS:
            raise RunStopped(f"{DEATHS} workers died one after the other, the last one of: {why}") from None

    def _at(self, name: str, node: str) -> str:
        return f"{name} on {self.hosts.get(node, node)}"

    def _show(self, totals: Totals) -> None:
        for _ in range(totals.kept - self.progress.kept):
            self.progress.keep()
            self.deaths_in_a_row = 0
        self.progress.picodollars = totals.spent
        self.progress.calls = totals.calls
        told = [word.progress for word in totals.last_words.values()]
        self.progress.in_flight = sum(progress.get("in_flight", 0) for progress in told)
        self._pass_on_warnings(totals)
        cost = totals.spent / PICO if self.progress.priced else None
        write_status(self.folder, totals, cost, self.working.values(), self.deaths, self._rate(totals.calls))

    def _pass_on_warnings(self, totals: Totals) -> None:
        """Say what workers warn of, each text once."""
        for name, word in totals.last_words.items():
            for text in word.progress.get("warned", ()):
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

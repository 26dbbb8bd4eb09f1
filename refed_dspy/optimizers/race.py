"""Several optimizers in one compile: whose turn it is, with how many evaluations and which share of what is left.

Each begins with half of its evaluations, or as many as give it a fair chance. Those that are behind the leader by more
than the standard error of the difference, and found nothing better in the second half of their turn, get no more; the
others go on, with what the first round did replayed for nothing. What the caps leave after that goes to whoever they
had cut short, the leader first. One optimizer by itself has a single turn with everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from refed_dspy.ledger.candidates import Candidate, enough
from refed_dspy.optimizers.recorder import TurnScores
from refed_dspy.records import dollars
from refed_dspy.text import NO_VALUE, table_lines

BEHIND, CONVERGED, FAILED = "fell behind", "converged", "failed"
FINISHED, NOTHING = "ran to its end", "no candidate"
"""How an optimizer may have ended, where no cap cut it short."""


RACE_HEADS = ("optimizer", "gain on validation", "tried", "evaluations", "calls", "dollars", "ended")


@dataclass(eq=False)
class Runner:
    """One of the optimizers, and how far it came."""

    name: str
    sizes: Mapping[int, int]
    """Evaluations that a round is set up for → about how many it asks for."""
    size: int = 0
    """The round that it had last."""
    evaluations: int = 0
    """Scored in its longest turn."""
    candidates: set[str] = field(default_factory=set)
    best: str = ""
    """The candidate of its own that gains most on the validation set; empty before one gains anything."""
    gain: float = 0.0
    rising: bool = False
    """Whether it found something better in the second half of its last turn."""
    paid: tuple[float, float] = (0.0, 0.0)
    """Picodollars and calls of its turns, over all starts."""
    ended: str = ""
    """BEHIND, CONVERGED, …, or the cap that cut it short; empty before its first turn ends."""

    @property
    def cut(self) -> bool:
        """Whether a cap ended its last turn."""
        return self.ended not in {"", BEHIND, CONVERGED, FAILED, FINISHED, NOTHING}

    @property
    def expected(self) -> int:
        """About how many evaluations it would do in all."""
        return max(self.sizes.values())

    def facts(self) -> dict[str, Any]:
        """For the outcome, in JSON types."""
        facts = {name: getattr(self, name) for name in ("name", "evaluations", "best", "gain", "ended")}
        cost, calls = self.paid
        paid = {"cost": int(cost), "calls": int(calls)}
        return {**facts, **paid, "expected": self.expected, "candidates": sorted(self.candidates)}


@dataclass(frozen=True)
class SearchTurn:
    """A turn of one optimizer."""

    runner: Runner
    size: int
    """The evaluations that it is set up for."""
    share: float
    """Of what is left of the caps for tuning."""
    last: bool = False
    """Whether it gets whatever can be spared."""

    @property
    def name(self) -> str:
        """The turn's name, the same on every start."""
        return f"{self.runner.name} {self.size}" + " to the end" * self.last


class Race:
    """The optimizers of a compile. `scores`: a candidate's scores less the uncompiled program's, on the validation
    examples that have both; as many as the uncompiled program has stand for the set."""

    def __init__(self, sizes: Mapping[str, Mapping[int, int]], scores: Callable[[str], Mapping[str, float]]) -> None:
        self.runners = [Runner(name, of) for name, of in sizes.items()]
        self._scores = scores

    def turns(self) -> Iterator[SearchTurn]:
        """Turn after turn. Before the next one is asked for, `note` must have been told of it."""
        if len(self.runners) == 1:
            yield SearchTurn(self.runners[0], max(self.runners[0].sizes), 1.0, last=True)
            return
        for at, runner in enumerate(self.runners):
            yield SearchTurn(runner, min(runner.sizes), 1 / (len(self.runners) - at + 1))
        again = [each for each in self._in_front() if len(each.sizes) > 1 and (each.ended == FINISHED or each.cut)]
        for at, runner in enumerate(again):
            yield SearchTurn(runner, max(runner.sizes), 1 / (len(again) - at))
        for runner in filter(lambda each: each.cut, self._in_front()):
            yield SearchTurn(runner, max(runner.sizes), 1.0, last=True)

    def note(
        self, turn: SearchTurn, scores: TurnScores, uncompiled: str, paid: tuple[float, float], ended: str
    ) -> None:
        """What a turn came to: what it scored and paid, and how it ended. `uncompiled`: no candidate of its own."""
        runner = turn.runner
        runner.size, runner.rising = turn.size, scores.rising
        runner.candidates |= scores.candidates - {uncompiled}
        runner.evaluations = max(runner.evaluations, scores.evaluations)
        runner.ended = ended or (FINISHED if runner.candidates else NOTHING)
        runner.paid = runner.paid[0] + paid[0], runner.paid[1] + paid[1]
        gains = {each: fmean(of.values()) for each in runner.candidates if (of := self._scores(each))}
        best = max(sorted(gains), key=gains.__getitem__, default="")
        if gains.get(best, 0.0) > 0:
            runner.best, runner.gain = best, gains[best]

    def _in_front(self) -> list[Runner]:
        """The leader, and those within a standard error of it or still rising. The others are marked."""
        ranked = sorted(self.runners, key=lambda each: -each.gain)
        front = [each for each in ranked if each is ranked[0] or each.rising or not self._behind(each, ranked[0])]
        for each in {*ranked} - {*front}:
            if each.cut or (each.ended == FINISHED and each.size < max(each.sizes)):
                each.ended = BEHIND
        return front

    def _behind(self, runner: Runner, leader: Runner) -> bool:
        if not leader.best:
            return False
        of, over = self._scores(runner.best) if runner.best else {}, self._scores(leader.best)
        ahead = [over[example] - of.get(example, 0.0) for example in over if example in of or not of]
        return len(ahead) > 1 and fmean(ahead) > stdev(ahead) / math.sqrt(len(ahead))


def gains_over(candidate: Candidate, baseline: Candidate) -> dict[str, float]:
    """Example → what a candidate gains on it; empty where it was scored on too little of the validation set."""
    before, scores = (each.scores.get("validation", {}) for each in (baseline, candidate))
    shared = {each: scores[each] - before[each] for each in scores if each in before}
    return shared if enough(len(shared), len(before)) else {}


def race_lines(runners: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of several optimizers (`Runner.facts`), the one in front first; of a single one that converged a line."""
    if len(runners) < 2:
        return [
            f"{each['name']} stopped after {each['evaluations']} of about {each['expected']} evaluations: converged, "
            "since no new candidate was better for long"
            for each in runners
            if each["ended"] == CONVERGED
        ]
    return table_lines([RACE_HEADS, *(race_cells(each) for each in sorted(runners, key=lambda each: -each["gain"]))])


def race_cells(runner: Mapping[str, Any]) -> list[str]:
    """One optimizer's cells under RACE_HEADS."""
    of = f" of {runner['expected']}" if runner["ended"] not in {FINISHED, NOTHING} else ""
    cost = NO_VALUE if runner["cost"] == 0 < runner["calls"] else dollars(runner["cost"])
    done = [str(len(runner["candidates"])), f"{runner['evaluations']}{of}", f"{runner['calls']:,}", cost]
    return [runner["name"], f"{runner['gain']:+z.2f}", *done, runner["ended"]]

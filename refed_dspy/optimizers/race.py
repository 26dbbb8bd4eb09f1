"""Several optimizers in one compile: whose turn it is, with how many evaluations and which share of what is left.

Each begins with half of its evaluations. Those that fall behind the leader by more than the standard error of the
difference get no more; the others go on, with what the first round did replayed for nothing. What the caps leave after
that goes to whoever they had cut short, the leader first. One optimizer by itself has a single turn with everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from refed_dspy.ledger.candidates import Candidate, enough
from refed_dspy.records import dollars
from refed_dspy.text import table_lines

BEHIND, CONVERGED, FINISHED = "fell behind", "converged", "finished"
"""How an optimizer may have ended, where no cap cut it short."""


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
    cost: float = 0.0
    """Picodollars that its turns paid, over all starts."""
    ended: str = ""
    """BEHIND, CONVERGED, FINISHED, or the cap that cut it short; empty before its first turn ends."""

    @property
    def cut(self) -> bool:
        """Whether a cap ended its last turn."""
        return self.ended not in {"", BEHIND, CONVERGED, FINISHED}

    @property
    def expected(self) -> int:
        """About how many evaluations it would do in all."""
        return max(self.sizes.values())

    def facts(self) -> dict[str, Any]:
        """For the outcome, in JSON types."""
        facts = {name: getattr(self, name) for name in ("name", "evaluations", "best", "gain", "ended")}
        return {**facts, "expected": self.expected, "candidates": sorted(self.candidates), "cost": int(self.cost)}


@dataclass(frozen=True)
class Turn:
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

    def turns(self) -> Iterator[Turn]:
        """Turn after turn. Before the next one is asked for, `note` must have been told of it."""
        if len(self.runners) == 1:
            yield Turn(self.runners[0], max(self.runners[0].sizes), 1.0, last=True)
            return
        for at, runner in enumerate(self.runners):
            yield Turn(runner, min(runner.sizes), 1 / (len(self.runners) - at + 1))
        again = [each for each in self._in_front() if len(each.sizes) > 1 and each.ended != CONVERGED]
        for at, runner in enumerate(again):
            yield Turn(runner, max(runner.sizes), 1 / (len(again) - at))
        for runner in filter(lambda each: each.cut, self._in_front()):
            yield Turn(runner, max(runner.sizes), 1.0, last=True)

    def note(self, turn: Turn, candidates: set[str], evaluations: int, cost: float, ended: str) -> None:
        """What a turn came to: the candidates that it scored, and how it ended."""
        runner = turn.runner
        runner.size = turn.size
        runner.candidates |= candidates
        runner.evaluations, runner.ended = max(runner.evaluations, evaluations), ended or FINISHED
        runner.cost += cost
        gains = {each: fmean(scores.values()) for each in runner.candidates if (scores := self._scores(each))}
        best = max(sorted(gains), key=gains.__getitem__, default="")
        if gains.get(best, 0.0) > 0:
            runner.best, runner.gain = best, gains[best]

    def _in_front(self) -> list[Runner]:
        """Those within a standard error of the leader, the leader first. The others are marked."""
        ranked = sorted(self.runners, key=lambda each: -each.gain)
        front = [each for each in ranked if each is ranked[0] or not self._behind(each, ranked[0])]
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
    rows = [
        [
            each["name"], f"{each['gain']:+z.2f}", str(len(each["candidates"])),
            f"{each['evaluations']} of {each['expected']}", dollars(each["cost"]), each["ended"],
        ]
        for each in sorted(runners, key=lambda each: -each["gain"])
    ]  # fmt: skip
    return table_lines([["optimizer", "gain on validation", "candidates", "evaluations", "cost", "ended"], *rows])

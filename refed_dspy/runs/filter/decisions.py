"""A filter's decisions on millions of rows."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import compress, count
from typing import NamedTuple

from refed_dspy.data.dataset import OnDisk
from refed_dspy.filters.base import Decision


class Outcome(NamedTuple):
    """What many decisions have in common."""

    kept: bool
    reason: str
    remark: str
    scored: bool


class Decisions(Mapping[int, Decision]):
    """Decisions by row number, in the order of the numbers, which are small. Takes 16 bytes of memory a row; details
    are on disk."""

    def __init__(self) -> None:
        self._places: dict[Outcome, int] = {}
        self._outcomes = list[Outcome]()
        self._outcome, self._score, self._detail = array("i"), array("d"), array("i")
        """By number: a place in `_outcomes`, -1 for none; the score; a place in `_details`, -1 for none."""
        self._details = OnDisk[str]()

    def __setitem__(self, number: int, decision: Decision) -> None:
        if (missing := number + 1 - len(self._outcome)) > 0:
            self._outcome.extend([-1] * missing)
            self._score.extend([math.nan] * missing)
            self._detail.extend([-1] * missing)
        outcome = Outcome(decision.kept, decision.reason, decision.remark, decision.score is not None)
        if outcome not in self._places:
            self._places[outcome] = len(self._outcomes)
            self._outcomes.append(outcome)
        self._outcome[number] = self._places[outcome]
        self._score[number] = math.nan if decision.score is None else decision.score
        self._detail[number] = len(self._details) if decision.detail else -1
        if decision.detail:
            self._details.append(decision.detail)

    def __getitem__(self, number: int) -> Decision:
        if number not in self:
            raise KeyError(number)
        outcome, detail = self._outcomes[self._outcome[number]], self._detail[number]
        score, told = self._score[number] if outcome.scored else None, "" if detail < 0 else self._details[detail]
        return Decision(outcome.kept, outcome.reason, score, told, outcome.remark)

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number < len(self._outcome) and self._outcome[number] >= 0

    def __iter__(self) -> Iterator[int]:
        return compress(count(), (place >= 0 for place in self._outcome))

    def __len__(self) -> int:
        return len(self._outcome) - self._outcome.count(-1)

    def keeps(self, number: int) -> bool:
        """Whether there is a decision on the row, to keep it."""
        return number in self and self._outcomes[self._outcome[number]].kept

    def drops(self, number: int) -> bool:
        """Whether there is a decision on the row, to drop it."""
        return number in self and not self._outcomes[self._outcome[number]].kept

    def tallied(self) -> Counter[Outcome]:
        """How many decisions have each outcome."""
        counts = Counter(self._outcome)
        return Counter({self._outcomes[place]: number for place, number in counts.items() if place >= 0})

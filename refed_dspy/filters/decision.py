"""What a filter says of one row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from refed_dspy.data.table import DataRow


@dataclass(frozen=True, slots=True)
class Decision:
    """Kept or dropped. `reason` is one short phrase that counts can be grouped by, empty for what is kept; `score` is
    the number that was decided by, None where there is none; `detail`: what a person would want to see of it."""

    kept: bool
    reason: str = ""
    score: float | None = None
    detail: str = ""


class TextFilter(Protocol):
    """Decides by the text alone, at once and at no cost.

    One that compares rows with each other (ROUGE-L, near-duplicates) remembers each row that it keeps, so rows must be
    shown in the order that shall count.
    """

    name: str
    """As in a config."""
    of_instruction: bool
    """Whether it looks at the instruction only: then a run asks it before a response is paid for."""

    def check(self, row: DataRow) -> Decision: ...

    def remember(self, row: DataRow) -> None:
        """Take a row as kept without a look at it: it was decided on earlier. Nothing where no row is compared."""
        ...


class JudgeFilter(ABC):
    """Asks a judge, which costs calls; what is kept and what is not does not depend on other rows."""

    name: str
    needs_plain = False
    """Whether a row must have the response before it was improved, too."""

    @abstractmethod
    async def judged(self, row: DataRow, item: str) -> Decision:
        """`item`: what the row is called in the books. Raises TeacherError or RunStopped where no judge can be had."""


Filter: TypeAlias = TextFilter | JudgeFilter


@dataclass(frozen=True)
class Step:
    """One filter of a run or of a data set, and the settings it was made with, in JSON types: equal settings decide
    alike. `keep`: of the rows that pass, keep so many."""

    filter: Filter
    settings: Mapping[str, Any]
    keep: int | None = None


def labels(steps: Sequence[Step]) -> list[str]:
    """A name for each: the filter's, and a number behind it where an earlier one has the same."""
    seen: Counter[str] = Counter()
    named = []
    for step in steps:
        seen[step.filter.name] += 1
        again = seen[step.filter.name]
        named.append(step.filter.name if again == 1 else f"{step.filter.name} {again}")
    return named

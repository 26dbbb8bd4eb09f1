"""What a filter says of one row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeAlias

from refed_dspy.errors import RunStopped, one_line
from refed_dspy.records import DataRow


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
    """Asks a judge, which costs calls; what is kept and what is not does not depend on other rows.

    One of your own asks its predictor through `programs.asking.ask`, inside `with asking("judge")`: so it is the judge
    that answers, and each answer is paid for once.
    """

    name: str
    of_instruction = False
    """Whether it looks at the instruction only: then a run asks it before a response is paid for."""
    needs_plain = False
    """Whether a row must have the response before it was improved, too."""

    @abstractmethod
    async def judged(self, row: DataRow, item: str) -> Decision:
        """`item`: what the row is called in the books.

        Raises NoAnswer where the judge did not answer this time: the row is undecided, and asked again on the next
        start. TeacherError or RunStopped where no judge can be had.
        """

    def recall(self, decision: Decision) -> None:  # noqa: B027 — most need not
        """Take note of a decision of an earlier start."""

    def given_up(self, least: int = 1) -> str:  # noqa: ARG002 — most need not
        """Why this judge is none, having abstained on `least` rows or more and never decided; else empty."""
        return ""


Filter: TypeAlias = TextFilter | JudgeFilter


def checked(one: TextFilter, label: str, row: DataRow) -> Decision:
    """What the filter called `label` says of a row; an error of a caller's own tells which one it was, and where."""
    try:
        return normal(one.check(row), label)
    except Exception as error:
        error.add_note(f"raised by the filter {label}, on: {one_line(row.instruction, 80)}")
        raise


def normal(said: Any, label: str) -> Decision:
    """In types that a ledger and JSON take. Raises RunStopped where a caller's own filter says anything else."""
    if not isinstance(said, Decision):
        raise RunStopped(f"filters: {label} said a {type(said).__name__}; it must be a Decision")
    score = None if said.score is None else float(said.score)
    return Decision(bool(said.kept), str(said.reason), score, str(said.detail))


@dataclass(frozen=True)
class Step:
    """One filter of a run or of a data set, and the settings it was made with, in JSON types: equal settings decide
    alike. `keep`: of the rows that pass, keep so many."""

    filter: Filter
    settings: Mapping[str, Any]
    keep: int | None = None


def labels(steps: Sequence[Step]) -> list[str]:
    """A name for each: the filter's, and a number behind it where an earlier one has the same."""
    named = list[str]()
    for step in steps:
        name = step.filter.name
        numbers = (name if again == 1 else f"{name} {again}" for again in count(1))
        named.append(next(label for label in numbers if label not in named))
    return named

"""What a filter is: it looks at a row and decides whether it is kept. Also, a filter's step in a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, TypeAlias

from refed_dspy.errors import WrongCode, one_line
from refed_dspy.records import DataRow


@dataclass(frozen=True, slots=True)
class Decision:
    """Kept or dropped.

    `reason` is a short phrase that counts can be grouped by, empty for a kept row. `score` is the number that decided,
    None where there is none. `detail` is what a person would want to see. `remark` is what is to be told of a kept row,
    and counted ("unchanged"); between several stands "; ".
    """

    kept: bool
    reason: str = ""
    score: float | None = None
    detail: str = ""
    remark: str = ""


class TextFilter(Protocol):
    """Decides by the text alone, at once and at no cost.

    A filter that compares rows with each other (ROUGE-L, near-duplicates) remembers each row that it keeps, so the
    order in which rows are checked matters.
    """

    name: str
    """As in a config."""
    of_instruction: bool
    """Whether it looks at the instruction only: then a run asks it before a response is paid for."""

    def check(self, row: DataRow) -> Decision: ...

    def remember(self, row: DataRow) -> None:  # noqa: ARG002 — optional
        """Count a row as kept without checking it: an earlier start did. Does nothing where rows are not compared."""
        return


class JudgeFilter(ABC):
    """Asks a judge, which costs calls. A decision does not depend on other rows.

    A custom one awaits its predictor's `acall` inside `with as_role("judge"), about(STAGE, item)` of `programs.asking`:
    then the judge answers, and each answer is paid for once.
    """

    name: str
    of_instruction = False
    """Whether it looks at the instruction only: then a run asks it before a response is paid for."""
    needs_plain = False
    """Whether a row must have the response before it was improved, too."""
    needs_criteria = False
    """Whether it asks for the criteria of a row's reference, which only a run with `criteria` has."""

    @abstractmethod
    async def judged(self, row: DataRow, item: str) -> Decision:
        """The decision on `row`. `item` is the row's name in the ledger.

        Raises NoAnswer where the judge did not answer this time: the row is undecided, and asked about again on the
        next start. Raises TeacherError or RunStopped where the judge cannot be reached at all.
        """

    def recall(self, decision: Decision) -> None:  # noqa: B027 — optional
        """Take note of a decision of an earlier start."""

    def hopeless(self, least: int = 1) -> str:  # noqa: ARG002 — optional
        """Why this judge is useless: it abstained on `least` rows or more and never decided. Else empty."""
        return ""


Filter: TypeAlias = TextFilter | JudgeFilter


def is_custom(filter_: object) -> bool:
    """Whether a filter is the caller's own."""
    return not type(filter_).__module__.startswith("refed_dspy.")


def decide(filter_: TextFilter, label: str, row: DataRow) -> Decision:
    """The decision on `row` of the filter called `label`. An error that a custom filter raises gets a note with the
    label and the row's instruction."""
    try:
        return validated(filter_.check(row), label)
    except Exception as error:
        error.add_note(f"raised by the filter {label}, on: {one_line(row.instruction, 80)}")
        raise


def validated(decision: Any, label: str) -> Decision:
    """`decision` in types that a ledger and JSON take. Raises WrongCode where a custom filter returned none."""
    if not isinstance(decision, Decision):
        raise WrongCode(f"filters: {label} returned a {type(decision).__name__}; it must be a Decision")
    score = None if decision.score is None else float(decision.score)
    return Decision(bool(decision.kept), str(decision.reason), score, str(decision.detail), str(decision.remark))


def preview(text: str) -> str:
    """The beginning of `text` on one line, at most 400 characters: most instructions are whole."""
    return one_line(text[:2_000], 400)


@dataclass(frozen=True)
class Step:
    """One filter of a run or of a data set, and the settings it was made with, in JSON types: equal settings decide
    alike. `keep`: of the rows that pass, keep only this many."""

    filter: Filter
    settings: Mapping[str, Any]
    keep: int | None = None


def labels(steps: Sequence[Step]) -> list[str]:
    """A label for each step: its filter's name, followed by a number where an earlier step has the same name."""
    taken = list[str]()
    for step in steps:
        name = step.filter.name
        candidates = (name if number == 1 else f"{name} {number}" for number in count(1))
        taken.append(next(label for label in candidates if label not in taken))
    return taken

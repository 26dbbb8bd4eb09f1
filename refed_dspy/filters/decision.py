"""What a filter says of one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

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

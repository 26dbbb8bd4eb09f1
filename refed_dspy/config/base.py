"""What all settings have in common."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from refed_dspy.errors import one_line

PAIR = ("instruction", "response", "input")
"""What `columns` may name of a pair."""


class Settings(BaseModel):
    # Pydantic's own messages show what was given: a key put in the wrong place must not be.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


def _known(known: Sequence[str], value: dict[str, str]) -> dict[str, str]:
    """`value`, checked. Raises ValueError for a part of a row that there is not: it would be left out unseen."""
    if (odd := next((name for name in value if name not in known), None)) is not None:
        near = get_close_matches(odd, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
        raise ValueError(f"{one_line(odd, 40)}: unknown key; {hint}")
    return value


PairColumns: TypeAlias = Annotated[dict[str, str], AfterValidator(partial(_known, PAIR))]
"""Where a table's columns have other names: {instruction: question, response: answer}."""
RowColumns: TypeAlias = Annotated[dict[str, str], AfterValidator(partial(_known, (*PAIR, "plain")))]
"""The same with `plain`: the response before it was improved."""


class Capped(Settings):
    """Caps over all models and over all starts; they stay with the folder until others are given."""

    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """Dollars."""
    max_calls: int | None = Field(default=None, ge=1)
    """Calls, whatever becomes of them."""
    max_minutes: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """Minutes at work."""

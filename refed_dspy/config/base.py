"""What all settings classes share: their base class, the checks on column names, and the caps."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from functools import partial
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from refed_dspy.errors import one_line

PAIR = ("instruction", "response", "input")
"""The fields of a pair that `columns` may name."""


class Settings(BaseModel):
    """Base of all settings: frozen, and an unknown key is an error."""

    # Pydantic's own messages show the input. It may be an API key put in the wrong place, so it must not be shown.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)


def _check_columns(fields: Sequence[str], columns: dict[str, str]) -> dict[str, str]:
    """`columns`, checked. Raises ValueError for a key that is none of `fields`: it would be ignored silently."""
    if (unknown := next((name for name in columns if name not in fields), None)) is not None:
        near = get_close_matches(unknown, fields, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(fields)}"
        raise ValueError(f"{one_line(unknown, 40)}: unknown key; {hint}")
    return columns


PairColumns: TypeAlias = Annotated[dict[str, str], AfterValidator(partial(_check_columns, PAIR))]
"""The names of a table's columns where they differ: {instruction: question, response: answer}."""
RowColumns: TypeAlias = Annotated[dict[str, str], AfterValidator(partial(_check_columns, (*PAIR, "plain")))]
"""The same with `plain`: the response before it was improved."""


class Capped(Settings):
    """Caps over all models and all starts. They are stored in the folder and hold until they are set again."""

    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """Dollars."""
    max_calls: int | None = Field(default=None, ge=1)
    """Calls, whatever their outcome."""
    max_minutes: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """Minutes of work."""

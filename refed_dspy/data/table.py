"""Rows of any instruction data set: which text is the instruction, which the response, and the row as it stood."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row. `number` counts from 1, as a person would find it; `response` is what is trained on; `plain` the one
    before it was improved, None where the data set has none; `fields` is the row as it stood."""

    number: int
    instruction: str
    response: str
    plain: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

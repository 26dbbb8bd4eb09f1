"""Tables as plain text: columns aligned, for a terminal or a file."""

from __future__ import annotations

from collections.abc import Sequence

NONE = "–"
"""What stands where there is nothing to tell."""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """`rows` as lines, a heading first; every row has as many cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def number(value: float | None, digits: int = 2) -> str:
    """`value` for people, or NONE."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if digits == 0 or abs(value) >= 10_000 else f"{value:z,.{digits}f}"

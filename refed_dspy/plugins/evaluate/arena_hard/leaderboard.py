"""The tables that `show_result.py` prints, read back."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TITLE = "##### Category:"
_ROW = re.compile(
    r"^\d+ +(?P<model>\S.*?) +(?P<score>-?\d+\.\d+) +\(-(?P<minus>-?\d+\.\d+) / \+(?P<plus>-?\d+\.\d+)\)$"
)


@dataclass(frozen=True)
class Score:
    """An arm's score over the baseline in percent, to one digit, with the 90% interval of the benchmark's code: the
    5% and 95% quantiles of its 100 bootstraps."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.1f} ({self.low:.1f} to {self.high:.1f})"


def read_table(printed: str, arms: Iterable[str]) -> dict[str, Score]:
    """Each arm's score in what the code printed. Raises ValueError, in one line, where one is not in it."""
    _, title, table = printed.rpartition(_TITLE)
    rows = [match for line in table.splitlines() if (match := _ROW.match(line.strip()))]
    scores = {row["model"]: _score(row) for row in rows}
    if lacking := [arm for arm in arms if arm not in scores]:
        raise ValueError(f"no score of {', '.join(lacking)}" if title else "no table")
    return {arm: scores[arm] for arm in arms}


def _score(row: re.Match[str]) -> Score:
    value = float(row["score"])
    return Score(value, round(value - float(row["minus"]), 1), round(value + float(row["plus"]), 1))

"""The paper's filter figure on one's own data: how good the rows are that each filter keeps, at several sizes."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from refed_dspy.comparing.comparison import Subset, mean_grade
from refed_dspy.comparing.reading import Compared, ComparedRow
from refed_dspy.job_settings import CompareConfig
from refed_dspy.measures.win_rates import win_rate
from refed_dspy.statistics import Interval

SEED = "seed-only"
FILTERS = ("random", "rouge", "judge")
_Worth: TypeAlias = tuple[Interval | None, Interval | None]
_SHARES = (0.125, 0.25, 0.5, 1.0)


def subsets(compared: Compared, config: CompareConfig) -> list[Subset]:
    """A line for each program that improves responses, filter and size.

    Rows are taken in one order drawn by the seed: `random` takes the first ones, `rouge` the first whose instruction
    is unlike those taken (ROUGE-L F below 0.7), `judge` the first that beat the response they are compared with. A
    size above the rows there are stands for all of them. A filter that keeps fewer rows than a size has no line there.
    """
    from refed_dspy.filters.rouge import select

    lines = []
    unlike: dict[tuple[str, ...], list[bool]] = {}  # programs share instructions, and it takes time
    for name, given in config.programs.items():
        rows = [row for row in compared.rows if name in row.answered.verdicts]
        if given == SEED or name == config.against or not rows:
            continue
        order = random.Random(config.seed).sample(rows, len(rows))
        sizes = sorted({min(size, len(rows)) for size in config.subsets or _sizes(len(rows))})
        texts = tuple(row.instruction for row in order)
        if texts not in unlike:
            unlike[texts] = [match.kept for match in select(texts)]
        kept = _kept(name, order, unlike[texts])
        told: dict[tuple[int, ...], _Worth] = {}  # a filter that drops nothing keeps what `random` does
        for which in FILTERS:
            for size in sizes:
                if size <= len(kept[which]):
                    taken = kept[which][:size]
                    key = tuple(row.number for row in taken)
                    told[key] = told.get(key) or _worth(name, taken, config)
                    lines.append(Subset(name, which, size, *told[key]))
    return lines


def _sizes(rows: int) -> list[int]:
    return [size for share in _SHARES if (size := round(share * rows)) >= 2]


def _kept(name: str, order: Sequence[ComparedRow], unlike: Sequence[bool]) -> Mapping[str, Sequence[ComparedRow]]:
    wins = [row for row in order if (row.answered.verdicts[name].preference or 0) > 0]
    return {
        "random": order,
        "rouge": [row for row, kept in zip(order, unlike, strict=True) if kept],
        "judge": wins,
    }


def _worth(name: str, rows: Sequence[ComparedRow], config: CompareConfig) -> _Worth:
    """Mean grade, and win rate over the plain responses."""
    graded = [
        (float(grade.grade), row.reference)
        for row in rows
        if (grade := row.answered.grades.get(name)) is not None and grade.grade is not None
    ]
    won = [(win, row.reference) for row in rows if (win := row.answered.verdicts[name].win) is not None]
    rate = win_rate(*map(list, zip(*won, strict=True)), seed=config.seed) if won else None
    return mean_grade(graded, config.seed), rate

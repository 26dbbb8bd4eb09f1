"""A comparison in files: the table, the figures, every row with what each program made of it, and two pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from refed_dspy.files import write_json, write_lines, write_text
from refed_dspy.records import PICO
from refed_dspy.runs.compare.pictures import Bar, Point, filter_picture, save, win_rate_picture
from refed_dspy.runs.compare.replay import Compared
from refed_dspy.runs.compare.result import PROXY, Comparison

TABLE, FIGURES, ROWS, WIN_RATES, FILTERS = (
    *("comparison.txt", "comparison.json", "rows.jsonl"),
    *("win-rates.png", "filters.png"),
)


def write_comparison(comparison: Comparison, compared: Compared) -> None:
    """All files, each whole or not at all, in the comparison's folder. Raises ExportError."""
    write_text(comparison.out / TABLE, comparison.text())
    write_json(comparison.out / FIGURES, facts(comparison))
    write_lines(comparison.out / ROWS, rows(compared))
    bars = [
        Bar(line.program, line.win_rate, line.length_controlled.interval if line.length_controlled else None)
        for line in comparison.lines
        if line.win_rate is not None
    ]
    if bars:
        save(win_rate_picture(bars, caption=f"Against {comparison.against}. {PROXY}."), comparison.out / WIN_RATES)
    curves: defaultdict[str, list[Point]] = defaultdict(list)
    several = len({one.program for one in comparison.subsets}) > 1
    for one in comparison.subsets:
        if one.grade is not None:
            name = f"{one.filter} ({one.program})" if several else one.filter
            curves[name].append(Point(one.size, one.grade))
    if curves:
        caption = f"Mean grade of the rows that a filter keeps. {PROXY}."
        save(filter_picture(curves, caption=caption, quality="grade, 1 to 5"), comparison.out / FILTERS)


def facts(comparison: Comparison) -> dict[str, Any]:
    """The figures in JSON types; money in dollars, None where a price is unknown; a bound that is infinite is None."""
    told = asdict(comparison)
    told["out"] = str(comparison.out)
    told["proxy"] = PROXY
    for line in told["lines"]:
        line["cost"] = None if line["cost"] is None else line["cost"] / PICO
    unknown = told["used"]["unpriced"] and not told["used"]["cost"]
    told["used"]["cost"] = None if unknown else told["used"]["cost"] / PICO
    return dict(json.loads(json.dumps(told, default=str), parse_constant=lambda _: None))


def rows(compared: Compared) -> Iterator[dict[str, Any]]:
    """One row an instruction and program."""
    for row in compared.rows:
        for name, sample in row.answered.samples.items():
            verdict, grade = row.answered.verdicts.get(name), row.answered.grades.get(name)
            yield {
                "instruction": row.instruction,
                "program": name,
                "response": sample.response,
                "improved_response": sample.improved_response,
                "reference": row.reference,
                "feature": row.feature,
                "preference": verdict.preference if verdict else None,
                "consistent": verdict.consistent if verdict else None,
                "judge": list(verdict.reasons) if verdict else [],
                "abstained": verdict.abstained if verdict else "",
                "grade": grade.grade if grade else None,
                "grade_reason": grade.reason if grade else "",
            }

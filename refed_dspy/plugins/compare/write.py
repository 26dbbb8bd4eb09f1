"""A comparison's files: the table, the figures, a row for each instruction and program, and two pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from refed_dspy.data.export import answer_of, prompt_of
from refed_dspy.files import write_json, write_lines, write_text
from refed_dspy.plugins.compare.pictures import Bar, Point, filter_picture, win_rate_picture
from refed_dspy.plugins.compare.replay import Compared
from refed_dspy.plugins.compare.result import PROXY, Comparison
from refed_dspy.plugins.metrics.drawing import save

TABLE, FIGURES, ROWS, PAIRS = "comparison.txt", "comparison.json", "rows.jsonl", "pairs.jsonl"
WIN_RATES, FILTERS = "win-rates.png", "filters.png"
OUTPUTS = (TABLE, FIGURES, ROWS, PAIRS, WIN_RATES, FILTERS)


def write_comparison(comparison: Comparison, compared: Compared) -> None:
    """Write all files into the comparison's folder, each whole or not at all. Raises ExportError."""
    write_text(comparison.out / TABLE, comparison.lines())
    write_json(comparison.out / FIGURES, facts(comparison))
    write_lines(comparison.out / ROWS, rows(compared))
    write_lines(comparison.out / PAIRS, pairs(compared, comparison.against))
    bars = [
        Bar(line.program, line.win_rate, line.length_controlled.interval if line.length_controlled else None)
        for line in comparison.programs
        if line.win_rate is not None
    ]
    if bars:
        save(win_rate_picture(bars, caption=f"Against {comparison.against}. {PROXY}."), comparison.out / WIN_RATES)
    curves: defaultdict[str, list[Point]] = defaultdict(list)
    several = len({subset.program for subset in comparison.subsets}) > 1
    for subset in comparison.subsets:
        if subset.grade is not None:
            name = f"{subset.filter} ({subset.program})" if several else subset.filter
            curves[name].append(Point(subset.size, subset.grade))
    if curves:
        caption = f"Mean grade of the rows that a filter keeps. {PROXY}."
        save(filter_picture(curves, caption=caption, quality="grade, 1 to 5"), comparison.out / FILTERS)


def facts(comparison: Comparison) -> dict[str, Any]:
    """The figures in JSON types. Money is in dollars, None if a price is unknown; an infinite bound is None."""
    figures = asdict(comparison)
    figures["out"] = str(comparison.out)
    figures |= {"proxy": PROXY, "notes": comparison.notes()}
    used, picodollars = figures["used"], figures["used"].pop("picodollars")
    used["cost"] = None if used["unpriced"] and not picodollars else comparison.used.cost
    return dict(json.loads(json.dumps(figures, default=str), parse_constant=lambda _: None))


def _systems(compared: Compared) -> dict[str, str]:
    """A reference's id → the system prompt that its rows inherit; "" for none."""
    return {reference.id: reference.system for reference in compared.references}


def rows(compared: Compared) -> Iterator[dict[str, Any]]:
    """One row for each instruction and program."""
    systems = _systems(compared)
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
                "judge_failed": verdict.failed if verdict else "",
                "grade": grade.grade if grade else None,
                "grade_reason": grade.reason if grade else "",
                "system": systems[row.reference],
            }


def pairs(compared: Compared, against: str) -> Iterator[dict[str, Any]]:
    """Pairs to train on, as `refed export --format preference` writes them: of each program's response and that of the
    program compared with, where the judge preferred one in both orders."""
    systems = _systems(compared)
    for row in compared.rows:
        for name, verdict in row.answered.verdicts.items():
            if not verdict.preference:  # a tie, or the orders disagree
                continue
            better, worse = (name, against) if verdict.preference > 0 else (against, name)
            samples, system = row.answered.samples, systems[row.reference]
            yield {
                "prompt": prompt_of(row.instruction, system),
                "chosen": answer_of(samples[better].improved_response),
                "rejected": answer_of(samples[worse].improved_response),
                "margin": abs(verdict.preference),
                "chosen_program": better,
                "rejected_program": worse,
            }

"""The page of a comparison, from its ledger and the files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from refed_dspy.data.stored import json_lines, read_json
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.metrics.win_rates import LC_NOTE
from refed_dspy.plugins.share.report import charts, glance
from refed_dspy.plugins.share.report.charts import Chart
from refed_dspy.plugins.share.report.drawing import Intervals
from refed_dspy.plugins.share.report.glance import Fact, Table
from refed_dspy.plugins.share.report.page import Page
from refed_dspy.plugins.share.report.rows import Extract, Gallery, plain
from refed_dspy.records import money
from refed_dspy.text import NO_VALUE, counted, format_number

FIGURES, ROWS = "comparison.json", "rows.jsonl"
_SHOWN = 30
"""Instructions that are shown with all answers."""
_RATES = ("win rate", "length-controlled")


def comparison_page(folder: Path, ledger: Ledger) -> Page:
    """The contents of a comparison's page; until it has ended, what it took so far."""
    status, made = status_of(ledger), read_json(folder / FIGURES)
    lines = made.get("programs", [])
    stopped = [made["stopped"]] if made.get("stopped") and made["stopped"] != status["reason"] else []
    notes = [*stopped, *made.get("notes", ()), *glance.self_judged(made.get("teacher"), made.get("judge"))]
    lead = f"{status['kept']:,} of {status['size']:,} instructions compared"
    if made:
        lead = (
            f"{counted(made['instructions'], 'instruction')} from {counted(made['references'], 'reference')}, "
            f"written by {made['teacher']}, judged by {made['judge']} against {made['against']}. {made['proxy']}."
        )
    shown = [_win_rates(lines, made["against"]), _grades(lines)] if made else []
    return Page(
        title=folder.absolute().name,
        lead=lead,
        state=status["state"],
        reason=status["reason"],
        facts=[Fact("Instructions", f"{status['kept']:,}", f"of {status['size']:,}"), *glance.paid(ledger, status)],
        notes=[*notes, *glance.spending_notes(status)],
        galleries=[side_by_side] if (side_by_side := _side_by_side(folder / ROWS)) else [],
        charts=[*filter(None, shown), charts.costs(status["usage"])],
        tables=[*([_programs(lines)] if lines else []), glance.models(status["models"])],
    )


def _win_rates(lines: Sequence[Mapping[str, Any]], against: str) -> Chart | None:
    compared = [line for line in lines if line["win_rate"]]
    if not compared:
        return None
    rates = [
        (_interval(line["win_rate"]), _interval((line["length_controlled"] or {}).get("interval"))) for line in compared
    ]
    series = {name: [each[at] for each in rates] for at, name in enumerate(_RATES)}
    series = {name: intervals for name, intervals in series.items() if any(intervals)}
    figure = Intervals(
        [line["program"] for line in compared], series, [_text(rate, 1, "%") for rate, _ in rates], 0, 100, 50
    )
    rows = [
        [line["program"], *(_text(rate, 1, "%") for rate in each)] for line, each in zip(compared, rates, strict=True)
    ]
    text = f"How often the judge preferred the program's response to that of {against}, with 95% intervals."
    text += f" {LC_NOTE}" if "length-controlled" in series else ""
    return Chart("wins", f"Win rates over {against}", text, figure, ("program", *_RATES), rows)


def _grades(lines: Sequence[Mapping[str, Any]]) -> Chart | None:
    graded = [(line["program"], grade) for line in lines if (grade := _interval(line["grade"]))]
    if not graded:
        return None
    ends = [_text(grade, 2) for _, grade in graded]
    figure = Intervals([name for name, _ in graded], {"grade": [grade for _, grade in graded]}, ends, 1, 5)
    rows = [[name, end] for (name, _), end in zip(graded, ends, strict=True)]
    text = "The judge's grades of the responses, from 1 to 5, with 95% intervals."
    return Chart("grades", "Grades", text, figure, ("program", "grade"), rows)


def _programs(lines: Sequence[Mapping[str, Any]]) -> Table:
    columns = (
        "program", "rows", "both orders agree", "undecided", "judge failed", "feedback", "calls", "dollars",
        "dollars per 1,000 rows", "words", "distinct word pairs",
    )  # fmt: skip
    text = "What each program would have cost on its own, without the judge."
    return Table("programs", "Programs", text, columns, [_cells(line) for line in lines])


def _cells(line: Mapping[str, Any]) -> list[str]:
    judged, cost, rows = line["judgements"], line["cost"], line["rows"]
    asked = judged["decided"] or judged["abstained"] or judged["failed"]
    return [
        line["program"], f"{rows:,}", format_number(line["consistent"]),
        *(f"{judged[name]:,}" if asked else NO_VALUE for name in ("abstained", "failed")),
        f"{line['feedback']:,}", f"{line['calls']:,}",
        money(cost, unknown=NO_VALUE),
        money(1000 * cost / rows if cost is not None and rows else None, unknown=NO_VALUE),
        format_number(line["words"], 0), format_number(line["distinct"]),
    ]  # fmt: skip


def _side_by_side(path: Path) -> Gallery | None:
    """The first instructions, each with every program's response and the judge's verdict on it."""
    groups = groupby(json_lines(path), lambda row: row["instruction"])
    shown = [
        Extract(
            instruction.strip(),
            [plain(row["program"], row["improved_response"], ", ".join(_verdict(row))) for row in rows],
        )
        for instruction, rows in islice(groups, _SHOWN)
    ]
    if not shown:
        return None
    text = f"The first {len(shown):,} instructions with the response of every program; all of them are in {ROWS}."
    return Gallery("side-by-side", "Side by side", text, shown, wide=True)


def _verdict(row: Mapping[str, Any]) -> Iterator[str]:
    if row["preference"] is not None:
        yield "wins" if row["preference"] > 0 else "loses" if row["preference"] < 0 else "a tie"
    elif row["abstained"] or row["judge_failed"]:
        yield "not decided"
    if row["grade"] is not None:
        yield f"grade {format_number(row['grade'], 0 if row['grade'] == int(row['grade']) else 1)}"


def _interval(stored: Mapping[str, Any] | None) -> Interval | None:
    return None if stored is None else Interval.of_stored(stored)


def _text(interval: Interval | None, digits: int, unit: str = "") -> str:
    return NO_VALUE if interval is None else interval.shown(digits, unit)

"""`refed show`: a few rows of a run, a filtering or a recycling on the terminal, with what the improvement changed."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any

import typer

from refed_dspy.cli.options import WorkDir, reporting
from refed_dspy.cli.printing import printable, say
from refed_dspy.errors import InputError, one_line

app = typer.Typer()
OPENING = 60
"""Characters shown of a sample's reference."""
LONGEST = 2_000
"""Characters shown of each text."""
_COMPARING = ("rouge", "near_duplicates")
"""Filters whose detail is the kept text that a dropped one is like."""


@app.command()
@reporting
def show(
    run_dir: WorkDir,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many.", metavar="N")] = 3,
    dropped: Annotated[
        bool, typer.Option("--dropped", help="Show dropped rows instead, each with its filter and reason.")
    ] = False,
) -> None:
    """Show a few samples or rows: the instruction, and what the improvement changed in the response."""
    from refed_dspy.data.stored import ROWS, rows_in, work_in

    if dropped:
        _show_dropped(run_dir, number)
    elif (work := work_in(run_dir)) in ROWS:
        from refed_dspy.data.dataset import load_dataset
        from refed_dspy.data.sources import as_trained, simulated_in

        if next(rows_in(run_dir, work), None) is None:
            raise InputError(f"{run_dir}: no row was kept")
        made = load_dataset(run_dir).rows
        if note := simulated_in(run_dir):
            say(f"{note}\n")
        for place, row in enumerate(made[:number], start=1):
            say(f"── row {place} of {len(made)}")
            _show(row.instruction, as_trained(row)["response"], row.response)
    else:
        _show_samples(run_dir, number)


def _show_samples(run_dir: Path, number: int) -> None:
    from refed_dspy.data.rows import data_rows
    from refed_dspy.ledger.ledger import Ledger
    from refed_dspy.runs.result import read_run

    made = read_run(run_dir)
    if not made.samples:
        raise InputError(f"{run_dir}: no samples yet")
    if made.status["simulated"]:
        say(f"{made.status['simulated']}\n")
    with Ledger.read(run_dir) as ledger:
        rows = list(islice(data_rows(ledger), number))
        begins = {each.id: each.instruction for each in ledger.references({row["reference"] for row in rows})}
    for place, row in enumerate(rows, start=1):
        say(f"── sample {place} of {len(made.samples)}{_origin(row, begins)}")
        _show(row["instruction"], row["response"], row["improved_response"])


def _origin(row: Mapping[str, Any], begins: Mapping[str, str]) -> str:
    """From which reference a sample was made, how that begins, and what the sample cost."""
    from refed_dspy.records import PICO, dollars

    reference = f", from {one_line(row['reference_source'] or row['reference'], 60)}"
    if begin := begins.get(row["reference"]):
        reference += f": {one_line(begin, OPENING)}"
    cost = "price unknown" if row["cost"] is None else dollars(row["cost"] * PICO)
    return f"{reference} ({cost})"


def _show_dropped(run_dir: Path, number: int) -> None:
    from refed_dspy.data.sources import dropped_in

    rows = list(islice(dropped_in(run_dir), number))
    if not rows:
        raise InputError(f"{run_dir}: nothing was dropped")
    for row in rows:
        score = "" if row.score is None else f", score {row.score:.4g}"
        say(f"── dropped by {one_line(row.filter, 60)}: {one_line(row.reason, 200)}{score}")
        if row.detail:
            detail = one_line(row.detail, 300)
            compared = row.filter.partition(" ")[0] in _COMPARING
            say(f"kept:\n  {detail}\ndropped:" if compared else f"   {detail}")
        _show(row.instruction, row.plain, row.response)


def _show(instruction: str, plain: str | None, response: str | None) -> None:
    """A row. `plain`: the response before it was improved, None where there is no other than `response`."""
    say(indent(_short(instruction), "  "))
    if response is None:
        say("no response\n")
    elif plain is None:
        say("response:\n" + indent(_short(response), "  ") + "\n")
    else:
        say("response, with [-removed-] and {+added+} text:" if not _coloured() else "response:")
        typer.echo(indent(changed(_short(plain), _short(response)), "  ") + "\n")


def changed(before: str, after: str) -> str:
    """`after` with what is new in it, and what is gone from `before`, marked: by colour in a terminal."""
    from refed_dspy.data.differences import IMPROVED, PLAIN, segments

    marks = {PLAIN: ("[-", "-]", typer.colors.RED), IMPROVED: ("{+", "+}", typer.colors.GREEN)}
    parts = []
    for kind, text in segments(before, after):
        text = printable(text)
        if kind in marks:
            begin, end, colour = marks[kind]
            text = typer.style(text, fg=colour) if _coloured() else f"{begin}{text}{end}"
        parts.append(text)
    return "".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")

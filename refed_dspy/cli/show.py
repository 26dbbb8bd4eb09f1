"""`refed show`: a few samples of a run on the terminal, with what the improvement changed."""

from __future__ import annotations

import os
import sys
from itertools import islice
from textwrap import indent
from typing import Annotated

import typer

from refed_dspy.cli.options import RunDir, reporting
from refed_dspy.cli.printing import printable, say
from refed_dspy.errors import InputError

app = typer.Typer()
LONGEST = 2_000
"""Characters shown of each text."""


@app.command()
@reporting
def show(
    run_dir: RunDir,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many samples.", metavar="N")] = 3,
) -> None:
    """Show a few samples: the instruction, and what the improvement changed in the response."""
    from refed_dspy.runs.result import read_run

    made = read_run(run_dir)
    if not made.samples:
        raise InputError(f"{run_dir}: no samples yet")
    if made.status["simulated"]:
        say(f"{made.status['simulated']}\n")
    for place, sample in enumerate(islice(made.samples, number), start=1):
        say(f"── sample {place} of {len(made.samples)}")
        say(indent(_short(sample.instruction), "  "))
        say("response, with [-removed-] and {+added+} text:" if not _coloured() else "response:")
        typer.echo(indent(changed(_short(sample.response), _short(sample.improved_response)), "  ") + "\n")


def changed(before: str, after: str) -> str:
    """`after` with what is new in it, and what is gone from `before`, marked: by colour in a terminal."""
    from refed_dspy.sharing.report.differences import IMPROVED, PLAIN, segments

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

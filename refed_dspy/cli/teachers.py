"""`refed teacher check` and `fetch`: whether a teacher works, and the embedded model's weights."""

from __future__ import annotations

from typing import Annotated

import typer

from refed_dspy.cli.options import reporting
from refed_dspy.cli.printing import say
from refed_dspy.errors import InputError, one_line
from refed_dspy.text import counted

app = typer.Typer()
teacher_app = typer.Typer(no_args_is_help=True, help="Check a teacher; download the embedded model.")
app.add_typer(teacher_app, name="teacher")


@teacher_app.command()
@reporting
def check(
    name_or_file: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_FILE", help="PROVIDER/NAME, embedded, simulated, a teacher file or a run's settings file."
        ),
    ],
) -> None:
    """Test a teacher with two small paid calls (a fraction of a cent) and remember what it refuses."""
    from refed_dspy.concurrency import run_blocking
    from refed_dspy.config.loading import teachers_in
    from refed_dspy.records import dollars
    from refed_dspy.teachers.check import check as check_one

    teachers = teachers_in(name_or_file)
    for config in teachers:
        if len(teachers) > 1:
            say(f"───── {config.model or config.gguf}" + (f" at {config.api_base}" if config.api_base else ""))
        calls = run_blocking(check_one(config, lambda what, finding: say(f"{what + ':':<13}{one_line(finding, 300)}")))
        answered = sum(call.outcome == "ok" for call in calls)
        priced = [call.cost for call in calls if call.cost is not None]
        cost = dollars(sum(priced)) if len(priced) == len(calls) else "price unknown"
        refused = f", {len(calls) - answered} refused" if answered < len(calls) else ""
        say(f"{'this check:':<13}{counted(answered, 'answer')}{refused}, {cost}")


@teacher_app.command()
@reporting
def fetch(
    name: Annotated[str, typer.Argument(help="embedded, embedded-smoke (tiny, for tests), or embedder.")] = "embedded",
) -> None:
    """Download and verify weights: the embedded teacher's, or the small embedding model for statistics.

    1.1 GB; 93 MB for embedded-smoke, 84 MB for embedder.
    """
    from refed_dspy.weights import WEIGHTS
    from refed_dspy.weights import fetch as download

    if name not in WEIGHTS:
        raise InputError(f"{one_line(name, 60)}: no such weights; use {' or '.join(WEIGHTS)}")
    path = download(WEIGHTS[name], lambda line: say(line, err=True))
    say(path)

"""`refed compare`."""

from __future__ import annotations

from typing import Annotated

import typer

from refed_dspy.cli.options import (
    NO_OUT,
    NO_TEACHER,
    given,
    needed,
    paid,
    reporting,
    settings_of,
    tell,
)

app = typer.Typer()


@app.command("compare", options_metavar="--teacher FILE_OR_NAME --out DIR [OPTIONS]")
@reporting
@paid("references", "out", "teacher", "judge", "accept_changed", "seed", "track")
def compare_(
    context: typer.Context,
    size: Annotated[
        int | None, typer.Option(help="Instructions that every program answers.", metavar="N", show_default="100")
    ] = None,
    against: Annotated[str | None, typer.Option(help="The program to compare the others with.", metavar="NAME")] = None,
) -> None:
    """Compare programs on the same references: win rates, costs, filters. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.plugins.compare.compare import compare
    from refed_dspy.plugins.compare.settings import CompareConfig

    settings = settings_of(CompareConfig, context)
    folder = needed(settings.out, NO_OUT)
    needed(settings.teacher, NO_TEACHER)
    references_ = settings.references or "builtin"
    made = shown(compare, settings.programs, references_, **given(settings, "programs", "references"))
    tell(made.lines(), folder, made.stopped, "table, rows, pairs and pictures")

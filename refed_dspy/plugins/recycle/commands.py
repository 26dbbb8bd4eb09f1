"""`refed recycle`."""

from __future__ import annotations

from typing import Annotated

import typer

from refed_dspy.cli.options import (
    NO_DATA,
    NO_OUT,
    NO_TEACHER,
    Data,
    ScorerOption,
    given,
    needed,
    paid,
    reporting,
    settings_of,
    tell,
)

app = typer.Typer()


@app.command("recycle", options_metavar="--teacher FILE_OR_NAME --out DIR [OPTIONS]")
@reporting
@paid("out", "teacher", "seed")
def recycle_(
    context: typer.Context,
    data: Data = None,
    size: Annotated[
        int | None, typer.Option(help="Rows to recycle, drawn at random.", metavar="N", show_default="all")
    ] = None,
    selective: Annotated[
        bool | None,
        typer.Option("--selective", help="Keep a new part only if IFD or r-IFD favours it; needs --scorer."),
    ] = None,
    scorer: ScorerOption = None,
) -> None:
    """Improve an existing data set's instructions and responses by Reflection-Tuning. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.plugins.recycle.recycle import recycle
    from refed_dspy.plugins.recycle.settings import RecycleConfig

    settings = settings_of(RecycleConfig, context, scorer=scorer and {"model": scorer})
    folder, source = needed(settings.out, NO_OUT), needed(settings.data, NO_DATA)
    needed(settings.teacher, NO_TEACHER)
    made = shown(recycle, source, **given(settings, "data"))
    tell(made.lines(), folder, made.stopped, "rows and table")

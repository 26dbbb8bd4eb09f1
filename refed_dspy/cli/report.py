"""`refed report`: a run as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refed_dspy.cli.options import RunDir, reporting


def add_to(app: typer.Typer) -> None:
    app.command()(report)


@reporting
def report(
    run_dir: RunDir,
    out: Annotated[
        Path | None, typer.Option(help="File to write; unset, report.html in the run's folder.", metavar="FILE")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Make one page that shows a run: what was made, why each row looks as it does, what it cost."""
    from refed_dspy.sharing.report.report import report as make

    path = make(run_dir, out, force=force, say=lambda line: typer.echo(line, err=True))
    typer.echo(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if show:
        typer.launch(str(path.absolute()))

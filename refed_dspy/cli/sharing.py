"""`refed share` and `refed push`: a run's data set made ready for the Hub, and sent there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refed_dspy.cli.options import reporting


def add_to(app: typer.Typer) -> None:
    """Put the commands into `app`."""
    app.command("share")(share_)
    app.command("push")(push_)


@reporting
def share_(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")],
    out: Annotated[Path, typer.Option(help="Folder to make.", metavar="FOLDER")],
    name: Annotated[str | None, typer.Option(help="The data set's name; unset, the folder's.", metavar="TEXT")] = None,
    license: Annotated[  # noqa: A002 — the flag's name
        str | None,
        typer.Option(help="License that you give the data: its name on the Hub, or a file of its text.", metavar="ID"),
    ] = None,
    reference_license: Annotated[
        str | None, typer.Option(help="Under what license the references are.", metavar="TEXT")
    ] = None,
    citation: Annotated[
        Path | None, typer.Option(help="BibTeX with which to cite the data set.", metavar="FILE")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Also a page that shows the run.")] = False,
    dropped: Annotated[bool, typer.Option("--dropped", help="Also the rows that filters dropped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that this command made.")] = False,
) -> None:
    """Make a folder for the Hugging Face Hub from a run: data set card, Parquet, and a list of what is in it."""
    from refed_dspy.sharing.share import share

    made = share(
        run,
        out,
        name=name,
        license=license,
        reference_license=reference_license,
        citation=citation,
        report=report,
        dropped=dropped,
        force=force,
    )
    for one in made.files:
        typer.echo(f"{one.path}  {one.bytes:,} bytes")
    for note in made.notes:
        typer.echo(f"refed: {note}", err=True)
    more = f", {made.dropped} dropped ones" if made.dropped else ""
    typer.echo(f"{made.rows} rows{more} in {out}; read its README.md, then: refed push {out} OWNER/NAME")


@reporting
def push_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that refed share made.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The data set on the Hub.")],
    go: Annotated[bool, typer.Option("--go", help="Send it. Without, nothing is sent or asked.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make it public; unset, private.")] = False,
    branch: Annotated[str, typer.Option(help="The branch, made where it is not there.", metavar="NAME")] = "main",
    message: Annotated[str | None, typer.Option(help="The commit's message.", metavar="TEXT")] = None,
) -> None:
    """Show exactly what would go to the Hub; with --go, send that."""
    from refed_dspy.sharing.push import MESSAGE, push

    done = push(folder, repo, go=go, public=public, branch=branch, message=MESSAGE if message is None else message)
    typer.echo("\n".join(done.lines()))

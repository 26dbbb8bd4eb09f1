"""`refed report`, `share` and `push`: a page of what a folder has, also while work goes on; rows made
ready for the Hub, and sent there."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from refed_dspy.cli.options import AnyDir, WorkDir, print_lines, reporting
from refed_dspy.cli.printing import say
from refed_dspy.errors import ConfigError
from refed_dspy.text import counted

app = typer.Typer()


@app.command()
@reporting
def report(
    run_dir: AnyDir,
    out: Annotated[
        Path | None, typer.Option(help="File to write.", metavar="FILE", show_default="report.html in DIR")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write nothing: serve a page of a run that follows it, until Ctrl-C.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="Port of --watch.", metavar="N", show_default="any free port")
    ] = None,
) -> None:
    """Write a one-page report of a run, a comparison, a filtering or a compile: results, reasons and cost."""
    from refed_dspy.plugins.share.report.report import report as make

    if watch:
        if out is not None or force:
            raise ConfigError("--watch writes no file; remove --out and --force")
        _watch(run_dir, port or 0, show)
        return
    if port is not None:
        raise ConfigError("--port is for --watch; add it, or remove --port")
    path = make(run_dir, out, force=force, say=lambda line: say(line, err=True))
    say(f"{path} ({path.stat().st_size / 1e6:.1f} MB)")
    if show:
        typer.launch(str(path.absolute()))


def _watch(run_dir: Path, port: int, show: bool) -> None:
    """Show a live report of a run in the browser. Ctrl-C stops the page, not the run."""
    from refed_dspy.plugins.share.report.watch import ReportServer

    with suppress(KeyboardInterrupt), ReportServer(run_dir, port) as server:
        say("Ctrl-C stops the page, not the run. Open:", err=True)
        say(server.address)
        if show:
            typer.launch(server.address)
        server.serve_forever()


@app.command("share", options_metavar="--out FOLDER [OPTIONS]")
@reporting
def share_(
    run: WorkDir,
    out: Annotated[Path, typer.Option(help="Folder to create.", metavar="FOLDER")],
    name: Annotated[
        str | None, typer.Option(help="The data set's name.", metavar="TEXT", show_default="the folder's")
    ] = None,
    license: Annotated[  # noqa: A002 — the flag's name
        str | None,
        typer.Option(help="License of the data: its name on the Hub, or a file with its text.", metavar="ID"),
    ] = None,
    reference_license: Annotated[str | None, typer.Option(help="License of the references.", metavar="TEXT")] = None,
    citation: Annotated[Path | None, typer.Option(help="BibTeX for citing the data set.", metavar="FILE")] = None,
    report: Annotated[bool, typer.Option("--report", help="Include the run's report.")] = False,
    dropped: Annotated[bool, typer.Option("--dropped", help="Include the rows that filters dropped.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that this command made.")] = False,
) -> None:
    """Turn rows into a folder for the Hugging Face Hub: card, Croissant file, Parquet and a list of files."""
    from refed_dspy.cli.display import rows_shown
    from refed_dspy.plugins.share.share import share

    with rows_shown() as through:
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
            through=through,
        )
    for file in made.files:
        say(f"{file.path}  {file.bytes:,} bytes")
    for ledger in made.ledgers:
        say(f"ledger  SHA-256 {ledger}")
    for note in made.notes:
        say("refed: " + note, err=True)
    more = f" and {counted(made.dropped, 'dropped row')}" if made.dropped else ""
    say(f"{counted(made.rows, 'row')}{more} in {out}; read its README.md, then: refed push {out} OWNER/NAME")


@app.command("push")
@reporting
def push_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder that refed share made.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The data set on the Hub.")],
    go: Annotated[
        bool, typer.Option("--go", help="Send it. Without this, nothing is sent and the Hub is not contacted.")
    ] = False,
    public: Annotated[bool, typer.Option("--public", help="Make the data set public instead of private.")] = False,
    branch: Annotated[str, typer.Option(help="The branch; created if missing.", metavar="NAME")] = "main",
    message: Annotated[str | None, typer.Option(help="The commit's message.", metavar="TEXT")] = None,
) -> None:
    """Show exactly what would be sent to the Hub; with --go, send it."""
    from refed_dspy.plugins.share.push import MESSAGE, push

    done = push(folder, repo, go=go, public=public, branch=branch, message=MESSAGE if message is None else message)
    print_lines(done.lines())

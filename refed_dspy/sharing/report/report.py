"""Make the report: read a run's folder, write its page."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from refed_dspy.errors import ConfigError, ExportError, RunDirError, one_line
from refed_dspy.files import path_of, whole_file
from refed_dspy.ledger.identity import named_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import run_status
from refed_dspy.metrics.embedder import Embedder
from refed_dspy.sharing.report import charts, glance, histograms
from refed_dspy.sharing.report.extracts import strip
from refed_dspy.sharing.report.funnel import funnel
from refed_dspy.sharing.report.map import draw_map, instruction_map
from refed_dspy.sharing.report.page import Page, render
from refed_dspy.sharing.report.rows import read_rows
from refed_dspy.tracking.background import wanted
from refed_dspy.tracking.run import per_minute
from refed_dspy.tracking.track import log_page

NAME = "report.html"


def report(
    run_dir: str | Path,
    out: str | Path | None = None,
    *,
    force: bool = False,
    track: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the page that shows the run in `run_dir`, finished or not, and return its path.

    `out`: the file; unset, `report.html` in the run's folder, which is overwritten: it can always be made again from
    the run. If the run is logged in MLflow, the page is logged there too, unless `track` is False. `say` is called
    with a line about each slow step.

    Raises:
        RunDirError: no run there, or nothing in it yet.
        ExportError: `out` exists and `force` is not set, it is another file of the run, or it cannot be written.
    """
    folder = path_of(run_dir, "run_dir")
    path = folder / NAME if out is None else path_of(out, "out")
    if out is not None and path.exists() and not force:
        raise ExportError(f"{path}: exists; name another file, or overwrite it with --force")
    if path.resolve().parent == folder.resolve() and path.name != NAME and path.exists():
        raise ExportError(f"{path}: is part of the run; name another file")
    if out is not None and not path.parent.is_dir():  # checked before seconds of work
        raise ExportError(f"{path}: cannot be written: no folder {path.parent}; make it first")
    content = render(read_page(folder, say), version("refed-dspy"))
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise ExportError(f"{one_line(path, 200)}: cannot be written: {one_line(error.strerror or error)}") from None
    if wanted(track):
        log_page(folder, path)
    return path


def read_page(folder: Path, say: Callable[[str], None]) -> Page:
    """The contents of the page of the run in `folder`. Raises RunDirError: no run there, or nothing in it yet."""
    with Ledger.read(folder) as ledger:
        if (holds := ledger.holds()) not in {"", "run"}:
            raise RunDirError(f"{folder}: holds {named_work(holds)}, not a run; a report shows a run")
        if not ledger.has_answers():
            raise RunDirError(f"{folder}: nothing was answered here yet, so there is nothing to show; run or resume it")
        ledger.db.execute("BEGIN")  # a snapshot: the run may go on meanwhile
        status, rows = run_status(ledger), read_rows(ledger)
        steps, points = funnel(ledger, status), per_minute(ledger)
        facts, tables = glance.facts(ledger, status, rows), glance.tables(ledger, status)
        seed = int(status["seed"] or 0)
    say(f"drawing a map of {len(rows):,} instructions")
    map_ = draw_map(rows.columns["instruction"], seed, _embedder(say))
    made = [
        charts.flow(steps),
        histograms.lengths(rows),
        *histograms.scores(rows),
        charts.costs(status["usage"]),
        charts.progress(points),
        instruction_map(rows, map_),
    ]
    samples = strip(rows)
    return Page(
        title=folder.absolute().name,
        lead=glance.lead(status, rows),
        state=glance.state(status),
        reason=str(status.get("reason") or status["stopped"] or ""),
        facts=facts,
        notes=glance.notes(status),
        galleries=[samples] if samples else [],
        charts=[chart for chart in made if chart is not None],
        tables=tables,
        rows=rows,
    )


def _embedder(say: Callable[[str], None]) -> Embedder | None:
    """The embedder, if its weights were fetched to this machine."""
    try:
        return Embedder.open()
    except ConfigError as error:
        say(f"the map goes by words: {error}")
        return None

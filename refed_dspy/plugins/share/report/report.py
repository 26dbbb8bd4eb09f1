"""Make the report: read the folder of a run or of other work, write its page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

from refed_dspy.config.keywords import checked
from refed_dspy.errors import FORCE, ConfigError, ExportError, RunDirError, briefly
from refed_dspy.files import as_export_error, check_output, path_of, whole_file
from refed_dspy.ledger.account import RunAccount, per_minute
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import FUNNEL, named_work
from refed_dspy.measures.embedder import Embedder
from refed_dspy.plugins.share.report import charts, glance
from refed_dspy.plugins.share.report.charts import funnel
from refed_dspy.plugins.share.report.glance import Table
from refed_dspy.plugins.share.report.map import Map, draw_map, instruction_map
from refed_dspy.plugins.share.report.of_comparison import comparison_page
from refed_dspy.plugins.share.report.of_compile import compile_page
from refed_dspy.plugins.share.report.of_filtering import filtering_page
from refed_dspy.plugins.share.report.page import Page, render
from refed_dspy.plugins.share.report.rows import LISTED, measured, read_rows, strip
from refed_dspy.plugins.share.secrets import public_detail, public_endpoint, public_model, public_source
from refed_dspy.text import counted
from refed_dspy.tracking.background import wanted
from refed_dspy.tracking.track import log_page

NAME = "report.html"
_PAGES = {"comparison": comparison_page, "filtering": filtering_page, "compile": compile_page}
_KINDS = "a run, a comparison, a filtering or a compile"
DrawMap: TypeAlias = Callable[[Sequence[str], int], Map | None]
"""The map of texts by a seed."""
BY_MEANING = 3_000
"""Instructions whose embeddings take about half a minute on two cores."""
_MODELS = ("teacher", "judge")
"""What settings begin with that name models; those of a stage are `teacher of …`."""
_PRIVATE = {"saved program", "filters", "prices of"}
"""Settings that may name a folder: where a program is saved, what a filter reads, which table the prices are from."""


@briefly
@checked
def report(
    run_dir: str | PathLike[str],
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
    check_output(path)
    if out is not None and path.exists() and not force:
        raise ExportError(f"{path}: already exists; choose another file or overwrite it with " + FORCE)
    if path.resolve().parent == folder.resolve() and path.name != NAME and path.exists():
        raise ExportError(f"{path}: is part of the run; choose another file")
    if out is not None and not path.parent.is_dir():  # checked before seconds of work
        raise ExportError(f"{path}: cannot be written: no folder {path.parent}; make it first")
    content = render(read_page(folder, best_map(say)), version("refed-dspy"))
    with as_export_error(path), whole_file(path) as file:
        file.write(content)
    if wanted(track):
        log_page(folder, path)
    return path


def read_page(folder: Path, draw: DrawMap, most: int = LISTED) -> Page:
    """The contents of the page of the work in `folder`; of a run at most `most` rows are listed.

    Raises RunDirError: none there, or nothing in it yet."""
    if (folder / FUNNEL).is_file() and not (folder / FILE).is_file():  # no judge was asked
        return filtering_page(folder, None)
    with Ledger.read(folder) as ledger:
        if (holds := ledger.holds() or "run") not in {"run", *_PAGES}:
            raise RunDirError(f"{folder}: contains {named_work(holds)}; a report shows {_KINDS}")
        if not ledger.has_answers():
            raise RunDirError(f"{folder}: no answers yet, so nothing to show; run or resume it first")
        ledger.db.execute("BEGIN")  # a snapshot: the work may go on meanwhile
        if holds == "run":
            return run_page(folder, ledger, draw, most)
        return _PAGES[holds](folder, ledger)


def run_page(folder: Path, ledger: Ledger, draw: DrawMap, most: int) -> Page:
    """The contents of a run's page, on which at most `most` rows are listed."""
    account, rows, every = RunAccount.of(ledger), read_rows(ledger, most), measured(ledger)
    status = account.status
    steps = funnel(ledger, status)
    flow = f"{counted(steps[0].count, 'instruction')} written, {counted(steps[-1].count, 'row')} in the data set."
    facts, tables, points = glance.facts(ledger, status), glance.tables(ledger, account), per_minute(ledger)
    ledger.db.execute("ROLLBACK")  # all is read; what follows takes seconds
    map_ = draw(rows.columns["instruction"], int(status["seed"] or 0))
    made = [
        charts.flow(steps, "From instruction to row", flow),
        charts.lengths(every.words),
        *charts.scores(status["filters"], every.scores),
        charts.costs(status["usage"]),
        charts.progress(points),
        instruction_map(rows, map_),
    ]
    samples = strip(rows)
    return Page(
        title=folder.absolute().name,
        lead=glance.lead(status, every.references, rows),
        state=status["state"],
        reason=status["reason"],
        facts=facts + glance.unchanged(every),
        notes=[
            *glance.notes(status),
            *glance.self_judged(status["teacher"].get("model"), account.settings.judge.get("model")),
            *glance.listed(status, rows),
        ],
        galleries=[samples] if samples else [],
        charts=[chart for chart in made if chart is not None],
        tables=tables,
        rows=rows,
    )


def no_map(texts: Sequence[str], seed: int) -> None:
    """For a page that is made again and again."""


def best_map(say: Callable[[str], None]) -> DrawMap:
    """The map by meaning if there are at most BY_MEANING texts and the embedder's weights were fetched to this machine,
    else by words. `say` is called with a line about it."""

    def draw(texts: Sequence[str], seed: int) -> Map | None:
        say(f"drawing a map of {len(texts):,} instructions")
        if len(texts) > BY_MEANING:
            say(f"the map compares words: by meaning, more than {BY_MEANING:,} instructions take too long")
            return draw_map(texts, seed)
        try:
            embedder = Embedder.open()
        except ConfigError as error:
            say(f"the map compares words instead: {error}")
            embedder = None
        return draw_map(texts, seed, embedder)

    return draw


def public_page(folder: Path, title: str) -> bytes:
    """The page as a file's content. `title` replaces the run folder's name. Raises what `read_page` raises."""
    return render(public(read_page(folder, best_map(lambda _: None)), title), version("refed-dspy"))


def public(page: Page, title: str) -> Page:
    """`page` without anything private; what the models wrote stays as it is."""
    lead, rows = page.lead, page.rows
    if not isinstance(lead, str):  # as that of other work than a run
        lead = replace(lead, by=tuple(map(public_model, lead.by)))
    if rows is not None:  # of a filter's decision (…, reason, detail) only the detail may change
        decisions = [
            [[*head, reason, public_detail(reason, detail)] for *head, reason, detail in each]
            for each in rows.columns["decisions"]
        ]
        rows = replace(rows, names=_public_names(rows.names), columns={**rows.columns, "decisions": decisions})
    tables = [_public_table(table) for table in page.tables]
    return replace(page, title=title, lead=lead, reason="", tables=tables, rows=rows)


def _public_names(names: Mapping[str, Any]) -> dict[str, Any]:
    writers, references = names["writers"], names["references"]
    return {
        **names,
        "writers": [
            {"model": public_model(each["model"]), "endpoint": public_endpoint(each["endpoint"])} for each in writers
        ],
        "references": [{**each, "source": public_source(each["source"])} for each in references],
    }


def _public_table(table: Table) -> Table:
    if table.id == "models":
        return replace(table, rows=[[public_model(row[0]), public_endpoint(row[1]), *row[2:]] for row in table.rows])
    if table.id == "failures":
        return replace(table, columns=table.columns[:-1], rows=[row[:-1] for row in table.rows])
    if table.id == "reasons":
        return table
    settings = {name: value for name, value in table.rows if name not in _PRIVATE}
    pools = {name: value.split(" + ") for name, value in settings.items() if name.startswith(_MODELS)}
    public = {name: " + ".join(map(public_model, models)) for name, models in pools.items()}
    return replace(table, rows=[[name, public.get(name, value)] for name, value in settings.items()])

"""The page of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from refed_dspy.errors import ConfigError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import run_status
from refed_dspy.metrics.embedder import Embedder
from refed_dspy.sharing.report import charts, glance, histograms
from refed_dspy.sharing.report.extracts import strip
from refed_dspy.sharing.report.funnel import funnel
from refed_dspy.sharing.report.map import draw_map, instruction_map
from refed_dspy.sharing.report.page import Page
from refed_dspy.sharing.report.rows import read_rows
from refed_dspy.tracking.run import per_minute


def run_page(folder: Path, ledger: Ledger, say: Callable[[str], None]) -> Page:
    """The contents of a run's page. `say` is called before its slow step, the map."""
    status, rows = run_status(ledger), read_rows(ledger)
    steps = funnel(ledger, status)
    flow = f"{steps[0].count:,} instructions were written; {steps[-1].count:,} rows are in the data set."
    facts, tables, points = glance.facts(ledger, status, rows), glance.tables(ledger, status), per_minute(ledger)
    ledger.db.execute("ROLLBACK")  # all is read; what follows takes seconds
    say(f"drawing a map of {len(rows):,} instructions")
    map_ = draw_map(rows.columns["instruction"], int(status["seed"] or 0), _embedder(say))
    made = [
        charts.flow(steps, "From instruction to row", flow),
        histograms.lengths(rows),
        *histograms.scores(rows),
        charts.costs(status["usage"]),
        charts.progress(points),
        instruction_map(rows, map_),
    ]
    samples, (state, reason) = strip(rows), glance.state(status)
    return Page(
        title=folder.absolute().name,
        lead=glance.lead(status, rows),
        state=state,
        reason=reason,
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

"""The page of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from refed_dspy.errors import ConfigError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import settings_of
from refed_dspy.ledger.summary import run_status
from refed_dspy.metrics.embedder import Embedder
from refed_dspy.plugins.share.report import charts, glance, histograms
from refed_dspy.plugins.share.report.all_rows import measured
from refed_dspy.plugins.share.report.extracts import strip
from refed_dspy.plugins.share.report.funnel import funnel
from refed_dspy.plugins.share.report.map import Map, draw_map, instruction_map
from refed_dspy.plugins.share.report.page import Page
from refed_dspy.plugins.share.report.rows import read_rows
from refed_dspy.text import counted
from refed_dspy.tracking.run import per_minute

DrawMap: TypeAlias = Callable[[Sequence[str], int], Map | None]
"""The map of texts by a seed."""

BY_MEANING = 3_000
"""Instructions whose embeddings take about half a minute on two cores."""


def run_page(folder: Path, ledger: Ledger, draw: DrawMap, most: int) -> Page:
    """The contents of a run's page, on which at most `most` rows are listed."""
    status, rows, every = run_status(ledger), read_rows(ledger, most), measured(ledger)
    steps = funnel(ledger, status)
    judge = settings_of(ledger).judge
    flow = f"{counted(steps[0].count, 'instruction')} written, {counted(steps[-1].count, 'row')} in the data set."
    facts, tables, points = glance.facts(ledger, status), glance.tables(ledger, status), per_minute(ledger)
    ledger.db.execute("ROLLBACK")  # all is read; what follows takes seconds
    map_ = draw(rows.columns["instruction"], int(status["seed"] or 0))
    made = [
        charts.flow(steps, "From instruction to row", flow),
        histograms.lengths(every.words),
        *histograms.scores(status["filters"], every.scores),
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
            *glance.self_judged(status["teacher"].get("model"), judge.get("model")),
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

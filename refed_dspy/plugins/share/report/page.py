"""The report's page: what is on it, and the file that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

from refed_dspy.plugins.share.report.charts import Chart
from refed_dspy.plugins.share.report.document import Document
from refed_dspy.plugins.share.report.drawing import PALETTE
from refed_dspy.plugins.share.report.extracts import Gallery
from refed_dspy.plugins.share.report.glance import Fact, Lead, Table
from refed_dspy.plugins.share.report.rows import Rows

_SCRIPTS = ("page.js", "store.js", "list.js", "detail.js", "map.js", "main.js")
_COLUMNS = {
    "number": ("No.", "64px"), "instruction": ("Instruction", "minmax(0, 1fr)"), "words": ("Words", "56px"),
    "change": ("Change", "64px"), "score": ("Score", "60px"), "cost": ("Cost", "84px"),
}  # fmt: skip
"""The list of rows: name → title and width."""
_FROM = {"change": "diff"}
"""Columns of the list that are not named as those of the rows that they come from."""


@dataclass(frozen=True)
class Page:
    """The page's contents. `title`: the work's name; `state` and `reason`: "stopped", and why; `notes`: what to know
    first; `rows`: those of a run."""

    title: str
    lead: Lead | str
    state: str
    reason: str
    facts: Sequence[Fact]
    notes: Sequence[str]
    galleries: Sequence[Gallery]
    charts: Sequence[Chart]
    tables: Sequence[Table]
    rows: Rows | None = None


def render(page: Page, version: str, *, live: bool = False) -> bytes:
    """The page as a file's content, in UTF-8. `live`: it asks the server that it came from for what is new."""
    scripts = (*_SCRIPTS, "live.js") if live else _SCRIPTS
    document = Document("refed_dspy.plugins.share.report", "report.html.j2", ("report.css",), scripts)
    return document.render(
        version,
        data={"names": page.rows.names, "columns": page.rows.columns} if page.rows else None,
        live=live,
        page=page,
        lead=str(page.lead),
        columns=_columns(page.rows),
        palette=PALETTE,
    )


def _columns(rows: Rows | None) -> dict[str, tuple[str, str]]:
    """The columns of the list of rows, without those in which no kept row has a value."""
    if rows is None:
        return {}
    kept = rows.columns["kept"]
    filled = {name for name, column in rows.columns.items() if any(v is not None for v in compress(column, kept))}
    filled |= {"instruction", "words"}
    return {name: shown for name, shown in _COLUMNS.items() if _FROM.get(name, name) in filled}

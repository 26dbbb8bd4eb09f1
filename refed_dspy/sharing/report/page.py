"""Render the page: a single file that loads nothing, and runs no script but its own."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from refed_dspy.sharing.report.charts import Chart
from refed_dspy.sharing.report.glance import Fact, Lead, Table
from refed_dspy.sharing.report.rows import Rows

_SCRIPTS = ("store.js", "list.js", "detail.js", "charts.js", "main.js")
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'"
)
"""A browser runs the two scripts with these hashes and no other, whatever the page contains. Charts set styles."""
_LEVEL = 4
"""Compression level: 6 takes three times as long and saves a tenth."""


@dataclass(frozen=True)
class Page:
    """The page's contents. `title`: the run's name; `notes`: what to know first; `stopped`: why the run ended early."""

    title: str
    lead: Lead
    stopped: str
    facts: Sequence[Fact]
    notes: Sequence[str]
    charts: Sequence[Chart]
    tables: Sequence[Table]
    rows: Rows


def render(page: Page, version: str) -> bytes:
    """The page as a file's content, in UTF-8.

    What came from a model or a reference is in it as data only: rows as compressed JSON, which scripts insert as text,
    everything else escaped.
    """
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    folder = files("refed_dspy.sharing.report").joinpath("assets")
    names = (*_SCRIPTS, "report.css", "report.html.j2")
    assets = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in names}
    script, plotly = "\n".join(assets[name] for name in _SCRIPTS), get_plotlyjs()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(assets["report.html.j2"]).render(
        csp=_POLICY.format(scripts=" ".join(map(_hash, (plotly, script)))),
        css=Markup(assets["report.css"]),  # noqa: S704 — the package's own files
        plotly=Markup(plotly),  # noqa: S704
        script=Markup(script),  # noqa: S704
        rows=Markup(packed(page.rows)),  # noqa: S704 — base64
        figures=Markup(_as_json({chart.id: chart.figure for chart in page.charts})),  # noqa: S704 — see there
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=version,
        count=len(page.rows),
        lead=str(page.lead),
        notes=[f"The run stopped: {page.stopped}", *page.notes] if page.stopped else page.notes,
        title=page.title,
        facts=page.facts,
        charts=page.charts,
        tables=page.tables,
    )
    return text.encode("utf-8", "replace")


def packed(rows: Rows) -> str:
    """`rows` as base64 of compressed JSON; a browser unpacks it without a library."""
    text = _as_json({"names": rows.names, "columns": rows.columns})
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), _LEVEL, mtime=0)).decode()


def _as_json(value: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"

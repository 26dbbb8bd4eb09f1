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
from itertools import compress
from typing import Any

from refed_dspy.sharing.report.charts import Chart
from refed_dspy.sharing.report.drawing import PALETTE
from refed_dspy.sharing.report.extracts import Gallery
from refed_dspy.sharing.report.glance import Fact, Lead, Table
from refed_dspy.sharing.report.rows import Rows

_SCRIPTS = ("store.js", "list.js", "detail.js", "map.js", "main.js")
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'; connect-src {connect}"
)
"""A browser runs the scripts with these hashes and no other, whatever the page contains. Bars set their widths."""
_LEVEL = 4
"""Compression level: 6 takes three times as long and saves a tenth."""


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
    """The page as a file's content, in UTF-8. `live`: it asks the server that it came from for what is new.

    What came from a model or a reference is in it as data only: rows as compressed JSON, which scripts insert as text,
    everything else escaped.
    """
    import jinja2
    from markupsafe import Markup

    folder = files("refed_dspy.sharing.report").joinpath("assets")
    scripts = (*_SCRIPTS, "live.js") if live else _SCRIPTS
    names = (*scripts, "report.css", "charts.html.j2", "report.html.j2")
    assets = {name: folder.joinpath(name).read_text(encoding="utf-8") for name in names}
    script = "\n".join(assets[name] for name in scripts)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.DictLoader(assets), trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("report.html.j2").render(
        page=page,
        lead=str(page.lead),
        csp=_POLICY.format(scripts=_hash(script), connect="'self'" if live else "'none'"),
        css=Markup(assets["report.css"]),  # noqa: S704 — the package's own files
        script=Markup(script),  # noqa: S704
        rows=Markup(packed(page.rows)) if page.rows else None,  # noqa: S704 — base64
        columns=_columns(page.rows),
        palette=PALETTE,
        live=live,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=version,
    )
    return text.encode("utf-8", "replace")


def _columns(rows: Rows | None) -> dict[str, tuple[str, str]]:
    """The columns of the list of rows, without those in which no kept row has a value."""
    if rows is None:
        return {}
    kept = rows.columns["kept"]
    filled = {name for name, column in rows.columns.items() if any(v is not None for v in compress(column, kept))}
    filled |= {"instruction", "words"}
    return {name: shown for name, shown in _COLUMNS.items() if _FROM.get(name, name) in filled}


def packed(rows: Rows) -> str:
    """`rows` as base64 of compressed JSON; a browser unpacks it without a library."""
    text = _as_json({"names": rows.names, "columns": rows.columns})
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), _LEVEL, mtime=0)).decode()


def _as_json(value: Mapping[str, Any]) -> str:
    """JSON that cannot end the element it stands in."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"

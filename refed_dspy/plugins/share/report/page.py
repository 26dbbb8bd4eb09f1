"""The report's page: what is on it, and the file that it becomes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import compress
from typing import Any

from refed_dspy.plugins.share.report.charts import Chart
from refed_dspy.plugins.share.report.drawing import PALETTE
from refed_dspy.plugins.share.report.glance import Fact, Lead, Table
from refed_dspy.plugins.share.report.rows import Gallery, Rows

_SCRIPTS = ("page.js", "store.js", "list.js", "detail.js", "map.js", "main.js")
_COLUMNS = {
    "number": ("No.", "64px"), "instruction": ("Instruction", "minmax(0, 1fr)"), "words": ("Words", "56px"),
    "change": ("Change", "64px"), "score": ("Score", "60px"), "cost": ("Cost", "84px"),
}  # fmt: skip
"""The list of rows: name → title and width."""
_FROM = {"change": "diff"}
"""Columns of the list that are not named as those of the rows that they come from."""
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; "
    "form-action 'none'; connect-src {connect}"
)
"""A browser runs the scripts with these hashes and no other, whatever the page contains. Bars set their widths."""
_SHARED = "refed_dspy.plugins.share.report"
"""The package whose assets every page may use."""
_LEVEL = 4
"""Compression level: 6 takes three times as long and saves a tenth."""


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


@dataclass(frozen=True)
class Document:
    """A kind of page: its `template`, which extends `document.html.j2`, its `styles` and its `scripts`, in order: files
    in the folder `assets` of `package`, or in the report's."""

    package: str
    template: str
    styles: Sequence[str]
    scripts: Sequence[str]

    def render(self, version: str, *, data: Mapping[str, Any] | None = None, live: bool = False, **shown: Any) -> bytes:
        """The page as a file's content, in UTF-8. `data`: what its scripts show; `shown`: what its template shows;
        `live`: it may ask the server that it came from."""
        import jinja2
        from markupsafe import Markup

        script, css = ("\n".join(map(self._asset, names)) for names in (self.scripts, self.styles))
        environment = jinja2.Environment(
            autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FunctionLoader(self._asset),
            trim_blocks=True, lstrip_blocks=True,
        )  # fmt: skip
        text = environment.get_template(self.template).render(
            csp=_POLICY.format(scripts=_hash(script), connect="'self'" if live else "'none'"),
            css=Markup(css),  # noqa: S704 — the package's own files
            script=Markup(script),  # noqa: S704
            data=None if data is None else Markup(packed(data)),  # noqa: S704 — base64
            live=live,
            made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            version=version,
            **shown,
        )
        return text.encode("utf-8", "replace")

    def _asset(self, name: str) -> str:
        places: list[Traversable] = [files(package).joinpath("assets", name) for package in (self.package, _SHARED)]
        return next(place for place in places if place.is_file()).read_text(encoding="utf-8")


def packed(data: Mapping[str, Any]) -> str:
    """`data` as base64 of compressed JSON; a browser unpacks it without a library."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), _LEVEL, mtime=0)).decode()


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"

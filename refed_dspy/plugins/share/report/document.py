"""One HTML file: it loads nothing, and runs no script but its own. What the report and the pages for annotators share.

What came from a model or a reference is in it as data only: as compressed JSON, which scripts insert as text, or
escaped.
"""

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
from typing import Any

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

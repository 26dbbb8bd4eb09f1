"""How what this package returns looks in a notebook: one line, and a small table. Texts in it are data: escaped, cut,
without control characters, and no mathematics between two dollar signs."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from refed_dspy.errors import one_line

LONGEST_REPR = 200
"""Characters."""
_MOST_ROWS = 10
_ROW_WIDTH = 280
"""Characters of a row's cells together. Escaped they are five times as many at most: 20 kB for a table."""
_CELL = ' style="text-align:left;vertical-align:top"'


class Shown:
    """Base of results: `_describe` is their one line, `_table` what a notebook shows below it."""

    def _describe(self) -> str:
        """What it is, in a few words."""
        return ""

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        """A heading and rows, of which the first ten are shown."""
        return (), ()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {one_line(self._describe(), LONGEST_REPR - 40)}>"

    def _repr_html_(self) -> str:
        heading, rows = self._table()
        return html_table(repr(self), heading, rows)


def html_table(caption: str, heading: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """`caption` above a table of the first ten `rows`, at most 20 kB of HTML."""
    width = max(18, _ROW_WIDTH // max(1, len(heading)))
    lines = [_row("th", heading, width), *(_row("td", row, width) for row in islice(rows, _MOST_ROWS))]
    table = f"<table>{''.join(lines)}</table>" if heading else ""
    return f'<div class="tex2jax_ignore mathjax_ignore"><p>{html.escape(caption)}</p>{table}</div>'


def html_lines(caption: str, lines: Sequence[str]) -> str:
    """`caption` above `lines` in type of one width, at most 20 kB of HTML."""
    shown = "\n".join(html.escape(line[:160], quote=False) for line in lines[:20])
    return f'<div class="tex2jax_ignore mathjax_ignore"><p>{html.escape(caption)}</p><pre>{shown}</pre></div>'


def record_repr(kind: str, fields: Mapping[str, object]) -> str:
    """`kind` and its fields as Python would write them, long ones cut; empty ones are left out."""
    given = {name: value for name, value in fields.items() if value not in ("", None, {})}
    width = (LONGEST_REPR - len(kind) - 2 - sum(len(name) + 5 for name in given)) // max(1, len(given))
    shown = (
        f"{name}={one_line(value, width)!r}" if isinstance(value, str) else f"{name}={one_line(repr(value), width)}"
        for name, value in given.items()
    )
    return f"{kind}({', '.join(shown)})"


def _row(tag: str, cells: Sequence[object], width: int) -> str:
    return "<tr>" + "".join(f"<{tag}{_CELL}>{html.escape(one_line(cell, width))}</{tag}>" for cell in cells) + "</tr>"

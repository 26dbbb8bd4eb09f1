"""Text for people: tables for a terminal or a file, the looks of results in a notebook, what a misspelt word was meant
to be, how to install what is missing, and the search for placeholders that nobody filled in."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import SequenceMatcher, get_close_matches
from importlib.metadata import PackageNotFoundError, requires
from itertools import islice

from refed_dspy.errors import one_line

# --- tables

_ALIKE = 0.7
"""How much of two words must be alike, from 0 to 1, for one to be a slip of the other."""
NO_VALUE = "–"
"""The cell of a missing value."""


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """`rows` as lines with aligned columns, the first row a heading. All rows have the same number of cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def counted(count: float, singular: str, plural: str = "") -> str:
    """`1 row`, `1,200 rows`; the plural is with an s unless it is given."""
    return f"{count:,.0f} {singular if count == 1 else plural or f'{singular}s'}"


def format_number(value: float | None, digits: int = 2) -> str:
    """`value` for people: with thousands separators and `digits` decimals, none from 10,000 on. None and NaN are
    NO_VALUE."""
    if value is None or math.isnan(value):
        return NO_VALUE
    return f"{value:,.0f}" if digits == 0 or abs(value) >= 10_000 else f"{value:z,.{digits}f}"


# --- hints


def nearest(word: object, known: Iterable[str]) -> str:
    """The one of `known` that `word` is a slip of. Empty where none is: no suggestion is better than a wrong one."""
    word = str(word).lower()
    parts = set(re.split("[_-]", word))
    near = get_close_matches(word, known, n=3)
    near = [
        other for other in near if SequenceMatcher(None, word, other).ratio() >= _ALIKE or parts & set(other.split("_"))
    ]
    near.sort(key=lambda other: sorted(other) != sorted(word))  # two letters that changed places come first
    return near[0] if near else ""


def install_command(extra: str) -> str:
    """The command that installs what an extra of this package needs, wherever the package itself came from."""
    with suppress(PackageNotFoundError):
        mark = re.compile(rf"extra == ['\"]{extra}['\"]")
        listed = [line.partition(";") for line in requires("refed-dspy") or ()]
        return "pip install " + " ".join(f"'{needed.strip()}'" for needed, _, when in listed if mark.search(when))
    return f"pip install '.[{extra}]' in a clone"


# --- in a notebook: texts are data there, escaped, cut, and without mathematics between two dollar signs

LONGEST_REPR = 200
"""Characters."""
_MOST_ROWS = 10
_ROW_WIDTH = 280
"""Characters of a row's cells together. Escaped they are five times as many at most: 20 kB for a table."""
_CELL = ' style="text-align:left;vertical-align:top"'


class Shown:
    """Base of results: `_describe` is their one line, `lines` the whole for a terminal; a notebook shows the `_table`
    below the one line, or the lines where there is none."""

    def _describe(self) -> str:
        """What it is, in a few words."""
        return ""

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        """A heading and rows, of which the first ten are shown."""
        return (), ()

    def lines(self) -> list[str]:
        """For a terminal."""
        return []

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {one_line(self._describe(), LONGEST_REPR - 40)}>"

    def _repr_html_(self) -> str:
        heading, rows = self._table()
        lines = [] if heading else self.lines()
        return html_lines(repr(self), lines) if lines else html_table(repr(self), heading, rows)


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


# --- placeholders

_MOST_AFTER_SLOT = 60
"""A text that goes on for at most this many characters after a leading slot counts as a placeholder."""


def any_of(*patterns: str) -> str:
    """A regular expression that matches what one of `patterns` matches."""
    return f"(?:{'|'.join(patterns)})"


_PIECE, _OVERLAP = 50_000, 300


def found(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """`pattern.search(text)` of a pattern that matches at most 300 characters, none of them for being the first or the
    last. A long text is searched piece by piece: a search lets no other thread go on."""
    if len(text) <= _PIECE:
        return pattern.search(text)
    for at in range(0, len(text), _PIECE):
        match = pattern.search(text, at, at + _PIECE + _OVERLAP)
        if match is not None and match.start() < at + _PIECE:
            return match
    return None


_WORDS = r"[^\]\[<>{}()\n]{2,60}"
_NOUN = any_of(
    "answer|response|text|output|input|instruction|question|content|solution|code|name",
    "paragraph|article|sentence|task|prompt",
)
_REQUEST = any_of(
    f"(?:insert|enter|paste|fill in|type|put|add|write|provide) {_WORDS}", rf"(?:\w+ )?{_NOUN}(?: goes)? here"
)
_SLOT_TEXT = any_of(_REQUEST, f"(?:your|the|some) {_WORDS}", "no ?(?:in|out)put", "placeholder")
TEMPLATE_SLOT = re.compile(
    any_of(
        rf"\[\[?(?:{_SLOT_TEXT}|[a-z][\w '’/-]{{2,60}})\]?\]",
        rf"<{_SLOT_TEXT}>",
        rf"\{{\{{? ?(?:[a-z]\w[\w -]{{0,40}}|{_SLOT_TEXT}) ?\}}?\}}",
        rf"\({_SLOT_TEXT}\)",
    )
)
"""A slot in brackets, in `normalized` text: [your name], <insert text>, {name}, (no input)."""
UNFILLED_SLOT = re.compile(rf"[\[<{{(]{{1,2}}\s?{_REQUEST}\s?[\]>}})]{{1,2}}")
"""A bracketed request to fill something in: [insert the date], <code goes here>."""
_WHOLE_TEXT = re.compile(
    any_of(
        r"n\s?/\s?a|tbd|tba|to ?do|to be (?:determined|added|announced|completed)|coming soon|x{3,}",
        r"[.…_*–—-]{2,}+|…",
        "placeholder(?: text)?|no ?(?:in|out)put",
        rf"(?:insert |enter |your |the )?{_NOUN}(?: goes)? here|insert (?:your |the |a )?{_NOUN}",
        r"(?:new |the )?(?:instruction|response|answer|output|input|question|task|example)s? ?#?\d*\s*:",
    )
    + r"[\s.!]*"
)
"""A whole text without content: n/a, TODO, dots, "insert your answer", a label."""
_FIRST_WORDS = re.compile(r"[Ll]orem ipsum|LOREM IPSUM|TODO:[^\n]*\Z")
_ANNOUNCEMENT = re.compile(
    r"\b(?:(?:the|this|these|a|an) (?:following|given|provided)|below|following(?=:))\b[^.!?:\n]{0,80}:"
    r"[\s\"'“”«»\[\]<>()…_-]*\Z"
)
"""The end of an instruction whose text is missing: "Summarize the following text:"."""
_MARKS = "\"'“”‘’`*#_ \t\r\n"


def find_placeholder(text: str) -> str:
    """What shows that `text` was never filled in: "(empty)", or its telling words on one line; "" if it was filled in.

    Not filled in are: an empty text; "N/A", "TODO", dots or a label ("Instruction 1:") and nothing else; a text that
    begins with "lorem ipsum"; a slot ("[Your answer here]", "<insert ...>", "{name}") as the whole text, or at its
    start with at most 60 characters after it; an announcement of a text that does not follow ("Summarize the following
    text:"). A slot further inside a longer text does not count: a template of a letter has such slots.
    """
    plain = text.strip()
    if not plain:
        return "(empty)"
    lower = normalized(plain)
    bare = without_marks(lower)
    if _WHOLE_TEXT.fullmatch(bare) or (not bare and len(lower) > 1 and _WHOLE_TEXT.fullmatch(lower)):
        return one_line(plain, 80)
    if _FIRST_WORDS.match(without_marks(plain)):
        return one_line(plain, 40)
    slot = TEMPLATE_SLOT.match(bare) if len(bare) < 10 * _MOST_AFTER_SLOT else None
    if slot and (not re.search(r"\w", TEMPLATE_SLOT.sub("", bare)) or _is_mostly_slot(bare, slot.end())):
        return one_line(slot.group(), 80)
    announcement = _ANNOUNCEMENT.search(lower[-200:]) if ":" in lower[-200:] else None
    return one_line(announcement.group(), 80) if announcement else ""


def normalized(text: str) -> str:
    """`text` stripped, in lower case, with straight apostrophes and single spaces within lines."""
    lower = text.strip().lower()
    if not lower.isascii() or "`" in lower:
        lower = re.sub("[’‘ʼ´`](?=[a-z])", "'", lower)
    if "  " in lower or "\t" in lower or "\xa0" in lower:
        lower = re.sub(r"[ \t\xa0]+", " ", lower)
    return lower


def without_marks(text: str) -> str:
    """`text` without the quotation marks and Markdown around it."""
    return text.lstrip(_MARKS + ">").rstrip(_MARKS)


def _is_mostly_slot(bare: str, end: int) -> bool:
    """Whether the text begins with a slot to fill in, which ends at `end`, and has little after it."""
    return UNFILLED_SLOT.match(bare) is not None and len(bare) - end <= _MOST_AFTER_SLOT

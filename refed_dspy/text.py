"""Two helpers for text: tables as plain text (columns aligned, for a terminal or a file), and the search for
placeholders that nobody filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refed_dspy.errors import one_line

# --- tables

NO_VALUE = "–"
"""The cell of a missing value."""


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """`rows` as lines with aligned columns, the first row a heading. All rows have the same number of cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def format_number(value: float | None, digits: int = 2) -> str:
    """`value` for people: with thousands separators and `digits` decimals, none from 10,000 on. None is NO_VALUE."""
    if value is None:
        return NO_VALUE
    return f"{value:,.0f}" if digits == 0 or abs(value) >= 10_000 else f"{value:z,.{digits}f}"


# --- placeholders

_MOST_AFTER_SLOT = 60
"""A text that goes on for at most this many characters after a leading slot counts as a placeholder."""


def any_of(*patterns: str) -> str:
    """A regular expression that matches what one of `patterns` matches."""
    return f"(?:{'|'.join(patterns)})"


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
        r"[.…_*–—-]{2,}|…",
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

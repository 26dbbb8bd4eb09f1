"""Tables as plain text: columns aligned, for a terminal or a file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refed_dspy.errors import one_line

NONE = "–"
"""What stands where there is nothing to tell."""


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """`rows` as lines, a heading first; every row has as many cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def number(value: float | None, digits: int = 2) -> str:
    """`value` for people, or NONE."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if digits == 0 or abs(value) >= 10_000 else f"{value:z,.{digits}f}"


_REST = 60
"""Characters beside a slot up to which a text is still that slot."""


def any_of(*parts: str) -> str:
    return f"(?:{'|'.join(parts)})"


_INSIDE = r"[^\]\[<>{}()\n]{2,60}"
_THING = any_of(
    "answer|response|text|output|input|instruction|question|content|solution|code|name",
    "paragraph|article|sentence|task|prompt",
)
_TO_FILL = any_of(
    f"(?:insert|enter|paste|fill in|type|put|add|write|provide) {_INSIDE}", rf"(?:\w+ )?{_THING}(?: goes)? here"
)
_PROMISE = any_of(_TO_FILL, f"(?:your|the|some) {_INSIDE}", "no ?(?:in|out)put", "placeholder")
SLOT = re.compile(
    any_of(
        rf"\[\[?(?:{_PROMISE}|[a-z][\w '’/-]{{2,60}})\]?\]",
        rf"<{_PROMISE}>",
        rf"\{{\{{? ?(?:[a-z]\w[\w -]{{0,40}}|{_PROMISE}) ?\}}?\}}",
        rf"\({_PROMISE}\)",
    )
)
UNFILLED = re.compile(rf"[\[<{{(]{{1,2}}\s?{_TO_FILL}\s?[\]>}})]{{1,2}}")
_whole = re.compile(
    any_of(
        r"n\s?/\s?a|tbd|tba|to ?do|to be (?:determined|added|announced|completed)|coming soon|x{3,}",
        r"[.…_*–—-]{2,}|…",
        "placeholder(?: text)?|no ?(?:in|out)put",
        rf"(?:insert |enter |your |the )?{_THING}(?: goes)? here|insert (?:your |the |a )?{_THING}",
        r"(?:new |the )?(?:instruction|response|answer|output|input|question|task|example)s? ?#?\d*\s*:",
    )
    + r"[\s.!]*"
)
_begun = re.compile(r"[Ll]orem ipsum|LOREM IPSUM|TODO:[^\n]*\Z")
_nothing_given = re.compile(
    r"\b(?:(?:the|this|these|a|an) (?:following|given|provided)|below|following(?=:))\b[^.!?:\n]{0,80}:"
    r"[\s\"'“”«»\[\]<>()…_-]*\Z"
)
_ends = "\"'“”‘’`*#_ \t\r\n"


def placeholder(text: str) -> str:
    """What shows that `text` was never filled in, or "": "(empty)", or the words that gave it away, on one line.

    That is: nothing at all; "N/A", "TODO", dots or a label ("Instruction 1:") and nothing else; "lorem ipsum" first; a
    slot ("[Your answer here]", "<insert ...>", "{name}") as the whole text, or first with at most 60 characters after
    it; an announcement of a text that does not follow ("Summarize the following text:"). A slot further inside a longer
    text is what a letter's template has, so it is none.
    """
    plain = text.strip()
    if not plain:
        return "(empty)"
    low = straight(plain)
    bare = bare_of(low)
    if _whole.fullmatch(bare) or (not bare and len(low) > 1 and _whole.fullmatch(low)):
        return one_line(plain, 80)
    if _begun.match(bare_of(plain)):
        return one_line(plain, 40)
    found = SLOT.match(bare) if len(bare) < 10 * _REST else None
    if found and (not re.search(r"\w", SLOT.sub("", bare)) or _is_leading(bare, found.end())):
        return one_line(found.group(), 80)
    nothing = _nothing_given.search(low[-200:])
    return one_line(nothing.group(), 80) if nothing else ""


def straight(text: str) -> str:
    """Stripped, in lower case, with straight apostrophes and single spaces within lines."""
    return re.sub(r"[ \t\xa0]+", " ", re.sub("[’‘ʼ´`](?=[a-z])", "'", text.strip().lower()))


def bare_of(text: str) -> str:
    """Without quotation marks and Markdown around it."""
    return text.lstrip(_ends + ">").rstrip(_ends)


def _is_leading(bare: str, end: int) -> bool:
    """Whether a slot that ends at `end` is what the text begins with and mostly is."""
    return UNFILLED.match(bare) is not None and len(bare) - end <= _REST

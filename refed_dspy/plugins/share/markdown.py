"""Text into Markdown: what a model, a file or a person wrote renders as itself, and is never markup."""

from __future__ import annotations

import re

from refed_dspy.errors import one_line

_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|&~!$@:])")
_ADDRESS = re.compile(r"\bwww\.", re.IGNORECASE)


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""

    __slots__ = ()


def plain(text: object, limit: int = 300) -> Markdown:
    """`text` in one line that renders as itself, in a paragraph or a table cell."""
    flat = _MARKUP.sub(r"\\\1", one_line(text, limit))
    return Markdown(_ADDRESS.sub(lambda match: f"{match[0][:-1]}\\.", flat))


def code(text: object, limit: int = 200) -> Markdown:
    """`text` as inline code, in a table cell too."""
    flat = one_line(text, limit).replace("|", "\\|")
    longest = max(map(len, re.findall(r"`+", flat)), default=0)
    if not longest:
        return Markdown(f"`{flat}`" if flat else "")
    fence = "`" * (longest + 1)
    return Markdown(f"{fence} {flat} {fence}")


def block(text: str, language: str = "") -> Markdown:
    """`text` as a fenced code block, line by line, without control characters."""
    lines = [
        "".join(ch if ch.isprintable() or ch == "\t" else "?" for ch in line) for line in text.strip().splitlines()
    ]
    longest = max((len(run) for line in lines for run in re.findall(r"`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markdown("\n".join([f"{fence}{language}", *lines, fence]))


def escaped(value: object) -> object:
    """The value of a template expression, made safe: for Jinja's `finalize`. Numbers get thousands separators."""
    if isinstance(value, int | float):
        return f"{value:,}"
    return value if isinstance(value, Markdown) else plain(value)

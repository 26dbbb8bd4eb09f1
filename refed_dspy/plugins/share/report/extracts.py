"""Rows shown in full beside each other, with what changed between their texts marked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from refed_dspy.data.differences import BOTH, segments
from refed_dspy.plugins.share.report.rows import Rows

Segments: TypeAlias = Sequence[tuple[int, str]]
"""(kind, text): see `differences`."""
STRIP = 3
_LONGEST = 1_500
"""Characters of a text that are shown."""
_SAME = 160
"""Characters shown at each end of a stretch in which nothing changed."""

_REWRITTEN = 0.85
"""Share of both texts that is in one of them only, above which marks would hide both."""


@dataclass(frozen=True)
class Text:
    title: str
    segments: Segments
    note: str = ""


@dataclass(frozen=True)
class Extract:
    """`title`: what the row is called; `href`: where on the page all of it is, or nothing."""

    title: str
    texts: Sequence[Text]
    href: str = ""


@dataclass(frozen=True)
class Gallery:
    """A section of the page. `wide`: an extract takes a whole row, its texts beside each other, and can be folded;
    `early`: above the charts; `listed`: in the page's table of contents, under `title`."""

    id: str
    title: str
    text: str
    extracts: Sequence[Extract]
    wide: bool = False
    early: bool = False
    listed: bool = True


def plain(title: str, text: str, note: str = "") -> Text:
    """A text in which nothing is marked."""
    return Text(title, [(BOTH, _cut(text, _LONGEST))], note)


def changed(title: str, before: str, after: str, longest: int = _LONGEST) -> Text:
    """How `before` became `after`, in up to `longest` characters."""
    return Text(title, _excerpt(segments(before, after), longest))


def strip(rows: Rows) -> Gallery | None:
    """A few samples from all over the run, those that an improvement changed if there are any; None without a row."""
    columns = rows.columns
    kept = [at for at, flag in enumerate(columns["kept"]) if flag]
    if not kept:
        return None
    better = [at for at in kept if set((columns["diff"][at] or [])[::2]) - {BOTH}] or kept
    step = max(1, len(better) // STRIP)
    shown = [_sample(rows, at) for at in better[::step][:STRIP]]
    marked = any(kind != BOTH for extract in shown for text in extract.texts for kind, _ in text.segments)
    text = "Struck through: what the improvement took out. Underlined: what it put in." if marked else ""
    names = {1: "A sample", 2: "Two samples", 3: "Three samples"}
    return Gallery("strip", names[len(shown)], text, shown, early=True, listed=False)


def _sample(rows: Rows, at: int) -> Extract:
    row = {name: rows.columns[name][at] for name in ("number", "instruction", "response", "improved", "diff")}
    texts, diff = [plain("Instruction", row["instruction"])], row["diff"]
    if diff is None:
        texts.append(plain("Response", row["improved"] or row["response"] or ""))
    elif sum(length for kind, length in zip(diff[::2], diff[1::2], strict=True) if kind) > _REWRITTEN * sum(diff[1::2]):
        texts += [plain("Plain response", row["response"]), plain("Improved response", row["improved"], "rewritten")]
    else:
        texts.append(Text("Response", _excerpt(segments(row["response"], row["improved"]))))
    return Extract(f"Sample {row['number']:,}", texts, f"#sample-{row['number']}")


def _excerpt(pieces: Iterable[tuple[int, str]], longest: int = _LONGEST) -> Segments:
    """The pieces with the unchanged stretches shortened, up to `longest` characters."""
    short, left = list[tuple[int, str]](), longest
    for kind, text in pieces:
        if left <= 0:
            return [*short, (BOTH, "…")]
        if kind == BOTH and len(text) > 3 * _SAME:
            text = f"{text[:_SAME].rpartition(' ')[0]} … {text[-_SAME:].partition(' ')[2]}"
        short.append((kind, _cut(text, left)))
        left -= len(text)
    return short


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"

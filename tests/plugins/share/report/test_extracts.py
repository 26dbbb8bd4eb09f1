"""Rows shown in full: which, and how what changed in them is marked."""

from __future__ import annotations

from typing import Any

from refed_dspy.data.differences import BOTH, IMPROVED, PLAIN, difference
from refed_dspy.plugins.share.report.rows import Rows, Text, plain, strip
from tests.support.said import Said

LONG = "the same words again and again " * 40


def rows(*pairs: tuple[str, str | None], kept: int | None = None) -> Rows:
    columns: dict[str, list[Any]] = {
        "number": list(range(1, len(pairs) + 1)),
        "kept": [int(kept is None or at < kept) for at in range(len(pairs))],
        "instruction": [f"task {at}" for at in range(len(pairs))],
        "response": [before for before, _ in pairs],
        "improved": [after for _, after in pairs],
        "diff": [None if after is None else difference(before, after) for before, after in pairs],
    }
    return Rows({}, columns)


def response(before: str, after: str) -> Text:
    """A response on the page that became another."""
    gallery = strip(rows((before, after)))
    assert gallery is not None
    return gallery.extracts[0].texts[1]


def test_a_difference_is_cut_into_its_texts_whatever_the_characters() -> None:
    before, after = "one 🙂 two three four five \ud83d end", "one 🙂 two three four five seven eight nine"
    text = response(before, after)
    assert "".join(piece for kind, piece in text.segments if kind != IMPROVED) == before
    assert "".join(piece for kind, piece in text.segments if kind != PLAIN) == after
    assert [kind for kind, _ in text.segments] == [BOTH, PLAIN, IMPROVED]


def test_long_stretches_without_a_change_are_shortened_and_long_texts_cut() -> None:
    text = response(f"{LONG}before {LONG}", f"{LONG}after {LONG}")
    assert sum(len(piece) for _, piece in text.segments) < 800 and (PLAIN, "before") in text.segments
    assert (IMPROVED, "after") in text.segments and any(" … " in piece for _, piece in text.segments)
    longer = response("x " * 2_000, f"{'x ' * 2_000}{'y ' * 2_000}")
    assert sum(len(piece) for _, piece in longer.segments) < 1_600 and longer.segments[-1][1].endswith("…")
    assert plain("Response", "z" * 5_000).segments == [(BOTH, "z" * 1_500 + "…")]


def test_the_strip_takes_changed_samples_from_all_over_the_run(said: Said) -> None:
    plain_text, more = "one two three four", " and more"
    same, better = (plain_text, plain_text), (plain_text, plain_text + more)
    gallery = strip(rows(same, *[better] * 7, better, kept=8))
    assert gallery is not None
    said((gallery.title, gallery.text))
    assert [extract.href for extract in gallery.extracts] == ["#sample-2", "#sample-4", "#sample-6"]
    assert [text.title for text in gallery.extracts[0].texts] == ["Instruction", "Response"]
    assert (IMPROVED, more) in gallery.extracts[0].texts[1].segments


def test_what_was_rewritten_is_shown_beside_what_it_was(said: Said) -> None:
    gallery = strip(rows(("one two three", "quite other words here")))
    assert gallery is not None
    said((gallery.title, gallery.text, [text.title for text in gallery.extracts[0].texts]))
    assert all(kind == BOTH for text in gallery.extracts[0].texts for kind, _ in text.segments)


def test_without_an_improvement_and_without_a_row() -> None:
    gallery = strip(rows(("one", None), ("two", None)))
    assert gallery is not None and [extract.texts[1].segments for extract in gallery.extracts] == [
        [(BOTH, "one")],
        [(BOTH, "two")],
    ]
    assert strip(rows(("one", None), kept=0)) is None

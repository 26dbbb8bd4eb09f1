"""A difference, walked along both texts, gives them back."""

from __future__ import annotations

import random

import pytest

from refed_dspy.data.differences import BOTH, IMPROVED, LONGEST, PLAIN, difference


def walked(plain: str, improved: str) -> list[tuple[int, str]]:
    """The segments as a browser cuts them, by UTF-16 units: both texts are used up, and are equal where it says so."""
    old, new = (text.encode("utf-16-le", "surrogatepass") for text in (plain, improved))
    numbers, segments, i, j = difference(plain, improved), [], 0, 0
    for kind, length in zip(numbers[::2], numbers[1::2], strict=True):
        source, at = (new, j) if kind == IMPROVED else (old, i)
        piece = source[2 * at : 2 * (at + length)]
        assert kind != BOTH or piece == new[2 * j : 2 * (j + length)]
        i += length * (kind != IMPROVED)
        j += length * (kind != PLAIN)
        segments.append((kind, piece.decode("utf-16-le", "surrogatepass")))
    assert (2 * i, 2 * j) == (len(old), len(new))
    return segments


CHANGES = [
    # a word, in the middle; two that agree by chance do not break a change up
    ("The quick brown fox jumps.", [(BOTH, "The quick "), (PLAIN, "brown"), (IMPROVED, "red"), (BOTH, " fox jumps.")]),
    ("Then came rain and snow. End of it.",
     [(PLAIN, "Then came rain and snow"), (IMPROVED, "Sun is what and wind did"), (BOTH, ". End of it.")]),
    # a short end that is the same is no change
    ("One red fox.", [(BOTH, "One "), (PLAIN, "red"), (IMPROVED, "blue"), (BOTH, " fox.")]),
    ("Red", [(BOTH, "Red"), (IMPROVED, " fox")]),
    ("A fox", [(PLAIN, "A"), (IMPROVED, "The"), (BOTH, " fox")]),
    # a sign that changed leaves its word alone
    ("so it goes on", [(BOTH, "so it"), (IMPROVED, "."), (BOTH, " goes on")]),
    ("as it was, fine", [(BOTH, "as it was"), (PLAIN, ","), (IMPROVED, ";"), (BOTH, " fine")]),
    # what is put in begins where a sentence does
    ("Most of it.", [(BOTH, "Most of it."), (IMPROVED, "\n\n1. Look.")]),
    ("One rule: b.", [(IMPROVED, "One way: a. "), (BOTH, "One rule: b.")]),
    ("A fox.", [(BOTH, "A "), (IMPROVED, "red "), (BOTH, "fox.")]),
]  # fmt: skip


@pytest.mark.parametrize(("plain", "segments"), CHANGES)
def test_what_changed_is_cut_as_a_reader_would(plain: str, segments: list[tuple[int, str]]) -> None:
    assert walked(plain, "".join(text for kind, text in segments if kind != PLAIN)) == segments


@pytest.mark.parametrize(
    ("plain", "improved"),
    [("", ""), ("", "new"), ("old", ""), ("same text", "same text"), (" a", "a "), ("\n\n", "\n"),
     ("a 🐦 b", "a 🐦🐦 b"), ("鸟は飛ぶ", "鸟は泳ぐ"), ("e\u0301 x", "e x"),
     ("\ud83d lone", "\ud83d lonely"), ("<b>", "<i>")],
)  # fmt: skip
def test_odd_texts(plain: str, improved: str) -> None:
    segments = walked(plain, improved)
    assert all(piece for _, piece in segments)
    assert [kind for kind, _ in segments if kind != BOTH] != [] or plain == improved


def test_random_texts() -> None:
    rng = random.Random(0)
    words = ["one ", "two\n", "🐦 ", "three", ", ", "  ", "vier ", "é"]
    for _ in range(300):
        plain, improved = ("".join(rng.choices(words, k=rng.randrange(40))) for _ in range(2))
        walked(plain, improved)


def test_a_text_without_end_is_one_change() -> None:
    long = "word " * (LONGEST + 1)
    assert [kind for kind, _ in walked(long, long + "more")] == [PLAIN, IMPROVED]
    assert [kind for kind, _ in walked(long, long)] == [BOTH]

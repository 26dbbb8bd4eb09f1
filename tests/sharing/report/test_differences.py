"""A difference, walked along both texts, gives them back."""

from __future__ import annotations

import random

import pytest

from refed_dspy.data.differences import BOTH, IMPROVED, LONGEST, PLAIN, difference
from tests.support.said import Said


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


def test_a_word_changed(said: Said) -> None:
    segments = walked("The quick brown fox jumps over it.", "The quick red fox jumps over it.")
    said(segments)


def test_words_that_agree_by_chance_do_not_break_a_change_up() -> None:
    segments = walked(
        "One two. Then came rain and snow. End of it all.", "One two. Sun is what and wind did. End of it all."
    )
    assert [kind for kind, _ in segments] == [BOTH, PLAIN, IMPROVED, BOTH]


def test_a_short_end_that_is_the_same_is_no_change() -> None:
    assert walked("One red fox.", "One blue fox.")[-1] == (BOTH, " fox.")
    assert walked("Red", "Red fox") == [(BOTH, "Red"), (IMPROVED, " fox")]
    assert walked("A fox", "The fox") == [(PLAIN, "A"), (IMPROVED, "The"), (BOTH, " fox")]


def test_a_sign_that_changed_leaves_its_word_alone() -> None:
    assert walked("so it goes on", "so it. goes on") == [(BOTH, "so it"), (IMPROVED, "."), (BOTH, " goes on")]
    assert walked("as it was, fine", "as it was; fine")[1:3] == [(PLAIN, ","), (IMPROVED, ";")]


def test_what_is_put_in_begins_where_a_sentence_does() -> None:
    assert walked("Most of it.", "Most of it.\n\n1. Look.") == [(BOTH, "Most of it."), (IMPROVED, "\n\n1. Look.")]
    assert walked("One rule: b.", "One way: a. One rule: b.") == [(IMPROVED, "One way: a. "), (BOTH, "One rule: b.")]
    assert walked("A fox.", "A red fox.") == [(BOTH, "A "), (IMPROVED, "red "), (BOTH, "fox.")]


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

"""Lengths and lexical diversity, against plain counts."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest
from numpy.typing import NDArray

from refed_dspy.plugins.metrics.wording import SAMPLE_TOKENS, distinct_n, ratio, spread, words

HOSTILE = [
    "",
    "!!! ???",
    "漢字かな",
    "नमस्ते दुनिया",
    "nul\0byte",
    "line\nbreak\r\n\ttab",
    "x" * 10_000,
    "e\u0301te\u0301 ÉTÉ",
    "{0} %s",
]


def plain_grams(texts: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[at : at + n]) for tokens in map(words, texts) for at in range(len(tokens) - n + 1)]


def random_texts(seed: int, count: int = 60) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices("abcdefg", k=rng.randrange(0, 12))) for _ in range(count)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World! hello", ["hello", "world", "hello"]),
        ("snake_case, 3.14", ["snake_case", "3", "14"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("漢字 kanaかな", ["漢", "字", "kana", "か", "な"]),
        ("e\u0301te\u0301", ["e\u0301te\u0301"]),
        ("葛\U000e0100城・か゛", ["葛", "城", "か"]),
        ("𑄌𑄋𑄴𑄟𑄳𑄦 ภาษาไทย x² Ⅷ", ["𑄌𑄋𑄴𑄟𑄳𑄦", "ภาษาไทย", "x²", "ⅷ"]),
        ("Straße STRASSE", ["strasse", "strasse"]),
        ("nul\0byte\nline", ["nul", "byte", "line"]),
        ("?! …", []),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_the_spread_is_that_of_the_numbers() -> None:
    rng = random.Random(3)
    numbers = [rng.randrange(1000) for _ in range(501)]
    measured = spread(numbers)
    assert measured is not None
    assert (measured.count, measured.maximum) == (501, max(numbers))
    assert measured.mean == pytest.approx(statistics.fmean(numbers))
    assert measured.median == statistics.median(numbers)
    cuts = statistics.quantiles(numbers, n=20, method="inclusive")
    assert (measured.p5, measured.p95) == pytest.approx((cuts[0], cuts[-1]))
    assert spread([]) is None


def as_numbers(texts: list[str]) -> list[NDArray[np.uint32]]:
    numbers = {word: number for number, word in enumerate({word for text in texts for word in words(text)})}
    return [np.array([numbers[word] for word in words(text)], dtype=np.uint32) for text in texts]


@pytest.mark.parametrize("seed", range(2))
def test_distinct_n_is_what_a_set_of_tuples_says(seed: int) -> None:
    texts = [*random_texts(seed), *HOSTILE]
    for n in (1, 2, 3, 4, 7):
        grams = plain_grams(texts, n)
        assert ratio(as_numbers(texts), n) == len(set(grams)) / len(grams)
    made = distinct_n(texts)
    assert [distinct.n for distinct in made] == [1, 2, 3]
    assert [distinct.ratio for distinct in made] == [ratio(as_numbers(texts), n) for n in (1, 2, 3)]
    assert [distinct.sampled for distinct in made] == [None] * 3


def test_many_different_words_do_not_run_together() -> None:
    # of 40,000 words: a code of five of them at once would not fit into 64 bits
    rng = random.Random(7)
    texts = [" ".join(f"w{rng.randrange(40_000)}" for _ in range(50)) for _ in range(100)]
    for n in (2, 5):
        grams = plain_grams(texts, n)
        assert ratio(as_numbers(texts), n) == len(set(grams)) / len(grams)


def test_more_grams_than_are_held_are_counted_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [*random_texts(1), *random_texts(2)]
    held = [ratio(as_numbers(texts), n) for n in (1, 2, 3)]
    monkeypatch.setattr("refed_dspy.plugins.metrics.wording._MOST_HELD", 10)
    assert [ratio(as_numbers(texts), n) for n in (1, 2, 3)] == held
    assert [distinct.ratio for distinct in distinct_n(texts)] == held


def test_nothing_to_count_has_no_ratio() -> None:
    for texts in ([], [""], ["!!"], ["one"]):
        assert distinct_n(texts)[1].ratio is None


def test_the_sample_makes_unlike_sizes_comparable() -> None:
    def of(count: int) -> tuple[float, float]:
        rng = np.random.default_rng(1)
        texts = [" ".join(f"w{word}" for word in rng.zipf(1.3, size=40)) for _ in range(count)]
        distinct = distinct_n(texts)[0]
        assert distinct.ratio is not None and distinct.sampled is not None
        return distinct.ratio, distinct.sampled

    (small, small_sampled), (large, large_sampled) = of(300), of(3_000)
    assert large < small / 1.5
    assert large_sampled == pytest.approx(small_sampled, rel=0.15)


def test_the_sample_is_drawn_by_the_seed_and_has_its_size() -> None:
    texts = [f"a{index} b{index % 91} c{index % 3 * index} d" for index in range(SAMPLE_TOKENS // 4)]
    twice = texts + [text.upper() + "x" for text in texts]
    drawn = [distinct_n(twice, seed)[0].sampled for seed in (1, 1, 2)]
    first = drawn[0]
    assert first is not None and first == drawn[1] and len(set(drawn)) > 1
    assert first * SAMPLE_TOKENS == pytest.approx(round(first * SAMPLE_TOKENS))
    assert distinct_n(texts)[0].sampled == distinct_n(texts)[0].ratio
    assert distinct_n([*texts[:-1], "a b c"])[0].sampled is None

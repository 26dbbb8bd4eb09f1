"""Lengths and lexical diversity, against plain counts."""

from __future__ import annotations

import random
import statistics

import numpy as np
import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.metrics.wording import lengths, lexical_diversity, spread, words

HOSTILE = [
    "",
    "!!! ???",
    "漢字かな",
    "नमस्ते दुनिया",
    "nul\0byte",
    "line\nbreak\r\n\ttab",
    "x" * 100_000,
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
    assert (measured.count, measured.minimum, measured.maximum) == (501, min(numbers), max(numbers))
    assert measured.mean == pytest.approx(statistics.fmean(numbers))
    assert measured.median == statistics.median(numbers)
    cuts = statistics.quantiles(numbers, n=20, method="inclusive")
    assert (measured.p5, measured.p95) == pytest.approx((cuts[0], cuts[-1]))
    assert spread([]) is None


def test_lengths_count_words_and_characters() -> None:
    measured = lengths(["one two", "", "漢字", "!"])
    assert measured is not None
    assert (measured.words.mean, measured.words.maximum, measured.words.minimum) == (1.0, 2.0, 0.0)
    assert (measured.characters.mean, measured.characters.maximum, measured.characters.median) == (2.5, 7.0, 1.5)
    assert lengths([]) is None


@pytest.mark.parametrize("seed", range(5))
def test_distinct_n_is_what_a_set_of_tuples_says(seed: int) -> None:
    texts = [*random_texts(seed), *HOSTILE]
    diversity = lexical_diversity(texts, sizes=(1, 2, 3, 4, 7))
    for distinct in diversity.distinct:
        grams = plain_grams(texts, distinct.n)
        assert (distinct.distinct, distinct.total) == (len(set(grams)), len(grams))
        assert distinct.ratio == len(set(grams)) / len(grams)
    assert diversity.words == len(plain_grams(texts, 1))
    assert diversity.vocabulary == diversity.distinct[0].distinct


def test_many_different_words_do_not_run_together() -> None:
    # 40,000 words: a code of five words at once would not fit into 64 bits.
    rng = random.Random(7)
    texts = [" ".join(f"w{rng.randrange(40_000)}" for _ in range(50)) for _ in range(400)]
    distinct = lexical_diversity(texts, sizes=(2, 5)).distinct
    assert [grams.distinct for grams in distinct] == [len(set(plain_grams(texts, n))) for n in (2, 5)]


def test_no_gram_crosses_from_text_to_text() -> None:
    (pairs,) = lexical_diversity(["a b", "c", "d e f"], sizes=(2,)).distinct
    assert (pairs.distinct, pairs.total) == (3, 3)


def test_nothing_to_count_has_no_ratio() -> None:
    for texts in ([], [""], ["!!"], ["one"]):
        assert lexical_diversity(texts, sizes=(2,)).distinct[0].ratio is None


def test_the_sample_makes_unlike_sizes_comparable() -> None:
    def of(count: int) -> tuple[float, float]:
        rng = np.random.default_rng(1)
        texts = [" ".join(f"w{word}" for word in rng.zipf(1.3, size=40)) for _ in range(count)]
        (distinct,) = lexical_diversity(texts, sizes=(1,), sample=2_000).distinct
        assert distinct.ratio is not None and distinct.sampled is not None
        return distinct.ratio, distinct.sampled

    (small, small_sampled), (large, large_sampled) = of(100), of(2_000)
    assert large < small / 1.8
    assert large_sampled == pytest.approx(small_sampled, rel=0.15)


def test_the_sample_is_drawn_by_the_seed_and_has_its_size() -> None:
    texts = [f"a{index} b{index % 91} c{index % 3 * index}" for index in range(400)]
    drawn = [
        lexical_diversity(texts, sizes=(1,), sample=500, seed=seed).distinct[0].sampled for seed in (1, 1, 2, 3, 4)
    ]
    first = drawn[0]
    assert first == drawn[1]
    assert len(set(drawn)) > 1
    assert first is not None and first * 500 == pytest.approx(round(first * 500))
    assert (
        lexical_diversity(texts, sizes=(1,), sample=1_200).distinct[0].sampled
        == lexical_diversity(texts).distinct[0].ratio
    )
    assert lexical_diversity(texts, sizes=(1,), sample=1_201).distinct[0].sampled is None


@pytest.mark.parametrize(("sizes", "sample"), [((0,), 10), ((1, -2), 10), ((1,), 0)])
def test_sizes_out_of_range_are_refused(sizes: tuple[int, ...], sample: int) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        lexical_diversity(["a"], sizes=sizes, sample=sample)

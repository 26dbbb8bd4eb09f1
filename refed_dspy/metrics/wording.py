"""The words of a text, the spread of such counts over a data set, and its lexical diversity: distinct-n."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import regex
from numpy.typing import ArrayLike, NDArray

SAMPLE_TOKENS = 10_000
"""Words in the sample of distinct-n: about a hundred answers."""

# Ideographs and kana are written without spaces: each counts as a word. The selector of an ideograph's variant is none.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_IN_WORDS = r"[\p{L}\p{N}\p{M}_]"
_words = regex.compile(rf"(?V1)[{_IN_WORDS}--[{_UNSPACED}\U000e0100-\U000e01ef]]+|[{_IN_WORDS}&&[{_UNSPACED}]]").findall


@dataclass(frozen=True, slots=True)
class Spread:
    """The spread of `count` numbers; `p5` and `p95` are percentiles, interpolated between neighbours."""

    count: int
    mean: float
    median: float
    p5: float
    p95: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Distinct:
    """Distinct-n (Li et al., arXiv 1510.03055): distinct n-grams over all n-grams, none across two texts."""

    n: int
    ratio: float | None
    """Over the whole data set, in (0, 1]; falls as a data set grows. None where there is no n-gram."""
    sampled: float | None
    """The ratio over the sample, comparable between data sets of different sizes. None for a smaller data set."""


def words(text: str) -> list[str]:
    """The words of `text` in order, compared without case.

    A word is a run of letters, digits, underscores and the marks that belong to letters; an ideograph or a kana is a
    word by itself. In other scripts without spaces between words (Thai, say) a run is one word.
    """
    found: list[str] = _words(text.casefold())
    return found


def spread(values: ArrayLike) -> Spread | None:
    """The spread of any finite numbers, None where there is none."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    if not numbers.size:
        return None
    p5, median, p95 = np.percentile(numbers, (5, 50, 95)).tolist()
    return Spread(numbers.size, float(numbers.mean()), median, p5, p95, float(numbers.max()))


def distinct_n(texts: Sequence[str], seed: int = 0) -> list[Distinct]:
    """Distinct-n of the texts, for n of 1, 2 and 3.

    Distinct-n falls with the amount of text alone, so it is also computed over a sample of a fixed number of words:
    texts in an order drawn by `seed` until there are SAMPLE_TOKENS words, the last text cut there. Each text becomes an
    array of 4 bytes a word; counting sorts 8 bytes a word.
    """
    numbers: dict[str, int] = {}
    coded = [_coded(text, numbers) for text in texts]
    drawn = _drawn(coded, seed) if sum(map(len, coded)) >= SAMPLE_TOKENS else []
    return [Distinct(n, ratio(coded, n), ratio(drawn, n)) for n in (1, 2, 3)]


def _coded(text: str, numbers: dict[str, int]) -> NDArray[np.uint32]:
    """The words of `text` as numbers; new words are added to `numbers`."""
    return np.array([numbers.setdefault(word, len(numbers)) for word in words(text)], dtype=np.uint32)


def _drawn(coded: Sequence[NDArray[np.uint32]], seed: int) -> list[NDArray[np.uint32]]:
    """Texts in random order, SAMPLE_TOKENS words of them in all."""
    size = SAMPLE_TOKENS
    order = list(range(len(coded)))
    random.Random(seed).shuffle(order)
    chosen: list[NDArray[np.uint32]] = []
    for index in order:
        text = coded[index][:size]
        chosen.append(text)
        size -= len(text)
        if not size:
            break
    return chosen


def ratio(coded: Sequence[NDArray[np.uint32]], n: int) -> float | None:
    """How many different n-grams the texts, words as numbers, have over how many in all; None where there is none."""
    long_enough = [text for text in coded if len(text) >= n]
    if not long_enough:
        return None
    flat = np.concatenate(long_enough).astype(np.int64)
    starts = np.ones(len(flat), dtype=bool)
    for end in np.cumsum([len(text) for text in long_enough]).tolist():
        starts[end - n + 1 : end] = False  # an n-gram from there would reach into the next text
    codes, base = flat, int(flat.max()) + 1
    for step in range(1, n):
        # Ranks keep the codes small: a rank and a word always fit into 63 bits together, for any n.
        ranks = np.unique(codes, return_inverse=True)[1].ravel() if step > 1 else codes
        codes = ranks[:-1] * base + flat[step:]
    codes = codes[starts[: len(codes)]]
    return len(np.unique(codes)) / len(codes)

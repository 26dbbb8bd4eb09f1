"""ROUGE-L between texts, and the nearest of many kept texts, exactly as the package `rouge-score` decides.

A text's tokens are the runs of a-z and 0-9 in its lower-cased form. With LCS the longest common subsequence of two
token lists of lengths m and n, P = LCS / m and R = LCS / n, ROUGE-L F = 2PR / (P + R), which is 2 LCS / (m + n) up to
rounding, and 0 where a text has no token (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"). What is
reported and decided by is the formula with P and R, in floats and in this order, because at a threshold of 0.7 the two
differ: 23 and 37 tokens with an LCS of 21 are below it in floats. Swapping the texts changes no bit of F: it swaps the
two sides of one product and one sum.

An LCS cannot be longer than the overlap of the two bags of tokens. A bag is made a set by counting: the second "the"
of a text is another feature than the first. All features have one order, rare ones first. If m and n tokens need an
LCS of l, the first feature that they share stands at a place i of m with m - i >= l and at a place j of n with
n - j >= l. So only the first features of each text are written down and looked up (the prefix filter of set similarity
joins: Chaudhuri et al. 2006; Bayardo et al. 2007), each with the longest partner that it can still speak for. The LCS
of what is left is computed by rapidfuzz, as an integer.
"""

from __future__ import annotations

import math
import random
import re
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from refed_dspy.errors import ConfigError

Feature = str | tuple[str, int]
"""A token the first time that it stands in a text; with 1, 2, ... the times after."""

TOKEN = re.compile("[a-z0-9]+")
SURROGATES = (0xD800, 0xE000)
LARGEST = np.iinfo(np.int32).max
SLACK = 1e-9
"""The share of the threshold by which filters are laxer than F: far more than its rounding."""

BITS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(axis=1, dtype=np.uint8)
"""How many bits are set in a number of 16."""

Codes = str | list[int]
"""A number a token: as characters while code points last. rapidfuzz takes a character for its number."""


class Coded(NamedTuple):
    """A text as `Words` wrote it down."""

    codes: Codes
    features: list[int]
    """As many as there are tokens, each once, those that are taken for rare first."""


def tokens(text: str) -> list[str]:
    """The tokens of `rouge-score` without its stemmer."""
    return TOKEN.findall(text.lower())


def counted(found: Sequence[str]) -> list[Feature]:
    """Each token that comes again as a feature of its own."""
    times: dict[str, int] = {}
    parts: list[Feature] = []
    for token in found:
        before = times.get(token, 0)
        parts.append((token, before) if before else token)
        times[token] = before + 1
    return parts


def f_measure(common: NDArray[Any], length: int, lengths: NDArray[Any]) -> NDArray[np.float64]:
    """ROUGE-L F of LCS lengths `common` (n) between one text of `length` tokens and texts of `lengths` (n): (n),
    0 where nothing is common. Bit for bit what `rouge-score` computes."""
    ratios: NDArray[np.float64] = np.zeros(len(common))
    some = np.flatnonzero(common)
    precision, recall = common[some] / length, common[some] / lengths[some]
    ratios[some] = 2 * precision * recall / (precision + recall)
    return ratios


def lcs(text: Codes, others: Sequence[Codes], least: int = 0) -> NDArray[np.int32]:
    """The LCS lengths of one text with others (n): (n); 0 for those below `least`."""
    found = process.cdist([text], others, scorer=LCSseq.similarity, score_cutoff=least, dtype=np.int32)
    lengths: NDArray[np.int32] = found[0]
    return lengths


def token_counts(texts: Sequence[Codes]) -> NDArray[np.int32]:
    return np.fromiter(map(len, texts), np.int32, len(texts))


class Words(dict[Feature, int]):
    """A number for every feature: for those of `common`, most frequent first, then for others as they are asked for. A
    later number is taken for a rarer feature; a bad guess costs time, never a decision."""

    def __init__(self, common: Iterable[Feature] = ()) -> None:
        super().__init__()
        for feature in common:
            self[feature]

    def __missing__(self, feature: Feature) -> int:
        number = len(self)
        if number >= SURROGATES[0]:
            number += SURROGATES[1] - SURROGATES[0]
        self[feature] = number
        return number

    def code(self, text: str) -> Coded:
        found = tokens(text)
        codes = [self[token] for token in found]
        again = len(set(codes)) < len(codes)
        features = [self[feature] for feature in counted(found)] if again else codes
        features = sorted(features, reverse=True)
        try:
            return Coded("".join(map(chr, codes)), features)
        except ValueError:  # more features than code points
            return Coded(codes, features)


def marks(features: list[int]) -> int:
    """64 bits, of which each feature turns one: texts differ in at least as many features as they differ in bits."""
    bits = 0
    for feature in features:
        bits ^= 1 << (feature & 63)
    return bits


def reaches(partner: float, length: int) -> array[int]:
    """How long a text can be whose LCS with one of `length` tokens takes none before place 0, 1, ...: an F of t needs
    LCS >= t * (length + other) / 2, where LCS <= length - place. `partner` is 2 / t. Ends at the place from which on
    the longest is shorter than any LCS that will do, and the shortest is `length` / (`partner` - 1)."""
    places = min(int(length - length / (partner - 1)) + 1, length)
    return array("i", (int(min((length - place) * partner - length, LARGEST)) for place in range(places)))


class Index:
    """Coded texts, numbered from 0 as they are added, and which of them is nearest to another, from `threshold` on
    (above 0, at most 1). Not for several threads at once."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._partner = 2 / (threshold * (1 - SLACK))
        self._reaches = lru_cache(maxsize=256)(partial(reaches, self._partner))
        self._texts: list[Codes] = []
        self._lengths = array("i")
        self._marks = array("Q")
        self._places: dict[int, array[int]] = {}
        """Of each feature: the numbers of texts that have it among their first ones, each with its reach there."""

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: Coded) -> None:
        number, length = len(self._texts), len(text.codes)
        self._texts.append(text.codes)
        self._lengths.append(length)
        self._marks.append(marks(text.features))
        for feature, reach in zip(text.features, self._reaches(length), strict=False):
            if (found := self._places.get(feature)) is None:
                found = self._places[feature] = array("i")
            found.append(number)
            found.append(reach)

    def _least(self, length: int) -> int:
        """The shortest LCS, and the shortest partner, that will do for a text of `length` tokens."""
        return math.ceil(length / (self._partner - 1))

    def nearest(self, text: Coded) -> tuple[int, float] | None:
        """The number and the F of the text nearest to `text`, the first added of equals; None where all are below the
        threshold."""
        near, length = self._candidates(text), len(text.codes)
        if not len(near):
            return None
        texts = [self._texts[number] for number in near.tolist()]
        common = lcs(text.codes, texts, self._least(length))
        if not common.any():
            return None
        ratios = f_measure(common, length, np.frombuffer(self._lengths, np.int32)[near])
        best = int(ratios.argmax())
        return (int(near[best]), float(ratios[best])) if ratios[best] >= self._threshold else None

    def _candidates(self, text: Coded) -> NDArray[np.intp]:
        """The numbers, rising, of all texts that can be as near as the threshold, and of some that cannot."""
        length = len(text.codes)
        lists, sizes, longest = [], [], []
        for feature, reach in zip(text.features, self._reaches(length), strict=False):
            if (found := self._places.get(feature)) is not None:
                lists.append(found)
                sizes.append(len(found) // 2)
                longest.append(reach)
        if not lists:
            return np.empty(0, np.intp)
        lengths = np.frombuffer(self._lengths, np.int32)
        if sum(sizes) > len(self):  # reading the lists would cost more than a look at every text
            fits = (lengths >= self._least(length)) & (lengths <= longest[0])
        else:
            rows = np.frombuffer(b"".join(lists), np.int32)
            numbers, reached = rows[::2], rows[1::2] >= length
            reached &= lengths[numbers] <= np.repeat(np.array(longest, np.int32), sizes)
            fits = np.zeros(len(self), np.bool_)
            fits[numbers[reached]] = True
        return self._overlapping(np.flatnonzero(fits), text)

    def _overlapping(self, numbers: NDArray[np.intp], text: Coded) -> NDArray[np.intp]:
        """Those of `numbers` whose marks allow enough overlap: if d features stand in one of two texts only, an LCS is
        at most half of (both lengths - d)."""
        differing = np.frombuffer(self._marks, np.uint64)[numbers] ^ np.uint64(marks(text.features))
        apart = BITS[differing.view(np.uint16)].reshape(-1, 4).sum(axis=1)
        both = np.frombuffer(self._lengths, np.int32)[numbers] + len(text.codes)
        fits: NDArray[np.bool_] = apart <= (1 - 2 / self._partner) * both
        return numbers[fits]


POOL = 2_000


def self_rouge(texts: Sequence[str], sample: int = 500, seed: int = 0) -> float | None:
    """How alike texts are, 0 to 1: the mean, over a sample, of a text's highest ROUGE-L F against the others.

    2,000 of the texts are drawn without replacement by `seed` (all if there are fewer), and of these the `sample` drawn
    first are compared with all the others of the 2,000. The highest of more comparisons is higher: figures of fewer
    than 2,000 texts compare only with those of as many. None where there are not two texts to compare; ConfigError for
    a sample below 1.
    """
    if sample < 1:
        raise ConfigError(f"A sample of {sample} texts has no mean: give 1 or more.")
    if len(texts) < 2:
        return None
    words = Words()
    drawn = random.Random(seed).sample(range(len(texts)), min(len(texts), POOL))
    pool = [words.code(texts[place]).codes for place in drawn]
    lengths = token_counts(pool)
    highest = []
    for place, codes in enumerate(pool[:sample]):
        common = lcs(codes, pool)
        common[place] = 0
        highest.append(float(f_measure(common, len(codes), lengths).max()))
    return sum(highest) / len(highest)

"""A filter by ROUGE-L: keeps an instruction if its highest ROUGE-L F against those kept so far is below a threshold.

This is the selection of Self-Instruct (Wang et al. 2023, arXiv 2212.10560), which keeps below 0.7, and a filter that
reference-level feedback is compared with. An F that equals the threshold drops. Every decision is that of the package
`rouge-score`, `RougeScorer(["rougeL"], use_stemmer=False)`, on the same texts in the same order; it makes no difference
which of two texts is the package's target and which its prediction. A text without a token (nothing of a-z and 0-9: in
another script, say) has an F of 0 with every text, so it is always kept.

ROUGE-L of two texts, the nearest of many texts, and the mean within a data set are exactly as `rouge-score` has them.

A text's tokens are the runs of a-z and 0-9 in its lower-cased form. With LCS the longest common subsequence of two
token lists of lengths m and n, P = LCS / m and R = LCS / n, ROUGE-L F = 2PR / (P + R), which is 2 LCS / (m + n) up to
rounding, and 0 where a text has no token (Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries"). F is
computed by the formula with P and R, in floats and in this order, because at a threshold of 0.7 the two differ: 23 and
37 tokens with an LCS of 21 are below it in floats. Swapping the texts changes no bit of F: it swaps the two sides of
one product and one sum.

An LCS cannot be longer than the overlap of the two multisets of tokens. Counting makes them sets: the second "the" of a
text is another feature than the first. All features have one order, rare ones first. If texts of m and n tokens need an
LCS of l, the first feature that they share is at a place i of m with m - i >= l and at a place j of n with n - j >= l.
So only the first features of each text are indexed and looked up (the prefix filter of set similarity joins: Chaudhuri
et al. 2006; Bayardo et al. 2007), each with the length of the longest text that it can still match, and apart by the
length of the text, so that only texts of a fitting length are looked at. For the remaining candidates, rapidfuzz
computes the LCS, as an integer.
"""

from __future__ import annotations

import math
import random
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from refed_dspy.filters.base import Decision, TextFilter, preview
from refed_dspy.records import DataRow

Feature = str | tuple[str, int]
"""A token where it occurs first in a text; the token with 1, 2, ... where it occurs again."""

TOKEN = re.compile("[a-z0-9]+")
FIRST_SURROGATE, SURROGATES = 0xD800, 0x800
"""The code points from 0xD800 to 0xDFFF, which are no characters."""
LARGEST = np.iinfo(np.int32).max
LOW = np.uint64(0xFFFFFFFF)
SLACK = 1e-9
"""The share of the threshold by which the index is laxer than F: far more than the rounding of F."""

BITS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8)).reshape(-1, 16).sum(axis=1, dtype=np.uint8)
"""How many bits are set in each number of 16 bits."""

Codes = str | list[int]
"""A text's tokens as numbers: a string of characters while there are enough code points, else a list. rapidfuzz takes a
character for its number."""


class EncodedText(NamedTuple):
    """A text as an `Alphabet` encodes it."""

    codes: Codes
    features: list[int]
    """Distinct numbers, as many as there are tokens, those presumed rare first."""
    parity_bits: int
    """64 bits, of which each feature flips one: texts differ in at least as many features as in bits."""


def tokens(text: str) -> list[str]:
    """The tokens of `rouge-score` without its stemmer."""
    return TOKEN.findall(text.lower())


def features_of(words: Sequence[str]) -> list[Feature]:
    """The features of a text's tokens: each occurrence of a token is another one."""
    times: dict[str, int] = {}
    features: list[Feature] = []
    for token in words:
        before = times.get(token, 0)
        features.append((token, before) if before else token)
        times[token] = before + 1
    return features


def f_measure(common: NDArray[Any], length: int, lengths: NDArray[Any]) -> NDArray[np.float64]:
    """ROUGE-L F of LCS lengths `common` (n) between one text of `length` tokens and texts of `lengths` (n): (n),
    0 where nothing is common. Bit for bit what `rouge-score` computes."""
    ratios: NDArray[np.float64] = np.zeros(len(common))
    some = np.flatnonzero(common)
    ratios[some] = _f(common[some], length, lengths[some])
    return ratios


def _f(common: Any, length: int, other: Any) -> Any:
    """The F of LCS lengths above 0: numbers, or arrays of them."""
    precision, recall = common / length, common / other
    return 2 * precision * recall / (precision + recall)


def lcs(text: Codes, others: Sequence[Codes], least: int = 0) -> NDArray[np.int32]:
    """The LCS lengths of one text with others (n): (n); 0 for those below `least`."""
    rows = process.cdist([text], others, scorer=LCSseq.similarity, score_cutoff=least, dtype=np.int32)
    lengths: NDArray[np.int32] = rows[0]
    return lengths


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """ROUGE-L F of two texts' `tokens`."""
    common = LCSseq.similarity(one, other)
    return float(_f(common, len(one), len(other))) if common else 0.0


class Alphabet:
    """Numbers for features: for those of `common`, most frequent first, then for others as texts bring them. A later
    number is taken for a rarer feature; a wrong guess costs time but changes no decision."""

    def __init__(self, common: Iterable[Feature] = ()) -> None:
        self.numbers: dict[Feature, int] = {}
        self._numbers_of(list(common))

    def encode(self, text: str) -> EncodedText:
        """`text` with each token as a number.

        rapidfuzz compares strings two to three times as fast as lists, so the numbers become the characters of a
        string. Hence no number is a surrogate: a string with one is no valid text, and rapidfuzz does not promise to
        take it. A text with a number beyond the last code point stays a list; rapidfuzz compares strings with lists.
        """
        words = tokens(text)
        codes = self._numbers_of(words)
        repeats = len(set(codes)) < len(codes)
        features = sorted(self._numbers_of(features_of(words)) if repeats else codes, reverse=True)
        try:
            return EncodedText("".join(map(chr, codes)), features, parity_bits(features))
        except ValueError:  # a number beyond the last code point
            return EncodedText(codes, features, parity_bits(features))

    def _numbers_of(self, features: Sequence[Feature]) -> list[int]:
        """The number of each feature; new features get the next free numbers."""
        numbers = self.numbers
        for feature in features:
            if feature not in numbers:
                count = len(numbers)
                numbers[feature] = count if count < FIRST_SURROGATE else count + SURROGATES
        return list(map(numbers.__getitem__, features))


def parity_bits(features: list[int]) -> int:
    bits = 0
    for feature in features:
        bits ^= 1 << (feature & 63)
    return bits


def longest_partners(partner: float, length: int) -> array[int]:
    """Of a text of `length` tokens, for each place 0, 1, ...: the length of the longest other text that can reach an F
    of t with an LCS that uses no token before that place.

    F >= t needs LCS >= t * (length + other) / 2, and there LCS <= length - place. `partner` is 2 / t. The list ends at
    the place from which on no other text is both short enough and long enough: the shortest that can reach t has
    `length` / (`partner` - 1) tokens.
    """
    places = min(int(length - length / (partner - 1)) + 1, length)
    return array("i", (int(min((length - place) * partner - length, LARGEST)) for place in range(places)))


def bits_set(numbers: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """How many bits are set in each of `numbers`: four bytes, whose sum a product brings into the highest one."""
    bytes_: NDArray[np.uint32] = BITS.take(numbers.view(np.uint16)).view(np.uint32)
    return bytes_ * np.uint32(0x01010101) >> np.uint32(24)


def length_class(length: int) -> int:
    """0 to 63, larger for longer texts: no length of a class is half as long again as another."""
    return min(int(2 * math.log2(max(length, 1))), 63)


def longest_of(length_class: int) -> int:
    """No text of the class has more tokens."""
    return int(2 ** ((length_class + 1) / 2)) + 1 if length_class < 63 else LARGEST


class Index:
    """Encoded texts, numbered from 0 as they are added: finds the nearest of them to another text, if its F is at least
    `threshold` (above 0, at most 1). Not safe for several threads."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._partner = 2 / (threshold * (1 - SLACK))
        self._longest_partners = lru_cache(maxsize=256)(partial(longest_partners, self._partner))
        self._partners = lru_cache(maxsize=256)(self._partners_of)
        self._texts: list[Codes] = []
        self._lengths = array("i")
        self._parity_bits = array("Q")
        self._postings: dict[int, array[int]] = {}
        """Of each feature and class of lengths (`feature << 6 | class`), for every text that has it among its first
        features: its parity bits; then the length of the longest partner from that place on, and its number, 32 bits
        each."""

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: EncodedText) -> None:
        number, length, bits = len(self._texts), len(text.codes), text.parity_bits
        own_class = length_class(length)
        self._texts.append(text.codes)
        self._lengths.append(length)
        self._parity_bits.append(bits)
        for feature, longest in zip(text.features, self._longest_partners(length), strict=False):
            key = feature << 6 | own_class
            if (postings := self._postings.get(key)) is None:
                postings = self._postings[key] = array("Q")
            postings.extend((bits, longest << 32 | number))

    def _least(self, length: int) -> int:
        """The shortest LCS, and the shortest partner, with which a text of `length` tokens reaches the threshold."""
        return math.ceil(length / (self._partner - 1))

    def _partners_of(self, length: int) -> tuple[list[tuple[int, float]], array[int]]:
        """Of a text of `length` tokens: the classes of its partners' lengths, shortest first, and in how many features
        at most such a partner differs; for each place, how many of these classes remain. If d features are in only one
        of two texts, their LCS is at most half of (both lengths - d)."""
        shortest, partners = length_class(self._least(length)), self._longest_partners(length)
        remaining = array("b", (length_class(longest) + 1 - shortest for longest in partners))
        classes = range(shortest, shortest + max(remaining, default=0))
        return [(class_, (1 - 2 / self._partner) * (length + longest_of(class_))) for class_ in classes], remaining

    def nearest(self, text: EncodedText) -> tuple[int, float] | None:
        """(number, F) of the text nearest to `text`, the first added of equals; None where all are below the
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

    def _candidates(self, text: EncodedText) -> NDArray[np.intp]:
        """The numbers, ascending, of all texts that can reach the threshold, and of some that cannot."""
        length, lists, sizes, most = len(text.codes), [], [], []
        classes, remaining = self._partners(length)
        for feature, count in zip(text.features, remaining, strict=False):
            for class_, most_apart in classes[:count]:
                if (postings := self._postings.get(feature << 6 | class_)) is not None:
                    lists.append(postings)
                    sizes.append(len(postings) // 2)
                    most.append(most_apart)
        if not lists:
            return np.empty(0, np.intp)
        if sum(sizes) > len(self):  # reading the lists would cost more than a look at every text
            lengths = np.frombuffer(self._lengths, np.int32)
            longest = self._longest_partners(length)[0]
            numbers = np.flatnonzero((lengths >= self._least(length)) & (lengths <= longest))
            allowed = (1 - 2 / self._partner) * (lengths[numbers] + length)
            bits = np.frombuffer(self._parity_bits, np.uint64)[numbers]
        else:
            both = np.frombuffer(b"".join(lists), np.uint64).reshape(-1, 2)
            possible = np.flatnonzero(both[:, 1] >= length << 32)
            numbers = (both[possible, 1] & LOW).astype(np.intp)
            allowed = np.repeat(most, sizes)[possible]
            bits = both[possible, 0]
        apart = bits_set(bits ^ np.uint64(text.parity_bits))
        return np.array(sorted(set(numbers[apart <= allowed].tolist())), np.intp)


POOL = 2_000


def self_rouge(texts: Sequence[str], sample: int = 500, seed: int = 0) -> float | None:
    """How alike texts are, 0 to 1: the mean, over a sample, of a text's highest ROUGE-L F against the others.

    2,000 of the texts are drawn without replacement by `seed` (all if there are fewer). The `sample` texts drawn first
    are compared with all the others of the 2,000. The highest of more comparisons is higher, so values of fewer than
    2,000 texts are comparable only with those of equally many. None for fewer than two texts.
    """
    if len(texts) < 2:
        return None
    alphabet = Alphabet()
    drawn = random.Random(seed).sample(range(len(texts)), min(len(texts), POOL))
    pool = [alphabet.encode(texts[place]).codes for place in drawn]
    lengths = np.array(list(map(len, pool)))
    highest = []
    for place, codes in enumerate(pool[:sample]):
        common = lcs(codes, pool)
        common[place] = 0
        highest.append(float(f_measure(common, len(codes), lengths).max()))
    return sum(highest) / len(highest)


THRESHOLD = 0.7
COUNTED = 50_000
"""At most so many texts are read to tell common words from rare ones."""


@dataclass(frozen=True, slots=True)
class Match:
    """What became of one text.

    Of a dropped text, `score` is the highest F against the texts kept before it, and `like` the place, counted from 0,
    of the first text that has it. `visited` is false for the texts left once enough were kept.
    """

    kept: bool
    visited: bool = True
    score: float | None = None
    like: int | None = None


KEPT, NOT_VISITED = Match(True), Match(False, visited=False)


def select(texts: Sequence[str], threshold: float = THRESHOLD, target: int | None = None) -> list[Match]:
    """A Match for each text, in order. Texts are visited in order until `target` are kept (None: all are visited).

    `threshold`: above 0, at most 1."""
    index = Index(threshold)
    common: Counter[Feature] = Counter()
    for text in texts[:: len(texts) // COUNTED + 1]:
        common.update(features_of(tokens(text)))
    alphabet = Alphabet(feature for feature, _ in common.most_common())
    del common
    kept: list[int] = []
    matches: list[Match] = []
    for place, text in enumerate(texts):
        if len(kept) == target:
            break
        encoded = alphabet.encode(text)
        nearest = index.nearest(encoded)
        if nearest is None:
            index.add(encoded)
            kept.append(place)
            matches.append(KEPT)
        else:
            matches.append(Match(False, score=nearest[1], like=kept[nearest[0]]))
    return matches + [NOT_VISITED] * (len(texts) - len(matches))


class RougeFilter(TextFilter):
    """`select`, one row at a time: the same rows in the same order get the same decisions. Looks at instructions only.

    The more rows are kept, the longer a check takes: at 10,000 a fraction of a millisecond, about two if all of them
    are made of the same words. Not safe for several threads.
    """

    name = "rouge"
    of_instruction = True

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self._index = Index(threshold)
        self._alphabet = Alphabet()
        self._previews: list[str] = []

    def check(self, row: DataRow) -> Decision:
        """Kept, and remembered; or dropped with the highest F and the beginning of the kept text that has it."""
        encoded = self._alphabet.encode(row.instruction)
        nearest = self._index.nearest(encoded)
        if nearest is not None:
            return Decision(False, "like a kept one", nearest[1], self._previews[nearest[0]])
        self._index.add(encoded)
        self._previews.append(preview(row.instruction))
        return Decision(True)

    def remember(self, row: DataRow) -> None:
        self._index.add(self._alphabet.encode(row.instruction))
        self._previews.append(preview(row.instruction))

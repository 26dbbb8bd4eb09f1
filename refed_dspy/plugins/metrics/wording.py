"""The words of a text, the spread of such counts over a data set, and its lexical diversity: distinct-n."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import regex
from numpy.typing import ArrayLike, NDArray

SAMPLE_TOKENS = 10_000
"""Words in the sample of distinct-n: about a hundred answers."""

# Ideographs and kana are written without spaces: each counts as a word. The selector of an ideograph's variant is none.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_IN_WORDS = r"[\p{L}\p{N}\p{M}_]"
_words = regex.compile(rf"(?V1)[{_IN_WORDS}--[{_UNSPACED}\U000e0100-\U000e01ef]]+|[{_IN_WORDS}&&[{_UNSPACED}]]").findall
_MOST_HELD, _FILES = 4_000_000, 32
"""N-grams held in memory, and files that the others go to: two to the power of the bits that choose one."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, with bits all over: the same words in another order are another n-gram."""


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
    texts in an order drawn by `seed` until there are SAMPLE_TOKENS words, the last text cut there. Texts are read one
    after the other, and n-grams told apart by 64 bits: two of 300 million are taken for one by chance once in 400 sets.
    """
    counted, tokens = [_Grams(n) for n in (1, 2, 3)], 0
    for begin in range(0, len(texts), 1_000):
        coded = [_coded(texts[at]) for at in range(begin, min(begin + 1_000, len(texts)))]
        tokens += sum(map(len, coded))
        for grams in counted:
            grams.add(coded)
    drawn = _drawn(texts, seed) if tokens >= SAMPLE_TOKENS else []
    return [Distinct(grams.n, grams.ratio(), ratio(drawn, grams.n)) for grams in counted]


def _coded(text: str) -> NDArray[np.uint64]:
    """The words of `text` as numbers: 64 bits of a hash, which differ from process to process."""
    return np.array([hash(word) for word in words(text)], dtype=np.int64).view(np.uint64)


def _drawn(texts: Sequence[str], seed: int) -> list[NDArray[np.uint64]]:
    """Texts in random order, SAMPLE_TOKENS words of them in all."""
    size = SAMPLE_TOKENS
    order = list(range(len(texts)))
    random.Random(seed).shuffle(order)
    chosen: list[NDArray[np.uint64]] = []
    for index in order:
        text = _coded(texts[index])[:size]
        chosen.append(text)
        size -= len(text)
        if not size:
            break
    return chosen


def ratio(coded: Sequence[NDArray[Any]], n: int) -> float | None:
    """How many different n-grams the texts, words as numbers, have over how many in all; None where there is none."""
    grams = _Grams(n)
    grams.add(coded)
    return grams.ratio()


class _Grams:
    """The n-grams of texts, as 64 bits each. Beyond _MOST_HELD they are in temporary files, by their first bits."""

    def __init__(self, n: int) -> None:
        self.n, self._count, self._held_count = n, 0, 0
        self._held = list[NDArray[np.uint64]]()
        self._files = list[IO[bytes]]()

    def add(self, coded: Sequence[NDArray[Any]]) -> None:
        """Count those of these texts, whose words are numbers."""
        long_enough = [text for text in coded if len(text) >= self.n]
        if not long_enough:
            return
        flat = np.concatenate(long_enough).astype(np.uint64)
        starts = np.ones(len(flat), dtype=bool)
        for end in np.cumsum([len(text) for text in long_enough]).tolist():
            starts[end - self.n + 1 : end] = False  # an n-gram from there would reach into the next text
        codes = np.zeros(len(flat) - self.n + 1, dtype=np.uint64)
        for step in range(self.n):
            codes = codes * _FACTOR + flat[step : step + len(codes)]  # modulo 2^64
        self._held.append(codes[starts[: len(codes)]])
        self._count += len(self._held[-1])
        self._held_count += len(self._held[-1])
        if self._held_count > _MOST_HELD:
            self._put_into_files()

    def _put_into_files(self) -> None:
        self._files = self._files or [tempfile.TemporaryFile() for _ in range(_FILES)]  # noqa: SIM115 — closed in ratio
        codes = np.concatenate(self._held)
        places = codes >> np.uint64(65 - _FILES.bit_length())
        for place, file in enumerate(self._files):
            file.write(codes[places == place].tobytes())
        self._held, self._held_count = [], 0

    def ratio(self) -> float | None:
        """How many are different, over how many in all; None where there is none. Nothing is counted afterwards."""
        if not self._count:
            return None
        if not self._files:
            return _different(np.concatenate(self._held)) / self._count
        if self._held:
            self._put_into_files()
        different = 0
        for file in self._files:
            file.seek(0)
            different += _different(np.fromfile(file, dtype=np.uint64))
            file.close()
        return different / self._count


def _different(codes: NDArray[np.uint64]) -> int:
    """How many different numbers there are. Sorts them in place: a hundredth of the time of `np.unique`."""
    codes.sort()
    return int(np.count_nonzero(codes[1:] != codes[:-1])) + bool(len(codes))

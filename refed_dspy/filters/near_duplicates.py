"""A filter of near-duplicates: rows that differ from a kept row by a word, case, punctuation or white space only, but
not by a number or a name."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple
from unicodedata import normalize

import numpy as np
import regex
from numpy.typing import NDArray

from refed_dspy.config.filters import Of
from refed_dspy.filters.base import Decision, TextFilter, preview
from refed_dspy.records import DataRow

SHORT = 6
"""From this many words on, one changed word still makes a duplicate. In fewer words, another word is another task."""

# Scripts written without spaces: a character is a token. Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"
    "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_is_unspaced = re.compile(f"[{_UNSPACED}]").fullmatch
# Words with their marks, but for the selectors of a Han character's variant; characters of those scripts; signs that
# mean something.
_tokens = regex.compile(
    rf"(?V1)[[\p{{L}}\p{{N}}\p{{M}}]--[{_UNSPACED}\U000e0100-\U000e01ef]]+|[{_UNSPACED}]|[+<=>|~$\p{{Sm}}\p{{Sc}}\p{{So}}]"
).findall
_polite = re.compile(
    r"\W*(?:(?:please|kindly|(?:can|could|would|will) you|i (?:want|need|would like) you to|i['’]d like you to)\b"
    r"[\s,:]*)+",
    re.IGNORECASE,
)
# A word with a digit in it, or a capitalised one (not "I") that does not begin a sentence, a line or a quotation.
_particulars = regex.compile(
    r"\b\w*\p{N}\w*|(?<![.!?:;\n\"“”„«»(\[•*#-]\s*)(?<!^\s*)\b(?!I\b)\p{Lu}\w*", flags=regex.MULTILINE
).findall
_ODD = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)
_LEAST = 0.4
PERMUTATIONS = 128
"""Numbers of a MinHash signature."""

Array = NDArray[Any]


def tokens(text: str) -> list[str]:
    """The words of `text` in order, without case, punctuation, apostrophes or width forms (NFKC, casefold).

    A character of a script without spaces is a token by itself; so is a sign such as `+`, `€` or an emoji. A text of
    punctuation only gives its characters.
    """
    plain = normalize("NFKC", text).casefold().replace("'", "").replace("’", "")
    return _tokens(plain) or [char for char in plain if not char.isspace()]


def unspaced(words: Sequence[str]) -> Array:
    """bool array as long as `words`: which of them are single characters of a script without spaces."""
    return np.fromiter((_is_unspaced(word) is not None for word in words), dtype=bool, count=len(words))


def hashed(words: Sequence[str]) -> Array:
    """uint64 array as long as `words`, the same in every process (Python's `hash` of a string is not)."""
    digests = b"".join(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest() for word in words)
    return np.frombuffer(digests, dtype="<u8")


def runs(hashes: Array, length: int) -> Array:
    """uint64 hashes of all runs of `length` neighbouring words: len(hashes) - length + 1 of them, none where that is
    below 1."""
    count = len(hashes) - length + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    run = np.full(count, length, dtype=np.uint64)
    for first in range(length):  # arrays of uint64 wrap around: that is the modulus
        run = run * _ODD + hashes[first : first + count]
    run ^= run >> np.uint64(29)
    return run * _ODD


def particulars(text: str) -> list[str]:
    """The numbers and names in `text`: words with a digit, and capitalised words inside a sentence (one that begins it
    is none). A text in which half the words or more are capitalised, a heading say, has only numbers."""
    plain = normalize("NFKC", text)
    found: list[str] = _particulars(plain)
    if 2 * sum(word[0].isupper() for word in plain.split()) >= len(plain.split()):
        found = [word for word in found if regex.search(r"\p{N}", word)]
    return found


def has_all(shingles: Array, wanted: Array) -> bool:
    """Whether each of `wanted` is among the sorted `shingles`, which are not empty."""
    places = np.minimum(np.searchsorted(shingles, wanted), len(shingles) - 1)
    return bool((shingles[places] == wanted).all())


class _Compared(NamedTuple):
    """What is compared of a row: its sorted uint32 shingles, the similarity from which on another is its duplicate, the
    shingles of its numbers and names, and the index's keys of its MinHash signature."""

    shingles: Array
    needed: float
    particulars: Array
    keys: Array


class NearDuplicates(TextFilter):
    """Drops a row whose text has a Jaccard similarity of `threshold` or more with a row kept before it.

    The similarity is that of two sets of shingles: all words and all pairs of neighbouring words. It is exact (but for
    collisions of 32-bit hashes). MinHash (A. Z. Broder, 1997) only proposes which rows to compare with, so hashing
    drops nothing by mistake but may miss a near-duplicate: 2 in 100 at the threshold, hardly any above it.

    **Short texts.** One changed word takes three of the eleven shingles of six words, which leaves 8 / 14 = 0.57; only
    from fifteen words on does it leave 0.8. So a text of `SHORT` words or more is dropped from `threshold` on, or from
    the similarity that one changed word leaves, whichever is lower. A shorter text is always dropped from `threshold`
    on, which at 0.8 means: the same words. Above 0.8 that allowance shrinks, to half a changed word at 0.9 and to none
    at 1, where only equal texts are dropped. However alike, a text with another number or name (`particulars`) is no
    duplicate: "Convert 12 miles" stays beside "Convert 10 miles".

    Scripts without spaces are compared by characters, two of which count as a word. A polite opening of an English
    instruction ("Could you please ...") does not count. `of="both"` compares instruction and response as one text.

    Of a kept row, its hashes and 400 characters stay in memory, not its text: about 1 KB where it has twenty words.
    datasketch's index takes 10 KB a row, hence the tables here.
    """

    name = "near_duplicates"

    def __init__(self, threshold: float = 0.8, of: Of = "instruction") -> None:
        from datasketch import MinHash

        self.of_instruction = of == "instruction"
        self._of, self._threshold = of, threshold
        self._sketch = MinHash(num_perm=PERMUTATIONS, seed=0, hashfunc=int)
        edge = self._needed(SHORT + SHORT - 1, SHORT, SHORT)
        self._index = BandIndex(*band_shape(min(edge, threshold)))
        self._shingles, self._particulars = Arrays(), Arrays()
        self._thresholds = array("d")
        self._previews: list[str] = []

    def check(self, row: DataRow) -> Decision:
        """Dropped as "near-duplicate"; or kept, and later rows are compared with it. `score`: the highest similarity
        to a proposed row, 0 where none was proposed; `detail`: the beginning of the text that was kept."""
        compared = self._read(row)
        if not len(compared.shingles):
            return Decision(True)
        best, score = self._nearest(compared)
        if best is not None:
            return Decision(False, "near-duplicate", score, self._previews[best])
        self._keep(row, compared)
        return Decision(True, score=score)

    def remember(self, row: DataRow) -> None:
        compared = self._read(row)
        if len(compared.shingles):
            self._keep(row, compared)

    def _read(self, row: DataRow) -> _Compared:
        text = _text(row, self._of)
        words = tokens(text)
        hashes = hashed(words)
        both = np.concatenate((runs(hashes, 1), runs(hashes, 2)))
        shingles = np.unique((both >> np.uint64(32)).astype(np.uint32))
        self._sketch.clear()
        for first in range(0, len(shingles), 4096):  # a batch takes 128 numbers a shingle
            self._sketch.update_batch(shingles[first : first + 4096].tolist())
        word_count = len(words) - unspaced(words).sum() / 2
        needed = self._needed(len(shingles), len(words), float(word_count))
        named = (runs(hashed(tokens(" ".join(particulars(text)))), 1) >> np.uint64(32)).astype(np.uint32)
        return _Compared(shingles, needed, named, self._index.keys(self._sketch.hashvalues))

    def _needed(self, shingles: int, tokens: int, words: float) -> float:
        """The similarity from which on a text is a duplicate: (F - k) / (F + k) where a changed word takes k of its F
        shingles (three where it is one token), at most the threshold. `tokens`, `words`: how many the text has; two
        tokens without a space are a word."""
        if words < SHORT:
            return self._threshold
        changed = (2 * tokens / words + 1) * min(1.0, 5 * (1 - self._threshold))
        left = max(_LEAST, (shingles - changed) / (shingles + changed))  # one word six times over has two shingles
        return min(self._threshold, left) - 1e-9

    def _nearest(self, compared: _Compared) -> tuple[int | None, float]:
        """(the most similar kept row that is similar enough, the first of equals, or None; the highest similarity)."""
        shingles = compared.shingles
        proposed = self._index.find(compared.keys)
        if not len(proposed):
            return None, 0.0
        joined, sizes = self._shingles.joined(proposed)
        places = np.minimum(np.searchsorted(shingles, joined), len(shingles) - 1)
        shared = np.add.reduceat((shingles[places] == joined).astype(np.int64), np.cumsum(sizes) - sizes)
        scores = shared / (sizes + len(shingles) - shared)
        near = scores >= np.maximum(compared.needed, np.frombuffer(self._thresholds)[proposed])
        for place in np.flatnonzero(near):
            row = proposed[place]
            near[place] = has_all(self._shingles[row], compared.particulars) and has_all(
                shingles, self._particulars[row]
            )
        if not near.any():
            return None, float(scores.max())
        best = int(np.argmax(np.where(near, scores, -1.0)))
        return int(proposed[best]), float(scores[best])

    def _keep(self, row: DataRow, compared: _Compared) -> None:
        self._index.add(compared.keys)
        self._shingles.append(compared.shingles)
        self._thresholds.append(compared.needed)
        self._particulars.append(compared.particulars)
        self._previews.append(preview(_text(row, self._of)))


class Arrays:
    """uint32 arrays of any length, numbered from 0 in the order added, in one piece of memory."""

    def __init__(self) -> None:
        self._numbers, self._ends = array("I"), array("q", [0])

    def append(self, numbers: Array) -> None:
        self._numbers.frombytes(numbers.tobytes())
        self._ends.append(len(self._numbers))

    def __getitem__(self, place: int) -> Array:
        return np.array(self._numbers[self._ends[place] : self._ends[place + 1]], dtype=np.uint32)

    def joined(self, places: Array) -> tuple[Array, Array]:
        """(the arrays at `places`, one after the other; the length of each)."""
        ends = np.frombuffer(self._ends, dtype=np.int64)
        sizes = ends[places + 1] - ends[places]
        return np.frombuffer(self._numbers, dtype=np.uint32)[spans(ends[places], sizes)], sizes


def spans(starts: Array, sizes: Array) -> Array:
    """start, start + 1, ... of each of `starts`, as many as its size: all of them in one array."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - ends + sizes, sizes) + np.arange(ends[-1])


class _SortedRun(NamedTuple):
    """Sorted entries: a key's high 32 bits, then its row. `starts`: where those with the same first bits begin."""

    entries: Array
    starts: Array


class BandIndex:
    """Which rows share a band of `width` numbers of their signatures. Rows are numbered from 0 in the order added.

    Takes about thirteen bytes a band and row, twice that for a moment. The newest rows lie as they came, the others in
    sorted runs, each several times as long as the next; so a look-up visits few of them, in each a few entries.
    """

    def __init__(self, bands: int, width: int) -> None:
        self._bands, self._width = bands, width
        self._newest = np.empty((256, bands), dtype=np.uint64)
        self._count = self._sealed = 0
        self._sorted: list[_SortedRun] = []
        self._low_halves = array("I")
        """The low 32 bits of each key, row after row."""

    def keys(self, signature: Array) -> Array:
        """uint64 for each band, made of its number and its numbers of the signature."""
        bands = signature[: self._bands * self._width].reshape(self._bands, self._width).astype(np.uint64)
        keys = np.arange(1, self._bands + 1, dtype=np.uint64)
        for column in range(self._width):
            keys = (keys ^ (keys >> np.uint64(32))) * _ODD + bands[:, column]
        return keys * _ODD

    def add(self, keys: Array) -> None:
        self._newest[self._count - self._sealed] = keys
        self._count += 1
        if self._count - self._sealed == len(self._newest):
            self._seal()

    def find(self, keys: Array) -> Array:
        """The rows that share a band, in order, each once."""
        newest = np.flatnonzero(self._newest[: self._count - self._sealed] == keys) // self._bands + self._sealed
        return np.unique(np.concatenate([newest, *(self._find(run, keys) for run in self._sorted)]))

    def _find(self, run: _SortedRun, keys: Array) -> Array:
        """The rows of a run that share a band; a row as often as it shares one."""
        firsts = keys >> np.uint64(65 - len(run.starts).bit_length())
        starts = run.starts[firsts]
        sizes = run.starts[firsts + np.uint64(1)] - starts
        entries = run.entries[spans(starts, sizes)]
        bands = np.repeat(np.arange(self._bands), sizes)
        same = np.flatnonzero(entries >> np.uint64(32) == (keys >> np.uint64(32))[bands])
        rows, bands = (entries[same] & _LOW).astype(np.int64), bands[same]
        low_halves = np.frombuffer(self._low_halves, dtype=np.uint32)[rows * self._bands + bands]
        sharing: Array = rows[low_halves == (keys & _LOW)[bands]]
        return sharing

    def _seal(self) -> None:
        """Move the newest rows into the sorted runs."""
        rows = np.repeat(np.arange(self._sealed, self._count, dtype=np.uint64), self._bands)
        entries = self._newest.ravel() & ~_LOW | rows
        self._low_halves.frombytes((self._newest & _LOW).astype(np.uint32).tobytes())
        entries.sort()
        while self._sorted and len(self._sorted[-1].entries) <= 8 * len(entries):
            entries = np.concatenate((self._sorted.pop().entries, entries))
            entries.sort(kind="stable")  # which merges what is sorted already
        bits = max(len(entries).bit_length() - 3, 1)
        firsts = np.arange(1 << bits, dtype=np.uint64) << np.uint64(64 - bits)
        starts = np.append(np.searchsorted(entries, firsts), len(entries))
        self._sorted.append(_SortedRun(entries, starts))
        self._sealed = self._count


def _text(row: DataRow, of: Of) -> str:
    """What is compared: an instruction without its polite opening, unless there is nothing else."""
    if of == "response":
        return row.response
    opening = _polite.match(row.instruction, 0, 200)
    rest = row.instruction[opening.end() :] if opening else row.instruction
    instruction = rest if rest.strip() else row.instruction
    return instruction if of == "instruction" else f"{instruction}\n{row.response}"


def band_shape(similarity: float) -> tuple[int, int]:
    """(bands, width) of a signature: the widest bands that still propose a row of this similarity 97 times in 100.

    s^width is the chance that a band agrees, 1 - (1 - s^width)^bands that one of them does (Leskovec, Rajaraman,
    Ullman: Mining of Massive Datasets, 3.4).
    """
    for width in range(PERMUTATIONS // 2, 1, -1):
        bands = PERMUTATIONS // width
        if 1 - (1 - similarity**width) ** bands >= 0.97:
            return bands, width
    return PERMUTATIONS, 1

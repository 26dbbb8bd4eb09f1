"""Whether an instruction repeats a reference's, and whether a response copies a reference's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from refed_dspy.data.references import load_references
from refed_dspy.filters.base import preview
from refed_dspy.metrics.rouge import Alphabet, Index, rouge_l, tokens
from refed_dspy.records import DataRow, Reference

THRESHOLD = 0.7
"""The ROUGE-L F from which on an instruction repeats its reference's."""
RUN, GRAM, SHARE = 25, 8, 0.3
"""A copy has a run of `RUN` words, or more than this share of its runs of `GRAM` words, in the reference's response."""
RUN_SHOWN = 12
"""The run that makes a copy of a demonstration's response: a sentence of it has no place in another one's."""
_HINT, _SHORT, _STEP, _LONG_STEP = 6, 30, 3, 5
"""A run of 8 words holds one of `_HINT` that begins at a multiple of `_STEP`. From `_SHORT` words on, no text has more
than 30% of its runs of 8 in common without a run of 10 (k common runs take 9k - 1 words at least), which holds one that
begins at a multiple of `_LONG_STEP`."""


class Match(NamedTuple):
    """What is like a known text: how much of it, from 0 to 1, and the words that show it."""

    score: float
    words: str


class Known:
    """Instructions and responses, of references say, that a text is compared with. Without any it is false. `run`: how
    many words in a row of a response make a copy of it, at least 10."""

    def __init__(self, instructions: Sequence[str], responses: Sequence[str], run: int = RUN) -> None:
        self._texts = instructions
        self._runs = [Runs(response, run) for response in responses]
        self._hints = frozenset().union(*(runs.hints for runs in self._runs))
        self._instructions = [tokens(instruction) for instruction in instructions]
        self._index: tuple[Alphabet, Index] | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def repeated(self, instruction: str) -> Match | None:
        """(ROUGE-L F, beginning of the known instruction) where one is like `instruction`."""
        if len(self) == 1:
            score, number = rouge_l(tokens(instruction), self._instructions[0]), 0
        elif (nearest := self._nearest(instruction)) is not None:
            number, score = nearest
        else:
            return None
        return Match(score, preview(self._texts[number])) if score >= THRESHOLD else None

    def _nearest(self, instruction: str) -> tuple[int, float] | None:
        if self._index is None:
            self._index = Alphabet(), Index(THRESHOLD)
            for text in self._texts:
                self._index[1].add(self._index[0].encode(text))
        alphabet, index = self._index
        return index.nearest(alphabet.encode(instruction))

    def copied(self, words: Sequence[str]) -> Match | None:
        """(share of its runs of 8 words, the first of them) where a response, as words, copies a known one."""
        if self._hints.isdisjoint(_hints(words, _STEP if len(words) < _SHORT else _LONG_STEP)):
            return None
        return next((copy for runs in self._runs if (copy := runs.copied(words)) is not None), None)


class Runs:
    """The runs of words of a text, by which copies of it are found."""

    def __init__(self, text: str, run: int) -> None:
        self._words = text.lower().split()
        self.hints = frozenset(_hints(self._words))
        self._whole_run = bytes([True] * (run - GRAM + 1))
        """As many hits as there are runs of `GRAM` words in one of `run`."""

    def copied(self, words: Sequence[str]) -> Match | None:
        """(share of the runs of 8 of these words that are in the text, the first of them) where they are a copy."""
        grams = frozenset(_runs(self._words, GRAM))  # hardly ever needed, and large: not kept
        hits = list(map(grams.__contains__, _runs(words, GRAM)))
        share = sum(hits) / len(hits) if hits else 0.0
        if share <= SHARE and self._whole_run not in bytes(hits):
            return None
        first = hits.index(True)
        return Match(share, " ".join(words[first : first + GRAM]))


def _runs(words: Sequence[str], length: int, step: int = 1) -> Iterator[tuple[str, ...]]:
    """The runs of `length` words, every `step`-th."""
    return zip(*(words[start::step] for start in range(length)), strict=False)


def _hints(words: Sequence[str], step: int = 1) -> Iterator[int]:
    """The runs of `_HINT` words, every `step`-th, as hashes: a third of the memory. Two of one hash cost a look."""
    return map(hash, _runs(words, _HINT, step))


class References:
    """The reference of each row: its own, else the one of `source` (as `load_references` takes it) whose id the column
    `reference` has, else all of `source`."""

    def __init__(self, source: Any = None) -> None:
        given = () if source is None else tuple(load_references(source))
        self._by_id = {reference.id: reference for reference in given}
        self._all = Known([each.instruction for each in given], [each.response for each in given])

    def of(self, row: DataRow) -> Known:
        if (own := row.reference or self._by_id.get(str(row.fields.get("reference")))) is not None:
            return _known(own)
        return self._all


@lru_cache(maxsize=1024)  # as many as 16,000 calls in flight are about
def _by_texts(instruction: str, response: str) -> Known:
    return Known([instruction], [response])


def _known(reference: Reference) -> Known:
    return _by_texts(reference.instruction, reference.response)

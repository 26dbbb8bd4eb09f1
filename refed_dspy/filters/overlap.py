"""A filter of contamination: rows that contain a passage of a benchmark's prompts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from refed_dspy.data.read import read_rows, read_text
from refed_dspy.errors import ConfigError, InputError, one_line
from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.filters.near_duplicates import Array, hashed, runs, tokens, unspaced
from refed_dspy.records import DataRow
from refed_dspy.text import counted

COLUMNS = ("instruction", "input", "prompt", "question", "text", "query", "problem", "task", "turns", "ctx")
"""The columns in which a benchmark's prompts are looked for, unless `columns` names others."""
LEAST_WORDS = 5
"""Words of the shortest prompt that is looked for inside texts: shorter ones are in many by chance."""


class SharedWords(NamedTuple):
    """What a text has in common with prompts: the share of its runs that one has too, and the words of the first."""

    share: float
    words: Sequence[str]


_NOTHING = SharedWords(0.0, ())


class Overlap(TextFilter):
    """Drops a row that shares a run of `n` words with a prompt of `against`, whatever the case and punctuation.

    T. Brown et al. (2020, appendix C) look for 13. A shorter prompt is looked for as a whole, if it has `LEAST_WORDS`.
    One that is shorter still drops the instructions that say the same and nothing else.

    `against` is a file (JSONL, JSON, CSV or Parquet with `columns`, by default all of `COLUMNS` that it has; or .txt, a
    prompt a line), or the prompts themselves. A cell may be a list of texts: each is a prompt. `of="both"` looks into
    the response too. In scripts without spaces a run is 2n characters, two counting as a word.

    Takes eight bytes a run: 100 MB for a benchmark of 12 million words. A run is stored as a hash of 64 bits; it is
    practically impossible that two different runs have the same one.

    `prompts` is how many prompts are looked for inside texts: those that are long enough for that.

    Raises:
        InputError: the file cannot be read, none of the columns is there, or no prompt is long enough.
        ConfigError: `columns` is empty.
    """

    name = "overlap"

    def __init__(
        self,
        against: Path | Sequence[str],
        n: int = 13,
        columns: Sequence[str] | None = None,
        of: Literal["instruction", "both"] = "instruction",
    ) -> None:
        if columns is not None and not columns:
            raise ConfigError("overlap: columns is empty; list the prompts' columns or remove the setting")
        self.of_instruction = of == "instruction"
        self._n = n
        self.prompts = 0
        self._short: set[tuple[str, ...]] = set()
        by_length: dict[int, list[Array]] = {}
        for text in _prompts(against, columns):
            self._add_prompt(text, by_length)
        if not self.prompts:
            where = against if isinstance(against, Path) else "the prompts given"
            raise InputError(f"{where}: no prompt of {min(LEAST_WORDS, n)} words or more; pass a benchmark's prompts")
        self._runs = {length: np.unique(np.concatenate(arrays)) for length, arrays in sorted(by_length.items())}

    def check(self, row: DataRow) -> Decision:
        """Dropped as "overlap". `score`: the share of the row's runs that a prompt has too, for the run length where
        that share is highest, 0 where no run is shared; `detail`: the first shared run."""
        found = self.shared(row.instruction)
        if not self.of_instruction and (in_response := self._runs_of(tokens(row.response))).share > found.share:
            found = in_response
        detail = one_line(" ".join(found.words), 200)
        return Decision(not found.share, "overlap" if found.share else "", found.share, detail)

    def shared(self, instruction: str) -> SharedWords:
        """What an instruction shares with the prompts: a share of 0 for nothing."""
        words = tokens(instruction)
        return SharedWords(1.0, words) if tuple(words) in self._short else self._runs_of(words)

    def _add_prompt(self, text: str, by_length: dict[int, list[Array]]) -> None:
        """Add the hashed runs of a prompt to `by_length`, and count it."""
        words = tokens(text)
        hashes, dense = hashed(words), unspaced(words)
        run_hashes = {length: runs(hashes, length)[counts] for length, counts in _windows(dense, self._n)}
        if not any(map(len, run_hashes.values())):
            if len(words) - dense.sum() / 2 < min(LEAST_WORDS, self._n):
                self._short.update([tuple(words)] if words else [])
                return
            run_hashes = {len(words): runs(hashes, len(words))}
        self.prompts += 1
        for length, array in run_hashes.items():
            if len(array):
                by_length.setdefault(length, []).append(array)

    def _runs_of(self, words: Sequence[str]) -> SharedWords:
        """The runs of these words that a prompt has too."""
        hashes = hashed(words)
        best = _NOTHING
        for length, of_prompts in self._runs.items():
            of_text = runs(hashes, length)
            if not len(of_text):
                break
            places = np.minimum(np.searchsorted(of_prompts, of_text), len(of_prompts) - 1)
            same = of_prompts[places] == of_text
            share = float(same.mean())
            if share > best.share:
                first = int(np.argmax(same))
                best = SharedWords(share, words[first : first + length])
        return best


@dataclass(frozen=True)
class OverlappingRow:
    """A row whose instruction overlaps with a prompt: its number, both texts, and the `words` that they share."""

    number: int
    instruction: str
    prompt: str
    words: str


@dataclass(frozen=True)
class Contamination:
    """How many of a data set's `rows` overlap with a benchmark's prompts, and the `first` of them."""

    rows: int
    count: int
    first: Sequence[OverlappingRow]

    @property
    def share(self) -> float:
        """Of all rows, from 0 to 1."""
        return self.count / self.rows if self.rows else 0.0

    def lines(self) -> list[str]:
        """How many overlap, and the first ones, for a terminal."""
        if not self.count:
            return [f"none of {counted(self.rows, 'row')} overlaps with the benchmark's prompts"]
        told = f"{self.count:,} of {counted(self.rows, 'row')} ({self.share:.2%}) overlap with the benchmark's prompts"
        return [told, *(f"  row {row.number}: {one_line(row.words, 100)}" for row in self.first)]


def overlap(rows: Iterable[DataRow], prompts: Sequence[str], n: int = 13, most: int = 5) -> Contamination:
    """Which of the rows a model was trained on overlap with the prompts of a benchmark, as the filter `overlap` sees it
    in their instructions; of the first `most`, with which prompt.

    Raises InputError where no prompt is long enough to be looked for.
    """
    looked_for = Overlap(prompts, n)
    count = total = 0
    first: list[OverlappingRow] = []
    for total, row in enumerate(rows, start=1):  # noqa: B007 — the last one is how many
        if not (found := looked_for.shared(row.instruction)).share:
            continue
        count += 1
        if len(first) < most:
            first.append(
                OverlappingRow(row.number, row.instruction, _with(found.words, prompts), " ".join(found.words))
            )
    return Contamination(total, count, first)


def _with(words: Sequence[str], prompts: Sequence[str]) -> str:
    """The first of `prompts` in which these words stand in a row."""
    passage = f" {' '.join(words)} "
    return next((prompt for prompt in prompts if passage in f" {' '.join(tokens(prompt))} "), "")


def _windows(dense: Array, n: int) -> Iterator[tuple[int, Array]]:
    """(length, which runs of that length count, a bool array): runs of n tokens count where at most half of them are
    characters of a script without spaces, runs of 2n where more are."""
    before = np.concatenate(([0], np.cumsum(dense)))
    for length, of_characters in ((n, False), (2 * n, True)):
        inside = before[length:] - before[:-length]
        yield length, (inside > length / 2) == of_characters


def _prompts(against: Path | Sequence[str], columns: Sequence[str] | None) -> Iterator[str]:
    if not isinstance(against, Path):
        yield from against
        return
    if not against.is_file():
        raise InputError(f"{against}: no such file; pass a JSONL, JSON, CSV, Parquet or .txt file")
    if against.suffix.lower() == ".txt":
        yield from (line for line in read_text(against).split("\n") if line.strip())
        return
    seen: set[str] = set()
    missing = True
    for _, row in read_rows(against):
        here = [name for name in columns or COLUMNS if row.get(name) is not None]
        missing = missing and not here
        seen.update(list(map(str, row))[:50])
        for name in here:
            yield from _texts(row, name)
    if missing:
        there = ", ".join(sorted(seen)) or "none"
        asked = f"none of the columns {', '.join(columns)}" if columns else "no known prompt column"
        raise InputError(one_line(f"{against}: {asked}; set columns to one of: {there}"))


def _texts(row: Mapping[str, Any], name: str) -> Iterator[str]:
    value = row[name]
    for text in value if isinstance(value, list | tuple) else [value]:
        if isinstance(text, str) and text.strip():
            yield text

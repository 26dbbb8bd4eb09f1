"""How much of the rows is their references' own text: it comes under the references' license, not the data set's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

from refed_dspy.metrics.wording import words

RUN = 8
"""Words in a row that are looked for. What has fewer words counts as not copied."""
MUCH = 0.5
"""From this share of its runs on a text is told as copied."""

Run = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """A row's texts, and the id of its reference."""

    reference: str
    instruction: str
    response: str
    improved_response: str


@dataclass(frozen=True, slots=True)
class Copied:
    """In how many rows half or more of a column's runs stand in the row's reference; `rows`: in any of the three."""

    instruction: int = 0
    response: int = 0
    improved_response: int = 0
    rows: int = 0


def copied(rows: Sequence[DrawnRow], references: Mapping[str, Sequence[str]]) -> Copied:
    """Look at each row beside its own reference; `references`: id → texts. One that is not in it counts as empty.

    Words are compared without case and signs (`measures.texts.words`); only one reference's runs are held at a time.
    """
    instruction = response = improved = either = 0
    whose = attrgetter("reference")
    for reference, group in groupby(sorted(rows, key=whose), key=whose):
        known = frozenset(run for text in references.get(reference, ()) for run in _runs(text))
        if not known:
            continue
        for row in group:
            plain = share_in(row.response, known) >= MUCH
            better = plain if row.improved_response == row.response else share_in(row.improved_response, known) >= MUCH
            asked = share_in(row.instruction, known) >= MUCH
            instruction, response, improved = instruction + asked, response + plain, improved + better
            either += asked or plain or better
    return Copied(instruction, response, improved, either)


def share_in(text: str, known: frozenset[Run]) -> float:
    """The share, 0 to 1, of the runs of `text` that are in `known`; 0 where it has no run."""
    there = [run in known for run in _runs(text)]
    return sum(there) / len(there) if there else 0.0


def _runs(text: str) -> Iterator[Run]:
    """RUN words each, from every word on."""
    told = words(text)
    return zip(*(told[at:] for at in range(RUN)), strict=False)

"""What a run's page says of all rows, read from the ledger one by one: only numbers are kept of them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report.rows import SCORE

_KEPT = (
    "SELECT i.reference, intact(i.sum, i.text, i.feature), intact(i.sample_sum, i.sample)"
    " FROM samples s JOIN instructions i ON i.id = s.instruction"
)
_SCORES = f"SELECT filter, kept, {SCORE} AS finite FROM decisions WHERE finite IS NOT NULL"


@dataclass(frozen=True)
class AllRows:
    """Of kept rows: how many `references` they are from; `words`: text → how many words, separated by white space, it
    has in each row that has it; how many responses were `improved`, and how many of them stayed `unchanged`.

    `scores`: filter → the scores it gave to (dropped, kept) rows.
    """

    references: int
    words: Mapping[str, Sequence[int]]
    improved: int
    unchanged: int
    scores: Mapping[str, tuple[Sequence[float], Sequence[float]]]


@dataclass(frozen=True)
class Responses:
    """The texts of a sample that are counted: half the time of reading all of it."""

    response: str
    improved_response: str


def measured(ledger: Ledger) -> AllRows:
    """The figures of all rows. Raises RunDirError where one is damaged."""
    improves = ledger.meta("final_stage") != "response_generation"
    references, improved, unchanged = set[int](), 0, 0
    instruction, plain, better = array("L"), array("L"), array("L")
    for reference, text, made in ledger.db.execute(_KEPT):
        references.add(reference)
        sample = ledger.parsed(Responses, made)
        instruction.append(len(text.split()))
        plain.append(len(sample.response.split()))
        if improves:
            better.append(len(sample.improved_response.split()))
            improved += bool(sample.response or sample.improved_response)
            unchanged += sample.response == sample.improved_response != ""
    words = {"instruction": instruction, "plain response": plain, "improved response": better}
    given = {name: counts for name, counts in words.items() if counts}
    return AllRows(len(references), given, improved, unchanged, _scores(ledger))


def _scores(ledger: Ledger) -> dict[str, tuple[array[float], array[float]]]:
    scores: dict[str, tuple[array[float], array[float]]] = {}
    for name, kept, score in ledger.db.execute(_SCORES):
        scores.setdefault(name, (array("d"), array("d")))[kept].append(score)
    return scores

"""The rows of a run's data set, read from its ledger: the paper's columns first, then the lineage of each row."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from refed_dspy.ledger.decisions import decided_rows
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.provenance import Authors
from refed_dspy.records import NO_ANALYSIS, NO_STRATEGY, DataRow, Sample

PAPER_COLUMNS = ("instruction", "response", "analysis", "implementation_strategy", "improved_response")
LINEAGE_COLUMNS = (
    "sample", "reference", "reference_source", "feature", "round", "teacher", "endpoint",
    "response_teacher", "response_endpoint", "instruction_teacher", "instruction_endpoint",
    "program", "prompt_tokens", "completion_tokens",
)  # fmt: skip

_ROWS = """
SELECT s.seq, i.text, first.output, better.output, r.id, json_extract(r.record, '$.source'), i.feature, i.round,
       better.key, better.item, better.endpoint, first.key, first.item, first.endpoint,
       asked.key, asked.item, asked.endpoint, better.prompt,
       (SELECT sum(prompt_tokens) FROM calls WHERE item = better.item AND stage NOT LIKE '%judge'),
       (SELECT sum(completion_tokens) FROM calls WHERE item = better.item AND stage NOT LIKE '%judge')
FROM samples s
JOIN instructions i ON i.id = s.instruction
JOIN refs r ON r.position = i.reference
JOIN answers first ON first.item = CAST(i.id AS TEXT) AND first.stage = 'response_generation'
JOIN answers better ON better.item = CAST(i.id AS TEXT) AND better.stage = ?
LEFT JOIN answers asked ON asked.key = (
  SELECT key FROM answers WHERE item = r.id || '/' || i.feature AND stage = 'instruction_synthesis'
    AND repetition = i.round LIMIT 1)
WHERE s.seq > ? ORDER BY s.seq LIMIT ?
"""
DROPPED_COLUMNS = (
    "instruction", "response", "improved_response", "reference", "feature", "round",
    "filter", "reason", "score", "detail",
)  # fmt: skip
_PAGE = 500


def data_rows(ledger: Ledger, after: int = 0, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The kept samples as rows, in the order they were made, `PAPER_COLUMNS` then `LINEAGE_COLUMNS`.

    Starts behind the sample numbered `after`; `limit`: at most so many rows. Reads in pages, so memory use is constant,
    and samples that a run in progress adds meanwhile may be included.
    """
    authors, final = Authors(ledger), _final_stage(ledger)
    left = limit
    while left is None or left > 0:
        page = ledger.db.execute(_ROWS, (final, after, min(_PAGE, left or _PAGE))).fetchall()
        if not page:
            return
        for record in page:
            yield _row(record, authors)
        after = page[-1][0]
        left = None if left is None else left - len(page)


def _row(record: tuple[Any, ...], authors: Authors) -> dict[str, Any]:
    """The row of one record of `_ROWS`."""
    (
        sample, instruction, first, final, reference, source, feature, round_,
        final_key, final_item, final_endpoint,
        first_key, first_item, first_endpoint,
        asked_key, asked_item, asked_endpoint,
        program, prompt_tokens, completion_tokens,
    ) = record  # fmt: skip
    response, improved = json.loads(first)["response"], json.loads(final)
    return {
        "instruction": instruction,
        "response": response,
        "analysis": improved.get("analysis") or NO_ANALYSIS.model_dump(),
        "implementation_strategy": improved.get("implementation_strategy") or NO_STRATEGY.model_dump(),
        "improved_response": improved.get("improved_response", response),
        "sample": sample,
        "reference": reference,
        "reference_source": source,
        "feature": feature,
        "round": round_,
        "teacher": authors.model(final_key, final_item, final_endpoint),
        "endpoint": final_endpoint,
        "response_teacher": authors.model(first_key, first_item, first_endpoint),
        "response_endpoint": first_endpoint,
        "instruction_teacher": authors.model(asked_key, asked_item, asked_endpoint),
        "instruction_endpoint": asked_endpoint,
        "program": program,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
    }


def dropped_rows(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """The rows that the run's filters dropped, with filter, reason and score: `DROPPED_COLUMNS`. A response is None
    where the instruction was dropped before one was paid for."""
    for _, *record in _decided(ledger, kept=False, label=None):
        yield dict(zip(DROPPED_COLUMNS, record, strict=True))


def passed_rows(ledger: Ledger, label: str) -> Iterator[DataRow]:
    """The rows that the filter called `label` kept, in the order of its decisions."""
    for number, text, response, improved, *_ in _decided(ledger, kept=True, label=label):
        yield DataRow(number, text, improved or response or "", response)


def _decided(ledger: Ledger, *, kept: bool, label: str | None) -> Iterator[tuple[Any, ...]]:
    """(number, instruction, response, improved response, …) of each row that a filter, or the filter `label`, kept or
    dropped; then its lineage and the decision, as `decided_rows` has them."""
    stages = ("response_generation", _final_stage(ledger))
    for number, text, first, better, *rest in decided_rows(ledger, stages, kept, label):
        response = None if first is None else json.loads(first)["response"]
        improved = None if better is None else json.loads(better).get("improved_response", response)
        yield number, text, response, improved, *rest


def _final_stage(ledger: Ledger) -> str:
    """The stage whose answer is the text to train on."""
    return str(ledger.meta("final_stage") or "response_improvement")


class Samples(Sequence[Sample]):
    """The kept samples of a run, read from its ledger when accessed: a list that takes no memory."""

    def __init__(self, run_dir: Path) -> None:
        self._ledger = Ledger.read(run_dir)
        weakref.finalize(self, self._ledger.close)

    def __len__(self) -> int:
        return self._ledger.kept()

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"sample {index} of {size}")
        # Samples are numbered from 1 without gaps: none is ever deleted.
        return _sample(next(data_rows(self._ledger, after=index % size, limit=1)))

    def __iter__(self) -> Iterator[Sample]:
        for row in self.rows():  # a separate generator keeps this object, and so its ledger, alive
            yield _sample(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The samples as the data set's rows, lineage included."""
        yield from data_rows(self._ledger)


def _sample(row: dict[str, Any]) -> Sample:
    return Sample.model_validate({name: row[name] for name in PAPER_COLUMNS})

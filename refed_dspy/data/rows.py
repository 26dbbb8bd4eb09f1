"""The rows of a run's data set, read from its ledger: the paper's columns first, then the lineage of each row."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, overload

from refed_dspy.ledger.connection import reading
from refed_dspy.ledger.history import Authors, decided_rows
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.records import PICO, DataRow, Sample
from refed_dspy.text import Shown

PAPER_COLUMNS = ("instruction", "response", "analysis", "implementation_strategy", "improved_response")
LINEAGE_COLUMNS = (
    "sample", "reference", "reference_source", "feature", "round", "teacher", "endpoint",
    "response_teacher", "response_endpoint", "instruction_teacher", "instruction_endpoint",
    "program", "prompt_tokens", "completion_tokens", "cost", "system",
)  # fmt: skip
REASONING = "reasoning"
"""The column of what the model thought before the final response: written on request."""


def _answer_of(stage: str) -> str:
    """The key and the endpoint of the instruction's last answer by `stage`, as JSON: a stage may be a module that makes
    several calls."""
    return (
        f"(SELECT json_array(key, endpoint) FROM {{answers}} WHERE stage = {stage} AND item = CAST(i.id AS TEXT)"
        " ORDER BY created DESC LIMIT 1)"
    )


_ROWS = f"""
SELECT i.id, s.seq, i.text, i.sum, i.sample, i.sample_sum, i.reference, i.feature, i.round,
       {_answer_of(":final")}, {_answer_of("'response_generation'")},
       (SELECT json_array(sum(prompt_tokens), sum(completion_tokens), count(*) - count(cost), sum(cost))
         FROM calls WHERE item = CAST(i.id AS TEXT) AND stage NOT LIKE '%judge')
FROM samples s
JOIN instructions i ON i.id = s.instruction
WHERE s.seq > :after ORDER BY s.seq LIMIT :limit
"""
_PROPOSAL = """
SELECT key, endpoint FROM asked WHERE item = ? AND stage = 'instruction_synthesis' AND repetition = ? LIMIT 1
"""
_EXTRA = """
SELECT q.stage, intact(a.sum, a.output, a.raw, a.endpoint) FROM asked q JOIN answers a USING (key)
WHERE q.stage IN (SELECT value FROM json_each(:stages))
  AND q.item IN (:instruction, :reference, :proposal) AND (q.item <> :proposal OR q.repetition = :round)
ORDER BY q.created
"""
"""What a row's stages answered, the last answer last. An item is an instruction, a reference, or its feature."""
DROPPED_COLUMNS = (
    "instruction", "response", "improved_response", "reference", "feature", "round",
    "filter", "reason", "score", "detail",
)  # fmt: skip
_PAGE = 500


def data_rows(
    ledger: Ledger, after: int = 0, limit: int | None = None, *, reasoning: bool = False
) -> Iterator[dict[str, Any]]:
    """The kept samples as rows, in the order they were made, `PAPER_COLUMNS` then `LINEAGE_COLUMNS`, then
    `extra_columns`; with `reasoning` also the column REASONING.

    Starts behind the sample numbered `after`; `limit`: at most so many rows. Reads in pages, so memory use is constant,
    and samples that a run in progress adds meanwhile may be included.
    """
    with reading(ledger.path):
        yield from _pages(ledger, after, limit, reasoning=reasoning)


def _pages(ledger: Ledger, after: int, limit: int | None, *, reasoning: bool) -> Iterator[dict[str, Any]]:
    origins, left = _Origins(ledger), limit
    query = _ROWS.format(answers=origins.answers)
    while left is None or left > 0:
        page = {"final": origins.final_stage, "after": after, "limit": min(_PAGE, left or _PAGE)}
        records = ledger.db.execute(query, page).fetchall()
        if not records:
            return
        for record in records:
            yield _row(ledger, record, origins, reasoning=reasoning)
        after = records[-1][1]
        left = None if left is None else left - len(records)


def both_responses(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Number, response and improved response of each kept sample: in a tenth of the time that `data_rows` takes."""
    query = (
        "SELECT seq, intact(i.sample_sum, i.sample) FROM samples s JOIN instructions i ON i.id = s.instruction"
        " ORDER BY seq"
    )
    for number, text in ledger.db.execute(query):
        made = ledger.parsed(Sample, text)
        yield {"sample": number, "response": made.response, "improved_response": made.improved_response}


class _Origins:
    """Who answered what in a run, and by which prompt."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger, self._authors = ledger, Authors(ledger)
        self.final_stage = str(ledger.meta("final_stage") or "response_improvement")
        """The stage whose answer is the text to train on."""
        self.program = final_prompt(ledger)
        self.extra_outputs: dict[str, dict[str, str]] = ledger.meta("extra_outputs") or {}
        several = ledger.db.execute("SELECT 1 FROM shared LIMIT 1").fetchone() is not None
        self.answers = "asked" if several else "answers"
        """Where the answers about an item are: the view takes longer."""
        self.reference = lru_cache(1_000)(self._reference)
        self.proposal = lru_cache(1_000)(self._proposal)

    def of(self, answer: tuple[str, str] | None) -> tuple[str | None, str | None]:
        """(model, endpoint) of the answer with this (key, endpoint); None where it is not known."""
        key, endpoint = answer or (None, None)
        return self._authors.model(key, endpoint), endpoint

    def _reference(self, position: int) -> tuple[str, str | None, str]:
        """(id, source, system prompt) of a reference."""
        id_, record = self._ledger.db.execute(
            "SELECT id, intact(sum, record, id) FROM refs WHERE position=?", (position,)
        ).fetchone()
        stored = json.loads(record)
        return id_, stored.get("source", ""), stored.get("system") or ""

    def _proposal(self, item: str, round_: int) -> tuple[str | None, str | None]:
        """(model, endpoint) of the answer that proposed instructions."""
        return self.of(self._ledger.db.execute(_PROPOSAL, (item, round_)).fetchone())

    def besides(self, instruction: int, reference: str, feature: str, round_: int) -> dict[str, Any]:
        """Column → what a stage wrote for the row beyond a sample's fields; None where it wrote nothing."""
        if not self.extra_outputs:
            return {}
        columns: dict[str, Any] = dict.fromkeys(extra_columns(self._ledger))
        items = {"instruction": str(instruction), "reference": reference, "proposal": f"{reference}/{feature}"}
        asked = {**items, "round": round_, "stages": json.dumps([*self.extra_outputs])}
        for stage, text in self._ledger.db.execute(_EXTRA, asked):
            output = json.loads(text)
            columns |= {f"{stage}_{name}": output[name] for name in self.extra_outputs[stage] if name in output}
        return columns


def extra_columns(ledger: Ledger) -> dict[str, str]:
    """Column → type (`programs.extra_outputs`) of what a run's stages write beyond a sample's fields."""
    outputs = ledger.meta("extra_outputs") or {}
    return {f"{stage}_{name}": kind for stage, fields in outputs.items() for name, kind in fields.items()}


def final_prompt(ledger: Ledger) -> str | None:
    """The digest of the prompt that a run's final stage is asked with; of several predictors, the last one's."""
    prompts = (ledger.meta("identity") or {}).get("program") or {}
    final = str(ledger.meta("final_stage") or "response_improvement")
    return next((prompt for name, prompt in reversed(prompts.items()) if final in re.split(r"\W", name)), None)


def _row(ledger: Ledger, record: tuple[Any, ...], origins: _Origins, *, reasoning: bool) -> dict[str, Any]:
    """The row of one record of `_ROWS`."""
    id_, number, instruction, sum_, text, sample_sum, position, feature, round_, final, first, used = record
    ledger.check_sum(sum_, instruction, feature)  # here, not by SQL's `intact`, which takes three times as long
    ledger.check_sum(sample_sum, text)
    made = ledger.parsed(Sample, text).model_dump()
    reference, source, system = origins.reference(position)
    answers = [None if answer is None else json.loads(answer) for answer in (final, first)]
    read, written, unpriced, cost = json.loads(used)
    teachers = (*origins.of(answers[0]), *origins.of(answers[1]), *origins.proposal(f"{reference}/{feature}", round_))
    spent = (read, written, None if unpriced or cost is None else cost / PICO)
    lineage = (number, reference, source, feature, round_, *teachers, origins.program, *spent, system)
    return {
        **{name: made[name] for name in PAPER_COLUMNS},
        "instruction": instruction,
        **dict(zip(LINEAGE_COLUMNS, lineage, strict=True)),
        **origins.besides(id_, reference, feature, round_),
        **({REASONING: ledger.reasoning(answers[0] and answers[0][0])} if reasoning else {}),
    }


def dropped_rows(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """The rows that the run's filters dropped, with filter, reason and score: `DROPPED_COLUMNS`. A response is None
    where the instruction was dropped before one was paid for."""
    for _, *record in _decided(ledger, kept=False, label=None):
        yield dict(zip(DROPPED_COLUMNS, record, strict=True))


def passed_rows(ledger: Ledger, label: str) -> Iterator[DataRow]:
    """The rows that the filter called `label` kept, in the order of its decisions, without their references."""
    for number, text, response, improved, *_ in _decided(ledger, kept=True, label=label):
        yield DataRow(number, text, improved or response or "", response)


def _decided(ledger: Ledger, *, kept: bool, label: str | None) -> Iterator[tuple[Any, ...]]:
    """(number, instruction, response, improved response, …) of each row that a filter, or the filter `label`, kept or
    dropped; then its lineage and the decision, as `decided_rows` has them."""
    for number, instruction, text, *rest in decided_rows(ledger, kept, label):
        made = None if text is None else ledger.parsed(Sample, text)
        response, improved = (None, None) if made is None else (made.response, made.improved_response)
        yield number, instruction, response, improved, *rest


class Samples(Shown, Sequence[Sample]):
    """The kept samples of a run, read from its ledger when accessed: a list that takes no memory."""

    def __init__(self, run_dir: Path) -> None:
        self.ledger = Ledger.read(run_dir)
        """Closed with this object."""
        weakref.finalize(self, self.ledger.close)

    def __len__(self) -> int:
        return self.ledger.kept()

    def _describe(self) -> str:
        return f"{len(self)} in {self.ledger.path.parent}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        texts = ("instruction", "response", "improved_response")
        return texts, ([row[name] for name in texts] for row in self.rows())

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        if isinstance(index, slice):
            chosen = range(*index.indices(len(self)))
            if chosen.step == 1:
                return [self._sample(row) for row in data_rows(self.ledger, after=chosen.start, limit=len(chosen))]
            return [self[i] for i in chosen]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"sample {index} of {size}")
        # Samples are numbered from 1 without gaps: none is ever deleted.
        return self._sample(next(data_rows(self.ledger, after=index % size, limit=1)))

    def __iter__(self) -> Iterator[Sample]:
        for row in self.rows():  # a separate generator keeps this object, and so its ledger, alive
            yield self._sample(row)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The samples as the data set's rows, lineage included."""
        yield from data_rows(self.ledger)

    def _sample(self, row: dict[str, Any]) -> Sample:
        extra = {name: row[name] for name in extra_columns(self.ledger)}
        return Sample.model_validate({**{name: row[name] for name in PAPER_COLUMNS}, "extra": extra})

"""A run's rows for its page: each kept or dropped row with all that led to it, read from the ledger into columns."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from refed_dspy.data.rows import final_prompt
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.provenance import Authors
from refed_dspy.records import PICO, Sample
from refed_dspy.sharing.report.differences import difference

Columns: TypeAlias = dict[str, list[Any]]

COLUMNS = (
    "number", "kept", "reference", "feature", "round", "instruction", "response", "improved", "diff", "feedback",
    "analysis", "strategy", "writers", "program", "calls", "cost", "prompt_tokens", "completion_tokens", "score",
    "decisions", "verdicts",
)  # fmt: skip

# Kept rows in the order they were made, then those that filters dropped. An open or failed instruction is no row.
_ROWS = """
SELECT i.id, s.seq, i.reference, i.feature, i.round, i.text, i.sample, criticism.output,
       written.key, written.endpoint, first.key, first.endpoint, better.key, better.endpoint
FROM instructions i
JOIN refs r ON r.position = i.reference
LEFT JOIN samples s ON s.instruction = i.id
LEFT JOIN asked first ON first.item = CAST(i.id AS TEXT) AND first.stage = 'response_generation'
LEFT JOIN asked better ON better.item = CAST(i.id AS TEXT) AND better.stage = :final
LEFT JOIN asked criticism ON criticism.item = CAST(i.id AS TEXT) AND criticism.stage = 'sample_feedback'
LEFT JOIN asked written ON written.item = r.id || '/' || i.feature AND written.stage = 'instruction_synthesis'
  AND written.repetition = i.round
WHERE s.seq IS NOT NULL OR i.id IN (SELECT instruction FROM decisions WHERE NOT kept)
GROUP BY i.id ORDER BY s.seq IS NULL, s.seq, i.id
"""
_CALLS = """
SELECT item, stage, count(*), total(prompt_tokens), total(cached_tokens), total(completion_tokens), total(cost),
       sum(cost IS NULL)
FROM calls WHERE outcome != 'sent' GROUP BY item, stage ORDER BY min(id)
"""
# The score of a custom filter may be infinite, which JSON cannot express.
_SCORE = "CASE WHEN abs(score) < 1e300 THEN score END"
_DECISIONS = f"SELECT instruction, filter, kept, {_SCORE}, reason, detail FROM decisions ORDER BY instruction, position"
_VERDICTS = "SELECT item, stage, output FROM asked WHERE stage IN ('pairwise_judge', 'rubric_judge') ORDER BY created"
_FEEDBACK = "SELECT item, output FROM asked WHERE stage = ? ORDER BY created"


class Names(dict[Any, int]):
    """Values numbered in the order in which they were first seen."""

    def number(self, value: Any) -> int:
        return self.setdefault(value, len(self))


@dataclass
class Rows:
    """`columns` are those of COLUMNS, of equal lengths; numbers in them index the lists in `names`. The column
    `score` is of the filter named in `names["scoring"]`, which may be None."""

    names: dict[str, Any]
    columns: Columns

    def __len__(self) -> int:
        return len(self.columns["number"])


def read_rows(ledger: Ledger) -> Rows:
    """Every row that the run kept, in the order they were made, and then those that its filters dropped."""
    reader = _RowReader(ledger)
    columns: Columns = {name: [] for name in COLUMNS}
    for record in ledger.db.execute(_ROWS, {"final": reader.final}):
        row = reader.row(record)
        for name, column in columns.items():
            column.append(row[name])
    return Rows(reader.names(), columns)


class _RowReader:
    """Makes rows of the ledger's records, and numbers the names in them."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.model = ledger, Authors(ledger).model
        self.writers, self.programs, self.filters, self.stages = Names(), Names(), Names(), Names()
        self.features = Names()
        self.final = str(ledger.meta("final_stage") or "response_improvement")
        """The stage whose answer is the text to train on."""
        self.improves = self.final != "response_generation"
        self.prompt = final_prompt(ledger)
        for feature in ledger.meta("features") or ():
            self.features.number(feature)
        # By item: of the questions about a single row it is the number of its instruction, as text.
        self.calls = _grouped(ledger, _CALLS)
        self.verdicts = _grouped(ledger, _VERDICTS)
        self.decisions = _grouped(ledger, _DECISIONS)
        self.scoring = _scoring(ledger) if self.decisions else None

    def row(self, record: Sequence[Any]) -> dict[str, Any]:
        number, seq, reference, feature, round_, text, made, feedback, *by = record
        sample = self.ledger.parsed(Sample, made).model_dump() if made is not None else {}
        improvement = sample if self.improves else {}
        response, improved = sample.get("response"), improvement.get("improved_response")
        analysis, strategy = improvement.get("analysis"), improvement.get("implementation_strategy")
        return {
            "number": seq,
            "kept": int(seq is not None),
            "reference": reference,
            "feature": self.features.number(feature),
            "round": round_,
            "instruction": text,
            "response": response,
            "improved": improved,
            "diff": None if response is None or improved is None else difference(response, improved),
            "feedback": _fields(feedback).get("response_feedback") if feedback is not None else None,
            "analysis": list(analysis.values()) if analysis else None,
            "strategy": list(strategy.values()) if strategy else None,
            "writers": [self._writer(*by[at : at + 2]) for at in (0, 2, 4)],
            "program": -1 if self.prompt is None else self.programs.number(self.prompt),
            **self._costs(self.calls.get(str(number), [])),
            **self._decided(self.decisions.get(number, [])),
            "verdicts": [
                [self.stages.number(stage), *_verdict(output)] for stage, output in self.verdicts.get(str(number), [])
            ],
        }

    def _writer(self, key: str | None, endpoint: str | None) -> int:
        model = None if key is None else self.model(key, endpoint)
        return -1 if model is None else self.writers.number((model, endpoint))

    def _costs(self, calls: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The calls for this row alone; those for feedback and instructions serve other rows too: see the cost by
        stage."""
        table = [
            [self.stages.number(stage), *map(int, numbers), None if unpriced else cost / PICO]
            for stage, *numbers, cost, unpriced in calls
        ]
        priced = all(line[-1] is not None for line in table)
        return {
            "calls": table,
            "cost": sum(line[-1] for line in table) if priced else None,
            "prompt_tokens": sum(line[2] for line in table),
            "completion_tokens": sum(line[4] for line in table),
        }

    def _decided(self, decisions: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """The filters' decisions; the row's score is the one that the filter called `scoring` gave."""
        scores = [score for label, _, score, *_ in decisions if label == self.scoring]
        numbered = [[self.filters.number(label), *rest] for label, *rest in decisions]
        return {"decisions": numbered, "score": scores[-1] if scores else None}

    def names(self) -> dict[str, Any]:
        return {
            "features": list(self.features),
            "writers": [{"model": model, "endpoint": endpoint} for model, endpoint in self.writers],
            "programs": list(self.programs),
            "filters": list(self.filters),
            "stages": list(self.stages),
            "references": list(_references(self.ledger)),
            "scoring": self.scoring,
        }


def _scoring(ledger: Ledger) -> str | None:
    """The last of the run's filters that gives scores. All rows take theirs from it, so that they can be compared."""
    query = f"SELECT filter FROM decisions WHERE {_SCORE} IS NOT NULL ORDER BY position DESC LIMIT 1"
    record = ledger.db.execute(query).fetchone()
    return None if record is None else str(record[0])


def _fields(output: str) -> dict[str, Any]:
    """The fields of an answer; none where it is a text without a form."""
    try:
        answer = json.loads(output)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _verdict(output: str) -> tuple[str, str]:
    """(the judge's reason, its other fields as text)."""
    answer = _fields(output)
    reason = str(answer.pop("reason", ""))
    return reason, ", ".join(f"{name}: {value}" for name, value in answer.items())


def _grouped(ledger: Ledger, query: str) -> dict[Any, list[tuple[Any, ...]]]:
    """The first column's value → the other columns, row by row."""
    groups: defaultdict[Any, list[tuple[Any, ...]]] = defaultdict(list)
    for first, *rest in ledger.db.execute(query):
        groups[first].append(tuple(rest))
    return groups


def _references(ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Each reference with its features and feedback, which are empty where nothing was asked yet."""
    features = {item: _fields(output) for item, output in ledger.db.execute(_FEEDBACK, ("instruction_feedback",))}
    responses = {item: _fields(output) for item, output in ledger.db.execute(_FEEDBACK, ("response_feedback",))}
    for reference in ledger.references():
        yield {
            "id": reference.id,
            "source": reference.source,
            "system": reference.system,
            "earlier": reference.earlier,
            "instruction": reference.instruction,
            "response": reference.response,
            "features": features.get(reference.id, {}),
            "feedback": responses.get(reference.id, {}).get("response_feedback", ""),
        }

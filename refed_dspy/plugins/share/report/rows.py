"""The rows on a run's page: each with all that led to it, read from the ledger into columns. Of many rows, a sample."""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from refed_dspy.data.differences import BOTH, difference, segments
from refed_dspy.data.rows import final_prompt
from refed_dspy.ledger.history import Authors
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.records import PICO, Reference, Sample

Columns: TypeAlias = dict[str, list[Any]]
Answers: TypeAlias = Sequence[tuple[Any, ...]]

COLUMNS = (
    "number", "kept", "reference", "feature", "round", "instruction", "response", "improved", "diff", "feedback",
    "analysis", "strategy", "writers", "program", "calls", "cost", "prompt_tokens", "completion_tokens", "score",
    "decisions", "verdicts",
)  # fmt: skip
LISTED = 10_000
"""Rows on a page, at most."""
_BYTES = 80_000_000
"""Of their JSON, about: a page of 45 MB."""
_PAGE = 100
"""Rows that are read at once."""

# A row: a kept instruction, or one that filters dropped. An open or failed instruction is none.
_NUMBERS = "SELECT instruction FROM samples UNION SELECT instruction FROM decisions WHERE NOT kept"
_ROWS = """
SELECT i.id, s.seq, i.reference, r.id, i.feature, i.round,
       intact(i.sum, i.text, i.feature), intact(i.sample_sum, i.sample)
FROM instructions i
JOIN refs r ON r.position = i.reference
LEFT JOIN samples s ON s.instruction = i.id
WHERE i.id IN ({})
"""
_CALLS = """
SELECT item, stage, count(*), total(prompt_tokens), total(cached_tokens), total(completion_tokens), total(cost),
       sum(cost IS NULL)
FROM calls WHERE outcome != 'sent' AND item IN ({}) GROUP BY item, stage ORDER BY min(id)
"""
# The score of a custom filter may be infinite, which JSON cannot express.
SCORE = "CASE WHEN abs(score) < 1e300 THEN score END"
_DECISIONS = f"""
SELECT instruction, filter, kept, {SCORE}, reason, detail
FROM decisions WHERE instruction IN ({{}}) ORDER BY instruction, position
"""
_PROPOSAL, _JUDGES = "instruction_synthesis", ("pairwise_judge", "rubric_judge")
# The texts of samples are in their instructions.
_ANSWERS = """
SELECT q.item, q.stage, q.repetition, key, q.endpoint,
       CASE WHEN q.stage LIKE '%feedback' OR q.stage LIKE '%judge' THEN intact(a.sum, a.output, raw, a.endpoint) END
FROM asked q JOIN answers a USING (key) WHERE q.item IN ({}) ORDER BY q.created
"""


class Names(dict[Any, int]):
    """Values numbered in the order in which they were first seen."""

    def number(self, value: Any) -> int:
        return self.setdefault(value, len(self))


@dataclass
class Rows:
    """`columns` are those of COLUMNS, of equal lengths; numbers in them index the lists in `names`. The column
    `score` is of the filter named in `names["scoring"]`, which may be None. `left_out`: the run's other rows."""

    names: dict[str, Any]
    columns: Columns
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.columns["number"])


def read_rows(ledger: Ledger, most: int = LISTED, most_bytes: int = _BYTES) -> Rows:
    """The rows that the run kept, in the order they were made, and then those that its filters dropped; of more than
    `most`, or of very long ones, so many as are drawn by the run's seed."""
    numbers = np.fromiter((number for (number,) in ledger.db.execute(_NUMBERS)), np.int64)
    reader, found = _RowReader(ledger), list[tuple[tuple[int, int], dict[str, Any]]]()
    for place, row in reader.read(drawn(numbers, most, int((ledger.meta("identity") or {}).get("seed") or 0))):
        found.append((place, row))
        if reader.size > most_bytes:
            break
    found.sort(key=itemgetter(0))
    columns = {name: [row[name] for _, row in found] for name in COLUMNS}
    places = {position: place for place, position in enumerate(sorted(reader.references))}
    columns["reference"] = [places[position] for position in columns["reference"]]
    return Rows(reader.names(), columns, len(numbers) - len(found))


def drawn(numbers: ArrayLike, most: int, seed: int) -> list[int]:
    """`most` of the numbers, in the order of a draw that goes by the number itself: while a run goes on, few of the
    rows that are shown give way to others."""
    among = np.asarray(numbers, np.int64)
    draws = np.random.default_rng(seed).random(among.max(initial=-1) + 1)[among]
    chosen: list[int] = among[np.argsort(draws)[:most]].tolist()
    return chosen


class _RowReader:
    """Makes rows of the ledger's records, and numbers the names in them. `size`: bytes of all that as JSON."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.model = ledger, Authors(ledger).model
        self.writers, self.programs, self.filters, self.stages = Names(), Names(), Names(), Names()
        self.features = Names()
        self.references: dict[int, dict[str, Any]] = {}
        self.size = 0
        self.final = str(ledger.meta("final_stage") or "response_improvement")
        """The stage whose answer is the text to train on."""
        self.improves = self.final != "response_generation"
        self.prompt = final_prompt(ledger)
        for feature in ledger.meta("features") or ():
            self.features.number(feature)
        self.scoring = _scoring(ledger)

    def read(self, numbers: Sequence[int]) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """(place among all rows, row) of the instructions with these numbers."""
        for at in range(0, len(numbers), _PAGE):
            page = numbers[at : at + _PAGE]
            records = self._among(_ROWS, page).fetchall()
            new = {id_ for _, _, position, id_, *_ in records if position not in self.references}
            proposals = {f"{id_}/{feature}" for _, _, _, id_, feature, *_ in records}
            items = [str(number) for number in page]
            answers = self._grouped(_ANSWERS, [*items, *proposals, *new])
            calls, decisions = self._grouped(_CALLS, items), self._grouped(_DECISIONS, page)
            for number, seq, position, id_, feature, round_, *texts in records:
                if position not in self.references:
                    self._learn(position, answers[id_])
                row = {
                    "number": seq,
                    "kept": int(seq is not None),
                    "reference": position,
                    "feature": self.features.number(feature),
                    "round": round_,
                    **self._texts(*texts),
                    **self._answers(answers[str(number)], answers[f"{id_}/{feature}"], round_),
                    "program": -1 if self.prompt is None else self.programs.number(self.prompt),
                    **self._costs(calls[str(number)]),
                    **self._decided(decisions[number]),
                }
                self.size += _bytes(row)
                yield (int(seq is None), number if seq is None else seq), row

    def _texts(self, instruction: str, made: str | None) -> dict[str, Any]:
        sample = self.ledger.parsed(Sample, made).model_dump() if made is not None else {}
        improvement = sample if self.improves else {}
        response, improved = sample.get("response"), improvement.get("improved_response")
        analysis, strategy = improvement.get("analysis"), improvement.get("implementation_strategy")
        return {
            "instruction": instruction,
            "response": response,
            "improved": improved,
            "diff": None if response is None or improved is None else difference(response, improved),
            "analysis": list(analysis.values()) if analysis else None,
            "strategy": list(strategy.values()) if strategy else None,
        }

    def _answers(self, own: Answers, proposals: Answers, round_: int) -> dict[str, Any]:
        """What the answers about a row tell, and the one that proposed its instruction; of several the last one."""
        last = {stage: rest for stage, _, *rest in own}
        asked = [rest for stage, repetition, *rest in proposals if (stage, repetition) == (_PROPOSAL, round_)]
        by = [asked[-1] if asked else None, last.get("response_generation"), last.get(self.final)]
        criticism = last.get("sample_feedback")
        return {
            "writers": [-1 if answer is None else self._writer(*answer[:2]) for answer in by],
            "feedback": None if criticism is None else _fields(criticism[-1]).get("response_feedback"),
            "verdicts": [[self.stages.number(stage), *_verdict(rest[-1])] for stage, *rest in own if stage in _JUDGES],
        }

    def _writer(self, key: str, endpoint: str) -> int:
        model = self.model(key, endpoint)
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

    def _learn(self, position: int, answers: Answers) -> None:
        """Add a reference, with its features and feedback, which are empty where nothing was asked yet."""
        (record,) = self.ledger.db.execute(
            "SELECT intact(sum, record, id) FROM refs WHERE position = ?", (position,)
        ).fetchone()
        reference = self.ledger.parsed(Reference, record)
        feedback = {stage: _fields(rest[-1]) for stage, *rest in answers}
        known = ("id", "source", "system", "earlier", "instruction", "response")
        self.references[position] = {
            **{name: getattr(reference, name) for name in known},
            "features": feedback.get("instruction_feedback", {}),
            "feedback": feedback.get("response_feedback", {}).get("response_feedback", ""),
        }
        self.size += _bytes(self.references[position])

    def _grouped(self, query: str, among: Sequence[Any]) -> defaultdict[Any, list[tuple[Any, ...]]]:
        """The first column's value, one of `among` → the other columns, row by row."""
        groups: defaultdict[Any, list[tuple[Any, ...]]] = defaultdict(list)
        for first, *rest in self._among(query, among):
            groups[first].append(tuple(rest))
        return groups

    def _among(self, query: str, values: Sequence[Any]) -> sqlite3.Cursor:
        # As a list in the query: SQLite takes no subquery into the view `asked`, and would read all of it each time.
        return self.ledger.db.execute(query.format(",".join("?" * len(values))), values)

    def names(self) -> dict[str, Any]:
        return {
            "features": list(self.features),
            "writers": [{"model": model, "endpoint": endpoint} for model, endpoint in self.writers],
            "programs": list(self.programs),
            "filters": list(self.filters),
            "stages": list(self.stages),
            "references": [reference for _, reference in sorted(self.references.items())],
            "scoring": self.scoring,
        }


def _scoring(ledger: Ledger) -> str | None:
    """The last of the run's filters that gives scores. All rows take theirs from it, so that they can be compared."""
    query = f"SELECT filter FROM decisions WHERE {SCORE} IS NOT NULL ORDER BY position DESC LIMIT 1"
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


def _bytes(record: Mapping[str, Any]) -> int:
    return len(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace"))


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


Segments: TypeAlias = Sequence[tuple[int, str]]
"""(kind, text): see `differences`."""
STRIP = 3
_LONGEST = 1_500
"""Characters of a text that are shown."""
_SAME = 160
"""Characters shown at each end of a stretch in which nothing changed."""

_REWRITTEN = 0.85
"""Share of both texts that may be in one of them only."""


@dataclass(frozen=True)
class Text:
    """`look`: "folded" is shown on demand, "half" beside the next one."""

    title: str
    segments: Segments
    note: str = ""
    look: Literal["", "folded", "half"] = ""


@dataclass(frozen=True)
class Extract:
    """`title`: what the row is called; `href`: where on the page all of it is, or nothing."""

    title: str
    texts: Sequence[Text]
    href: str = ""


@dataclass(frozen=True)
class Gallery:
    """A section of the page. `wide`: an extract takes a whole row, its texts beside each other, and can be folded;
    `early`: above the charts; `listed`: in the page's table of contents, under `title`."""

    id: str
    title: str
    text: str
    extracts: Sequence[Extract]
    wide: bool = False
    early: bool = False
    listed: bool = True


def plain(title: str, text: str, note: str = "") -> Text:
    """A text in which nothing is marked."""
    return Text(title, [(BOTH, _cut(text, _LONGEST))], note)


def rewritten(pieces: Segments) -> bool:
    """Whether so little of both texts is the same that marks would hide both."""
    return sum(len(text) for kind, text in pieces if kind != BOTH) > _REWRITTEN * sum(len(text) for _, text in pieces)


def strip(rows: Rows) -> Gallery | None:
    """A few samples from all over the run, those that an improvement changed if there are any; None without a row."""
    columns = rows.columns
    kept = [at for at, flag in enumerate(columns["kept"]) if flag]
    if not kept:
        return None
    better = [at for at in kept if set((columns["diff"][at] or [])[::2]) - {BOTH}] or kept
    step = max(1, len(better) // STRIP)
    shown = [_sample(rows, at) for at in better[::step][:STRIP]]
    marked = any(kind != BOTH for extract in shown for text in extract.texts for kind, _ in text.segments)
    text = "Struck through: what the improvement took out. Underlined: what it put in." if marked else ""
    names = {1: "A sample", 2: "Two samples", 3: "Three samples"}
    return Gallery("strip", names[len(shown)], text, shown, early=True, listed=False)


def _sample(rows: Rows, at: int) -> Extract:
    row = {name: rows.columns[name][at] for name in ("number", "instruction", "response", "improved", "diff")}
    texts = [plain("Instruction", row["instruction"])]
    if row["diff"] is None:
        texts.append(plain("Response", row["improved"] or row["response"] or ""))
    elif rewritten(pieces := list(segments(row["response"], row["improved"]))):
        texts += [plain("Plain response", row["response"]), plain("Improved response", row["improved"], "rewritten")]
    else:
        texts.append(Text("Response", _excerpt(pieces)))
    return Extract(f"Sample {row['number']:,}", texts, f"#sample-{row['number']}")


def _excerpt(pieces: Segments) -> Segments:
    """The pieces with the unchanged stretches shortened, up to `_LONGEST` characters."""
    short, left = list[tuple[int, str]](), _LONGEST
    for kind, text in pieces:
        if left <= 0:
            return [*short, (BOTH, "…")]
        if kind == BOTH and len(text) > 3 * _SAME:
            text = f"{text[:_SAME].rpartition(' ')[0]} … {text[-_SAME:].partition(' ')[2]}"
        short.append((kind, _cut(text, left)))
        left -= len(text)
    return short


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"

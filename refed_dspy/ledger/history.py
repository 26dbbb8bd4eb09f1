"""What was asked so far and of whom, what became of it, what filters decided, and what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import only_teacher
from refed_dspy.ledger.statements import SENT, UNUSED, DecisionRow


class Usage(NamedTuple):
    """What questions took, summed or on average."""

    calls: float = 0.0
    prompt: float = 0.0
    """Tokens, as the next two."""
    cached: float = 0.0
    completion: float = 0.0
    seconds: float = 0.0
    unseen: float = 0.0
    """Picodollars charged for calls whose tokens are unknown."""

    @classmethod
    def total(cls, usages: Iterable[Usage]) -> Usage:
        return cls(*map(sum, zip(*usages, strict=True)))

    def times(self, factor: float) -> Usage:
        return Usage(*(factor * value for value in self))


class ChargedCalls(NamedTuple):
    """Calls of one stage to one model: what those with a known price cost, in picodollars, and the tokens of those
    without."""

    stage: str
    model: str
    endpoint: str
    calls: int
    cost: float
    prompt: float
    cached: float
    completion: float


_AFTER = """
SELECT stage, item, (SELECT reference FROM instructions i WHERE i.id = CAST(item AS INTEGER)
                     AND (item = CAST(i.id AS TEXT) OR item LIKE CAST(i.id AS TEXT) || '/%')), model, endpoint,
       count(*), total(prompt_tokens), total(cached_tokens), total(completion_tokens), total(seconds),
       total(CASE WHEN prompt_tokens IS NULL AND outcome != 'cancelled' THEN cost END)
FROM calls WHERE id > ? AND outcome NOT IN ('sent', 'unused', 'lost') GROUP BY stage, item, model, endpoint
"""
_CHARGED = """
SELECT stage, model, endpoint, count(*), total(cost), total(CASE WHEN cost IS NULL THEN prompt_tokens END),
       total(CASE WHEN cost IS NULL THEN cached_tokens END), total(CASE WHEN cost IS NULL THEN completion_tokens END)
FROM calls WHERE {} GROUP BY stage, model, endpoint
"""


def last_call_about(ledger: Ledger, sample: int) -> int:
    """The number of the last call about the instruction of the sample of this number; 0 where there is none."""
    query = "SELECT max(id) FROM calls WHERE item = (SELECT CAST(instruction AS TEXT) FROM samples WHERE seq = ?)"
    return int(ledger.db.execute(query, (sample,)).fetchone()[0] or 0)


def calls_after(ledger: Ledger, number: int) -> Iterator[tuple[str, str, int | None, str, str, Usage]]:
    """(stage, item, reference of the instruction that it is about, model, endpoint, usage) of the ended calls after the
    one of this number."""
    for stage, item, reference, model, endpoint, *usage in ledger.db.execute(_AFTER, (number,)):
        yield stage, item, reference, model, endpoint, Usage(*usage)


def samples_after(ledger: Ledger, number: int) -> dict[int, int]:
    """Reference → samples that it gave after the one of this number."""
    query = (
        "SELECT reference, count(*) FROM samples s JOIN instructions i ON i.id = s.instruction WHERE seq > ?"
        " GROUP BY reference"
    )
    return dict(ledger.db.execute(query, (number,)).fetchall())


def reference_numbers(ledger: Ledger) -> dict[str, int]:
    """A reference's id → its position."""
    return dict(ledger.db.execute("SELECT id, position FROM refs").fetchall())


def open_instructions_by_reference(ledger: Ledger) -> dict[int, int]:
    """Reference → its instructions that are not answered yet."""
    query = "SELECT reference, count(*) FROM instructions WHERE used IS NULL GROUP BY reference"
    return dict(ledger.db.execute(query).fetchall())


def sums_of_usage(ledger: Ledger) -> Iterator[Usage]:
    """What all calls so far took, in parts."""
    for row in ledger.db.execute("SELECT calls, prompt_tokens, cached_tokens, completion_tokens FROM usage"):
        yield Usage(*row)


def ever_answered(ledger: Ledger, stages: Iterable[str]) -> bool:
    """Whether any question of these stages has an answer, from whomever."""
    names = list(stages)
    query = f"SELECT 1 FROM answers WHERE stage IN ({','.join('?' * len(names))}) LIMIT 1"
    return ledger.db.execute(query, names).fetchone() is not None


def count_reused(ledger: Ledger) -> int:
    """How many answers were taken over from another folder."""
    return int(ledger.db.execute("SELECT count(*) FROM reused").fetchone()[0])


def settled_items(ledger: Ledger, stage: str) -> set[str]:
    """The items for which `stage` has an answer or a final failure."""
    rows = ledger.db.execute(
        "SELECT item FROM answers WHERE stage=:stage UNION SELECT item FROM failures WHERE stage=:stage AND final",
        {"stage": stage},
    )
    return {item for (item,) in rows}


class StageAnswer(NamedTuple):
    """The text that a stage's request for an item was answered with, when (seconds since 1970), and whether it ended at
    the token limit."""

    item: str
    text: str
    created: float
    cut: bool


def answers_of(ledger: Ledger, stage: str) -> Iterator[StageAnswer]:
    """The answer of every item for which `stage` has one."""
    query = (
        "SELECT item, output, created, EXISTS (SELECT 1 FROM calls c WHERE c.key = a.key AND outcome = 'cut')"
        " FROM asked a WHERE stage = ?"
    )
    for item, text, created, cut in ledger.db.execute(query, (stage,)):
        yield StageAnswer(item, text, created, bool(cut))


def unpriced_calls(ledger: Ledger) -> list[ChargedCalls]:
    """The calls made while the price was unknown."""
    if not ledger.db.execute("SELECT total(unpriced) FROM usage").fetchone()[0]:
        return []
    return _charged(ledger, "cost IS NULL")


def calls_in_batches(ledger: Ledger) -> list[ChargedCalls]:
    """The calls that wait in a batch, or whose answers were not used so far."""
    return _charged(ledger, f"outcome IN ('{SENT}', '{UNUSED}') AND id IN (SELECT call FROM batched)")


def _charged(ledger: Ledger, which: str) -> list[ChargedCalls]:
    return [ChargedCalls(*row) for row in ledger.db.execute(_CHARGED.format(which))]


def count_calls(ledger: Ledger, item: str) -> int:
    """How many calls were made about `item`."""
    return int(ledger.db.execute("SELECT count(*) FROM calls WHERE item=?", (item,)).fetchone()[0])


class QuestionCost(NamedTuple):
    """What one question took: calls, picodollars, and how many of the calls have no known price. `item`: what it was
    asked about."""

    item: str
    calls: int
    cost: int
    unpriced: int


def is_proposal(item: str) -> bool:
    """Whether a question about this item asks for instructions: it is a reference and a feature."""
    return "/" in item


def cost_by_question(ledger: Ledger) -> dict[str, QuestionCost]:
    """Key → what was paid for the question here."""
    rows = ledger.db.execute("SELECT key, item, count(*), total(cost), sum(cost IS NULL) FROM calls GROUP BY key")
    return {key: QuestionCost(item, calls, int(cost), unpriced) for key, item, calls, cost, unpriced in rows}


def stage_by_answer(ledger: Ledger) -> dict[str, str]:
    """Key → stage of each answer, paid for here or taken over from another run."""
    return dict(ledger.db.execute("SELECT key, stage FROM answers"))


def kept_instructions(ledger: Ledger) -> list[tuple[int, int, str, str]]:
    """(id, reference, feature, text) of every sample's instruction, in the order of the samples."""
    return ledger.db.execute(
        "SELECT i.id, i.reference, i.feature, intact(i.sum, i.text, i.feature)"
        " FROM samples s JOIN instructions i ON i.id = s.instruction ORDER BY s.seq"
    ).fetchall()


def tried_in_vain(ledger: Ledger) -> list[tuple[int, int, str]]:
    """(id, reference, text) of every instruction that calls were made about and that gave no sample."""
    return ledger.db.execute(
        "SELECT id, reference, intact(sum, text, feature) FROM instructions i"
        " WHERE NOT EXISTS (SELECT 1 FROM samples WHERE instruction = i.id)"
        " AND EXISTS (SELECT 1 FROM calls WHERE item = CAST(i.id AS TEXT)) ORDER BY id"
    ).fetchall()


def opened_references(ledger: Ledger) -> list[int]:
    """The references that calls were made about, in their order."""
    rows = ledger.db.execute(
        "SELECT position FROM refs r WHERE EXISTS (SELECT 1 FROM calls WHERE item = r.id) ORDER BY position"
    )
    return [position for (position,) in rows]


_OF_FILTER = """
SELECT filter, position, kept, score, reason, detail FROM decisions WHERE filter = ? ORDER BY created, instruction
"""
# With min(), SQLite takes the other columns from the row that has the least: the drop, where there was one.
_LAST = """
WITH last AS (
  SELECT min(kept) AS kept, filter, reason, created FROM decisions WHERE filter IN ({}) GROUP BY instruction
)
"""
_ROWS = """
SELECT i.id, intact(i.sum, i.text, i.feature), intact(i.sample_sum, i.sample), r.id,
       i.feature, i.round, d.filter, d.reason, d.score, d.detail
FROM decisions d
JOIN instructions i ON i.id = d.instruction
JOIN refs r ON r.position = i.reference
WHERE d.kept = :kept AND (d.filter = :label OR :label IS NULL) ORDER BY d.created, i.id
"""


def decisions_of(ledger: Ledger, label: str) -> Iterator[DecisionRow]:
    """The decisions of the filter called `label`, oldest first."""
    return map(_row, ledger.db.execute(_OF_FILTER, (label,)))


class Decided(NamedTuple):
    """What filters decided on rows in the end. `dropped`: (filter, reason) → the drops after the last kept row;
    `before`: all rows up to that one, and those of them that were `kept`."""

    before: int
    kept: int
    dropped: Counter[tuple[str, str]]


def decided_so_far(ledger: Ledger, labels: Sequence[str]) -> Decided:
    """What the filters called `labels` decided on all rows."""
    last = _LAST.format(",".join("?" * len(labels)))
    query = f"{last} SELECT count(*), total(kept), coalesce(max(CASE WHEN kept THEN created END), -1) FROM last"
    rows, kept, moment = ledger.db.execute(query, labels).fetchone()
    since = f"{last} SELECT filter, reason, count(*) FROM last WHERE NOT kept AND created > ? GROUP BY 1, 2"
    found = ledger.db.execute(since, [*labels, moment]) if rows > kept else ()
    dropped = Counter({(name, reason): count for name, reason, count in found})
    return Decided(rows - dropped.total(), int(kept), dropped)


def decided_rows(ledger: Ledger, kept: bool, label: str | None) -> Iterator[tuple[Any, ...]]:
    """The rows that the filter called `label`, or any filter, kept or dropped, oldest decision first.

    Each is (instruction's number, its text, its sample as JSON or None, reference's id, feature, round, filter, reason,
    score, detail).
    """
    return ledger.db.execute(_ROWS, {"kept": kept, "label": label})


def _row(record: tuple[Any, ...]) -> DecisionRow:
    label, position, kept, *why = record
    return DecisionRow(label, position, bool(kept), *why)


EMBEDDED = "embedded:"
"""Prefix of the endpoint of a model that the run started itself; the model's name follows."""
SIMULATED = "simulated"
"""The endpoint of the simulated teacher."""

_ENDPOINTS = """
SELECT endpoint FROM usage WHERE answered UNION SELECT endpoint FROM reused JOIN answers USING (key)
"""


def model_of(model: str, endpoint: str) -> str:
    """The name of a call's model; of one that the run started itself, its name in the run's settings."""
    return endpoint.removeprefix(EMBEDDED) if endpoint.startswith(EMBEDDED) else model


def simulated_note(ledger: Ledger) -> str:
    """What people must know of texts by the simulated teacher; empty where a model gave every answer."""
    by = {endpoint == SIMULATED for (endpoint,) in ledger.db.execute(_ENDPOINTS)}
    return simulated_text(by, "rows" if ledger.holds() in {"", "run", "comparison", "recycling"} else "answers")


def simulated_text(by: Collection[bool], texts: str = "rows") -> str:
    """The note of `texts`. `by`: whether the simulated teacher wrote each, or each kind of them."""
    if True not in by:
        return ""
    whole = f"made by the simulated teacher: no model wrote these {texts}"
    return f"{'made in part by the simulated teacher' if False in by else whole}, for trying refed out only"


class Authors:
    """Which model wrote an answer of a run: the only teacher of most runs, or the one that the call was made to."""

    def __init__(self, ledger: Ledger) -> None:
        self._db = ledger.db
        self._only = only_teacher(ledger)

    def model(self, key: str | None, endpoint: str | None) -> str | None:
        """The model that wrote the answer under `key`; None where it is not known."""
        if self._only is not None or key is None or endpoint is None:
            return self._only
        row = self._db.execute("SELECT model FROM calls WHERE key=? AND outcome='ok' LIMIT 1", (key,)).fetchone()
        if row is None:
            row = self._db.execute("SELECT model FROM reused WHERE key=?", (key,)).fetchone()
        return None if row is None else model_of(str(row[0]), endpoint)

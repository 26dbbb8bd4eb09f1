"""The SQL statements that write each kind of unit: one list for a unit, committed whole."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeAlias

from refed_dspy.ledger.format import checksum
from refed_dspy.records import Call, Sample

Statement: TypeAlias = tuple[str, tuple[Any, ...] | Mapping[str, Any]]

SENT = "sent"
"""The outcome of a call that is in flight, or was when the process was killed."""
UNUSED = "unused"
"""The outcome of a call that a batch answered and that nobody asked for so far."""


@dataclass(frozen=True)
class Key:
    """The identity of a request, `digest`: an answer recorded under an equal one is not paid for again. And what it is
    made for."""

    stage: str
    item: str
    repetition: int
    digest: str


@dataclass(frozen=True)
class Answer:
    """A paid answer: its typed outputs as JSON, its text where the adapter that asked does not read that JSON, and what
    the model thought before it."""

    output: str
    raw: str | None = None
    reasoning: str = ""
    asked_for: tuple[str, str] | None = field(default=None, compare=False)
    """The item and stage that asked first; None where it was not read from the ledger."""

    @property
    def text(self) -> str:
        """What the adapter reads."""
        return self.output if self.raw is None else self.raw


def noted(name: str, value: Any) -> Statement:
    """What is remembered of the work under `name`: anything that JSON has."""
    text = json.dumps(value)
    return ("INSERT OR REPLACE INTO meta VALUES (?,?,?)", (name, text, checksum(text, name)))


def text_digest(text: str) -> bytes:
    """A digest of `text` with case and white space normalised: exact duplicates have the same."""
    return blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def answered(key: Key, answer: Answer, endpoint: str, calls: Iterable[Call]) -> list[Statement]:
    """An answer that `endpoint` gave, and its calls, settled."""
    sum_ = checksum(answer.output, answer.raw, endpoint)
    row = (key.digest, key.stage, key.item, key.repetition, answer.output, answer.raw, endpoint, time.time(), sum_)
    reasoning = (key.digest, answer.reasoning, checksum(answer.reasoning))
    thought = ("INSERT OR IGNORE INTO reasoning VALUES (?,?,?)", reasoning)
    return [
        ("INSERT OR IGNORE INTO answers VALUES (?,?,?,?,?,?,?,?,?)", row),
        *([thought] if answer.reasoning else []),
        *settled(key, calls),
    ]


def recovered(key: str) -> Statement:
    """The request under `key` was answered after all: its failure is deleted."""
    return ("DELETE FROM failures WHERE key=?", (key,))


def shared(key: Key) -> list[Statement]:
    """The answer under `key`, which another item or stage asked for first, was given to its own, too."""
    return [("INSERT OR IGNORE INTO shared VALUES (?,?,?)", (key.item, key.stage, key.digest))]


def reused(key: str, model: str) -> list[Statement]:
    """The answer under `key` came from another run, so this run has no call for it: which model wrote it."""
    return [("INSERT OR IGNORE INTO reused VALUES (?,?)", (key, model))]


def failed(key: Key, kind: str, reason: str, final: bool, calls: Iterable[Call]) -> list[Statement]:
    """A failed unit and its calls, settled."""
    row = (key.digest, key.stage, key.item, kind, reason, final, time.time())
    return [("INSERT OR REPLACE INTO failures VALUES (?,?,?,?,?,?,?)", row), *settled(key, calls)]


def reserved(number: int, key: Key, model: str, endpoint: str, worst: int | None) -> list[Statement]:
    """A call about to be sent, and the most that it can cost."""
    row = (number, key.digest, key.stage, key.item, model, endpoint, SENT, worst, worst, time.time())
    return [
        (
            "INSERT INTO calls (id, key, stage, item, model, endpoint, outcome, seconds, reserved, cost, created)"
            " VALUES (?,?,?,?,?,?,?,0,?,?,?)",
            row,
        )
    ]


def settled(key: Key, calls: Iterable[Call]) -> list[Statement]:
    """Calls that ended: updated where they were reserved, inserted where they were not."""
    return [_settled(key, call) for call in calls]


def not_sent(number: int) -> list[Statement]:
    """A reserved call that was never sent: it is deleted."""
    return [("DELETE FROM calls WHERE id=?", (number,)), ("DELETE FROM batched WHERE call=?", (number,))]


def sampled(instruction: int, round_: int, sample: Sample) -> list[Statement]:
    """An instruction became a sample in this round."""
    kept = ("INSERT INTO samples (instruction, created) VALUES (?, ?)", (instruction, time.time()))
    return [kept, *unusable(instruction, round_, sample)]


def unusable(instruction: int, round_: int, sample: Sample | None = None) -> list[Statement]:
    """An instruction is not asked again: its answer failed for good, or it or its `sample` was dropped."""
    text = None if sample is None else sample.model_dump_json()
    sum_ = None if text is None else checksum(text)
    return [("UPDATE instructions SET used=?, sample=?, sample_sum=? WHERE id=?", (round_, text, sum_, instruction))]


@dataclass(frozen=True, slots=True)
class DecisionRow:
    """The decision of a run's filter about a row: the filter's name and its position in the run, and why; `reason` of a
    kept row is what is to be told of it."""

    filter: str
    position: int
    kept: bool
    score: float | None
    reason: str
    detail: str


def decided(instruction: int, decisions: Iterable[DecisionRow]) -> list[Statement]:
    """The decisions of filters about one instruction or its sample."""
    now = time.time()
    return [
        (
            "INSERT OR REPLACE INTO decisions VALUES (?,?,?,?,?,?,?,?)",
            (instruction, row.filter, row.position, row.kept, row.score, row.reason, row.detail, now),
        )
        for row in decisions
    ]


def _settled(key: Key, call: Call) -> Statement:
    tokens = (call.prompt_tokens, call.cached_tokens, call.completion_tokens)
    made = (call.model, call.endpoint, call.outcome, call.seconds, *tokens, call.cost, time.time() - call.seconds)
    return (
        "INSERT INTO calls VALUES (?,?,?,?,?,?,?,?,?,?,?,NULL,?,?,?) ON CONFLICT (id) DO UPDATE SET"
        " outcome=excluded.outcome, seconds=excluded.seconds, prompt_tokens=excluded.prompt_tokens,"
        " cached_tokens=excluded.cached_tokens, completion_tokens=excluded.completion_tokens,"
        " reasoning_tokens=excluded.reasoning_tokens, cost=excluded.cost,"
        " created=max(created, excluded.created)",  # of a call that a later start adopted: when it began to wait
        (call.number or None, key.digest, key.stage, key.item, *made, call.reasoning_tokens),
    )

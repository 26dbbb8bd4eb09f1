"""What is written for each kind of unit: one list of statements, committed whole."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, TypeAlias

from refed_dspy.records import Call

Statement: TypeAlias = tuple[str, tuple[Any, ...]]

SENT = "sent"
"""The outcome of a call that is on its way, or was when the process was killed."""
UNUSED = "unused"
"""The outcome of one that a batch answered, and nobody asked for so far."""


@dataclass(frozen=True)
class Key:
    """What makes a unit of work the same one: equal keys are never paid for twice."""

    stage: str
    item: str
    repetition: int
    prompt: str
    inputs: str
    digest: str


@dataclass(frozen=True)
class Answer:
    """A paid answer: its key, its typed outputs as JSON, the endpoint that gave it."""

    key: Key
    output: str
    endpoint: str


def text_digest(text: str) -> bytes:
    """Digest of `text` with case and white space normalised: exact duplicates share it."""
    return blake2b(" ".join(text.casefold().split()).encode(), digest_size=16).digest()


def answered(answer: Answer, calls: Iterable[Call], failed_before: bool = True) -> list[Statement]:
    """An answer and what its calls came to. `failed_before`: an earlier failure under this key may have to go."""
    key, now = answer.key, time.time()
    row = (key.digest, key.stage, key.item, key.repetition, key.prompt, key.inputs, answer.output, answer.endpoint, now)
    forget = [("DELETE FROM failures WHERE key=?", (key.digest,))] if failed_before else []
    return [("INSERT OR IGNORE INTO answers VALUES (?,?,?,?,?,?,?,?,?)", row), *forget, *settled(key, calls)]


def taken_over(key: str, model: str) -> list[Statement]:
    """The answer under `key` came from another run, whose calls are not told here: this is who wrote it."""
    return [("INSERT OR IGNORE INTO reused VALUES (?,?)", (key, model))]


def failed(key: Key, kind: str, reason: str, final: bool, calls: Iterable[Call]) -> list[Statement]:
    """A failed unit and what its calls came to."""
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
    """What calls came to: settled where they were reserved, added where they were not."""
    return [_settled(key, call) for call in calls]


def not_sent(number: int) -> list[Statement]:
    """A reserved call that was never sent leaves no trace."""
    return [("DELETE FROM calls WHERE id=?", (number,)), ("DELETE FROM batched WHERE call=?", (number,))]


def sampled(instruction: int, round_: int) -> list[Statement]:
    """An instruction became a sample in this round."""
    return [
        ("INSERT INTO samples (instruction, created) VALUES (?, ?)", (instruction, time.time())),
        ("UPDATE instructions SET used=? WHERE id=?", (round_, instruction)),
    ]


def unusable(instruction: int, round_: int) -> list[Statement]:
    """The instruction's answer failed for good: it is not asked again."""
    return [("UPDATE instructions SET used=? WHERE id=?", (round_, instruction))]


@dataclass(frozen=True, slots=True)
class Decided:
    """What the filter called `filter`, number `position` of the run's, said of a row."""

    filter: str
    position: int
    kept: bool
    score: float | None
    reason: str
    detail: str


def decided(instruction: int, decisions: Iterable[Decided]) -> list[Statement]:
    """What the filters said of one instruction or its sample."""
    now = time.time()
    return [
        (
            "INSERT OR REPLACE INTO decisions VALUES (?,?,?,?,?,?,?,?)",
            (instruction, d.filter, d.position, d.kept, d.score, d.reason, d.detail, now),
        )
        for d in decisions
    ]


def _settled(key: Key, call: Call) -> Statement:
    tokens = (call.prompt_tokens, call.cached_tokens, call.completion_tokens)
    begun = time.time() - call.seconds
    return (
        "INSERT INTO calls VALUES (?,?,?,?,?,?,?,?,?,?,?,NULL,?,?) ON CONFLICT (id) DO UPDATE SET"
        " outcome=excluded.outcome, seconds=excluded.seconds, prompt_tokens=excluded.prompt_tokens,"
        " cached_tokens=excluded.cached_tokens, completion_tokens=excluded.completion_tokens, cost=excluded.cost,"
        " created=max(created, excluded.created)",  # of one that a later start adopted, when that one began to wait
        (
            *(call.number or None, key.digest, key.stage, key.item, call.model, call.endpoint, call.outcome),
            *(call.seconds, *tokens, call.cost, begun),
        ),
    )

"""What chaos would say of work that breaks a promise. Whether work breaks any, `make chaos` finds out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from benchmarks.chaos_books import Books, Moment
from benchmarks.chaos_starts import Ended
from benchmarks.chaos_weather import Event

GOOD = Books(frozenset({("answer", "a")}), 5, 3, 900_000, 600_000, 0, 0, 2, "ok")
STATS = {"requests": 5, "batch_requests": 0, "billed_prompt_tokens": 4, "billed_completion_tokens": 0,
         "batch_billed_prompt_tokens": 0, "batch_billed_completion_tokens": 0}  # fmt: skip
CAPS = {"max_cost": 9e-7, "max_calls": 5}


def broken(books: Books = GOOD, caps: dict[str, Any] | None = None, in_flight: int = 2, **stats: int) -> list[str]:
    return list(Moment(books, {**STATS, **stats}).broken(GOOD, caps or CAPS, in_flight))


def test_work_that_keeps_all_promises() -> None:
    assert broken() == []


@pytest.mark.parametrize(
    ("found", "word"),
    [
        (broken(replace(GOOD, rows=frozenset())), "1 committed rows are lost"),
        (broken(replace(GOOD, sent_again=1)), "1 calls were sent after their answer"),
        (broken(replace(GOOD, twice=1)), "1 paid twice"),
        (broken(requests=4, batch_requests=2, caps={"max_calls": 9}), "6 requests at the server, 5 calls"),
        (broken(in_flight=1), "2 calls are lost"),
        (broken(replace(GOOD, charged=600_000, known=0), billed_prompt_tokens=5), "billed 7.5e-07 dollars"),
        (broken(replace(GOOD, known=700_000)), "for known tokens"),
        (broken(caps={"max_cost": 8e-7}), "max_cost 8e-07 is passed"),
        (broken(caps={"max_calls": 4}), "max_calls 4 is passed"),
        (broken(replace(GOOD, whole="page 3 is never used")), "damaged"),
    ],
)
def test_each_broken_promise_is_told_alone(found: list[str], word: str) -> None:
    assert len(found) == 1 and word in found[0]


@pytest.mark.parametrize(
    ("ended", "word"),
    [
        (Ended(None, -11, False, False, "", ""), "exit code -11"),
        (Ended(None, 1, False, False, "", ""), "without a line"),
        (Ended(None, 1, False, False, "", "Traceback (most recent call last)\nValueError"), "a traceback"),
        (Ended(None, 1, False, False, "", "refed: \x1b[31mno"), "control characters"),
        (Ended(None, 130, False, False, "", "refed: stopped"), "exit code 130"),
        (Ended(None, -9, False, True, "", ""), "did not end"),
    ],
)
def test_how_a_start_must_not_end(ended: Ended, word: str) -> None:
    assert any(word in promise for promise in ended.broken())


@pytest.mark.parametrize(
    ("what", "code"), [("interrupt", 130), ("terminate", 143), ("interrupt", 0), ("kill", -9), ("full disk", 1)]
)
def test_how_a_start_may_end(what: str, code: int) -> None:
    assert list(Ended(Event(what), code, True, False, "", "refed: why").broken()) == []

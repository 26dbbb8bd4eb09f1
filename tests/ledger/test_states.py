"""The state of work: asked of the lock while a process works, else what the last start wrote as it ended."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from refed_dspy.errors import CapReached, NothingKept, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start
from refed_dspy.ledger.states import (
    CAPPED,
    DONE,
    INTERRUPTED,
    KILLED,
    NO_WORD,
    RUNNING,
    SHORT,
    STOPPED,
    End,
    state_of,
    write_end,
)


def state(folder: Path) -> tuple[str, str]:
    with Ledger.read(folder) as ledger:
        facts = state_of(ledger)
    return facts["state"], facts["reason"]


def test_who_looks_is_not_taken_for_who_works(tmp_path: Path) -> None:
    import fcntl

    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
    with (tmp_path / ".lock").open() as looks:
        fcntl.flock(looks, fcntl.LOCK_SH)
        assert state(tmp_path) == (KILLED, NO_WORD)


def test_what_a_start_wrote_as_it_ended_is_its_state_until_the_next(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
        write_end(ledger, End(CAPPED, reason := "max_calls 3 is reached"))
        assert state(tmp_path) == (RUNNING, ""), "the process is still there"
    assert state(tmp_path) == (CAPPED, reason)
    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
    assert state(tmp_path) == (KILLED, NO_WORD)


def test_a_folder_of_an_earlier_version_is_stopped(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(work="run", size=3)
    assert state(tmp_path) == (STOPPED, "")
    with Ledger.read(tmp_path) as ledger:
        assert state_of(ledger)["last_active"] is None


def test_it_was_last_active_when_the_last_thing_was_written(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
        ledger.commit(
            [("INSERT INTO calls VALUES (1,'k','s','i','m','e','ok',5.0,1,0,1,0,0,?,NULL)", (4_000_000_000.0,))]
        )
        last = datetime.fromisoformat(state_of(ledger)["last_active"])
    assert last == datetime.fromtimestamp(4_000_000_000, UTC) + timedelta(seconds=5)


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (KeyboardInterrupt(), End(STOPPED, INTERRUPTED)),
        (asyncio.CancelledError(), End(STOPPED, INTERRUPTED)),
        (RunStopped("the disk\nis full"), End(STOPPED, "the disk is full")),
        (NothingKept("filters drop all"), End(SHORT, "filters drop all")),
        (CapReached("max_calls"), End(CAPPED, "max_calls is reached")),
        (ZeroDivisionError("division by zero"), End(STOPPED, "ZeroDivisionError: division by zero")),
    ],
)
def test_how_a_start_ends_by_an_error(error: BaseException, end: End) -> None:
    assert End.by(error) == end


def test_done_is_no_reason(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        begin_start(ledger)
        write_end(ledger, End(DONE))
    assert state(tmp_path) == (DONE, "")

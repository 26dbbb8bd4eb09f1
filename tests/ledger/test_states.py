"""The state of work: asked of the lock while a process works, else what the last start wrote as it ended."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from refed_dspy.errors import CapReached, NothingKept, RunStopped
from refed_dspy.ledger.batches import begun
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start
from refed_dspy.ledger.statements import Answer, answered, reserved
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
    differences,
    has_begun,
    named_work,
    state_of,
    write_end,
)
from tests.ledger.test_batches import CALL, key
from tests.support.said import Said


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


# --- what work a folder holds, and what differs between two starts of it


@pytest.mark.parametrize("named", ["a run", "an agreement", "a comparison", "a filtering", "statistics"])
def test_work_has_its_article(named: str) -> None:
    assert named_work(named.split()[-1]) == named


def test_what_differs_is_told_by_its_path_and_of_filters_by_name_and_setting_or_their_order(said: Said) -> None:
    stored = {"seed": 1, "teacher": {"model": "a", "params": {"top_p": 1}}, "gone": {"x": 1}, "same": {"y": 2}}
    current = {"seed": 2, "teacher": {"model": "a", "params": {"top_p": 0.5}}, "new": 0, "same": {"y": 2}}
    short, own = ["length", {"min_words": 1, "of": "response"}], ["own", {"settings": {"word": "castle"}}]
    longer, other = ["length", {"min_words": 2, "of": "response"}], ["own", {"settings": {"word": "river"}}]
    said(differences(stored, current))
    said(differences({"filters": [short, own]}, {"filters": [longer, other]}))
    said(differences({"filters": [short]}, {"filters": [short, own]}))
    said(differences({"filters": [short, own]}, {"filters": [own, short]}))
    assert differences(stored, stored) == []


def test_work_has_begun_with_an_answer_or_a_batch_under_way(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "answer") as ledger:
        assert not has_begun(ledger)
        ledger.commit(answered(key(1), Answer("{}"), "here", [CALL]))
        assert has_begun(ledger)
    with Ledger.create(tmp_path / "batch") as ledger:
        ledger.commit(reserved(1, key(1), "model", "here", 100))
        assert not has_begun(ledger)
        ledger.commit(begun(1, "nonce", "here", "model", [1]))
        assert has_begun(ledger)

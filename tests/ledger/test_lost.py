"""A ledger that is removed, replaced or cut while it is written: what is asked after it, and what stays."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import refed_dspy
from refed_dspy.errors import LedgerLost, RunStopped
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.group_commit import GroupCommit
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start, seconds_at_work
from tests.ledger.test_group_commit import note, noted
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


def replace(file: Path) -> None:
    shutil.copy(file, file.with_name("another"))
    os.replace(file.with_name("another"), file)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def move(folder: Path) -> Path:
    return folder.rename(folder.with_name("moved"))


def lock_again(folder: Path) -> None:
    """What a second writer does after somebody removed the lock."""
    (folder / ".lock").unlink()
    (folder / ".lock").touch()


LOST: dict[str, Callable[[Path], object]] = {
    "the folder removed": shutil.rmtree,
    "the folder moved": move,
    "the ledger removed": lambda folder: (folder / FILE).unlink(),
    "the ledger replaced": lambda folder: replace(folder / FILE),
    "its log removed": lambda folder: (folder / f"{FILE}-wal").unlink(),
}
SPOILED: dict[str, Callable[[Path], object]] = {
    "the ledger cut": lambda folder: cut(folder / FILE),
    "its log cut": lambda folder: cut(folder / f"{FILE}-wal"),
    "the lock removed": lambda folder: (folder / ".lock").unlink(),
    "the lock taken": lock_again,
}


@pytest.mark.parametrize("how", [*LOST, *SPOILED])
async def test_the_next_transaction_says_so_and_so_does_every_one_after_it(tmp_path: Path, how: str) -> None:
    ledger = Ledger.create(tmp_path / "run")
    group = GroupCommit(ledger)
    for name in "123":
        await group.commit(note(f"n{name}"))
    (LOST | SPOILED)[how](tmp_path / "run")
    ended = await asyncio.gather(*(group.commit(note(f"n{name}")) for name in "45"), return_exceptions=True)
    assert all(isinstance(error, RunStopped) and "resume" in str(error) for error in ended)
    assert all(str(error).startswith(f"{tmp_path}/run/") and "\n" not in str(error) for error in ended)
    with pytest.raises(RunStopped):
        await group.commit(note("6"))
    with pytest.raises(RunStopped):
        ledger.commit(note("7"))


@pytest.mark.parametrize("how", ["the folder moved", "its log removed"])
async def test_answers_that_were_in_flight_stay_where_the_file_still_is(tmp_path: Path, how: str) -> None:
    ledger = Ledger.create(tmp_path / "run")
    group = GroupCommit(ledger)
    await group.commit(note("before"))
    moved = LOST[how](tmp_path / "run") or tmp_path / "run"
    with pytest.raises(LedgerLost):
        await group.commit(note("in flight"))
    ledger.close()
    assert isinstance(moved, Path) and noted(moved) >= {"before", "in flight"}


def test_a_log_that_a_backup_has_emptied_is_not_cut(tmp_path: Path) -> None:
    """All of it is in the file then, so nothing is lost."""
    with Ledger.create(tmp_path) as ledger:
        for number in range(30):
            ledger.commit(note(f"n{number}"))
        with closing(sqlite3.connect(tmp_path / FILE)) as backup:
            assert backup.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
        ledger.commit(note("after"))
        ledger.commit(note("later"))
    assert noted(tmp_path) == {f"n{number}" for number in range(30)} | {"after", "later"}


def test_two_writers_do_not_write_at_once(said: Said, tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as first:
        first.commit(note("n1"))
        (tmp_path / ".lock").unlink()
        with Ledger.create(tmp_path) as second:
            with said.by(RunStopped):
                first.commit(note("n2"))
            second.commit(note("n3"))
    assert noted(tmp_path) == {"n1", "n3"}


def test_a_row_that_is_there_already_is_no_full_disk(said: Said, tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.commit(note("once"))
        with said.by(RunStopped) as error:
            ledger.commit(note("once"))
    assert "make room" not in str(error.value)


@pytest.mark.parametrize("how", ["the folder removed", "the ledger replaced"])
def test_a_run_asks_nothing_more(tmp_path: Path, how: str) -> None:
    writer = Writer()

    def lose(_: object) -> None:
        if len(writer.requests) == 20:
            LOST[how](tmp_path / "run")

    writer.on_request = lose
    with pytest.raises(LedgerLost):
        refed_dspy.synthesize(None, references(8), size=100, teacher=fake_lm(writer), run_dir=tmp_path / "run")
    assert len(writer.requests) <= 20 + 32, "those in flight at most"


def test_sleep_and_a_clock_that_jumps_are_no_work(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    """A laptop's sleep looks like a jump of the wall clock, which the monotonic clock does not make."""
    begin_start(ledger)
    for hours in (6, -1, 30 * 365 * 24):
        later = time.time() + 3600 * hours
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda later=later: later)
            columns = "key, stage, item, model, endpoint, outcome, seconds, created"
            row = ("k", "s", "i", "m", "e", "ok", 0.1, later)
            ledger.commit([(f"INSERT INTO calls ({columns}) VALUES (?,?,?,?,?,?,?,?)", row)])
            assert seconds_at_work(ledger) < 60
    assert seconds_at_work(ledger) > 0

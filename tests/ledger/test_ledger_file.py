"""A ledger's file: one writer, and readers beside it; kills, damage and a full disk are told in one line."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from refed_dspy.errors import RunDirError, RunStopped
from refed_dspy.ledger.connection import FILE, Fence, connected
from refed_dspy.ledger.format import FORMAT
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start
from refed_dspy.ledger.statements import Answer, DecisionRow, answered
from refed_dspy.ledger.states import KILLED, state_of
from tests.ledger.test_ledger import CALL, NOBODY, key, paid
from tests.support.said import Said


def test_a_ledger_is_safe_against_kills_and_read_while_it_is_written(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "new" / "folder") as ledger:
        assert Fence.of(ledger.path.parent) is None
        pragmas = ("journal_mode", "synchronous", "user_version")
        assert [ledger.db.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas] == ["wal", 1, FORMAT]
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(ledger.kept).result() == 0, "what asks from a thread of its own reads it, too"


def test_a_folder_that_cannot_be_written_is_told(said: Said, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with said.by(RunDirError):
        Ledger.create(tmp_path / "file")


def test_a_ledger_that_is_read_is_not_written(tmp_path: Path) -> None:
    Ledger.create(tmp_path).close()
    with Ledger.read(tmp_path) as ledger, pytest.raises(RunStopped, match="readonly"):
        ledger.commit(paid("a"))


def test_a_ledger_that_is_only_just_being_made_is_not_read(said: Said, tmp_path: Path) -> None:
    (tmp_path / FILE).touch()
    with said.by(RunDirError):
        Ledger.read(tmp_path)


def test_an_error_of_the_program_undoes_what_was_written_and_stays_what_it_is(tmp_path: Path) -> None:
    screens: dict[str, list[DecisionRow]] = {}
    with Ledger.create(tmp_path) as ledger:
        with pytest.raises(KeyError):
            ledger.commit_proposal(0, "f", 0, ["one"], 0, NOBODY, screens.__getitem__)
        assert ledger.open_instructions() == []
        ledger.commit(paid("a"))


def test_a_second_writer_is_refused_and_a_reader_is_not(said: Said, tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        with said.by(RunDirError):
            Ledger.create(tmp_path)
        ledger.commit(paid("a"))
        with Ledger.read(tmp_path) as reader:
            assert reader.answer("a")
    Ledger.create(tmp_path).close()


def _write_until_killed(run_dir: Path) -> None:
    ledger = Ledger.create(run_dir)
    begin_start(ledger)
    for number in range(100_000):
        ledger.commit(paid(f"k{number}", [CALL]))
        if number == 200:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_kill_loses_no_committed_row_and_frees_the_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_write_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with Ledger.read(tmp_path) as ledger:
        assert state_of(ledger)["state"] == KILLED
    with Ledger.create(tmp_path) as ledger:
        assert ledger.answer("k200") is not None
        assert ledger.db.execute("SELECT count(*) FROM answers").fetchone() == (201,)


@pytest.mark.parametrize("damage", [b"not a database, not at all", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_ledger_is_refused_in_one_line_every_time(said: Said, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / FILE).write_bytes(damage)
    for opened in (Ledger.create, Ledger.create, Ledger.read):
        with said.by(RunDirError):
            opened(tmp_path)


def test_damage_in_the_middle_is_found(said: Said, tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        for number in range(60):
            ledger.commit(paid(f"k{number}", [CALL]))
        ledger.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(8192)
        file.write(b"\x5a" * 4096)
    with said.by(RunDirError):
        Ledger.create(tmp_path)


def test_a_missing_run_is_reported_with_what_to_do(said: Said, tmp_path: Path) -> None:
    with said.by(RunDirError):
        Ledger.read(tmp_path)


def test_another_format_is_refused(said: Said, tmp_path: Path) -> None:
    Ledger.create(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version=99")
    for opened in (Ledger.create, Ledger.read):
        with said.by(RunDirError):
            opened(tmp_path)


def test_a_full_disk_stops_the_run_and_keeps_what_was_committed(said: Said, tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.commit(paid("a"))
        pages = ledger.db.execute("PRAGMA page_count").fetchone()[0]
        ledger.db.execute(f"PRAGMA max_page_count={pages + 1}")  # SQLite's own way of a full disk
        big = answered(key("b"), Answer("x" * 100_000), "endpoint", [])
        with said.by(RunStopped):
            ledger.commit(big)
        assert ledger.answer("a") and ledger.answer("b") is None


def test_a_ledger_that_may_not_be_written_is_no_damage(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(size=3)
    refused = pytest.raises(RunDirError, match=r"the right to write in its folder .*; copy the folder$")
    with refused, connected(tmp_path / FILE, "ro") as db:
        db.execute("DELETE FROM meta")


def test_a_disk_that_is_full_when_a_ledger_is_opened_is_no_damage(said: Said, tmp_path: Path) -> None:
    """A file-size limit of the system stands for the full disk. "Restore it from a backup" would cost paid answers."""
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, most))
    try:
        with said.by(RunDirError):
            Ledger.create(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    with Ledger.create(tmp_path) as ledger:
        assert ledger.kept() == 0

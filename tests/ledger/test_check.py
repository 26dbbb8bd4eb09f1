"""Ledgers that are damaged, or changed by hand: one line in every command that opens them. `benchmarks.damage` tries
hundreds."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.damage import damages, drawn, made_folders, outcome, tried
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import RunDirError
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.records import Reference, Sample
from tests.support.said import Said


@pytest.fixture(scope="module")
def folder(shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in `run`."""
    home, before = tmp_path_factory.mktemp("damaged"), Path.cwd()
    os.chdir(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFED_EMBEDDINGS", "false")
        made_folders(home, shared_server, ("run",))
    os.chdir(before)
    return home


@pytest.fixture
def home(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a run in `run`."""
    monkeypatch.chdir(folder)
    return folder


COMMANDS = [["status", "d"], ["export", "d", "--force"], ["resume", "d", "--size", "7"]]


@pytest.mark.parametrize(
    ("kind", "count"),
    [("bytes", 3), *(pytest.param(kind, 5, marks=pytest.mark.slow) for kind in ("file", "table", "column", "meta"))],
)
def test_every_command_says_it_in_one_line(home: Path, kind: str, count: int) -> None:
    few = drawn({kind: damages(home / "run" / FILE)[kind]}, random.Random(5), count)
    ends = {(damage.name, words): end for damage in few for words, end in tried("run", COMMANDS, damage)}
    assert set(ends.values()) <= {"0", "1", "2"}, ends
    assert "2" in ends.values()


def sql(statement: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("PRAGMA ignore_check_constraints=ON")
            db.execute(statement)

    return apply


WRONG = [
    "DROP TABLE refs",
    "DROP VIEW asked",
    "ALTER TABLE calls RENAME COLUMN cost TO price",
    "UPDATE calls SET cost = -5",
    "UPDATE calls SET seconds = 9e999",
    "UPDATE samples SET instruction = 77 WHERE seq = 1",
    "DELETE FROM refs",
    "UPDATE meta SET value = '[5' WHERE name = 'settings'",
    "UPDATE meta SET value = '{\"kind\": 5}' WHERE name = 'identity'",
    "UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE name = 'features'",
]


def test_what_is_wrong_is_said(said: Said, home: Path, tmp_path: Path) -> None:
    told: dict[str, str] = {}
    for number, statement in enumerate(WRONG):
        copy = Path(shutil.copytree(home / "run", tmp_path / f"{number}"))
        sql(statement)(copy / FILE)
        for opened in (Ledger.read, Ledger.create):
            with pytest.raises(RunDirError) as refused:
                opened(copy)
            told[statement] = str(refused.value)
    said(told)


@pytest.mark.usefixtures("home")
def test_a_real_fault_is_still_a_traceback(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is caught is the file's damage and nothing of this package's own: a ledger that is whole raises as ever."""
    monkeypatch.setattr("refed_dspy.runs.result.full_status", lambda ledger: ledger.db.execute("SELECT nothing"))
    said(outcome(["status", "run"]))


@pytest.mark.parametrize("text", ["{", "{}", "5", '{"instruction": 5}'])
def test_a_value_that_is_damaged_is_found_where_it_is_read(home: Path, text: str) -> None:
    with Ledger.read(home / "run") as ledger, pytest.raises(RunDirError):
        ledger.parsed(Sample, text)


def test_a_file_that_is_no_ledger_is_not_made_one(said: Said, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("CREATE TABLE customers (name TEXT)")
    before = (tmp_path / FILE).read_bytes()
    for opened in (Ledger.create, Ledger.read):
        with said.by(RunDirError):
            opened(tmp_path)
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("customers",)]
    assert len((tmp_path / FILE).read_bytes()) == len(before)


@pytest.mark.parametrize("number", [9e999, -9e999, 1e12])
def test_numbers_that_a_caller_gives_have_no_bounds_but_a_type(tmp_path: Path, number: float) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.begin([Reference(instruction="a", response="b")])
        ledger.commit_proposal(0, "", 0, ["a text"], 0, frozenset())
        ledger.commit(
            [
                ("INSERT INTO decisions VALUES (1, 'mine', 0, 1, ?, '', '', 0.0)", (number,)),
                ("INSERT INTO evaluations VALUES ('one', 'a', 'test', ?, '{}', 0, 0.0)", (number,)),
                (
                    "INSERT INTO answers VALUES ('k', '', '', ?, '{}', NULL, '', 0.0, NULL)",
                    (-1 if number < 0 else 2**62,),
                ),
            ]
        )
    for opened in (Ledger.read, Ledger.create):
        opened(tmp_path).close()
    for table, column in (("decisions", "score"), ("evaluations", "score"), ("answers", "repetition")):
        with pytest.raises(sqlite3.IntegrityError):
            sql(f"UPDATE {table} SET {column} = 'much'")(tmp_path / FILE)


def checks(folder: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[[Path], Ledger] = Ledger.read) -> int:
    """How often opening the folder's ledger looks at the whole file."""
    looked: list[Any] = []
    monkeypatch.setattr("refed_dspy.ledger.format.check", looked.append)
    opened(folder).close()
    monkeypatch.undo()
    return len(looked)


def test_a_file_is_looked_at_once_until_somebody_else_changes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with Ledger.create(folder) as ledger:
        ledger.set_meta(work="run")
        assert checks(folder, monkeypatch) == 0, "this process writes it"
        killed = Path(shutil.copytree(folder, tmp_path / "killed"))
    assert checks(folder, monkeypatch) == 0, "and left it so"
    sql("UPDATE meta SET sum = NULL")(folder / FILE)
    assert [checks(folder, monkeypatch) for _ in range(2)] == [1, 0], "somebody else wrote"
    assert [checks(killed, monkeypatch) for _ in range(2)] == [1, 0], "whoever wrote was killed"
    for statement in ("UPDATE meta SET value = '[5'", "DROP TABLE refs"):
        sql(statement)(folder / FILE)
        for _ in range(2):
            with pytest.raises(RunDirError):
                Ledger.read(folder)

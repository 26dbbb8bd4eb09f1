"""Ledgers that are damaged, or changed by hand: one line in every command that opens them. `benchmarks.damage` tries
hundreds."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.damage import Damage, damages, drawn, made_folders, outcome, tried
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import RunDirError
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.records import Reference, Sample
from tests.support.said import Said


@pytest.fixture(scope="module")
def home(shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, and the commands that are tried on copies of it."""
    return tmp_path_factory.mktemp("damaged")


@pytest.fixture(scope="module")
def commands(home: Path, shared_server: SimulatedTeacher) -> list[list[str]]:
    before = Path.cwd()
    os.chdir(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REFED_EMBEDDINGS", "false")
        folders = made_folders(home, shared_server, ("run",))
    os.chdir(before)
    return folders["run"]


@pytest.mark.parametrize(
    "kind", ["bytes", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("file", "table", "column", "meta"))]
)
def test_every_command_says_it_in_one_line(
    kind: str, home: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    few = drawn({kind: damages(Path("run") / FILE)[kind]}, random.Random(5), 5)
    ends = {
        (damage.name, words): end
        for damage in few
        for words, end in tried("run", [commands[0], commands[3], commands[6]], damage)
    }
    assert set(ends.values()) <= {"0", "1", "2"}, ends
    assert "2" in ends.values()


def sql(statement: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db, db:
            db.execute("PRAGMA ignore_check_constraints=ON")
            db.execute(statement)

    return apply


def test_what_is_wrong_is_said(
    said: Said, home: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    for apply, why in {
        sql("DROP TABLE refs"): "table refs is missing",
        sql("DROP VIEW asked"): "table asked is missing",
        sql("ALTER TABLE calls RENAME COLUMN cost TO price"): "table calls is missing, or has other columns",
        sql("UPDATE calls SET cost = -5"): "CHECK constraint failed in",
        sql("UPDATE calls SET seconds = 9e999"): "CHECK constraint failed in",
        sql("UPDATE samples SET instruction = 77 WHERE seq = 1"): "a row of samples belongs to no row of instructions",
        sql("DELETE FROM refs"): "a row of instructions belongs to no row of refs",
        sql("UPDATE meta SET value = '[5' WHERE name = 'settings'"): "its stored 'settings' is damaged",
        sql("UPDATE meta SET value = '{\"kind\": 5}' WHERE name = 'identity'"): "'identity' is damaged",
        sql("UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE name = 'features'"): "a text is not UTF-8",
    }.items():
        for words, end in tried("run", [["status", "d"]], Damage(why, apply)):
            assert end == "2", (why, words, end)
        for opened in (Ledger.read, Ledger.create):
            with said.by(RunDirError):
                opened(Path("d"))


def test_a_real_fault_is_still_a_traceback(
    said: Said, home: Path, commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is caught is the file's damage and nothing of this package's own: a ledger that is whole raises as ever."""
    monkeypatch.chdir(home)
    monkeypatch.setattr("refed_dspy.runs.result.full_status", lambda ledger: ledger.db.execute("SELECT nothing"))
    said(outcome(["status", "run"]))


def test_a_value_that_is_damaged_is_found_where_it_is_read(said: Said, home: Path, commands: list[list[str]]) -> None:
    with Ledger.read(home / "run") as ledger:
        for text in ("{", "{}", "5", '{"instruction": 5}'):
            with said.by(RunDirError):
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


@pytest.mark.parametrize("number", [9e999, -9e999, 1e12, -1e12, 0.0])
def test_numbers_that_a_caller_gives_have_no_bounds_but_a_type(said: Said, tmp_path: Path, number: float) -> None:
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
        with said.by(sqlite3.IntegrityError):
            sql(f"UPDATE {table} SET {column} = 'much'")(tmp_path / FILE)


def checks(folder: Path, monkeypatch: pytest.MonkeyPatch, opened: Callable[[Path], Ledger] = Ledger.read) -> int:
    """How often opening the folder's ledger looks at the whole file."""
    looked: list[Any] = []
    monkeypatch.setattr("refed_dspy.ledger.format.check", looked.append)
    opened(folder).close()
    monkeypatch.undo()
    return len(looked)


def test_a_file_is_looked_at_once_until_somebody_else_changes_it(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with Ledger.create(folder) as ledger:
        ledger.set_meta(work="run")
        assert checks(folder, monkeypatch) == 0, "this process writes it"
    assert checks(folder, monkeypatch) == 0, "and left it so"
    write = f"from refed_dspy.ledger.ledger import *; ledger = Ledger.create(Path({str(folder)!r})); "
    write += "ledger.set_meta(work='compile'); "
    for end, looks in (("ledger.close()", [0, 0]), ("import os; os._exit(9)", [1, 0])):
        subprocess.run([sys.executable, "-c", write + end], check=False)
        assert [checks(folder, monkeypatch) for _ in range(2)] == looks, end
    sql("UPDATE meta SET value = '[5'")(folder / FILE)
    for _ in range(2):
        with said.by(RunDirError):
            Ledger.read(folder)
    shutil.rmtree(folder)
    Ledger.create(folder).close()
    sql("DROP TABLE refs")(folder / FILE)
    with said.by(RunDirError):
        Ledger.read(folder)

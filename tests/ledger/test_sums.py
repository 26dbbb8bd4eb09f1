"""Checksums: a text that was altered on its disk is refused wherever it is read, and earlier ledgers open as ever."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import refed_dspy
from benchmarks.damage import outcome
from refed_dspy.errors import RunDirError
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.format import COLUMNS, FORMAT, OLDER, checksum, file_state, intact, note_whole, version_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import works_below
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six samples."""
    folder = tmp_path_factory.mktemp("made") / "run"
    refed_dspy.synthesize(None, references(3), size=6, teacher=fake_lm(Writer()), run_dir=folder)
    return folder


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def change(folder: Path, *statements: str) -> None:
    """Change the file by hand, so that it looks as it was when it was last checked."""
    with closing(sqlite3.connect(folder / FILE)) as db, db:
        for statement in statements:
            db.execute(statement)
    note_whole(folder / FILE, file_state(folder / FILE))


ALTERED = {
    "an instruction": "UPDATE instructions SET text = replace(text, 'a', 'e') WHERE id = 2",
    "a sample": "UPDATE instructions SET sample = replace(sample, 'a', 'e') WHERE id = 2",
    "its feature": "UPDATE instructions SET feature = 'other' WHERE id = 2",
    "a reference": "UPDATE refs SET record = replace(record, 'e', 'a')",
}


@pytest.mark.parametrize(
    ("what", "command"),
    [
        pytest.param(what, command, marks=[pytest.mark.slow] if (row + column) % 3 else [])
        for row, what in enumerate(ALTERED)
        for column, command in enumerate(("export run", "report run", "share run --out out"))
    ],
)
def test_an_altered_text_is_not_exported(run: Path, what: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    change(run, ALTERED[what])
    monkeypatch.chdir(run.parent)
    assert outcome(command.split()) == "2"
    with pytest.raises(RunDirError):
        list(refed_dspy.read_run(run).samples.rows())


@pytest.mark.parametrize("column", ["output", "endpoint"])
def test_an_altered_answer_is_not_given_again(said: Said, run: Path, column: str) -> None:
    change(run, f"UPDATE answers SET {column} = replace({column}, 'e', 'a') || 'b'")
    with Ledger.read(run) as ledger:
        (key,) = ledger.db.execute("SELECT key FROM answers").fetchone()
        with said.by(RunDirError):
            ledger.answer(key)


def test_damage_that_no_check_looks_for_is_one_line(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file looks as it did when it was last checked, so that only reading finds it."""
    with closing(sqlite3.connect(run / FILE)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages = db.execute("SELECT rootpage FROM sqlite_master WHERE name IN ('instructions', 'answers')").fetchall()
        size = db.execute("PRAGMA page_size").fetchone()[0]
    with (run / FILE).open("r+b") as file:
        for (page,) in pages:
            file.seek((page - 1) * size)
            file.write(b"\xff" * 16)
    note_whole(run / FILE, file_state(run / FILE))
    monkeypatch.chdir(run.parent)
    assert outcome(["status", "run"]) in {"0", "1", "2"}
    for command in ("export run", "report run", "resume run --size 9", "show run"):
        assert outcome(command.split()) in {"1", "2"}


def older(folder: Path, version: int) -> None:
    """The ledger in `folder` as an earlier version wrote it: 7 is the format of 0.2.0."""
    path, new = folder / FILE, folder / "new.sqlite"
    Ledger.create(folder).close()  # its log is in the file
    path.rename(new)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.executescript(Path(__file__).with_name("format_8.sql").read_text())
        if version == 7:
            for table, column in [(t, c) for t, names in COLUMNS.items() if t != "meta" for c in names]:
                db.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
        db.execute("ATTACH ? AS new", (str(new),))
        for (table,) in db.execute("SELECT name FROM main.sqlite_master WHERE type = 'table' ORDER BY name").fetchall():
            columns = ", ".join(row[1] for row in db.execute(f"PRAGMA main.table_info({table})"))
            db.execute(f"DELETE FROM main.{table}")  # what triggers wrote
            db.execute(f"INSERT INTO main.{table} ({columns}) SELECT {columns} FROM new.{table}")
        db.execute(f"PRAGMA user_version={version}")
    new.unlink()


@pytest.mark.parametrize("version", OLDER)
def test_a_ledger_of_an_earlier_format_is_read_and_gone_on_with(run: Path, version: int) -> None:
    before = list(refed_dspy.read_run(run).samples.rows())
    older(run, version)
    content = (run / FILE).read_bytes()
    assert list(refed_dspy.read_run(run).samples.rows()) == before
    assert [each["count"] for each in works_below(run.parent)[0]] == [6]
    assert (run / FILE).read_bytes() == content, "another process, of that version, may be writing it"
    with Ledger.read(run) as reader:
        again = refed_dspy.synthesize(None, references(3), size=8, teacher=fake_lm(Writer()), run_dir=run)
        assert len(reader.references()) == 3, "who reads it meanwhile goes on"
    assert again.complete and list(again.samples.rows())[:6] == before
    with Ledger.read(run) as ledger, Ledger.create(run.parent / "new") as new:
        assert version_of(ledger.db) == FORMAT
        made = "SELECT name, iif(type = 'table', '', sql) FROM sqlite_master ORDER BY name"
        assert ledger.db.execute(made).fetchall() == new.db.execute(made).fetchall()
        strict = "SELECT name, strict FROM pragma_table_list WHERE schema = 'main' ORDER BY name"
        assert ledger.db.execute(strict).fetchall() == new.db.execute(strict).fetchall()
        assert ledger.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        sums = ledger.db.execute("SELECT count(sum), count(*) FROM answers").fetchone()
        assert (sums[0] < sums[1]) == (version == 7), "only what is new has a checksum"


@pytest.mark.parametrize("version", OLDER)
def test_a_damaged_ledger_of_an_earlier_format_stays_as_it_is(said: Said, run: Path, version: int) -> None:
    older(run, version)
    change(run, "UPDATE instructions SET round = -5 WHERE id = 2")
    content = (run / FILE).read_bytes()
    with said.by(RunDirError):
        Ledger.create(run)
    assert (run / FILE).read_bytes() == content


def test_a_checksum_tells_one_bit_and_where_a_text_ends() -> None:
    assert checksum("ab", "c") != checksum("a", "bc") and checksum("a") != checksum("A")
    assert intact(None, "anything") == "anything" and intact(checksum("a", None), "a", None) == "a"
    with pytest.raises(ValueError, match="checksum"):
        intact(checksum("a"), "b")

"""The digest of what a ledger says of its rows: the same while nothing is asked or made, another after any change."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import refed_dspy
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.digest import ledger_digest
from refed_dspy.ledger.ledger import Ledger
from tests.runs.test_older_folders import unpacked


def digest(folder: Path) -> str:
    with Ledger.read(folder) as ledger:
        return ledger_digest(ledger)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a filter."""
    folder = tmp_path_factory.mktemp("digest") / "run"
    refed_dspy.synthesize(
        None, "builtin", size=5, filters=[{"random": {"share": 0.6}}], teacher="simulated", run_dir=folder,
        track=False, progress=False,
    )  # fmt: skip
    return folder


def changed(run: Path, folder: Path, *statements: str) -> Path:
    shutil.copytree(run, folder)
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)
    return folder


def test_it_is_the_same_over_vacuum_and_journals_and_a_resumption_with_nothing_to_do(run: Path, tmp_path: Path) -> None:
    before = digest(run)
    kept = changed(run, tmp_path / "kept", "VACUUM", "PRAGMA journal_mode=DELETE", "REINDEX")
    assert (kept / FILE).read_bytes() != (run / FILE).read_bytes() and digest(kept) == before
    refed_dspy.resume(kept, progress=False)
    assert digest(kept) == before and len(before) == 64


def test_it_does_not_depend_on_where_sqlite_put_the_rows(run: Path, tmp_path: Path) -> None:
    turned = "CREATE TEMP TABLE t AS SELECT * FROM answers ORDER BY key DESC"
    moved = changed(run, tmp_path / "moved", turned, "DELETE FROM answers", "INSERT INTO answers SELECT * FROM t")
    assert digest(moved) == digest(run)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE refs SET record = json_set(record, '$.response', 'x'), sum = NULL WHERE position = 1",
        "UPDATE answers SET output = output || ' ', sum = NULL WHERE key = (SELECT min(key) FROM answers)",
        "INSERT INTO reasoning (key, text) VALUES ('k', 'so')",
        "UPDATE calls SET cost = cost + 1 WHERE id = 1",
        "UPDATE calls SET model = 'another' WHERE id = (SELECT max(id) FROM calls)",
        "UPDATE instructions SET text = 'x', sum = NULL WHERE id = (SELECT max(id) FROM instructions)",
        "DELETE FROM samples WHERE seq = (SELECT max(seq) FROM samples)",
        "UPDATE decisions SET kept = 1 - kept WHERE instruction = 1",
        "INSERT INTO reused VALUES ('k', 'm')",
        "INSERT INTO shared VALUES ('i', 's', 'k')",
    ],
)
def test_any_change_of_what_it_says_of_the_rows_is_another(run: Path, tmp_path: Path, statement: str) -> None:
    assert digest(changed(run, tmp_path / "other", statement)) != digest(run)


def test_a_row_that_answers_more_is_another(run: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run, tmp_path / "more"))
    refed_dspy.resume(folder, size=6, progress=False)
    assert digest(folder) != digest(run)


def test_a_file_of_an_earlier_format_has_the_digest_that_it_has_in_this_one(tmp_path: Path) -> None:
    folder = unpacked("plain", tmp_path / "run")
    before = digest(folder)
    with Ledger.create(folder):  # brings the file to this version's format
        pass
    assert digest(folder) == before

"""The fence of a shard: only the lease that its folder names writes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from refed_dspy.errors import RunStopped
from refed_dspy.ledger.connection import EPOCH, FILE, take_over
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import works_below
from tests.support.said import Said


def test_who_holds_an_earlier_lease_writes_nothing_more(said: Said, tmp_path: Path) -> None:
    take_over(tmp_path, 1)
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(size=3)
        take_over(tmp_path, 2)
        with said.by(RunStopped):
            ledger.set_meta(size=4)
        assert ledger.meta("size") == 3, "it was written all the same"
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(size=5)
        assert ledger.meta("size") == 5


def test_a_lease_is_opened_only_while_it_is_the_last_one(said: Said, tmp_path: Path) -> None:
    take_over(tmp_path, 3)
    with Ledger.create(tmp_path, 3) as ledger:
        ledger.set_meta(size=3)
    take_over(tmp_path, 4)
    with said.by(RunStopped):
        Ledger.create(tmp_path, 3)
    with said.by(RunStopped):
        take_over(tmp_path, 3)
    with Ledger.create(tmp_path, 4) as ledger:
        assert ledger.meta("size") == 3


def test_a_shard_is_for_one_process_and_on_the_disk_before_it_counts(tmp_path: Path) -> None:
    take_over(tmp_path, 1)
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(size=3)
        assert ledger.db.execute("PRAGMA synchronous").fetchone() == (2,)  # 1 in an ordinary run
        assert not (tmp_path / f"{FILE}-shm").exists(), "memory that machines do not share"
        with (
            closing(sqlite3.connect(tmp_path / FILE, timeout=0)) as other,
            pytest.raises(sqlite3.Error, match="locked"),
        ):
            other.execute("SELECT * FROM meta").fetchall()


def test_a_fence_that_is_gone_stops_the_writer(said: Said, tmp_path: Path) -> None:
    take_over(tmp_path, 1)
    with Ledger.create(tmp_path) as ledger:
        (tmp_path / EPOCH).unlink()
        with said.by(RunStopped):
            ledger.set_meta(size=4)


def test_shards_are_not_listed_beside_their_run(tmp_path: Path) -> None:
    for folder in (tmp_path / "run", tmp_path / "run" / "shards" / "000"):
        if folder.name == "000":
            take_over(folder, 0)
        with Ledger.create(folder) as ledger:
            ledger.set_meta(work="run", size=3)
    works, unreadable = works_below(tmp_path)
    assert [work["folder"] for work in works] == [str(tmp_path / "run")]
    assert not unreadable

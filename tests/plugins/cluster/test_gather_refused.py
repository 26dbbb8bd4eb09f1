"""What is not gathered, and that the run's ledger is whole whatever happens: refusals, kills, a full disk, readers."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy.errors import RunDirError, RunStopped
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.format import check
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.cluster import gather as gathering
from refed_dspy.plugins.cluster.gather import GatheredLedger, gather
from tests.plugins.cluster.sharded_run import SIZES, shard_folders
from tests.support.said import Said

FRESH = f"{FILE}.gathering"


@contextmanager
def untouched(run: Path) -> Iterator[None]:
    """The run's ledger has the same bytes after the block, and nothing is left beside it."""
    before = (run / FILE).read_bytes()
    yield
    assert (run / FILE).read_bytes() == before
    assert {path.name for path in run.iterdir()} <= {FILE, f"{FILE}-wal", f"{FILE}-shm", ".lock", ".checked", "shards"}


@pytest.fixture
def gathered(run: Path) -> Path:
    """The run, gathered."""
    gather(run, shard_folders(run))
    return run


def test_an_instruction_in_two_shards_is_refused_by_their_names(said: Said, run: Path) -> None:
    first, _, third, _ = shard_folders(run)
    with Ledger.read(first) as ledger:
        (digest,) = ledger.db.execute("SELECT digest FROM instructions WHERE id = 3").fetchone()
    with Ledger.create(third) as ledger:
        ledger.commit([("UPDATE instructions SET text = 'Twin.', digest = ? WHERE id = 4", (digest,))])
    with untouched(run), said.by(RunDirError):
        gather(run, shard_folders(run))


def test_what_the_shards_do_not_have_is_refused(said: Said, gathered: Path) -> None:
    first, second, third, last = shard_folders(gathered)
    with untouched(gathered), said.by(RunDirError):
        gather(gathered, [second, first, third, last])
    with Ledger.create(third), untouched(gathered), pytest.raises(RunDirError, match="002: this"):
        gather(gathered, shard_folders(gathered))
    (third / FILE).write_bytes(b"not a database, not at all")
    with untouched(gathered), said.by(RunDirError):
        gather(gathered, shard_folders(gathered))
    shutil.rmtree(third)
    with untouched(gathered), said.by(RunDirError):
        gather(gathered, shard_folders(gathered))


def test_a_full_disk_leaves_the_ledger_that_was(said: Said, gathered: Path) -> None:
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with untouched(gathered), said.by(RunStopped):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
        try:
            gather(gathered, shard_folders(gathered))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    assert gather(gathered, shard_folders(gathered)) == sum(SIZES)


def test_who_reads_the_old_ledger_goes_on_and_does_no_harm_to_the_new(run: Path) -> None:
    old = refed_dspy.read_run(run)
    assert gather(run, shard_folders(run)) == sum(SIZES)
    assert len(old) == 0 and len(refed_dspy.read_run(run)) == sum(SIZES)
    with Ledger.create(run) as ledger:
        ledger.set_meta(note="written while the old one is open")
        old.samples.ledger.close()  # would empty and remove the log of a ledger that is its own
        ledger.set_meta(another="and after it was closed")
        with Ledger.read(run) as reader:
            assert reader.meta("another")
    with Ledger.read(run) as ledger:
        assert ledger.meta("note") and ledger.meta("another")
        check(ledger.db)


def test_what_a_killed_start_left_in_the_log_is_gathered_with_the_rest(run: Path) -> None:
    def write() -> None:
        Ledger.create(run).set_meta(note="written")
        os._exit(1)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    process.join()
    assert (run / f"{FILE}-wal").stat().st_size
    gather(run, shard_folders(run))
    assert not (run / f"{FILE}-wal").exists()
    with Ledger.read(run) as ledger:
        assert ledger.meta("note") == "written"


@pytest.mark.slow
def test_a_log_that_a_reader_holds_back_is_waited_for(said: Said, run: Path) -> None:
    with Ledger.read(run) as reader:
        reader.db.execute("BEGIN")
        assert reader.kept() == 0
        with Ledger.create(run) as writer:
            writer.set_meta(note="later than what the reader sees")
        with untouched(run), said.by(RunDirError):
            gather(run, shard_folders(run))
        reader.db.execute("COMMIT")
        assert gather(run, shard_folders(run)) == sum(SIZES)
    with Ledger.read(run) as ledger:
        assert ledger.meta("note")


@pytest.mark.parametrize(
    ("of", "step"),
    [(GatheredLedger, "begin"), (GatheredLedger, "finish"), (gathering, "check"), (os, "fsync"), (Path, "replace")],
)
def test_a_kill_leaves_the_ledger_that_was(of: Any, step: str, run: Path) -> None:
    def gather_until() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(of, step, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
            gather(run, shard_folders(run))

    process = multiprocessing.get_context("fork").Process(target=gather_until)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with Ledger.read(run) as ledger:
        check(ledger.db)
        assert not ledger.kept()
    assert gather(run, shard_folders(run)) == sum(SIZES)
    assert {path.name for path in run.iterdir()} == {FILE, ".lock", ".checked", "shards"}


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_a_whole_ledger(run: Path) -> None:
    def gather_for_ever() -> None:
        while True:
            gather(run, shard_folders(run))

    begun = time.perf_counter()
    gather(Path(shutil.copytree(run, run.parent / "copy")), shard_folders(run))
    most = 3 * (time.perf_counter() - begun)
    moments, kept, left = random.Random(3), set[int](), 0
    for _ in range(25):
        process = multiprocessing.get_context("fork").Process(target=gather_for_ever)
        process.start()
        time.sleep(moments.uniform(0, most))
        process.kill()
        process.join()
        left += (run / FRESH).exists()
        with Ledger.read(run) as ledger:
            check(ledger.db)
            kept.add(ledger.kept())
    assert kept <= {0, sum(SIZES)} and sum(SIZES) in kept and left, "some were killed as they wrote"
    assert gather(run, shard_folders(run)) == sum(SIZES)
    assert {path.name for path in run.iterdir()} == {FILE, ".lock", ".checked", "shards"}

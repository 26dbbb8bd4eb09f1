"""The coordinator: what it said is in its file, and a second one goes on from there."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import RunDirError, RunStopped
from refed_dspy.plugins.cluster import coordinator as coordinator_file
from refed_dspy.plugins.cluster.coordinator import Coordinator
from refed_dspy.plugins.cluster.leases import Amounts, Lease, Reply
from tests.plugins.cluster.simulated_cluster import Books, Settings, SimulatedCluster, as_killed
from tests.support.said import Said

ONE, TWO = b"1" * 16, b"2" * 16


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coordinator.sqlite"


def coordinator(path: Path, **settings: Any) -> Coordinator:
    return Coordinator(path, **{"shards": 3, "size": 30, "job": "first", **settings})


@pytest.mark.parametrize("seeds", [range(40), pytest.param(range(40, 400), marks=pytest.mark.slow)])
def test_whatever_happens_it_adds_up_and_ends(seeds: range, tmp_path: Path) -> None:
    outcomes = Counter[str]()
    for seed in seeds:
        rng = random.Random(seed)
        shards, least, size = rng.randint(1, 8), rng.randint(1, 50), rng.randint(1, 60)
        max_cost = rng.choice([None, rng.randint(least, 3 * size * least)])
        settings = Settings(size, max_cost, rng.choice([None, None, rng.randint(1, 4 * size)]), least)
        (tmp_path / str(seed)).mkdir()
        books = Books(tmp_path / str(seed) / "coordinator.sqlite", shards, settings)
        cluster = SimulatedCluster(books, settings, shards, seed)
        cluster.run(steps=40)
        outcomes[cluster.outcome()] += 1
        books.made.close()
    assert min(outcomes[how] for how in ("complete", "at a cap", "short")) > len(seeds) / 10, outcomes


def test_a_second_one_goes_on_with_the_same_job(path: Path) -> None:
    with closing(coordinator(path, max_cost=900, least=10)) as first:
        first.workers(["a", "b"])
        lease = first.take("a")
        assert lease is not None and lease.max_cost == 450
        first.report("a", lease.shard, lease.epoch, Amounts(4, 40, 8))
        first.claim(0, [ONE])
        path = as_killed(path)
    with closing(coordinator(path, max_cost=900, least=10)) as second:
        assert second.take("a") == lease
        assert second.claim(1, [ONE, TWO]) == [ONE]
        assert second.report("a", lease.shard, lease.epoch, Amounts(5, 50, 9)) is Reply.GO_ON
        other = second.take("b")
        assert other is not None and (other.shard, other.max_cost) == (1, 450)


def test_another_job_finds_the_holders_dead_and_what_is_claimed(path: Path) -> None:
    with closing(coordinator(path)) as first:
        first.workers(["a"])
        lease = first.take("a")
        assert lease is not None
        first.claim(0, [ONE])
        first.stop()
    with closing(coordinator(path)) as again:
        assert again.finished() and again.report("a", lease.shard, lease.epoch, Amounts(1, 1, 1)) is Reply.STOP
    with closing(coordinator(path, job="second", size=60)) as second:
        assert second.report("a", lease.shard, lease.epoch, Amounts(2, 2, 2)) is Reply.NOT_YOURS
        second.workers(["b", "c"])
        assert second.take("b") == Lease(lease.shard, 2, 10, None, None)
        assert second.claim(2, [ONE]) == [ONE]
        assert second.take("c") == Lease(1, 1, 20 + 10 // 2, None, None)


def test_numbers_for_those_who_watch(path: Path) -> None:
    with closing(coordinator(path)) as made:
        made.workers(["a", "b"])
        for worker in ("a", "b"):
            made.take(worker)
        made.report("a", 0, 1, Amounts(10, 40, 8), {"in_flight": 17})
        made.report("b", 1, 1, Amounts(3, 30, 6))
        made.give_back("b", 1, 1, Amounts(10, 100, 20), dry=True)
        totals = made.totals()
        assert (totals.size, totals.kept, totals.spent, totals.calls) == (30, 20, 140, 28)
        assert (totals.shards, totals.done, totals.dry, totals.stuck) == (3, 1, 1, 0)
        assert totals.holders == {"a": 0}
        assert totals.last_words["a"].progress == {"in_flight": 17} and totals.last_words["b"].at > 1e9
        made.workers(["b"])
        assert set(made.totals().last_words) == {"b"} and made.totals().holders == {}


def test_who_does_not_hold_the_lease_is_not_listed(path: Path) -> None:
    with closing(coordinator(path)) as made:
        assert made.report("a", 0, 1, Amounts(4, 40, 8), {"in_flight": 17}) is Reply.NOT_YOURS
        assert not made.totals().last_words and made.totals().kept == 0


def test_a_shard_that_is_put_off_is_nobodys_also_after_a_kill(path: Path) -> None:
    with closing(coordinator(path)) as made:
        made.workers(["a", "b"])
        lease = made.take("a")
        assert lease is not None
        made.put_off("a", lease.shard, lease.epoch)
        assert made.totals().holders == {} and not made.finished()
        other = made.take("b")
        assert other is not None and other.shard != lease.shard
        path = as_killed(path)
    with closing(coordinator(path)) as again:
        assert again.totals().holders == {"b": other.shard}
        assert again.report("a", lease.shard, lease.epoch, Amounts(1, 1, 1)) is Reply.NOT_YOURS


def test_what_it_says_outlives_the_machine(path: Path) -> None:
    with closing(coordinator(path)) as made:
        pragmas = [made._file.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
        assert pragmas == ["wal", 2], "2: FULL, on the disk with each commit"


# --- files that cannot be used


def test_only_one_has_the_file_open(said: Said, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator_file, "WAIT", 0)
    with closing(coordinator(path)), said.by(RunDirError):
        coordinator(path)
    coordinator(path).close()


def test_the_number_of_shards_stays(said: Said, path: Path) -> None:
    coordinator(path).close()
    with said.by(RunDirError):
        coordinator(path, shards=4)


def test_a_damaged_file_and_one_of_another_version_are_refused(said: Said, path: Path) -> None:
    coordinator(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version=99")
    with said.by(RunDirError):
        coordinator(path)
    path.write_bytes(b"no database " * 1000)
    with said.by(RunDirError):
        coordinator(path)


def test_what_cannot_be_written_has_not_happened(said: Said, path: Path) -> None:
    with closing(coordinator(path, shards=200, size=2000)) as made:
        made.workers(["a"])
        made._file.db.execute("PRAGMA query_only=ON")
        with said.by(RunStopped):
            made.take("a")
        assert made.totals().holders == {}
        made._file.db.execute("PRAGMA query_only=OFF")
        assert made.take("a") == Lease(0, 1, 10, None, None)


# --- a process that is killed


def _work_until_killed(path: Path, words: int, rng: random.Random) -> None:
    """Take, report and claim without end; each answer goes into the pipe `words` once it was given."""
    made, kept = coordinator(path, shards=50, size=5_000_000), 0
    made.workers([f"worker {number}" for number in range(40)])
    while True:
        worker = f"worker {rng.randrange(40)}"
        lease = made.take(worker)
        assert lease is not None
        kept += 1
        made.report(worker, lease.shard, lease.epoch, Amounts(kept, kept, kept))
        digest = kept.to_bytes(16)
        assert made.claim(lease.shard, [digest]) == []
        os.write(words, f"{worker}/{lease.shard}/{lease.epoch}/{kept}\n".encode())


@pytest.fixture
def answers(path: Path) -> Iterator[list[list[str]]]:
    """What a coordinator answered before it was killed: worker, shard, epoch, samples kept."""
    read, write = os.pipe()
    if not (child := os.fork()):
        try:
            _work_until_killed(path, write, random.Random(0))
        finally:
            os._exit(1)
    os.close(write)
    with os.fdopen(read) as words:
        heard = [words.readline() for _ in range(60)]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        heard += words.readlines()
    yield [line.split("/") for line in heard]


def test_all_that_a_killed_one_answered_holds(path: Path, answers: list[list[str]]) -> None:
    with closing(coordinator(path, shards=50, size=5_000_000)) as made:
        assert made.totals().kept >= max(int(kept) for *_, kept in answers)
        for worker, shard, epoch, kept in answers:
            lease = made.take(worker)
            assert lease is not None and (lease.shard, lease.epoch) == (int(shard), int(epoch))
            digest = int(kept).to_bytes(16)
            assert made.claim(49 if shard != "49" else 48, [digest]) == [digest]

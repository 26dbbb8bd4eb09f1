"""Workers on real shards, with the real coordinator, which they ask without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runs import REFERENCES, teacher_config
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.ledger.connection import FILE, take_over
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import settings_of
from refed_dspy.plugins.cluster import worker as workers
from refed_dspy.plugins.cluster.coordinator import Coordinator
from refed_dspy.plugins.cluster.leases import NOTHING, Reply, State
from refed_dspy.plugins.cluster.shards import prepare_shard, shard_folder, shard_of
from refed_dspy.plugins.cluster.worker import Ended, How, Worker, work
from refed_dspy.runs.spec import prepare
from tests.plugins.cluster.here import Here
from tests.support.said import Said
from tests.support.scripted_batches import until

SHARDS, SIZE = 3, 6


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "REPORTED", 0.05)
    monkeypatch.setattr(workers, "EVERY", 0.01)


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    made = Coordinator(tmp_path / "coordinator.sqlite", shards=SHARDS, size=SIZE, job="first")
    yield Here(made)
    made.close()


def shards_of(folder: Path, teacher: TeacherConfig, references: Sequence[Mapping[str, Any]] = REFERENCES[:6]) -> None:
    """The shards of a run, as the driver makes them."""
    spec = prepare(None, references, size=SIZE, teacher=teacher, run_dir=folder)
    for number in range(SHARDS):
        part = shard_of(spec, number, SHARDS)
        prepare_shard(part.folder, part.work())


async def worked(folder: Path, here: Here, name: str = "a") -> Ended:
    here.actor.workers([name])
    return await Worker(folder, name, here).run()


def kept(folder: Path) -> list[int]:
    counts = []
    for number in range(SHARDS):
        with Ledger.create(shard_folder(folder, number)) as ledger:
            counts.append(ledger.kept())
    return counts


async def test_one_worker_makes_all_shards_with_its_share_of_what_a_teacher_allows(
    server: SimulatedTeacher, here: Here, tmp_path: Path
) -> None:
    shards_of(tmp_path, teacher_config(server, 4).model_copy(update={"requests_per_minute": 60_000.0}))
    here.actor.workers(["a", "b", "c", "d"])
    assert await Worker(tmp_path, "a", here).run() == Ended(How.DONE, warned=[])
    assert kept(tmp_path) == [2, 2, 2] and here.actor.totals().kept == SIZE
    assert here.asked.count("claim") >= SHARDS, "instructions that other shards may have"
    with Ledger.create(shard_folder(tmp_path, 0)) as ledger:
        limit = settings_of(ledger).teacher["config"]["requests_per_minute"]
    assert limit == 60_000, "the next lease would divide again"


async def test_a_shard_in_use_is_left_until_it_is_free(server: SimulatedTeacher, here: Here, tmp_path: Path) -> None:
    shards_of(tmp_path, teacher_config(server, 4))
    with Ledger.create(shard_folder(tmp_path, 0)):
        working = asyncio.create_task(worked(tmp_path, here))
        await until(lambda: here.asked.count("put_off") >= 3)
        assert not working.done()
    assert (await working).how is How.DONE
    assert kept(tmp_path) == [2, 2, 2]


async def test_a_damaged_shard_ends_the_worker(
    said: Said, server: SimulatedTeacher, here: Here, tmp_path: Path
) -> None:
    shards_of(tmp_path, teacher_config(server, 4))
    (shard_folder(tmp_path, 0) / FILE).write_bytes(b"no ledger at all" * 500)
    ended = await asyncio.wait_for(worked(tmp_path, here), 20)
    assert ended.how is How.REFUSED
    said(ended.why)


async def test_after_an_error_another_worker_takes_the_shard(
    server: SimulatedTeacher, here: Here, tmp_path: Path
) -> None:
    shards_of(tmp_path, teacher_config(server, 4).model_copy(update={"retries": 0}))
    server.control(faults={"500": 1.0})
    ended = await worked(tmp_path, here)
    assert ended.how is How.FAILED and "resume" not in ended.why, "how a shard goes on is nobody's concern"
    assert "give_back" not in here.asked
    server.control(faults={})
    assert (await worked(tmp_path, here, "b")).how is How.DONE
    assert kept(tmp_path) == [2, 2, 2], "a shard was given up"


async def test_a_stop_leaves_what_was_paid_for(server: SimulatedTeacher, here: Here, tmp_path: Path) -> None:
    server.control(latency=0.2)
    shards_of(tmp_path, teacher_config(server, 4))
    working = asyncio.create_task(worked(tmp_path, here))
    await until(lambda: server.stats()["requests"] >= 6)
    here.actor.stop()
    assert (await working).how is How.DONE
    with Ledger.create(shard_folder(tmp_path, 0)) as ledger:
        outcomes = dict(ledger.db.execute("SELECT outcome, count(*) FROM calls GROUP BY 1"))
    assert outcomes == {"ok": server.stats()["requests"]}, "an answer was thrown away"


async def test_a_lost_lease_ends_the_worker(server: SimulatedTeacher, here: Here, tmp_path: Path) -> None:
    server.control(latency=0.1)
    shards_of(tmp_path, teacher_config(server, 4))
    working = asyncio.create_task(worked(tmp_path, here))
    await until(lambda: "report" in here.asked and server.stats()["requests"])
    here.actor.workers(["another"])
    assert (await working).how is How.DONE and "give_back" not in here.asked
    assert here.actor._leases.accounts[0].state is State.LOST


async def test_its_warnings_are_told_at_its_end(
    said: Said, server: SimulatedTeacher, here: Here, tmp_path: Path
) -> None:
    shards_of(tmp_path, teacher_config(server, 4).model_copy(update={"retries": 3}))
    server.control(faults={"oddusage": 1.0})
    ended = await worked(tmp_path, here)
    assert ended.how is How.DONE and len(ended.warned) == 1
    said(ended.warned)


def test_a_folder_that_it_does_not_see(said: Said, tmp_path: Path) -> None:
    ended = work(str(tmp_path), "mark", "a", None)
    assert ended.how is How.UNSHARED
    said(ended.why)
    (tmp_path / workers.MARK).write_text("another")
    assert work(str(tmp_path), "mark", "a", None).how is How.UNSHARED


def test_an_error_of_the_disk_is_not_taken_for_another_folder(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(_: Worker) -> Ended:
        raise OSError(28, "No space left on device")

    (tmp_path / workers.MARK).write_text("mark\n")
    monkeypatch.setattr(Worker, "run", run)
    with said.by(OSError):
        work(str(tmp_path), "mark", "a", None)


async def test_a_reference_that_nobody_answers_ends_no_worker(
    server: SimulatedTeacher, here: Here, tmp_path: Path
) -> None:
    refused = {**REFERENCES[2], "instruction": f"A word that a filter refuses. {REFERENCES[2]['instruction']}"}
    server.control(filtered_text="A word that a filter refuses.")
    shards_of(tmp_path, teacher_config(server, 4), [*REFERENCES[:2], refused])
    assert await worked(tmp_path, here) == Ended(How.DONE, warned=[])
    assert here.actor.totals().kept == SIZE and here.actor.totals().dry == 1
    assert kept(tmp_path)[2] == 0, "others make what the shard cannot"


async def test_a_call_that_fails_near_the_cap_ends_no_worker(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"500": 1.0})
    made = Coordinator(tmp_path / "coordinator.sqlite", shards=SHARDS, size=SIZE, job="first", max_calls=1)
    shards_of(tmp_path, teacher_config(server, 4).model_copy(update={"retries": 0}))
    assert await worked(tmp_path, Here(made)) == Ended(How.DONE, warned=[])
    assert server.stats()["requests"] == made.totals().calls == 1
    made.close()


async def test_one_that_was_given_up_ends_and_gets_no_other_shard(
    server: SimulatedTeacher, here: Here, tmp_path: Path
) -> None:
    shards_of(tmp_path, teacher_config(server, 4))
    with Ledger.create(shard_folder(tmp_path, 0)):  # somebody else has its shard's files when it wakes
        working = asyncio.create_task(worked(tmp_path, here))
        await until(lambda: "take" in here.asked)
        here.actor.workers(["another"])
        assert (await asyncio.wait_for(working, 5)).how is How.DONE
    assert server.stats()["requests"] == 0


async def test_one_that_freezes_before_it_begins_writes_nothing_under_the_next_lease(
    server: SimulatedTeacher, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards_of(tmp_path, teacher_config(server, 4))

    async def slowly(worker: Worker, *_: Any) -> Reply:
        """Its first word, after which another worker has had the shard and given it back."""
        monkeypatch.undo()
        here.actor.workers(["b"])
        lease = here.actor.take("b")
        with Ledger.create(shard_folder(tmp_path, lease.shard)):
            take_over(shard_folder(tmp_path, lease.shard), lease.epoch)
        here.actor.give_back("b", lease.shard, lease.epoch, NOTHING, True)
        return Reply.GO_ON

    monkeypatch.setattr(Worker, "_report", slowly)
    assert await worked(tmp_path, here) == Ended(How.DONE, warned=[])
    with Ledger.create(shard_folder(tmp_path, 0)) as ledger:
        starts = ledger.db.execute("SELECT count(*) FROM starts").fetchone()
    assert starts == (0,) and server.stats()["requests"] == 0

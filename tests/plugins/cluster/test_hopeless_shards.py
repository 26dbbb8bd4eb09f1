"""Shards that give nothing: the others make up for them, and a run of which nothing comes ends soon."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runs import teacher_config
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.filters import screening
from refed_dspy.filters.base import Decision
from refed_dspy.ledger.connection import FILE
from refed_dspy.plugins.cluster import worker as workers
from refed_dspy.plugins.cluster.coordinator import Coordinator, Totals
from refed_dspy.plugins.cluster.shards import prepare_shard, shard_folder, shard_of
from refed_dspy.plugins.cluster.worker import Ended, How, Worker
from refed_dspy.records import DataRow
from refed_dspy.runs.spec import prepare
from tests.plugins.cluster.here import Here
from tests.support.said import Said

SHARDS, SIZE = 4, 16
WORD = "that a provider's filter refuses"


class NotThese:
    """Drops what came of some of the references."""

    name = "not_these"
    of_instruction = False

    def __init__(self, rests: Sequence[int]) -> None:
        self.rests = rests

    def check(self, row: DataRow) -> Decision:
        assert row.reference is not None
        number = int(row.reference.instruction.split()[2])
        return Decision(number % SHARDS not in self.rests, "wrong topic")

    def remember(self, row: DataRow) -> None:
        pass


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "REPORTED", 0.05)
    monkeypatch.setattr(workers, "EVERY", 0.01)
    monkeypatch.setattr(screening, "SAMPLES_IN_A_ROW", 6)


class Run:
    """A run in four shards. `dropped`: those whose samples a filter drops; `refused`: those whose references the
    teacher refuses."""

    def __init__(
        self, folder: Path, server: SimulatedTeacher, dropped: Sequence[int] = (), refused: Sequence[int] = ()
    ) -> None:
        self.folder, self.server, self.jobs = folder, server, 0
        own = [{"tests.plugins.cluster.test_hopeless_shards:NotThese": {"rests": list(dropped)}}]
        references = [
            {
                "instruction": f"Explain topic {n} {WORD if n % SHARDS in refused else ''}.",
                "response": f"Topic {n} is about many things. " * 20,
            }
            for n in range(40)
        ]
        server.control(filtered_text=WORD, response_words=5, items=3)
        teacher = teacher_config(server, 4)
        settings: Any = {"size": SIZE, "per_reference": 6, "teacher": teacher, "filters": own, "guards": False}
        spec = prepare(None, references, run_dir=folder, **settings)
        for number in range(SHARDS):
            part = shard_of(spec, number, SHARDS)
            prepare_shard(part.folder, part.work())

    async def start(self, names: str = "ab") -> tuple[list[Ended], Totals, int]:
        """How the workers end, the numbers of the run, and the calls of this start."""
        before, self.jobs = self.server.stats()["requests"], self.jobs + 1
        path = self.folder / "coordinator.sqlite"
        with closing(Coordinator(path, shards=SHARDS, size=SIZE, job=str(self.jobs))) as coordinator:
            coordinator.workers(names)
            here = Here(coordinator)
            ended = await asyncio.gather(*(Worker(self.folder, name, here).run() for name in names))
            return ended, coordinator.totals(), self.server.stats()["requests"] - before


def uncounted(text: str) -> str:
    """Without how many samples it were: some more than needed were on their way."""
    return re.sub(r"\d+ (samples|of them)", r"N \1", text)


async def test_the_others_make_up_for_shards_whose_samples_are_all_dropped(
    said: Said, server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(tmp_path, server, dropped=[0, 2])
    ended, totals, _ = await run.start()
    assert [each.how for each in ended] == [How.DONE] * 2
    assert (totals.kept, totals.dry) == (SIZE, 2)
    told = [record.getMessage() for record in caplog.records if record.name == workers.log.name]
    said(sorted(uncounted(text) for text in told))


async def test_shards_that_are_known_to_be_hopeless_do_not_keep_a_run_from_going_on(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    run = Run(tmp_path, server, dropped=[1, 2, 3])
    (ended,), totals, _ = await run.start("a")
    assert ended.how is How.FAILED and (totals.kept, totals.dry) == (SIZE // SHARDS, 1), "two in a row"
    (ended,), totals, _ = await run.start("a")
    assert ended.how is How.DONE and (totals.kept, totals.dry) == (SIZE, 3)


async def test_a_run_of_which_nothing_is_kept_ends_soon_and_pays_nothing_when_it_is_repeated(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    run = Run(tmp_path, server, dropped=range(SHARDS))
    ended, totals, _ = await run.start()
    assert [each.how for each in ended] == [How.FAILED] * 2 and totals.kept == 0
    said(uncounted(ended[0].why))
    ended, totals, calls = await run.start()
    assert [each.how for each in ended] == [How.FAILED] * 2 and calls == 0


async def test_the_others_make_up_for_a_shard_in_which_too_many_calls_fail(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    run = Run(tmp_path, server, refused=[0])
    ended, totals, calls = await run.start()
    assert [each.how for each in ended] == [How.DONE] * 2
    assert (totals.kept, totals.dry) == (SIZE, 1) and calls < 200


async def test_a_shard_that_ended_a_worker_comes_last(server: SimulatedTeacher, tmp_path: Path) -> None:
    run = Run(tmp_path, server)
    (shard_folder(tmp_path, 0) / FILE).write_bytes(b"no ledger at all" * 500)
    ended, totals, _ = await run.start()
    assert [each.how for each in ended] == [How.REFUSED] * 2
    assert totals.done == SHARDS - 1, "the others are worked on first"

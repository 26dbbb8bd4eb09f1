"""A filtering's judge filters on a cluster: rows are dealt out to shards, workers ask the judge about them, and what it
said is gathered in the filtering's own ledger, where the filter finds it."""

from __future__ import annotations

import uuid
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.data.dataset import RowsOnDisk
from refed_dspy.errors import CapReached, ConfigError
from refed_dspy.filters.base import JudgeFilter, Step
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.connection import FILE, JUDGING
from refed_dspy.ledger.statements import text_digest
from refed_dspy.plugins.cluster.account import Amounts
from refed_dspy.plugins.cluster.gather_verdicts import gather_verdicts, shards_in
from refed_dspy.plugins.cluster.job import Job, gathered, let_go, refuse_objects
from refed_dspy.plugins.cluster.judge_shard import facts_of, make_shard, remembered_judges
from refed_dspy.plugins.cluster.ray_cluster import connected, refuse_unreachable, slots
from refed_dspy.plugins.cluster.shards import USUAL, shard_folder
from refed_dspy.plugins.cluster.watching import Watching
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.caps import NO_CAPS
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.teachers.row_jobs import recalled, row_job
from refed_dspy.teachers.work import Start, Work

FEWEST = 20
"""Rows of a shard: with fewer, a worker has few calls in flight, and takes the next lease all the time."""
A_WORKER = 4
"""Shards for each worker, so that all have something to do to the end."""
MOST = 999
"""Shards at most."""
NOT_YET = "the rows are not filtered yet by what the judge said"


class ClusterJudges:
    """The judge filters among `steps`, asked by the workers of a cluster.

    Raises ConfigError where there are none, or a worker could not build them or their judge.
    """

    def __init__(self, config: FilterRunConfig, steps: Sequence[Step], models: Mapping[str, Teacher]) -> None:
        assert config.cluster is not None
        self._cluster = config.cluster
        self._filters = [step.filter for step in steps if isinstance(step.filter, JudgeFilter)]
        if not self._filters:
            raise ConfigError(
                "cluster: none of the filters asks a judge, and all others work in one process; remove it"
            )
        if models["judge"].batched:
            raise ConfigError(
                "cluster: a judge in batches is asked by one process; remove cluster, or the judge's mode"
            )
        self._facts = facts_of(config, steps, models["judge"])
        told = Work(kind="filtering", identity={}, models=models, size=1, caps=NO_CAPS, facts=self._facts)
        refuse_objects(told, remembered_judges)
        refuse_unreachable(config.cluster)

    async def ask(
        self,
        judge_filter: JudgeFilter,
        rows: RowsOnDisk,
        decide: Callable[[int], Awaitable[None]],
        folder: Path,
        work: Work,
        watch: Watch[Progress],
    ) -> CapReached | None:
        """Have workers ask about the rows that have no verdict yet, then `decide` on each row that has one, by its
        place. Returns the cap that ended it. Raises as `row_job`, `connected` and `Job.carry_out`."""
        left, reached = await self._unpaid(len(rows), decide, folder, work, watch), None
        if left:
            facts = {**self._facts, "place": self._filters.index(judge_filter)}
            gather = partial(gather_verdicts, folder)
            with connected(self._cluster) as ray, gathered(folder, gather, work) as start:
                reached = await _one_start(ray, start, rows.at(left), facts, watch)
        async with row_job(folder, work, watch) as session:
            session.progress.kept = len(rows) - len(left)
            session.cap_reached = reached
            await recalled(session, left, decide)
        return session.cap_reached

    async def _unpaid(
        self,
        rows: int,
        decide: Callable[[int], Awaitable[None]],
        folder: Path,
        work: Work,
        watch: Watch[Progress],
    ) -> Sequence[int]:
        """`decide` on the rows whose verdicts earlier starts paid for; the places of the others."""
        if (folder / FILE).is_file():
            async with row_job(folder, replace(work, then=NOT_YET), watch) as session:
                if session.ledger.has_answers():
                    return await recalled(session, range(rows), decide)
        return range(rows)


async def gather_left(folder: Path) -> None:
    """Gather what a start on a cluster left in `folder` that was killed. Raises as `let_go` and `gather_verdicts`."""
    await let_go(folder, shards_in(folder))
    gather_verdicts(folder)


async def _one_start(
    ray: Any, start: Start, rows: RowsOnDisk, facts: Mapping[str, Any], watch: Watch[Progress]
) -> CapReached | None:
    """Have workers ask about `rows` until nothing is left to ask, or a cap is reached, which is returned."""
    workers = sum(slots(node) for node in ray.nodes())
    dealt = _dealt(rows, max(1, min(len(rows) // FEWEST, max(USUAL, A_WORKER * workers), MOST)))
    home = start.ledger.path.parent / JUDGING / uuid.uuid4().hex[:8]
    for number, places in enumerate(dealt):
        make_shard(shard_folder(home, number), replace(start.work, facts=facts), rows.at(places), start.ledger)
    caps, before = start.caps_left.caps, start.caps_left.before
    left = Caps(_less(caps.max_cost, before.picodollars), _less(caps.max_calls, before.calls))
    # As if all shards had as many rows as the largest, so that one lease is enough for any.
    job = Job(home, len(dealt), len(dealt) * max(map(len, dealt)), left, start.work.models)
    done = start.size - len(rows)
    progress = Progress(
        start.size,
        done,
        picodollars=before.picodollars,
        unpriced=before.unpriced,
        priced=all(model.price is not None for model in start.work.models.values()),
        unit=start.work.unit,
    )
    watching = Watching(start.ledger.path.parent, progress, Amounts(done, before.picodollars, 0))
    async with watch.following(progress):
        try:
            return job.cap_of(await job.carry_out(ray, watching, start.caps_left.seconds))
        except CapReached as reached:
            return reached


def _dealt(rows: RowsOnDisk, shards: int) -> list[array[int]]:
    """The places of the rows of each shard. Rows with one instruction are in one shard, since they may be one question,
    which is paid for once in a shard."""
    places = [array("I") for _ in range(shards)]
    for place, row in enumerate(rows):
        places[int.from_bytes(text_digest(row.instruction)[:8]) % shards].append(place)
    return [each for each in places if each]


def _less(cap: int | None, used: int) -> int | None:
    return None if cap is None else max(0, cap - used)

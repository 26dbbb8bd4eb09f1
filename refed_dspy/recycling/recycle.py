"""Recycle a data set: reflect on every pair twice, keep what is better, and say what changed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from refed_dspy.allowance import Limits
from refed_dspy.blocking import run_blocking
from refed_dspy.config import check_job
from refed_dspy.data.dataset import DataSet, drawn, load_dataset
from refed_dspy.data.table import DataRow
from refed_dspy.engine.accounts import spent
from refed_dspy.engine.ledger import Ledger
from refed_dspy.job_settings import RecycleConfig
from refed_dspy.measures.figures import open_tools
from refed_dspy.paying import Manner, Progress
from refed_dspy.programs.opening import warn_of_another_teacher
from refed_dspy.programs.reflection import INSTRUCTION_CRITERIA, RESPONSE_CRITERIA, Recycled, ReflectionTuning
from refed_dspy.programs.saved import digest, program_digests
from refed_dspy.recycling.outcome import OUTPUTS, Recycling, old_and_new, write_recycling
from refed_dspy.recycling.selecting import select
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.working import Job, at_work, each
from refed_dspy.writing import check_apart


def recycle(
    data: Any,
    *,
    teacher: Any = None,
    program: ReflectionTuning | None = None,
    out: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Recycling:
    """Recycle the pairs of `data` (whatever `load_dataset` takes) by Reflection-Tuning; the data itself is not touched.

    Args:
        teacher: as `synthesize` takes one.
        program: a `ReflectionTuning` of one's own, a compiled one say; None: one with the criteria of the settings.
        out: the folder that keeps ledger, `recycled.jsonl` and the table; None: `refed-recycled/` and a name made from
            data, program and teacher. The same call goes on from it.
        settings: those of `RecycleConfig`: size, seed, columns, criteria, selective, scorer, caps.

    Raises:
        InputError: something given cannot be used; nothing was paid for.
        RunStopped: it ended early; what was made is kept.
    """
    config = check_job(RecycleConfig, settings)
    opened = open_teacher(teacher)
    loaded = load_dataset(data, config.columns or None)
    module = program or ReflectionTuning(
        config.instruction_criteria or INSTRUCTION_CRITERIA, config.response_criteria or RESPONSE_CRITERIA
    )
    warn_of_another_teacher(module, opened.model)
    rows = drawn(loaded.rows, config.size, config.seed)
    identity = _identity(rows, module, opened)
    folder = Path(out) if out is not None else Path("refed-recycled") / digest(identity)
    check_apart(data, [folder / name for name in OUTPUTS])
    return run_blocking(_recycle(loaded, rows, module, opened, folder, config, identity, on_progress))


async def _recycle(
    data: DataSet,
    rows: list[DataRow],
    program: ReflectionTuning,
    teacher: Teacher,
    folder: Path,
    config: RecycleConfig,
    identity: Mapping[str, Any],
    watch: Callable[[Progress], None] | None,
) -> Recycling:
    made: dict[int, Recycled] = {}
    tools = open_tools(config.embeddings, config.scorer)  # first: nothing shall be paid for a figure nobody can have
    job = Job(
        work="recycling",
        identity=identity,
        models={"teacher": teacher},
        limits=Limits(max_cost=config.max_cost, max_calls=config.max_calls, max_minutes=config.max_minutes),
        rows=len(rows),
        again=f"what was paid for is kept in {shlex.quote(str(folder))}; the same command goes on from there",
        manner=Manner(config.seed, config.max_failure_share),
        depth={stage: depth for depth, stage in enumerate(program.stage_names)},
    )
    async with at_work(folder, job, watch) as (desk, allowance):

        async def work(row: DataRow) -> None:
            made[row.number] = await program.recycle(row.instruction, row.response, str(row.number))
            desk.progress.kept += 1

        await each(desk, rows, work, teacher.concurrency, allowance.grace)
    with Ledger.read(folder) as ledger:
        used = spent(ledger)
    done = [row for row in rows if row.number in made]
    chosen = select(done, made, tools.scorer) if config.selective and tools.scorer is not None else None
    stopped = desk.reached.name if desk.reached else ""
    recycling = Recycling(folder, data, done, made, chosen, len(rows), used, stopped, {}, tools.lacking)
    recycling = replace(recycling, figures=old_and_new(list(recycling.kept()), tools, config.sample, config.seed))
    write_recycling(recycling)
    return recycling


def _identity(rows: list[DataRow], program: ReflectionTuning, teacher: Teacher) -> dict[str, Any]:
    return {
        "data": digest([[row.number, row.instruction, row.response] for row in rows]),
        "program": program_digests(program),
        "criteria": digest([program.of_instructions, program.of_responses]),
        "teacher": teacher.identity,
    }

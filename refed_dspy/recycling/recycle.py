"""Recycle a data set: reflect on every pair twice, keep what is better, and say what changed."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from refed_dspy.allowance import Limits
from refed_dspy.blocking import run_blocking
from refed_dspy.config import check_job
from refed_dspy.data.dataset import drawn, load_dataset
from refed_dspy.data.table import DataRow
from refed_dspy.engine.accounts import Spent, spent
from refed_dspy.engine.ledger import Ledger
from refed_dspy.errors import ConfigError, RunStopped
from refed_dspy.job_settings import RecycleConfig
from refed_dspy.measures.figures import open_tools, scoring
from refed_dspy.paying import Manner, Progress
from refed_dspy.programs.opening import warn_of_another_teacher
from refed_dspy.programs.reflection import INSTRUCTION_CRITERIA, RESPONSE_CRITERIA, Recycled, ReflectionTuning
from refed_dspy.programs.saved import digest, load_program, program_digests
from refed_dspy.recycling.outcome import OUTPUTS, Recycling, old_and_new, write_rows, write_table
from refed_dspy.recycling.selecting import select
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.working import Job, at_work, data_identity, each
from refed_dspy.writing import check_apart


def recycle(
    data: Any,
    *,
    teacher: Any = None,
    program: ReflectionTuning | str | Path | None = None,
    out: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Any,
) -> Recycling:
    """Recycle the pairs of `data` (whatever `load_dataset` takes) by Reflection-Tuning; the data itself is not touched.

    Args:
        teacher: as `synthesize` takes one.
        program: a `ReflectionTuning` of one's own, a compiled one say, or the file or MLflow address of one; None: a
            new one. A file's has the criteria of the settings, as a new one has.
        out: the folder that keeps ledger, `recycled.jsonl` and the table; None: `refed-recycled/` and a name made from
            data, program and teacher. The same call goes on from it, and so does one with another size.
        settings: those of `RecycleConfig`: size, seed, columns, criteria, selective, scorer, caps.

    Raises:
        InputError: something given cannot be used; nothing was paid for.
        RunStopped: it ended early; what was made is kept.
    """
    config = check_job(RecycleConfig, settings)
    opened = open_teacher(teacher)
    module = _program(program, config)
    loaded = load_dataset(data, config.columns or None)
    warn_of_another_teacher(module, opened.model)
    rows = drawn(loaded.rows, config.size, config.seed)
    identity = {
        "data": data_identity(data, loaded),
        "program": program_digests(module),
        "criteria": digest([module.of_instructions, module.of_responses]),
        "teacher": opened.identity,
    }
    folder = Path(out) if out is not None else Path("refed-recycled") / digest(identity)
    check_apart(data, [folder / name for name in OUTPUTS])
    tools = open_tools(config.embeddings, config.scorer)  # first: nothing shall be paid for a figure nobody can have
    job = _job(opened, module, identity, folder, len(rows), config)
    made: dict[int, Recycled] = {}

    def so_far(used: Spent, stopped: str) -> Recycling:
        done = [row for row in rows if row.number in made]
        return Recycling(folder, loaded, done, made, None, len(rows), used, stopped, lacking=tools.lacking)

    try:
        recycling = so_far(*run_blocking(_made(rows, module, folder, job, made, on_progress)))
    except (RunStopped, KeyboardInterrupt):
        if made and not config.selective:
            write_rows(so_far(_used(folder), ""))
        raise
    with scoring(job.again):
        if config.selective and tools.scorer is not None:
            recycling = replace(recycling, selected=select(recycling.rows, made, tools.scorer))
        write_rows(recycling)
        told = old_and_new(list(recycling.kept()), tools, config.sample, config.seed)
    recycling = replace(recycling, figures=told, scored=tools.scored())
    write_table(recycling)
    return recycling


async def _made(
    rows: Sequence[DataRow],
    program: ReflectionTuning,
    folder: Path,
    job: Job,
    made: dict[int, Recycled],
    watch: Callable[[Progress], None] | None,
) -> tuple[Spent, str]:
    """Recycle `rows` into `made`. Returns what all starts cost, and the cap that ended it early, or nothing."""
    async with at_work(folder, job, watch) as (desk, allowance):

        async def work(row: DataRow) -> None:
            made[row.number] = await program.recycle(row.instruction, row.response, str(row.number))
            desk.progress.kept += 1

        await each(desk, rows, work, job.models["teacher"].concurrency, allowance.grace)
    return _used(folder), desk.reached.name if desk.reached else ""


def _used(folder: Path) -> Spent:
    with Ledger.read(folder) as ledger:
        return spent(ledger)


def _job(
    teacher: Teacher,
    program: ReflectionTuning,
    identity: Mapping[str, Any],
    folder: Path,
    rows: int,
    config: RecycleConfig,
) -> Job:
    return Job(
        work="recycling",
        identity=identity,
        models={"teacher": teacher},
        limits=Limits(max_cost=config.max_cost, max_calls=config.max_calls, max_minutes=config.max_minutes),
        rows=rows,
        again=f"what was paid for is kept in {shlex.quote(str(folder))}; the same command goes on from there",
        manner=Manner(config.seed, config.max_failure_share),
        depth={stage: depth for depth, stage in enumerate(program.stage_names)},
    )


def _program(given: Any, config: RecycleConfig) -> ReflectionTuning:
    criteria = config.instruction_criteria, config.response_criteria
    if given is None or isinstance(given, str | Path):
        usual = INSTRUCTION_CRITERIA, RESPONSE_CRITERIA
        program = ReflectionTuning(*(own if one is None else one for one, own in zip(criteria, usual, strict=True)))
        if given is not None:
            load_program(program, given)
        return program
    if not isinstance(given, ReflectionTuning):
        raise ConfigError(f"program: a {type(given).__name__} does not recycle; pass a ReflectionTuning, or its file")
    if criteria != (None, None):
        raise ConfigError("criteria: the program given has its own; make it with these, or leave the criteria out")
    if bound := [name for name, predictor in given.named_predictors() if predictor.lm is not None]:
        raise ConfigError(
            f"program: {', '.join(bound)} has an LM of its own; pass the LM as teacher=, after set_lm(None)"
        )
    return given

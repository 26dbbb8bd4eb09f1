"""References in, data set out: where program, teacher, plan and ledger meet. Read this file first."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack

import dspy

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.filters import FilterConfig
from refed_dspy.config.loading import check_filters, check_settings
from refed_dspy.data.references import load_references
from refed_dspy.errors import CapReached, ConfigError
from refed_dspy.filters.base import Filter, JudgeFilter
from refed_dspy.filters.build import build
from refed_dspy.filters.screening import Screening
from refed_dspy.ledger.batches import left_batches
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.load import open_judge, open_program, refuse_bound, warn_of_another_teacher
from refed_dspy.records import digest
from refed_dspy.runs.plan import Plan, PlanSettings
from refed_dspy.runs.result import Synthesis, end_at_cap, read_run, refresh_samples
from refed_dspy.runs.scheduler import run
from refed_dspy.runs.spec import RunSpec, assigned, begin_or_continue
from refed_dspy.runs.worker import SynthesisWorker
from refed_dspy.teachers import Teacher, TeacherLike, open_teacher
from refed_dspy.teachers.by_stage import TeachersByStage, open_teachers, stages_of
from refed_dspy.teachers.caps import CapSettings, CapsLeft, caps_left, lasting_caps
from refed_dspy.teachers.judge import in_role, judge_beside
from refed_dspy.teachers.recorded import Progress
from refed_dspy.teachers.session import Session
from refed_dspy.tracking.background import tracking
from refed_dspy.tracking.run import copy_run

log = logging.getLogger("refed_dspy")
ProgramLike: TypeAlias = Any
"""A program (`dspy.Module`), the file or MLflow address of one, or None."""


SIZE = 100
EVERY = 60.0
"""Seconds between two words to MLflow."""
FAILURE_SHARE = 0.5
FULL_BATCH = 1_000
"""Requests a batch below which a run takes many waves of them."""


class RunSettings(TypedDict, total=False):
    """The keywords of `synthesize` and `asynthesize`."""

    size: int
    teacher: TeacherLike | Sequence[TeacherLike] | None
    teachers: Mapping[str, TeacherLike | Sequence[TeacherLike]] | None
    run_dir: str | Path | None
    seed: int
    per_reference: int | None
    max_failure_share: float
    max_cost: float | None
    max_calls: int | None
    max_minutes: float | None
    columns: Mapping[str, str] | None
    reuse: str | Path | None
    filters: Sequence[FilterConfig | Mapping[str, Any] | str | Filter]
    judge: TeacherLike | None
    judge_program: str | Path | None
    track: bool | None
    on_progress: Callable[[Progress], None] | None


def synthesize(program: ProgramLike = None, references: Any = "builtin", **settings: Unpack[RunSettings]) -> Synthesis:
    """Make `size` samples and keep them in `run_dir`. Stopped at any moment, the same call goes on.

    Args:
        program: a `ReferenceLevelFeedback`, the file or MLflow address of a saved one, or None for a new one.
        references: whatever `load_references` takes.
        size: kept samples to make (100).
        teacher: `TeacherConfig`, `dspy.LM`, "PROVIDER/NAME", "embedded" or a teacher file; None: `dspy.settings.lm`. A
            list of such is a pool: they share the work by `TeacherConfig.weight`, and while one is down the others go
            on.
        teachers: stage → the same, for stages that others than `teacher` answer (`{"feedback": "openai/gpt-4.1"}`);
            `feedback` stands for every stage of feedback.
        run_dir: the run's folder; None: `refed-runs/` and a name made from everything that shapes the run, so that
            the same call again continues it.
        seed: of the order of references and, where a teacher takes one, of each call (0).
        per_reference: at most so many samples of a reference before the next is opened.
        max_cost: dollars the run may cost, over all its starts; never passed, not by one call. Then the run ends in
            order and this returns: see `Synthesis.stopped`. A cap once set stays; `math.inf` lifts it.
        max_calls: the same for calls, whatever becomes of them.
        max_minutes: the same for the time at work.
        max_failure_share: a stage failing at this share of its last 50 calls stops the run (0.5).
        columns: names of the references' columns.
        reuse: the folder of another run whose answers to the very same questions are taken over at no cost: after a
            recompile, only what follows from the changed prompts is paid for.
        filters: what a sample must pass to be kept, in order: names or settings as in a config file (`"refusals"`,
            `{"rouge": {"threshold": 0.7}}`), or filters of your own. Then `size` counts the kept; the ledger keeps the
            dropped, with filter, reason and score.
        judge: which model judges for filters that ask one; None: the teacher's at temperature 0, with a warning.
        judge_program: a compiled judge: its file or MLflow address.
        track: whether MLflow is told of the run (parameters, metrics each minute, cost, data set); None: it is, unless
            REFED_TRACK is false.
        on_progress: called with a `Progress` once, when work starts; its counts stay current.

    Raises:
        InputError: something given cannot be used; nothing was paid for.
        RunStopped: the run ended early; what was made is kept and the message says how to go on.
    """
    return run_blocking(asynthesize(program, references, **settings))


async def asynthesize(
    program: ProgramLike = None, references: Any = "builtin", **settings: Unpack[RunSettings]
) -> Synthesis:
    """`synthesize`, for code that runs in an event loop."""
    parts, folder = prepare(program, references, **settings)
    return await produce(parts, folder, settings.get("size", SIZE), settings.get("on_progress"))


async def produce(
    parts: RunSpec,
    folder: Path,
    size: int,
    watch: Callable[[Progress], None] | None = None,
    shape: PlanSettings | None = None,
) -> Synthesis:
    """Make the run in `folder` go on towards `size`, by the plan of another `shape` if one is given: an estimate's
    pilot asks for less, of a run that is remembered as what it shall be."""
    with ExitStack() as stack:
        lender = stack.enter_context(Ledger.read(parts.reuse)) if parts.reuse is not None else None
        ledger = stack.enter_context(Ledger.create(folder))
        parts = replace(parts, limits=lasting_caps(ledger, parts.limits))
        allowance = caps_left(ledger, parts.models, parts.limits)
        target = begin_or_continue(ledger, parts, size)
        begin_start(ledger)
        shape = shape or parts.plan_settings(target)
        before = allowance.before
        progress = Progress(shape.size, ledger.kept(), kept_at_start=ledger.kept(), cost=before.cost)
        progress.unpriced = before.unpriced
        progress.priced = all(model.price is not None for model in parts.models.values())
        if watch is not None:
            watch(progress)
        recorder = RunRecorder(ledger, allowance.caps, before, parts.calls_a_sample)
        session = Session(
            *(ledger, recorder, parts.models, progress, parts.policy, parts.depth, lender), assigned(ledger, parts)
        )
        with tracking(folder, copy_run, parts.track, EVERY):
            reached = await _produce(parts, session, allowance, shape)
            if reached is not None:
                stopped = end_at_cap(folder, reached)
                ledger.set_meta(stopped=stopped)
                log.warning("%s", stopped)
            _tell_of_batches(ledger)
    refresh_samples(folder)
    return read_run(folder)


def prepare(program: ProgramLike, references: Any, **given: Unpack[RunSettings]) -> tuple[RunSpec, Path]:
    """The parts of a run, checked, and its folder, which is not touched. Raises InputError."""
    if unknown := sorted(set(given) - set(RunSettings.__annotations__)):
        raise TypeError(f"synthesize takes no {', '.join(unknown)}")
    limits = CapSettings(
        max_cost=given.get("max_cost"), max_calls=given.get("max_calls"), max_minutes=given.get("max_minutes")
    )
    share, per_reference = given.get("max_failure_share", FAILURE_SHARE), given.get("per_reference")
    finite = {name: cap for name, cap in limits.items() if cap != math.inf}
    check_settings(size=given.get("size"), per_reference=per_reference, max_failure_share=share, **finite)
    module = _program(program)
    by_stage = open_teachers(given.get("teacher"), given.get("teachers"), stages_of(module))
    usable = load_references(references, given.get("columns"))
    for one in by_stage.teachers:
        usable = usable.fitting(one.window, one.max_tokens)
    reuse, run_dir = given.get("reuse"), given.get("run_dir")
    lent = Path(reuse) if reuse is not None else None
    if not by_stage.asks(getattr(module, "source", {}).get("teacher")):
        warn_of_another_teacher(module, by_stage.first.model)
    screening, judge = _screening(module, by_stage, given)
    parts = RunSpec(
        *(module, usable, by_stage.first, given.get("seed", 0), per_reference, share, limits, lent, given.get("track")),
        stage_teachers=by_stage,
        judge=judge,
        screening=screening,
        judge_program=None if given.get("judge_program") is None else str(given.get("judge_program")),
    )
    if run_dir is not None:
        return parts, Path(run_dir)
    shape = [parts.identity(), by_stage.shape()] if by_stage.several else parts.identity()
    return parts, Path("refed-runs") / digest(shape)


def _screening(program: dspy.Module, by_stage: TeachersByStage, given: RunSettings) -> tuple[Screening, Teacher | None]:
    """The run's filters, and the judge that they ask, if any does. Raises ConfigError for what can keep nothing."""
    judge_program = given.get("judge_program")
    judging = None if judge_program is None else open_judge(judge_program)
    screening = Screening(build(check_filters(given.get("filters") or ()), given.get("seed", 0), judging))
    judges = [step.filter for step in screening.steps if isinstance(step.filter, JudgeFilter)]
    if any(one.needs_plain for one in judges) and getattr(program, "final_stage", "") == "response_generation":
        raise ConfigError(
            f"filters: judge compares improved responses with plain ones, and a {type(program).__name__} improves "
            "none; take it out, or use another method"
        )
    if not judges:
        return screening, None
    asked = given.get("judge")
    with in_role("judge"):
        beside = by_stage.first if asked is None else _alike(by_stage, open_teacher(asked))
    return screening, judge_beside(beside, asked)


def _alike(by_stage: TeachersByStage, judge: Teacher) -> Teacher:
    """The teacher whose model the judge has, if there is one: its words would be judged by their own writer."""
    return next((one for one in by_stage.teachers if one.model == judge.model), by_stage.first)


async def _produce(parts: RunSpec, session: Session, allowance: CapsLeft, shape: PlanSettings) -> CapReached | None:
    """Run the plan to its end, or to the first cap, which is returned. Raises as `Session.open`."""
    ledger, plan = session.ledger, Plan(shape)
    plan.restore(ledger.kept(), ledger.proposals(), ledger.used(), ledger.open_instructions())
    if plan.reached:
        return None
    _warn_of_small_batches(parts)
    dearest = max(model.least or 0 for model in parts.models.values())
    work = SynthesisWorker(parts.stages, parts.references, session.first, parts.screening, dearest)
    folder = shlex.quote(str(ledger.path.parent))
    again = f"go on with: refed resume {folder}" if parts.work == "run" else "the same command goes on"
    async with session.open(allowance, lambda: f"{ledger.kept()} samples are kept; {again}"):
        await run(plan, work, parts.slots, allowance.grace)
    if session.reached is not None:
        return session.reached
    if not plan.reached:
        log.warning(
            "the references gave %d of %d samples: each of them failed, or gave nothing new in three rounds",
            plan.kept,
            shape.size,
        )
    return None


def _warn_of_small_batches(parts: RunSpec) -> None:
    for role, one in parts.models.items():
        if one.batched and one.concurrency < FULL_BATCH:
            log.warning(
                "%s: concurrency %d: at most so many requests a batch, each of which may take hours; leave it out, or "
                "set thousands",
                role,
                one.concurrency,
            )


def _tell_of_batches(ledger: Ledger) -> None:
    """Say so where calls that are paid for are left in batches."""
    if left := sum(batch["calls"] for batch in left_batches(ledger)):
        log.warning(
            "%d calls still wait in batches, charged at their worst case: a later start takes the answers that it "
            "needs; see: refed batches %s",
            left,
            shlex.quote(str(ledger.path.parent)),
        )


def _program(program: ProgramLike) -> dspy.Module:
    if program is None:
        return ReferenceLevelFeedback()
    if isinstance(program, str | Path):
        return open_program(program)
    lacking = [name for name in ("collect_features", "propose", "respond") if not hasattr(program, name)]
    if lacking:
        raise ConfigError(f"program: a {type(program).__name__} cannot be run at scale: it lacks {', '.join(lacking)}")
    refuse_bound(program)
    return program

"""`synthesize`: from references to a data set. Program, teachers, plan and ledger meet here; read this file first."""

from __future__ import annotations

import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, Unpack

import dspy

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.filters import FilterConfig
from refed_dspy.config.loading import check_filters, check_settings
from refed_dspy.data.references import load_references
from refed_dspy.errors import ConfigError
from refed_dspy.filters.base import Filter, JudgeFilter
from refed_dspy.filters.build import build
from refed_dspy.filters.screening import Screening
from refed_dspy.ledger.batches import left_batches
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.load import load_program, open_judge, refuse_bound_models, warn_of_another_teacher
from refed_dspy.records import digest
from refed_dspy.runs.plan import Plan, PlanSettings
from refed_dspy.runs.result import Synthesis, end_at_cap, read_run, refresh_samples
from refed_dspy.runs.scheduler import run_plan
from refed_dspy.runs.spec import RunSpec
from refed_dspy.runs.worker import SynthesisWorker
from refed_dspy.teachers import Teacher, TeacherLike, open_teacher
from refed_dspy.teachers.by_stage import TeachersByStage, open_teachers, stages_of
from refed_dspy.teachers.caps import CapSettings
from refed_dspy.teachers.judge import in_role, judge_for
from refed_dspy.teachers.recorded import Progress
from refed_dspy.teachers.session import Session
from refed_dspy.teachers.work import begin
from refed_dspy.tracking.background import tracking
from refed_dspy.tracking.run import copy_run

log = logging.getLogger("refed_dspy")
ProgramLike: TypeAlias = Any
"""A program (`dspy.Module`), the file or MLflow address of one, or None."""


SIZE = 100
FAILURE_SHARE = 0.5
TRACKING_INTERVAL = 60.0
"""Seconds between two reports to MLflow."""
FULL_BATCH = 1_000
"""Requests: with smaller batches a run takes many rounds of them."""


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


DEFAULTS = RunSettings(
    size=SIZE,
    teacher=None,
    teachers=None,
    run_dir=None,
    seed=0,
    per_reference=None,
    max_failure_share=FAILURE_SHARE,
    max_cost=None,
    max_calls=None,
    max_minutes=None,
    columns=None,
    reuse=None,
    filters=(),
    judge=None,
    judge_program=None,
    track=None,
    on_progress=None,
)


def synthesize(program: ProgramLike = None, references: Any = "builtin", **settings: Unpack[RunSettings]) -> Synthesis:
    """Make `size` samples and keep them in `run_dir`. If it is stopped at any moment, the same call continues it.

    Args:
        program: a `ReferenceLevelFeedback`, the file or MLflow address of a saved one, or None for a new one.
        references: whatever `load_references` takes.
        size: kept samples to make (100).
        teacher: `TeacherConfig`, `dspy.LM`, "PROVIDER/NAME", "embedded" or a teacher file; None: `dspy.settings.lm`. A
            list of these is a pool: they share the work by `TeacherConfig.weight`, and while one is down the others go
            on.
        teachers: stage → the same, for stages that other teachers answer (`{"feedback": "openai/gpt-4.1"}`); the key
            `feedback` means every stage of feedback.
        run_dir: the run's folder; None: `refed-runs/` and a name made from everything that shapes the run, so that
            the same call again continues it.
        seed: for the order of references and, where a teacher takes a seed, for each call (0).
        per_reference: at most so many samples of one reference in a round.
        max_cost: dollars the run may cost, over all its starts; never exceeded, not even by one call, as long as the
            provider keeps to `max_tokens`. At the cap the run ends cleanly and this returns: see `Synthesis.stopped`.
            A cap once set stays; `math.inf` lifts it.
        max_calls: the same for calls, whatever becomes of them.
        max_minutes: the same for the time at work.
        max_failure_share: a stage failing at this share of its last 50 calls stops the run (0.5).
        columns: names of the references' columns.
        reuse: the folder of another run whose answers to exactly the same questions are taken over at no cost: after a
            recompile, only what follows from the changed prompts is paid for.
        filters: what a sample must pass to be kept, in order: names or settings as in a config file (`"refusals"`,
            `{"rouge": {"threshold": 0.7}}`), or filters of your own. Then `size` counts the kept; the ledger keeps the
            dropped, with filter, reason and score.
        judge: which model judges for filters that ask one; None: the teacher's at temperature 0, with a warning.
        judge_program: a compiled judge: its file or MLflow address.
        track: whether the run is tracked in MLflow (parameters, metrics each minute, cost, data set); None: it is,
            unless REFED_TRACK is false.
        on_progress: called with a `Progress` once, when work starts; its counts stay current.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: the run ended early; what was made is kept and the message says how to go on.
    """
    return run_blocking(asynthesize(program, references, **settings))


async def asynthesize(
    program: ProgramLike = None, references: Any = "builtin", **settings: Unpack[RunSettings]
) -> Synthesis:
    """`synthesize`, for code that runs in an event loop."""
    spec, folder = prepare(program, references, **settings)
    return await produce(spec, folder, settings.get("size", SIZE), settings.get("on_progress"))


async def produce(
    spec: RunSpec,
    folder: Path,
    size: int,
    on_progress: Callable[[Progress], None] | None = None,
    plan_settings: PlanSettings | None = None,
) -> Synthesis:
    """Continue the run in `folder` until `size` samples are kept.

    `plan_settings`: a smaller plan than the run's own. An estimate's pilot makes fewer samples, of a run whose folder
    records its full size.
    """
    with begin(folder, spec.work(size)) as start:
        ledger, plan = start.ledger, Plan(plan_settings or spec.plan_settings(start.size))
        plan.restore(ledger.kept(), ledger.proposals(), ledger.used(), ledger.open_instructions())
        session = Session(start)
        session.progress.size = plan.settings.size
        if on_progress is not None:
            on_progress(session.progress)
        with tracking(folder, copy_run, spec.track, TRACKING_INTERVAL):
            if not plan.complete:
                _warn_of_small_batches(spec)
                async with session.running():  # in here `programs.asking.ask` finds the session's recorded teachers
                    await run_plan(plan, SynthesisWorker(spec, session), spec.slots, session.grace)
            _note_end(session, plan)
    refresh_samples(folder)
    return read_run(folder)


def prepare(program: ProgramLike, references: Any, **keywords: Unpack[RunSettings]) -> tuple[RunSpec, Path]:
    """What the run is made of, checked, and its folder, which is not touched. Raises InputError."""
    if unknown := sorted(set(keywords) - set(RunSettings.__annotations__)):
        raise TypeError(f"synthesize takes no {', '.join(unknown)}")
    settings: RunSettings = {**DEFAULTS, **keywords}
    caps = _checked_caps(settings)
    module = _program(program)
    by_stage = open_teachers(settings["teacher"], settings["teachers"], stages_of(module))
    usable = load_references(references, settings["columns"])
    for teacher in by_stage.teachers:
        usable = usable.fitting(teacher.window, teacher.max_tokens)
    reuse, judge_program, run_dir = settings["reuse"], settings["judge_program"], settings["run_dir"]
    if not by_stage.asks(getattr(module, "source", {}).get("teacher")):
        warn_of_another_teacher(module, by_stage.first.model)
    screening, judge = _screening(module, by_stage, settings)
    spec = RunSpec(
        program=module,
        references=usable,
        teacher=by_stage.first,
        seed=settings["seed"],
        per_reference=settings["per_reference"],
        max_failure_share=settings["max_failure_share"],
        caps=caps,
        reuse=None if reuse is None else Path(reuse),
        track=settings["track"],
        stage_teachers=by_stage,
        judge=judge,
        screening=screening,
        judge_program=None if judge_program is None else str(judge_program),
    )
    folder = _default_folder(spec, by_stage) if run_dir is None else Path(run_dir)
    return spec, folder


def _checked_caps(settings: RunSettings) -> CapSettings:
    """The caps, after they and the other numbers of `settings` are checked. Raises ConfigError."""
    caps = CapSettings(
        max_cost=settings["max_cost"], max_calls=settings["max_calls"], max_minutes=settings["max_minutes"]
    )
    check_settings(
        size=settings["size"],
        per_reference=settings["per_reference"],
        max_failure_share=settings["max_failure_share"],
        **{name: cap for name, cap in caps.items() if cap != math.inf},
    )
    return caps


def _default_folder(spec: RunSpec, by_stage: TeachersByStage) -> Path:
    """The folder of a run without `run_dir`: its name is a digest of everything that shapes the run."""
    shape = [spec.identity(), by_stage.shape()] if by_stage.several else spec.identity()
    return Path("refed-runs") / digest(shape)


def _screening(
    program: dspy.Module, by_stage: TeachersByStage, settings: RunSettings
) -> tuple[Screening, Teacher | None]:
    """The run's filters, and the judge that they ask, if any does. Raises ConfigError for a judge
    that compares improved responses with plain ones, in a program that improves none."""
    judge_program = settings["judge_program"]
    opened_judge = None if judge_program is None else open_judge(judge_program)
    screening = Screening(build(check_filters(settings["filters"] or ()), settings["seed"], opened_judge))
    judges = [step.filter for step in screening.steps if isinstance(step.filter, JudgeFilter)]
    if any(filter_.needs_plain for filter_ in judges) and getattr(program, "final_stage", "") == "response_generation":
        raise ConfigError(
            f"filters: judge compares improved responses with plain ones, and a {type(program).__name__} improves "
            "none; take it out, or use another method"
        )
    if not judges:
        return screening, None
    asked = settings["judge"]
    with in_role("judge"):
        teacher = by_stage.first if asked is None else _teacher_of_model(by_stage, open_teacher(asked))
    return screening, judge_for(teacher, asked)


def _teacher_of_model(by_stage: TeachersByStage, judge: Teacher) -> Teacher:
    """The teacher that is the judge's model, which would judge its own answers; else the first teacher."""
    return next((teacher for teacher in by_stage.teachers if teacher.model == judge.model), by_stage.first)


def _note_end(session: Session, plan: Plan) -> None:
    """Write down and say how the start ended: at a cap, short of its size, with calls left in batches."""
    folder = session.ledger.path.parent
    if session.cap_reached is not None:
        stopped = end_at_cap(folder, session.cap_reached)
        session.ledger.set_meta(stopped=stopped)
        log.warning("%s", stopped)
    elif not plan.complete:
        log.warning(
            "the references gave %d of %d samples: each of them failed, or gave nothing new in three rounds",
            plan.kept,
            plan.settings.size,
        )
    if left := sum(batch["calls"] for batch in left_batches(session.ledger)):
        log.warning(
            "%d calls still wait in batches, charged at their worst case: a later start takes the answers that it "
            "needs; see: refed batches %s",
            left,
            shlex.quote(str(folder)),
        )


def _warn_of_small_batches(spec: RunSpec) -> None:
    for role, model in spec.models.items():
        if model.batched and model.concurrency < FULL_BATCH:
            log.warning(
                "%s: concurrency %d: at most so many requests a batch, each of which may take hours; leave it out, or "
                "set thousands",
                role,
                model.concurrency,
            )


def _program(program: ProgramLike) -> dspy.Module:
    if program is None:
        return ReferenceLevelFeedback()
    if isinstance(program, str | Path):
        return load_program(program)
    missing = [name for name in ("collect_features", "propose", "respond") if not hasattr(program, name)]
    if missing:
        raise ConfigError(f"program: a {type(program).__name__} cannot be run at scale: it lacks {', '.join(missing)}")
    refuse_bound_models(program)
    return program

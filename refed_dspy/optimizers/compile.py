"""Compile: tune a program's prompts by an optimizer, under one hard limit, and prove what was gained. Read this first
of the package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from refed_dspy.config.loading import MetricConfig
from refed_dspy.errors import RunDirError
from refed_dspy.ledger.candidates import forgotten
from refed_dspy.ledger.identity import differences, has_begun, refuse_other_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.optimizers.gateway import open_gateway
from refed_dspy.optimizers.progress import CompileProgress
from refed_dspy.optimizers.result import Compiled, write_outcome
from refed_dspy.optimizers.spec import CompileSpec, caps_of, prepare
from refed_dspy.optimizers.steps import CompileSteps
from refed_dspy.records import digest
from refed_dspy.teachers.caps import CapSettings, lasting_caps, refuse_left_batches, without_infinite
from refed_dspy.tracking.background import tracking
from refed_dspy.tracking.compile import copy_compile

EVERY = 15.0
"""Seconds between two words to MLflow."""


def compile(  # noqa: A001
    program: Any = None,
    examples: Any = "builtin",
    *,
    metric: Callable[..., Any] | MetricConfig | Mapping[str, Any] | None = None,
    teacher: Any = None,
    judge: Any = None,
    reflection: Any = None,
    out: str | Path | None = None,
    estimate_only: bool = False,
    on_progress: Callable[[CompileProgress], None] | None = None,
    **settings: Any,
) -> Compiled:
    """Tune `program`'s prompts and demonstrations, and prove the gain on examples that the optimizer never saw.

    Stopped at any moment, the same call goes on: what was asked before is not paid for again.

    Args:
        program: a `ReferenceLevelFeedback`, a `PairwiseJudge`, any `dspy.Module`, a program's file or MLflow address;
            None for a new ReferenceLevelFeedback.
        examples: references for a ReferenceLevelFeedback; pairs with people's verdicts for a PairwiseJudge;
            `dspy.Example`s for any other program.
        metric: weights and rules of this package's metric (a `MetricConfig`, or its fields); or a metric of your own, a
            function of (example, prediction) or with GEPA's five arguments, which programs of other kinds need.
        teacher: the model that runs the program; what `synthesize` takes.
        judge: the model that judges; None: the teacher's at temperature 0 (a `dspy.LM` as it is), with a warning.
        reflection: the model that rewrites prompts; None: the judge's.
        out: the compile's folder; None: `refed-compiles/` and a name made from everything that shapes it.
        estimate_only: score the uncompiled program on the validation set, and say what the whole would take.
        on_progress: called with a `CompileProgress` once, when work starts; it stays current.
        settings: optimizer, options, evaluations, seed, train, validation, test, instructions_per_feature,
            threads, name, track, max_cost, max_calls, max_minutes: see
            `config.CompileConfig`.

    Raises:
        InputError: something given cannot be used; nothing was paid for.
        RunStopped, TeacherError: the compile ended early; the same call goes on.
    """
    given = {**settings, "teacher": teacher, "judge": judge, "reflection": reflection}
    job = prepare(program, examples, metric, given)
    folder = Path(out) if out is not None else Path("refed-compiles") / digest(job.identity())
    asked = job.settings
    limits = CapSettings(max_cost=asked.max_cost, max_calls=asked.max_calls, max_minutes=asked.max_minutes)
    caps_of(job, without_infinite(limits))  # before the folder is made
    with Ledger.create(folder) as ledger:
        recorder, left = _opened(ledger, job, lasting_caps(ledger, limits))
        track = False if estimate_only else asked.track
        with tracking(folder, copy_compile, track, EVERY, at_once=True) as tracker:
            with open_gateway(ledger, recorder, job.teachers, asked.seed) as gateway:
                found = CompileSteps(job, gateway, recorder.budget.caps, left, on_progress).run(estimate_only)
            tracker.tell()  # so that the program's manifest can name its run
            return write_outcome(folder, ledger, job, found, keep=not estimate_only)


def _opened(ledger: Ledger, job: CompileSpec, limits: CapSettings) -> tuple[RunRecorder, float | None]:
    """The books of one start, and the seconds left to it. Raises InputError, before anything is written."""
    refuse_left_batches(ledger, job.teachers.values())
    before = spent(ledger)
    caps = caps_of(job, limits, before.unpriced)
    _begin_or_continue(ledger, job, limits)
    begin_start(ledger)
    minutes = limits["max_minutes"]
    left = None if minutes is None else max(0.0, 60 * minutes - before.seconds)
    return RunRecorder(ledger, caps, before), left


def _begin_or_continue(ledger: Ledger, job: CompileSpec, limits: CapSettings) -> None:
    """Write a new compile's facts, or check that these are the same. Raises RunDirError."""
    identity = job.identity()
    stored = ledger.meta("compile")
    refuse_other_work(ledger, "compile")
    begun = has_begun(ledger)
    if stored is not None and begun and (found := differences(stored, identity)):
        raise RunDirError(
            f"{ledger.path.parent}: holds another compile: {'; '.join(found)}; set these back, or use a new --out"
        )
    if not begun:  # an earlier start came to nothing, and may have been of other parts
        ledger.commit(forgotten())
    ledger.set_meta(compile=identity, about=job.about(), **limits)

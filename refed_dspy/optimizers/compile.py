"""Compile: tune a program's prompts with an optimizer, under hard caps, and prove the gain. Read this module first in
this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import dspy

from refed_dspy.config.compile import CompileConfig, MetricConfig
from refed_dspy.config.keywords import with_keywords
from refed_dspy.errors import CAPS, briefly
from refed_dspy.files import as_path
from refed_dspy.jobs.gateway import open_gateway
from refed_dspy.jobs.job import folder_of, job
from refed_dspy.jobs.work import Start
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.states import CAPPED, DONE, ESTIMATED, SHORT, STOPPED, End
from refed_dspy.optimizers.estimate import outlook, refuse_small_caps
from refed_dspy.optimizers.gateway import CompileGateway
from refed_dspy.optimizers.optimizer_log import LOG, printed_to_file
from refed_dspy.optimizers.result import (
    OUTPUTS,
    Compiled,
    CompileOutcome,
    ended_outcome,
    how_to_continue,
    write_outcome,
)
from refed_dspy.optimizers.spec import CompileSpec, prepare, refuse_unprovable, rehearse, student_of
from refed_dspy.optimizers.steps import CompileSteps, champion_for
from refed_dspy.teachers.progress import CompileProgress, Teller, Watch
from refed_dspy.tracking.background import tracking, wanted
from refed_dspy.tracking.compile import copy_compile
from refed_dspy.tracking.registry import Registered

if TYPE_CHECKING:
    from refed_dspy.keywords import CompileKeywords

TRACKING_INTERVAL = 15.0
"""Seconds between two updates of MLflow."""
AT_STOP = 1.5
"""Seconds that Ctrl-C leaves for MLflow. A compile's calls get none."""


@briefly
@with_keywords(CompileConfig)
def compile(  # noqa: A001
    program: Any = None,
    references: Any = None,
    *,
    pairs: str | Path | Sequence[Any] | None = None,
    metric: Callable[..., Any] | MetricConfig | Mapping[str, Any] | str | None = None,
    teacher: Any = None,
    judge: Any = None,
    reflection: Any = None,
    proof_judge: Any = None,
    optimizer: Any = "gepa",
    trainset: Sequence[dspy.Example] | None = None,
    valset: Sequence[dspy.Example] | None = None,
    testset: Sequence[dspy.Example] | None = None,
    out: str | Path | None = None,
    estimate: bool = False,
    progress: bool = True,
    on_progress: Callable[[CompileProgress], None] | None = None,
    **settings: Unpack[CompileKeywords],
) -> Compiled:
    """Tune `program`'s prompts and demonstrations, and prove the gain on examples that the optimizer never saw.

    It may be stopped at any moment. The same call then continues, with all recorded answers. A compile that has
    ended is not run again: the same call returns its outcome.

    Args:
        program: a `ReferenceLevelFeedback`, a `PairwiseJudge`, any `dspy.Module`, a program's file or MLflow address;
            None for a new ReferenceLevelFeedback.
        references: what to learn from; None: `builtin`. For a ReferenceLevelFeedback whatever `load_references` takes;
            for any other program `dspy.Example`s.
        pairs: in their place, pairs with human verdicts (a file, or a list of `Pair`), which a `PairwiseJudge` is tuned
            on: `program`, or with None a new one.
        metric: weights and rules of this package's metric (a `MetricConfig`, or its fields); or your own metric, which
            programs of other kinds need: a function of (example, prediction) or with GEPA's five arguments that scores
            from 0 to 1, or its name, `module:Name`.
        teacher: the model that runs the program; what `synthesize` takes.
        judge: the model that judges; None: the teacher's at temperature 0 (a `dspy.LM` as it is), with a warning.
        reflection: the model that rewrites prompts; None: the judge's.
        proof_judge: a second judge, which only the proof asks: then a gain is proved where both find it.
        optimizer: a name (`gepa`, `bootstrap`, `mipro`, `simba`, `COPRO`, … in any letters), any class with
            DSPy's `compile`, or an object of one, whose sizes stay; its models and its metric serve where none is named
            here. Several in a list share one baseline, the caps and one proof: each begins with half of the
            `evaluations`, and those that fall behind get no more.
        trainset, valset, testset: sets of your own in place of references: to learn from, to choose by, and for the
            proof. `split` makes such sets.
        out: the compile's folder; None: a folder in `refed-compiles/`, named after what determines the result.
        estimate: score the uncompiled program on the validation set, and forecast the whole compile.
        progress: whether a terminal or a notebook shows a bar.
        on_progress: called with a `CompileProgress` as its counts change, in any thread; its error ends the compile.

    Raises:
        InputError: an argument cannot be used, too few examples are held out for a proof, or a cap is too small for
            the optimizer and the proof; nothing was paid for.
        TeacherRefused: a model cannot be used, and nothing was paid for.
        RunStopped, TeacherError: the compile ended early; the same call continues it.
    """
    module, spec = prepare(
        program, references, metric, pairs, teacher, judge, reflection, optimizer,
        {"trainset": trainset, "valset": valset, "testset": testset}, proof_judge, out=out, **settings,
    )  # fmt: skip
    student, config, work = student_of(module, spec), spec.settings, spec.work()
    folder = folder_of(config.out, "refed-compiles", work.identity)
    if not (folder / FILE).is_file():  # a mistake leaves no folder behind
        refuse_unprovable(spec)
        refuse_small_caps(spec)
        rehearse(student, spec)
    watch, tracked = Watch(on_progress, progress), wanted(config.track)
    with (
        job(folder, work, outputs=(*OUTPUTS, LOG), inputs=(as_path(references),)) as at,
        tracking(folder, copy_compile, tracked and not estimate, TRACKING_INTERVAL, AT_STOP) as tracker,
    ):
        if not estimate and (made := ended_outcome(at, module, spec)) is not None:
            return made
        with watch.telling(CompileProgress(outlook=outlook(spec))) as teller, printed_to_file(folder):
            champion = champion_for(student, config.name, folder) if tracked else None
            refuse_unprovable(spec, () if champion is None else champion.seen)
            outcome = _run_steps(at.begin(), student, spec, champion, teller, estimate)
            end = _end(outcome.stopped, outcome.why, estimate)
            teller.progress.finish(DONE if estimate else end.state, spent(at.ledger))
        tracker.update()  # so that the program's manifest can name its run
        made = write_outcome(at, module, spec, outcome, keep=not estimate)
        at.ends(end)
        return made


def _end(stopped: str, why: str, estimate: bool) -> End:
    """`stopped`, `why`: what ended it early (as in `CompileOutcome`)."""
    if stopped:
        return End(CAPPED if stopped in CAPS else SHORT, how_to_continue(stopped, why))
    return End(STOPPED, ESTIMATED) if estimate else End(DONE)


def _run_steps(
    start: Start,
    student: dspy.Module,
    spec: CompileSpec,
    champion: Registered | None,
    teller: Teller[CompileProgress],
    estimate: bool,
) -> CompileOutcome:
    """One start of the compile. Raises as `open_gateway`."""
    shared = (start.ledger, start.recorder, spec.teachers, spec.settings.seed, start.reused_from)
    with open_gateway(CompileGateway, *shared) as gateway:
        return CompileSteps(student, spec, gateway, start.caps_left, champion, teller).run(estimate)

"""`synthesize`: from references to a data set. Program, teachers, plan and ledger meet here; read this file first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.concurrency import run_blocking
from refed_dspy.data.rows import Samples
from refed_dspy.errors import ConfigError, NothingKept, RunDirError, briefly, one_line, setting
from refed_dspy.jobs.job import Job, job
from refed_dspy.jobs.session import Session
from refed_dspy.ledger.connection import SHARDS
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import ESTIMATED
from refed_dspy.programs.load import ProgramLike
from refed_dspy.records import Sample
from refed_dspy.registry import RUNNERS, plugged_in
from refed_dspy.runs.plan import Plan, PlanSettings
from refed_dspy.runs.result import Synthesis, read_run
from refed_dspy.runs.spec import RunSpec, outlook, prepare, run_keywords
from refed_dspy.runs.work import note_end
from refed_dspy.runs.worker import SynthesisWorker, run_plan
from refed_dspy.teachers import TeacherLike
from refed_dspy.teachers.progress import NOBODY, Progress, Watch
from refed_dspy.tracking.background import Tracker, run_wanted, tracking
from refed_dspy.tracking.run import copy_run

if TYPE_CHECKING:
    from refed_dspy.keywords import RunKeywords

TRACKING_INTERVAL = 60.0
"""Seconds between two reports to MLflow."""
_AT_ONCE = 100
"""Samples that are read together."""


@briefly
@run_keywords
def synthesize(
    program: ProgramLike = None,
    references: Any = "builtin",
    *,
    teacher: TeacherLike = None,
    teachers: Mapping[str, TeacherLike] | None = None,
    judge: TeacherLike = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[RunKeywords],
) -> Synthesis:
    """Make `size` samples and keep them in `run_dir`. It may be stopped at any moment; the same call continues it.

    A run stops before it costs more than a cap, as long as the provider keeps to `max_tokens` and bills what it reports
    (docs/limits.md). It then ends cleanly and this returns: see `Synthesis.reason`. A cap once set stays; `math.inf`
    lifts it.

    Args:
        program: a `ReferenceLevelFeedback`, the file or MLflow address of a saved one, or None for a new one, which the
            settings `method`, `features`, `instructions_per_feature` and `guidance` shape.
        references: whatever `load_references` takes.
        teacher: a `TeacherConfig` or a dict of its settings, `dspy.LM`, "PROVIDER/NAME", "embedded", "simulated" or a
            teacher file; None: `dspy.settings.lm`. A list of these is a pool: they share the work by
            `TeacherConfig.weight`, and if one fails the others take over.
        teachers: stage → its teacher or pool, where that is another one. `feedback` stands for all feedback stages.
        judge: the judge, given in the same way, for filters that need one. None: the teacher's model at temperature 0,
            with a warning.
        progress: whether a terminal or a notebook shows a bar.
        on_progress: called with a `Progress` as its counts change, at most ten times a second, and a last time at the
            end. It runs in the thread of the run; an error in it ends the run, which can be resumed.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: the run ended early; everything made so far is kept, and the message says how to continue.
        KeyboardInterrupt: the same, by Ctrl-C or a notebook's stop button.
    """
    spec, watch = prepare(program, references, teacher, teachers, judge, **settings), Watch(on_progress, progress)
    if spec.config.cluster is not None:
        return run_blocking(_on_cluster(spec, watch))
    with run_job(spec, watch) as run:  # outside the loop, where Ctrl-C ends what blocks
        run_blocking(run.carry_out())
    return read_run(run.folder)


@run_keywords
async def asynthesize(
    program: ProgramLike = None,
    references: Any = "builtin",
    *,
    teacher: TeacherLike = None,
    teachers: Mapping[str, TeacherLike] | None = None,
    judge: TeacherLike = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[RunKeywords],
) -> Synthesis:
    """`synthesize`, for code that runs in an event loop."""
    spec, watch = prepare(program, references, teacher, teachers, judge, **settings), Watch(on_progress, progress)
    return await (produce if spec.config.cluster is None else _on_cluster)(spec, watch)


async def _on_cluster(spec: RunSpec, watch: Watch[Progress]) -> Synthesis:
    made: Synthesis = await plugged_in(RUNNERS, "cluster")(spec, watch)
    return made


async def produce(spec: RunSpec, watch: Watch[Progress] = NOBODY, pilot: PlanSettings | None = None) -> Synthesis:
    """Continue the run in its folder until its size is reached, or that of a `pilot`, as `run_job`."""
    with run_job(spec, watch, pilot) as run:
        await run.carry_out()
    return read_run(run.folder)


@contextmanager
def run_job(
    spec: RunSpec,
    watch: Watch[Progress] = NOBODY,
    pilot: PlanSettings | None = None,
    outputs: Iterable[str] = (),
    inputs: Iterable[Any] = (),
) -> Iterator[Run]:
    """One more start of the run in its folder, opened by `job`. The block carries it out.

    `pilot`: a smaller plan than the run's own. An estimate's pilot makes fewer samples, of a run whose folder records
    its full size.
    """
    spec, track = spec.as_begun(), spec.config.track
    _refuse_cluster(spec)
    work, folder = spec.work(), spec.folder
    with (
        job(folder, work if pilot is None else replace(work, then=ESTIMATED), watch, outputs, inputs) as at,
        _telling_what_is_kept(at.ledger),
        tracking(folder, copy_run, run_wanted(track, folder), TRACKING_INTERVAL) as tracker,
    ):
        yield Run(spec, at, tracker, pilot)


class Run:
    """One start of the run in `folder`, ready to be carried out."""

    def __init__(self, spec: RunSpec, at: Job, tracker: Tracker, pilot: PlanSettings | None) -> None:
        start = at.begin()
        self.folder, self._spec, self.at, self._tracker = at.folder, spec, at, tracker
        self._plan, self._session = restored(at.ledger, pilot or spec.plan_settings(start.size)), Session(start)
        progress = self._session.progress
        progress.size = self._plan.settings.size
        if not self._plan.complete:
            to_come = self._plan.to_come()
            progress.calls_expected = spec.calls_of(to_come)
            progress.outlook = outlook(spec, to_come, start.recorder.budget)
            spec.warn_of_small_batches()

    async def carry_out(self) -> None:
        """Do what is left of it, and write down how it ended. Raises as `Session.running`."""
        async with self.at.watch.following(self._session.progress):
            await make_samples(self._spec, self._session, self._plan)
        note_end(self.at, self._session, self._plan)
        await self._tracker.told()


def _refuse_cluster(spec: RunSpec) -> None:
    """Raises RunDirError for a run that is split over the workers of a cluster, ConfigError where it would be."""
    if spec.config.cluster is not None:
        raise ConfigError("cluster: only synthesize and resume work on a cluster; leave it out, and use another folder")
    if (spec.folder / SHARDS).is_dir():
        where = setting("cluster") + " (auto, local:N or HOST:PORT)"
        raise RunDirError(f"{spec.folder}: a run on a cluster; continue it with " + where)


def restored(ledger: Ledger, settings: PlanSettings) -> Plan:
    """The plan of a run of which `ledger` has a part."""
    plan = Plan(settings)
    plan.restore(ledger.kept(), ledger.proposals(), ledger.used(), ledger.open_instructions())
    return plan


async def make_samples(spec: RunSpec, session: Session, plan: Plan) -> None:
    """Do what is left of `plan`. Raises as `Session.running`."""
    if not plan.complete:
        async with session.running():  # in here DSPy's language model is the recorded one
            worker = SynthesisWorker(spec, session)
            await run_plan(plan, worker, spec.slots)
            if not plan.complete:
                worker.own.check_useful()


@contextmanager
def _telling_what_is_kept(ledger: Ledger) -> Iterator[None]:
    """A NothingKept of the block also says how many samples were kept before, and where."""
    try:
        yield
    except NothingKept as error:
        folder = ledger.path.parent
        kept = f"{ledger.kept()} of {ledger.meta('size')} samples are kept in {one_line(folder, 200)}"
        raise NothingKept(str(error), kept, folder) from None


@run_keywords
async def stream(
    program: ProgramLike = None,
    references: Any = "builtin",
    *,
    teacher: TeacherLike = None,
    teachers: Mapping[str, TeacherLike] | None = None,
    judge: TeacherLike = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[RunKeywords],
) -> AsyncGenerator[Sample, None]:
    """The samples of `synthesize` with the same arguments, each as soon as it is kept; first those that the run's
    folder has already, so that the loop sees all of them.

    The run goes on while the loop works on a sample. `await samples.aclose()` ends it within two seconds: calls in
    flight may finish, and what they make is kept in the folder for the next call. After a mere `break` it ends the same
    way, but only while your code awaits something. At a cap the loop ends with a warning.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: the run ended early, after the samples that were kept.
    """
    spec = prepare(program, references, teacher, teachers, judge, **settings)
    begun, changed = asyncio.Event(), asyncio.Event()

    def told(now: Progress) -> None:
        begun.set()
        changed.set()
        if on_progress is not None:
            on_progress(now)

    run = asyncio.create_task(produce(spec, Watch(told, progress)))
    run.add_done_callback(lambda _: changed.set())
    samples: Samples | None = None
    given, ended = 0, False
    try:
        while not ended:
            await changed.wait()
            changed.clear()
            ended = run.done()
            if samples is None and begun.is_set():  # before that there may be no folder
                samples = Samples(spec.folder)
            while samples is not None and (page := samples[given : given + _AT_ONCE]):
                for sample in page:
                    given += 1
                    yield sample
        await run
    except asyncio.CancelledError as interrupt:
        run.cancel()
        await asyncio.wait([run])
        try:
            run.result()
        except asyncio.CancelledError as ended:  # says what is kept
            interrupt.args = ended.args
        raise
    finally:
        run.cancel()
        await asyncio.wait([run])

"""References in, data set out: where program, teacher, plan and ledger meet. Read this file first."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import dspy

from refed_dspy.blocking import run_blocking
from refed_dspy.config import TeacherConfig
from refed_dspy.data.export import export, to_dataset
from refed_dspy.data.references import References, load_references
from refed_dspy.data.rows import Samples
from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.plan import Plan, PlanSettings
from refed_dspy.engine.runner import run
from refed_dspy.engine.summary import run_status
from refed_dspy.errors import ConfigError, RunDirError, RunStopped, TeacherError, TeacherRefused
from refed_dspy.paying import PayOnce, Progress
from refed_dspy.production import Production, Stages
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.asking import answering
from refed_dspy.programs.saved import digest, load_program, load_state, program_digests, program_state
from refed_dspy.records import Failure
from refed_dspy.teachers import Teacher, TeacherLike, open_teacher

log = logging.getLogger("refed_dspy")
ProgramLike: TypeAlias = Any
"""A program (`dspy.Module`), the file or MLflow address of one, or None."""
# Silence and thrift while thousands of calls run: history and traces grow with each of them.
_LEAN = {"disable_history": True, "trace": None, "max_trace_size": 0, "track_usage": False}


@dataclass(frozen=True)
class Synthesis:
    """A run's outcome. `samples` reads from the run's folder as it is looked at."""

    run_dir: Path
    size: int
    samples: Samples
    failures: list[Failure]
    usage: dict[str, dict[str, int]]
    """Stage → calls and tokens, over the whole run."""
    left_out: Mapping[str, int]
    """Reason → references left out."""
    status: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Whether `size` samples were kept; False where every reference ran dry first."""
        return len(self.samples) >= self.size

    def to_dataset(self) -> Any:
        """The samples as a `datasets.Dataset`."""
        return to_dataset(self.run_dir)

    def export(self, format: str, out: str | Path, *, force: bool = False) -> int:  # noqa: A002
        """Write the samples to a file; see `refed export`."""
        return export(self.run_dir, format, Path(out), force=force)


def synthesize(program: ProgramLike = None, references: Any = "builtin", **settings: Any) -> Synthesis:
    """Make `size` samples and keep them in `run_dir`. Stopped at any moment, the same call goes on.

    Args:
        program: a `ReferenceLevelFeedback`, the file or MLflow address of a saved one, or None for a new one.
        references: whatever `load_references` takes.
        size: kept samples to make (100).
        teacher: `TeacherConfig`, `dspy.LM`, "PROVIDER/NAME", "embedded" or a teacher file; None: `dspy.settings.lm`.
        run_dir: the run's folder; None: `refed-runs/` and a name made from everything that shapes the run, so that
            the same call again continues it.
        seed: of the order of references and, where a teacher takes one, of each call (0).
        per_reference: at most so many samples of a reference before the next is opened.
        max_failure_share: a stage failing beyond this share of its calls stops the run (0.5).
        columns: names of the references' columns.
        reuse: the folder of another run whose answers to the very same questions are taken over at no cost: after a
            recompile, only what follows from the changed prompts is paid for.
        on_progress: called with a `Progress` once, when work starts; its counts stay current.

    Raises:
        InputError: something given cannot be used; nothing was paid for.
        TeacherError, RunStopped: the run ended early; what was made is kept and the message says how to go on.
    """
    return run_blocking(asynthesize(program, references, **settings))


async def asynthesize(
    program: ProgramLike = None,
    references: Any = "builtin",
    *,
    size: int = 100,
    teacher: TeacherLike | None = None,
    run_dir: str | Path | None = None,
    seed: int = 0,
    per_reference: int | None = None,
    max_failure_share: float = 0.5,
    columns: Mapping[str, str] | None = None,
    reuse: str | Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Synthesis:
    """`synthesize`, for code that runs in an event loop."""
    for name, value in (("size", size), ("per_reference", per_reference)):
        if value is not None and value < 1:
            raise ConfigError(f"{name}: must be 1 or more, not {value}")
    module = _program(program)
    opened = open_teacher(teacher)
    usable = load_references(references, columns).fitting(opened.window, opened.max_tokens)
    identity = _identity(module, usable, opened, seed)
    folder = Path(run_dir) if run_dir is not None else Path("refed-runs") / digest(identity)
    with ExitStack() as stack:
        lender = stack.enter_context(Ledger.read(Path(reuse))) if reuse is not None else None
        ledger = stack.enter_context(Ledger.create(folder))
        _begin_or_continue(ledger, folder, identity, module, usable, opened, seed)
        ledger.set_meta(size=max(size, ledger.meta("size") or 0), per_reference=per_reference)
        progress = Progress(int(ledger.meta("size")), ledger.kept(), kept_at_start=ledger.kept())
        if on_progress is not None:
            on_progress(progress)
        pay_once = PayOnce(ledger, opened, program_digests(module), max_failure_share, progress, seed, lender)
        await _produce(
            pay_once,
            module,
            usable,
            PlanSettings(
                size=progress.size,
                references=len(usable),
                features=tuple(cast(Stages, module).features),
                instructions_per_feature=cast(Stages, module).instructions_per_feature,
                per_reference=per_reference,
                seed=seed,
            ),
        )
    return read_run(folder)


def read_run(run_dir: str | Path) -> Synthesis:
    """The outcome, so far, of the run in `run_dir`. Raises RunDirError where there is none."""
    folder = Path(run_dir)
    with Ledger.read(folder) as ledger:
        status, failures = run_status(ledger), ledger.failures()
    return Synthesis(folder, status["size"], Samples(folder), failures, status["usage"], status["left_out"], status)


async def _produce(pay_once: PayOnce, program: dspy.Module, references: References, settings: PlanSettings) -> None:
    """Run the plan to its end on the teacher."""
    ledger = pay_once.ledger
    plan = Plan(settings)
    plan.restore(ledger.kept(), ledger.proposals(), ledger.used(), ledger.open_instructions())
    if plan.reached:
        return
    work = Production(cast(Stages, program), references, ledger, pay_once.progress)
    async with pay_once.teacher.running() as lm:
        try:
            with dspy.context(lm=lm, **_LEAN), answering(pay_once):
                await run(plan, work, pay_once.teacher.concurrency)
        except TeacherError as error:
            # Before its first answer nothing was paid for: the teacher as given cannot be used.
            if not pay_once.answered:
                raise TeacherRefused(str(error)) from error
            raise RunStopped(f"{error}; {how_to_resume(ledger)}") from error
        except RunStopped as error:
            raise RunStopped(f"{error}; {how_to_resume(ledger)}") from error
    if not plan.reached:
        log.warning(
            "the references gave %d of %d samples: each one left gave nothing new in three rounds, or failed",
            plan.kept,
            settings.size,
        )


def how_to_resume(ledger: Ledger) -> str:
    return f"{ledger.kept()} samples are kept; go on with: refed resume {ledger.path.parent}"


def _program(program: ProgramLike) -> dspy.Module:
    if program is None:
        return ReferenceLevelFeedback()
    if isinstance(program, str | Path):
        loaded = ReferenceLevelFeedback()
        load_program(loaded, str(program))
        return loaded
    lacking = [name for name in ("collect_features", "propose", "respond") if not hasattr(program, name)]
    if lacking:
        raise ConfigError(f"program: a {type(program).__name__} cannot be run at scale: it lacks {', '.join(lacking)}")
    return program


def _identity(program: dspy.Module, references: References, teacher: Teacher, seed: int) -> dict[str, Any]:
    """What must stay the same for a run to be continued, in the words a refusal uses."""
    stages = cast(Stages, program)
    return {
        "references": digest([reference.id for reference in references]),
        "program": program_digests(program),
        "instructions_per_feature": stages.instructions_per_feature,
        "features": list(stages.features),
        "teacher": teacher.identity,
        "seed": seed,
    }


def _begin_or_continue(
    ledger: Ledger,
    folder: Path,
    identity: dict[str, Any],
    program: dspy.Module,
    references: References,
    teacher: Teacher,
    seed: int,
) -> None:
    """Write a new run's facts, or check that these are the same.

    Raises:
        RunDirError: the folder holds another run; the differences are named.
    """
    stored = ledger.meta("identity")
    if stored != identity and not ledger.has_answers():  # new, or refused before its first answer
        ledger.begin(
            references.items,
            identity=identity,
            program=program_state(program),
            features=dict(cast(Stages, program).features),
            teacher={"model": teacher.model, "config": teacher.config and teacher.config.model_dump(mode="json")},
            left_out=dict(references.left_out),
            seed=seed,
        )
        return
    if differences := _differences(stored, identity):
        raise RunDirError(
            f"{folder}: holds another run: {'; '.join(differences)}; set these back, or use a new --run-dir"
        )


def _differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*stored, *given}):
        old, new = stored.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old}, is {new}")
    return found


def resume(
    run_dir: str | Path,
    *,
    size: int | None = None,
    teacher: TeacherLike | None = None,
    max_failure_share: float = 0.5,
    on_progress: Callable[[Progress], None] | None = None,
) -> Synthesis:
    """Go on with the run in `run_dir`, from what its ledger holds: references, program, teacher.

    Args:
        size: a larger target than before.
        teacher: the same model at another address, or with other limits.

    Raises:
        RunDirError: no run there, or one whose program or teacher only its own script can build again.
    """
    folder = Path(run_dir)
    with Ledger.read(folder) as ledger:
        meta = {
            name: ledger.meta(name)
            for name in ("identity", "program", "features", "teacher", "seed", "size", "per_reference", "left_out")
        }
        references = References(tuple(ledger.references()), meta["left_out"] or {})
    if not meta["identity"]:
        raise RunDirError(f"{folder}: the run never began; start it again with refed synth")
    program = ReferenceLevelFeedback(
        features=meta["features"], instructions_per_feature=meta["identity"]["instructions_per_feature"]
    )
    try:
        load_state(program, meta["program"], str(folder))
    except ConfigError:
        raise RunDirError(
            f"{folder}: its program is not refed's own; call synthesize(…, run_dir=…) in your script"
        ) from None
    if teacher is None:
        config = meta["teacher"]["config"]
        if config is None:
            raise RunDirError(
                f"{folder}: its teacher was a Python object; call synthesize(…, run_dir=…) in its script, "
                "or name the same model with --teacher"
            )
        teacher = TeacherConfig.model_validate(config)
    return synthesize(
        program,
        references,
        size=max(size or 0, meta["size"]),
        teacher=teacher,
        run_dir=folder,
        seed=meta["seed"],
        per_reference=meta["per_reference"],
        max_failure_share=max_failure_share,
        on_progress=on_progress,
    )

"""Go on with a run from its folder alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refed_dspy.config.loading import check_config, warn_of_unused
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.data.references import References
from refed_dspy.errors import ConfigError, RunDirError, briefly
from refed_dspy.files import path_of
from refed_dspy.ledger.identity import named_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.baselines import METHODS
from refed_dspy.programs.load import own_program
from refed_dspy.programs.saved import load_state
from refed_dspy.runs.result import Synthesis
from refed_dspy.runs.synthesize import synthesize
from refed_dspy.teachers import TeacherLike
from refed_dspy.teachers.by_stage import ANY
from refed_dspy.teachers.progress import Progress

_KEPT = ("size", "seed", "per_reference", "max_failure_share", "reuse", "track", "judge_program", "accept_changed")
"""The settings that the ledger keeps as they were set."""


@briefly
def resume(
    run_dir: str | Path,
    *,
    size: int | None = None,
    teacher: TeacherLike | Sequence[TeacherLike] | None = None,
    teachers: Mapping[str, TeacherLike | Sequence[TeacherLike]] | None = None,
    judge: TeacherLike | None = None,
    max_failure_share: float | None = None,
    max_cost: float | None = None,
    max_calls: int | None = None,
    max_minutes: float | None = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> Synthesis:
    """Continue the run in `run_dir` with the references, program and teacher in its ledger.

    Args:
        size: a new number of samples to keep.
        teacher: the same model at another address, or with other limits; remembered from then on. Of a pool: other
            members or weights; one of its members must stay.
        teachers: stage → the same, replacing all teachers of single stages; `{}` removes them.
        judge: the same for the judge of the run's filters.
        max_failure_share: a new share of failed calls that stops the run.
        max_cost, max_calls, max_minutes: new caps; what earlier starts used counts.
            `math.inf` lifts one.
        progress, on_progress: as `synthesize`.

    Raises:
        RunDirError: there is no run, or only the script that started it can build its program or teacher.
    """
    with Ledger.read(path_of(run_dir, "run_dir")) as ledger:
        _refuse_other_work(ledger)
        references = References(tuple(ledger.references()), ledger.meta("left_out") or {})
        program = _program(ledger)
        settings: Any = {name: value for name in _KEPT if (value := ledger.meta(name)) is not None}
        settings["teacher"] = _teachers(ledger, ANY) if teacher is None else teacher
        settings["teachers"] = _stages(ledger) if teachers is None else teachers
        settings["filters"], settings["guards"] = _filters(ledger), False  # the guards are among them
        settings["judge"] = _judge(ledger) if judge is None else judge
    if teacher is None:
        warn_of_unused("teacher", settings["teacher"])
    if judge is None and settings["judge"] is not None:
        warn_of_unused("judge", [settings["judge"]])
    changed = {"size": size, "max_failure_share": max_failure_share}
    changed |= {"max_cost": max_cost, "max_calls": max_calls, "max_minutes": max_minutes}
    settings |= {name: value for name, value in changed.items() if value is not None}
    return synthesize(program, references, run_dir=run_dir, progress=progress, on_progress=on_progress, **settings)


def _refuse_other_work(ledger: Ledger) -> None:
    """Raises RunDirError where there is no run to go on with."""
    folder = ledger.path.parent
    if (holds := ledger.holds()) not in {"", "run"}:
        raise RunDirError(
            f"{folder}: contains {named_work(holds)}, not a run; continue with the command that started it"
        )
    if not ledger.meta("identity"):
        raise RunDirError(f"{folder}: the run never started; start it with refed synth")


def _filters(ledger: Ledger) -> list[Any]:
    """The run's filters from what its folder remembers of them."""
    stored = ledger.meta("filters") or []
    if any("class" in settings for _, settings in stored):
        raise RunDirError(
            f"{ledger.path.parent}: one of its filters is defined in a script; call synthesize(…, run_dir=…) there"
        )
    added = {"seed", "prompts", "content"}  # by the filter itself, to its settings
    return [
        {settings["named"]: settings["settings"]}
        if "named" in settings
        else {label.partition(" ")[0]: {name: value for name, value in settings.items() if name not in added}}
        for label, settings in stored
    ]


def _judge(ledger: Ledger) -> TeacherConfig | None:
    """The judge as it is remembered; None: there is none, or it is the teacher, whose endpoint may be another now."""
    if (stored := ledger.meta("judge")) is None:
        return None
    config, teacher = stored.get("config"), ledger.meta("teacher").get("config")
    if config is not None:
        is_teacher = teacher is not None and config in (teacher, {**teacher, "temperature": 0.0})
        return None if is_teacher else check_config(TeacherConfig, config)
    if teacher is None and stored["model"] == ledger.meta("teacher")["model"]:
        return None
    raise RunDirError(
        f"{ledger.path.parent}: its judge was a Python object; call synthesize(…, run_dir=…) in its script, or pass "
        "the same model with judge=…"
    )


def _program(ledger: Ledger) -> Any:
    folder, identity = ledger.path.parent, ledger.meta("identity")
    if (named := ledger.meta("program_named")) is not None:
        program = own_program(named)
        load_state(program, ledger.meta("program"), str(folder))
        return program
    kind = {method.__name__: method for method in METHODS.values()}.get(identity["kind"])
    if kind is None:
        raise RunDirError(
            f"{folder}: it uses a program of its own; continue with the command or script that started it"
        )
    program = kind(features=ledger.meta("features"), instructions_per_feature=identity["instructions_per_feature"])
    try:
        load_state(program, ledger.meta("program"), str(folder))
    except ConfigError:
        raise RunDirError(
            f"{folder}: made with other prompts (an earlier version's or a script's own): continue with that version "
            "or script, or use another folder; refed export still works"
        ) from None
    return program


def _stages(ledger: Ledger) -> dict[str, list[TeacherConfig]]:
    """Stage → its teachers, for the stages that have teachers of their own."""
    return {stage: _teachers(ledger, stage) for stage in ledger.meta("pools") or () if stage != ANY}


def _teachers(ledger: Ledger, stage: str) -> list[TeacherConfig]:
    members = (ledger.meta("pools") or {}).get(stage) or [ledger.meta("teacher")]
    if any(member.get("config") is None for member in members):
        raise RunDirError(
            f"{ledger.path.parent}: its teacher was a Python object; call synthesize(…, run_dir=…) in its script, or "
            "pass the same model with teacher=…"
        )
    return [
        check_config(TeacherConfig, {**member["config"], "weight": member.get("weight", 1.0)}) for member in members
    ]

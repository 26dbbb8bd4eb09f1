"""What a run's folder remembers of its program, models and filters."""

from __future__ import annotations

from typing import Any

from refed_dspy.config.loading import check_config
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ConfigError, InputError, RunDirError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.load import own_program
from refed_dspy.programs.reference_level import METHODS
from refed_dspy.programs.saved import load_state
from refed_dspy.teachers.by_stage import ANY


def is_resumable(ledger: Ledger) -> bool:
    """Whether the folder alone is enough to go on with the run."""
    try:
        remembered_program(ledger), remembered_filters(ledger)
        remembered_teachers(ledger, ANY), remembered_stages(ledger), remembered_judge(ledger)
    except InputError:
        return False
    return True


def remembered_filters(ledger: Ledger) -> list[Any]:
    """The run's filters from what its folder remembers of them."""
    stored = ledger.meta("filters") or []
    if any("class" in settings for _, settings in stored):
        raise RunDirError(
            f"{ledger.path.parent}: one of its filters is defined in a script or notebook; call "
            "synthesize(…, run_dir=…) there"
        )
    added = {"seed", "prompts", "content"}  # by the filter itself, to its settings
    return [
        {settings["named"]: settings["settings"]}
        if "named" in settings
        else {label.partition(" ")[0]: {name: value for name, value in settings.items() if name not in added}}
        for label, settings in stored
    ]


def remembered_judge(ledger: Ledger) -> TeacherConfig | None:
    """The judge as it is remembered; None: there is none, or it is the teacher, whose endpoint may be another now."""
    if (stored := ledger.meta("judge")) is None:
        return None
    its_teacher = ledger.meta("teacher") or {}  # a filtering has none
    config, teacher = stored.get("config"), its_teacher.get("config")
    if config is not None:
        is_teacher = teacher is not None and config in (teacher, {**teacher, "temperature": 0.0})
        return None if is_teacher else check_config(TeacherConfig, config)
    if teacher is None and stored["model"] == its_teacher.get("model"):
        return None
    raise RunDirError(
        f"{ledger.path.parent}: its judge was a Python object; call synthesize(…, run_dir=…) in its script or "
        "notebook, or pass the same model with judge=…"
    )


def remembered_program(ledger: Ledger) -> Any:
    """Raises RunDirError where only the script that started the run can build it."""
    folder, identity = ledger.path.parent, ledger.meta("identity")
    if (named := ledger.meta("program_named")) is not None:
        program = own_program(named)
        load_state(program, ledger.meta("program"), str(folder))
        return program
    kind = {method.__name__: method for method in METHODS.values()}.get(identity["kind"])
    if kind is None:
        raise RunDirError(
            f"{folder}: it uses a program of its own; continue with the command, script or notebook that started it"
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


def remembered_stages(ledger: Ledger) -> dict[str, list[TeacherConfig]]:
    """Stage → its teachers, for the stages that have teachers of their own."""
    return {stage: remembered_teachers(ledger, stage) for stage in ledger.meta("pools") or () if stage != ANY}


def remembered_teachers(ledger: Ledger, stage: str) -> list[TeacherConfig]:
    """The teachers that a stage asks. Raises RunDirError for one that was a Python object."""
    members = (ledger.meta("pools") or {}).get(stage) or [ledger.meta("teacher")]
    if any(member.get("config") is None for member in members):
        raise RunDirError(
            f"{ledger.path.parent}: its teacher was a Python object; call synthesize(…, run_dir=…) in its script or "
            "notebook, or pass the same model with teacher=…"
        )
    return [
        check_config(TeacherConfig, {**member["config"], "weight": member.get("weight", 1.0)}) for member in members
    ]

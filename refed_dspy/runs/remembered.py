"""What a run's folder remembers: its program, its references, and the settings to go on with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refed_dspy.config.loading import check_config
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.data.references import References
from refed_dspy.errors import ConfigError, InputError, RunDirError, setting
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import ANY, Model, WorkSettings, settings_of
from refed_dspy.programs.load import has_criteria, own_program
from refed_dspy.programs.reference_level import METHODS
from refed_dspy.programs.saved import load_state


class NeedsScript(RunDirError):
    """`what` of the run in `folder` only the script that started it can build. `remedy`: what to do."""

    def __init__(self, folder: Path, what: str, remedy: str) -> None:
        super().__init__(f"{folder}: {what}; " + remedy)
        self.what = what


def is_resumable(ledger: Ledger) -> bool:
    """Whether the folder alone is enough to go on with the run."""
    try:
        _set_up(ledger)
    except InputError:
        return False
    return True


def remembered(
    ledger: Ledger, teacher: Any = None, teachers: Any = None, judge: Any = None
) -> tuple[Any, References, dict[str, Any]]:
    """The run's program, its references, and the settings that `synthesize` was called with, or these models instead.
    Raises RunDirError where only the script that started the run can build them."""
    program, settings = _set_up(ledger, teacher, teachers, judge)
    return program, References(tuple(ledger.references()), ledger.meta("left_out") or {}), settings


def _set_up(ledger: Ledger, teacher: Any = None, teachers: Any = None, judge: Any = None) -> tuple[Any, dict[str, Any]]:
    """The same without the references, which may be many."""
    recorded, folder = settings_of(ledger), ledger.path.parent
    settings = dict(recorded.values)
    program = _program(ledger, settings.pop("program", None))
    settings["size"], settings["filters"] = ledger.meta("size"), _filters(recorded, folder)
    settings["teacher"] = _configs(recorded.pools[ANY], "teacher", folder) if teacher is None else teacher
    if teachers is None:
        pools = {stage: pool for stage, pool in recorded.pools.items() if stage != ANY}
        teachers = {stage: _configs(pool, "teacher", folder) for stage, pool in pools.items()}
    settings["teachers"] = teachers
    settings["judge"] = _judge(recorded, folder) if judge is None else judge
    return program, settings


def _filters(settings: WorkSettings, folder: Path) -> list[dict[str, Any]]:
    """The filters as a file would name them. Raises RunDirError for one that was a Python object."""
    filters: list[dict[str, Any]] = settings.values.get("filters") or []
    if any("class" in each for each in filters):
        raise NeedsScript(
            folder, "one of its filters is defined in a script or notebook", "call synthesize(…, run_dir=…) there"
        )
    return filters


def _judge(settings: WorkSettings, folder: Path) -> TeacherConfig | None:
    """None: there is none, or it is the teacher, whose endpoint may be another now. Raises RunDirError for one that was
    a Python object."""
    judge, teacher = settings.judge, settings.teacher
    if not judge:
        return None
    config, of_teacher = judge.get("config"), teacher.get("config")
    same = config is not None and of_teacher is not None and config in (of_teacher, {**of_teacher, "temperature": 0.0})
    if same or (config is None and of_teacher is None and judge["model"] == teacher.get("model")):
        return None
    return _configs([judge], "judge", folder)[0]


def _configs(pool: Sequence[Model], role: str, folder: Path) -> list[TeacherConfig]:
    """The settings of models. Raises RunDirError for one that was a Python object."""
    if any(member.get("config") is None for member in pool):
        raise NeedsScript(
            folder,
            f"its {role} was a Python object",
            "call synthesize(…, run_dir=…) in its script or notebook, or pass the same model with " + setting(role),
        )
    return [check_config(TeacherConfig, {**member["config"], "weight": member.get("weight", 1.0)}) for member in pool]


def _program(ledger: Ledger, named: str | None) -> Any:
    """Raises RunDirError where only the script that started the run can build it."""
    folder, identity = ledger.path.parent, ledger.meta("identity")
    if named is not None:
        program = own_program(named)
        load_state(program, ledger.meta("program"), str(folder))
        return program
    kind = {method.__name__: method for method in METHODS.values()}.get(identity["kind"])
    if kind is None:
        raise NeedsScript(
            folder, "it uses a program of its own", "continue with the command, script or notebook that started it"
        )
    number, state = identity["instructions_per_feature"], ledger.meta("program")
    program = kind(ledger.meta("features"), number, criteria=has_criteria(state))
    try:
        load_state(program, state, str(folder))
    except ConfigError:
        raise NeedsScript(
            folder,
            "made with other prompts (an earlier version's or a script's own)",
            "continue with that version or script, or use another folder; refed export still works",
        ) from None
    return program

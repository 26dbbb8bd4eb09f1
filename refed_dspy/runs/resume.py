"""Continues a run, given only its folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from refed_dspy.config.keywords import checked
from refed_dspy.config.loading import warn_of_unused
from refed_dspy.data.references import References
from refed_dspy.errors import RunDirError, briefly
from refed_dspy.files import path_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import named_work
from refed_dspy.runs.remembered import (
    remembered_filters,
    remembered_judge,
    remembered_program,
    remembered_stages,
    remembered_teachers,
)
from refed_dspy.runs.result import Synthesis
from refed_dspy.runs.synthesize import synthesize
from refed_dspy.teachers import TeacherLike
from refed_dspy.teachers.by_stage import ANY
from refed_dspy.teachers.progress import Progress

_KEPT = (
    "size", "seed", "per_reference", "max_failure_share", "reuse", "track", "judge_program", "judge_scorer",
    "accept_changed",
)  # fmt: skip
"""The settings that the ledger keeps as they were set."""


@briefly
@checked
def resume(
    run_dir: str | Path,
    *,
    size: int | None = None,
    teacher: TeacherLike | Sequence[TeacherLike] | None = None,
    teachers: Mapping[str, TeacherLike | Sequence[TeacherLike]] | None = None,
    judge: TeacherLike | None = None,
    max_failure_share: float | None = None,
    max_cost: float | None = None,
    max_calls: float | None = None,
    max_minutes: float | None = None,
    cluster: str | None = None,
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
        cluster: where a run on a cluster goes on; see `synthesize`.
        progress, on_progress: as `synthesize`.

    Raises:
        RunDirError: there is no run, or only the script that started it can build its program or teacher.
    """
    with Ledger.read(path_of(run_dir, "run_dir")) as ledger:
        _refuse_other_work(ledger)
        program, references, settings = remembered(ledger, teacher, teachers, judge)
    if teacher is None:
        warn_of_unused("teacher", settings["teacher"])
    if judge is None and settings["judge"] is not None:
        warn_of_unused("judge", [settings["judge"]])
    changed: dict[str, Any] = {"size": size, "max_failure_share": max_failure_share}
    changed |= {"max_cost": max_cost, "max_calls": max_calls, "max_minutes": max_minutes, "cluster": cluster}
    settings |= {name: value for name, value in changed.items() if value is not None}
    return synthesize(program, references, run_dir=run_dir, progress=progress, on_progress=on_progress, **settings)


def remembered(
    ledger: Ledger, teacher: Any = None, teachers: Any = None, judge: Any = None
) -> tuple[Any, References, dict[str, Any]]:
    """The run's program, its references, and the settings that `synthesize` was called with, or these models instead.
    Raises RunDirError where only the script that started the run can build them."""
    settings: dict[str, Any] = {name: value for name in _KEPT if (value := ledger.meta(name)) is not None}
    settings["teacher"] = remembered_teachers(ledger, ANY) if teacher is None else teacher
    settings["teachers"] = remembered_stages(ledger) if teachers is None else teachers
    settings["filters"], settings["guards"] = remembered_filters(ledger), False  # the guards are among them
    settings["judge"] = remembered_judge(ledger) if judge is None else judge
    return remembered_program(ledger), References(tuple(ledger.references()), ledger.meta("left_out") or {}), settings


def _refuse_other_work(ledger: Ledger) -> None:
    """Raises RunDirError where there is no run to go on with."""
    folder = ledger.path.parent
    if (holds := ledger.holds()) not in {"", "run"}:
        raise RunDirError(
            f"{folder}: contains {named_work(holds)}, not a run; continue with the command that started it"
        )
    if not ledger.meta("identity"):
        raise RunDirError(f"{folder}: the run never started; start it with refed synth")

"""Continues a run, given only its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.config.base import Capped
from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import warn_of_unused
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import RunDirError, briefly
from refed_dspy.files import path_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import named_work
from refed_dspy.runs.remembered import remembered
from refed_dspy.runs.result import Synthesis
from refed_dspy.runs.synthesize import synthesize
from refed_dspy.teachers.progress import Progress

if TYPE_CHECKING:
    from refed_dspy.keywords import ResumeKeywords


@briefly
@with_keywords(RunConfig, "size", "teacher", "teachers", "judge", "max_failure_share", *Capped.model_fields, "cluster")
def resume(
    run_dir: str | Path,
    *,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **changed: Unpack[ResumeKeywords],
) -> Synthesis:
    """Continue the run in `run_dir` with the references, program, teachers and settings in its ledger, except those
    that are `changed`.

    A teacher that is given is the same model at another address, or with other limits, and is remembered from then on;
    of a pool other members or weights, of which one must stay. `teachers` replaces all teachers of single stages; `{}`
    removes them. Under a new cap, what earlier starts used counts; `math.inf` lifts one.

    Args:
        progress, on_progress: as `synthesize`.

    Raises:
        RunDirError: there is no run, or only the script that started it can build its program or teacher.
    """
    given: dict[str, Any] = {name: value for name, value in changed.items() if value is not None}
    with Ledger.read(path_of(run_dir, "run_dir")) as ledger:
        _refuse_other_work(ledger)
        models = {role: given.get(role) for role in ("teacher", "teachers", "judge")}
        program, references, settings = remembered(ledger, **models)
    for role in ("teacher", "judge"):
        if role not in given and settings[role] is not None:
            warn_of_unused(role, settings[role] if role == "teacher" else [settings[role]])
    settings |= given
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

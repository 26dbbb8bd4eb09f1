"""The program that a compile has to beat: the registered champion."""

from __future__ import annotations

import logging
from pathlib import Path

from refed_dspy.errors import ConfigError
from refed_dspy.optimizers.job import Job
from refed_dspy.programs.saved import MANIFEST, load_state
from refed_dspy.tracking.background import wanted
from refed_dspy.tracking.registry import Registered, champion
from refed_dspy.tracking.store import NotTracked, noted_run

log = logging.getLogger("refed_dspy.optimizers")


def champion_for(job: Job, folder: Path) -> Registered | None:
    """The registered champion, where this compile is tracked and it is a program of the same kind.

    None also where this very compile made it, on an earlier start.
    """
    if not wanted(job.settings.track):
        return None
    try:
        found = champion(job.settings.name)
        own = noted_run(folder)
        if found is not None and own is not None and found.state.get(MANIFEST, {}).get("run_id") == own:
            return None
        if found is not None:
            load_state(job.student, dict(found.state), f"champion of {job.settings.name}")
    except NotTracked as error:
        log.warning("MLflow cannot say which program is champion (%s): nothing will be promoted by this compile", error)
        return None
    except ConfigError as error:
        log.warning("%s: not compared with it", error)
        return None
    return found

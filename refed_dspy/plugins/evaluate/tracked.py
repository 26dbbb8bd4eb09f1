"""An evaluation in MLflow: who was judged by whom, its figures, its table and its picture."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from refed_dspy.data.stored import EVALUATION, PICTURE, TABLE
from refed_dspy.records import digest
from refed_dspy.tracking.background import LONGEST_WAIT, run_wanted, tracking
from refed_dspy.tracking.store import Store

_PARAMETERS = ("benchmark", "model", "baseline", "judge", "size")
_NOT_IN_NAMES = re.compile(r"[^\w/. :-]", re.ASCII)
"""What MLflow takes in no metric's name; an arm's may have it."""


def copy_evaluation(store: Store, last: bool) -> None:
    """Copy to MLflow what the evaluation in the store's folder came to. Raises NotTracked.

    `evaluation.json` has `figures` (name → number), `_PARAMETERS`, and `stopped`, empty where nothing ended it early.
    """
    if not last or not (store.folder / EVALUATION).is_file():
        return
    facts = json.loads((store.folder / EVALUATION).read_text(encoding="utf-8"))
    parameters = {name: facts[name] for name in _PARAMETERS if name in facts}
    run_id = store.run("evaluation", store.folder.absolute().name, parameters)
    store.ended(run_id, "KILLED" if facts["stopped"] else "FINISHED")
    if store.noted("figures") == (state := digest([facts["figures"], facts["stopped"]])):
        return
    now = time.time()
    figures = {_NOT_IN_NAMES.sub("-", name): value for name, value in facts["figures"].items() if value is not None}
    store.metrics(run_id, [(name, value, now, 0) for name, value in figures.items()])
    store.tags(run_id, {"refed.date": facts["date"], "refed.judge_said": ", ".join(facts["judge_said"])})
    store.stopped(run_id, facts["stopped"])
    for name in (TABLE, PICTURE):
        if (store.folder / name).is_file():
            store.file(run_id, store.folder / name)
    store.remember(figures=state)


def track_evaluation(folder: Path, track: bool | None) -> None:
    """Copy to MLflow, if it is wanted, what the evaluation in `folder` came to. Returns when that is done."""
    with tracking(folder, copy_evaluation, run_wanted(track, folder), LONGEST_WAIT):
        pass  # the work itself is over

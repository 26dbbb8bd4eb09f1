"""An evaluation in MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from refed_dspy.data.stored import EVALUATION, PICTURE, TABLE
from refed_dspy.plugins.evaluate.tracked import copy_evaluation
from refed_dspy.tracking.store import Store, noted_run
from refed_dspy.tracking.track import track
from tests.support import mlflow_stores
from tests.support.mlflow_stores import Mlflow

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked

FACTS: dict[str, Any] = {
    "benchmark": "alpaca-eval 0.6.6", "model": "mine", "baseline": "theirs", "judge": "openai/judge", "size": 60,
    "judge_said": ["judge-2026"], "date": "2026-11-23", "stopped": "",
    "figures": {"win_rate": 53.8, "standard_error": 3.55, "win_rate_low": None, "n": 60},
}  # fmt: skip


def copied(folder: Path, facts: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / EVALUATION).write_text(json.dumps(facts), "utf-8")
    for name in (TABLE, PICTURE):
        (folder / name).write_text("made", "utf-8")
    store = Store(folder)
    store.connect()
    copy_evaluation(store, True)


def test_its_figures_table_and_picture_are_there_once(tracked: Mlflow, tmp_path: Path) -> None:
    folder = tmp_path / "evaluation"
    copied(folder, FACTS | {"figures": {}, "stopped": "max_cost"})
    (run,) = tracked.runs("evaluation")
    assert run.info.status == "KILLED" and run.data.tags["refed.stopped"] == "max_cost" and not run.data.metrics
    copied(folder, FACTS)
    (run,) = tracked.runs("evaluation")
    assert run.info.run_id == noted_run(folder) and run.info.status == "FINISHED"
    assert run.data.metrics == {"win_rate": 53.8, "standard_error": 3.55, "n": 60}
    assert run.data.params == {name: str(FACTS[name]) for name in ("benchmark", "model", "baseline", "judge", "size")}
    assert run.data.tags["refed.judge_said"] == "judge-2026" and "refed.stopped" not in run.data.tags
    assert {each.path for each in tracked.client.list_artifacts(run.info.run_id)} == {TABLE, PICTURE}
    before = tracked.everything()
    copied(folder, FACTS)
    assert tracked.everything() == before


def test_before_there_are_figures_nothing_is_copied(tracked: Mlflow, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.connect()
    copy_evaluation(store, True)
    assert not tracked.runs()


def test_arms_names_and_folders_without_a_ledger_can_be_logged(tracked: Mlflow, tmp_path: Path) -> None:
    """IFEval asks nobody."""
    facts = {"benchmark": "ifeval", "judge_said": [], "date": "2026-11-23", "stopped": ""}
    (tmp_path / EVALUATION).write_text(json.dumps({**facts, "figures": {"a+b (new)/prompt_strict": 50.0}}), "utf-8")
    assert track(tmp_path) == noted_run(tmp_path)
    (run,) = tracked.runs("evaluation")
    assert run.data.metrics == {"a-b -new-/prompt_strict": 50.0} and run.data.params == {"benchmark": "ifeval"}

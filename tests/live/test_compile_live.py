"""A compile on a real model: bootstrap with the tiny embedded teacher, capped, promoted, and run by its address."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import refed_dspy
from refed_dspy import ReferenceLevelFeedback, TeacherConfig

pytestmark = pytest.mark.live
SMOKE = TeacherConfig(model="embedded-smoke", max_tokens=700, temperature=0.3, concurrency=2)
CAP = 26


def test_a_capped_compile_ends_at_its_cap_and_its_champion_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFED_TRACK", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    made = refed_dspy.compile(
        ReferenceLevelFeedback(features={"topic": "the topic, in one sentence"}),
        [{"instruction": f"Name {n} fruits.", "response": f"Here are {n} fruits."} for n in range(2, 12)],
        teacher=SMOKE,
        optimizer="bootstrap",
        options={"max_rounds": 3},
        metric={"criteria": {"clear": "one reading only"}, "accept": 0.1},
        instructions_per_feature=1,
        train=6,
        validation=1,
        test=1,
        max_calls=CAP,
        out=tmp_path / "compile",
    )
    assert made.manifest["calls"] <= CAP
    assert made.stopped == "max_calls"
    assert json.loads(made.path.read_text())["refed"]["stopped"] == "max_calls"
    refed_dspy.promote("refed")
    run = refed_dspy.synthesize(
        "models:/refed@champion",
        [{"instruction": "Name a fruit.", "response": "An apple."}],
        size=1,
        teacher=SMOKE,
        max_calls=20,
        run_dir=tmp_path / "run",
    )
    assert run.status["usage"]["instruction_feedback"]["calls"] >= 1

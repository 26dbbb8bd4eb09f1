"""What works in one process only, and what needs the cluster."""

from __future__ import annotations

from pathlib import Path

import refed_dspy
from refed_dspy.errors import ConfigError, RunDirError
from tests.support.said import Said

PAIRS = [{"instruction": f"Explain topic {i}.", "response": f"Topic {i} is one of many. " * 5} for i in range(8)]


def test_an_estimate_is_made_in_one_process(said: Said, tmp_path: Path) -> None:
    with said.by(ConfigError):
        refed_dspy.estimate(None, PAIRS, size=40, teacher="simulated", run_dir=tmp_path / "run", cluster="local:2")
    assert not (tmp_path / "run").exists()


def test_a_run_on_a_cluster_goes_on_with_the_cluster(said: Said, tmp_path: Path) -> None:
    (tmp_path / "run" / "shards").mkdir(parents=True)
    with said.by(RunDirError):
        refed_dspy.synthesize(None, PAIRS, size=4, teacher="simulated", run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "ledger.sqlite").exists()

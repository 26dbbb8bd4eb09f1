"""A program kept in MLflow is loaded by its address: from a real store, and nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import pytest

from refed_dspy import ReferenceLevelFeedback
from refed_dspy.errors import ConfigError
from refed_dspy.programs.load import load_into
from refed_dspy.programs.saved import program_digests, save_program
from tests.support.said import Said


@pytest.mark.slow
def test_a_program_is_loaded_from_a_run(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    import mlflow

    tuned = ReferenceLevelFeedback(guidance={"response_generation": "Be brief."})
    save_program(tuned, tmp_path / "program.json")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    with mlflow.start_run() as run:
        mlflow.log_artifact(str(tmp_path / "program.json"), "program")
    for address in (f"runs:/{run.info.run_id}/program/program.json", f"runs:/{run.info.run_id}/program"):
        loaded = ReferenceLevelFeedback()
        load_into(loaded, address)
        assert program_digests(loaded) == program_digests(tuned)
    with said.by(ConfigError):
        load_into(ReferenceLevelFeedback(), "runs:/nosuchrun/program.json")

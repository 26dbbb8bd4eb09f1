"""What those who watch a run on a cluster are told while it is at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugins.cluster.ray.conftest import Begin

pytestmark = pytest.mark.cluster


def test_mlflow_has_its_numbers_every_interval(run: Begin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("REFED_TRACK", "true")
    made = run(600, constants={"refed_dspy.plugins.cluster.drive:TRACKING_INTERVAL": 1.0})
    code, told = made.complete()
    assert code == 0, told
    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'refed-dspy'")
    (logged,) = client.search_runs([experiment.experiment_id])
    kept, workers, rate = (
        [point.value for point in client.get_metric_history(logged.info.run_id, f"cluster/{name}")]
        for name in ("kept", "workers", "calls_a_second")
    )
    assert len(kept) >= 2 and kept == sorted(kept) and 0 < kept[-1] <= 600, "while it was at work"
    assert max(workers) == 2 and max(rate) > 0
    assert logged.data.metrics["kept"] == 600 and logged.info.status == "FINISHED"

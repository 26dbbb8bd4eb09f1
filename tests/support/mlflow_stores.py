"""Real MLflow for tests: a SQLite file for each of them, copied from one made once, and a server in its own process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

EXPERIMENT = "refed-dspy"
PASSWORD = "pw-8642-secret"
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


class Mlflow:
    """A store of a test's own, and where this process is told to track."""

    def __init__(self, home: Path, template: Path) -> None:
        home.mkdir(parents=True)
        self.file = home / "mlflow.db"
        shutil.copy(template, self.file)
        self.home, self.uri = home, f"sqlite:///{self.file}"
        self.client.create_experiment(EXPERIMENT, str(home / "artifacts"))

    @property
    def client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    def use(self, uri: str | None = None) -> None:
        """Have this process track to this store, or to `uri`."""
        import mlflow

        mlflow.set_tracking_uri(uri or self.uri)  # in the environment as well, for children

    def runs(self, kind: str | None = None) -> list[Any]:
        """All runs, the first one first."""
        experiment = self.client.get_experiment_by_name(EXPERIMENT).experiment_id
        runs = self.client.search_runs([experiment], order_by=["attributes.start_time ASC"], max_results=1000)
        return [run for run in runs if kind is None or run.data.tags.get("refed.kind") == kind]

    def history(self, run_id: str, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric, as logged."""
        return [(each.step, each.value) for each in self.client.get_metric_history(run_id, name)]

    def everything(self) -> list[Any]:
        """What is known of all runs, but for the times at which they ended."""
        return [
            (
                run.info.run_id, run.info.run_name, run.info.status, run.data.params, run.data.tags,
                {name: self.history(run.info.run_id, name) for name in run.data.metrics},
                [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs],
                sorted(each.path for each in self.client.list_artifacts(run.info.run_id)),
            )
            for run in self.runs()
        ]  # fmt: skip

    def aliases(self, name: str = "refed") -> dict[str, str]:
        """Alias → version of a registered model."""
        return {alias: str(version) for alias, version in self.client.get_registered_model(name).aliases.items()}

    def version(self, number: str, name: str = "refed") -> Any:
        return self.client.get_model_version(name, number)


@pytest.fixture(scope="session")
def mlflow_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; making one takes seconds. Workers of pytest-xdist share it."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    os.environ.update(_QUIET)
    made = root / "mlflow-template.db"
    with FileLock(root / "mlflow-template.lock"):
        if not made.is_file():
            import mlflow

            part = root / "mlflow-template-part.db"
            mlflow.MlflowClient(tracking_uri=f"sqlite:///{part}").search_experiments()
            part.rename(made)
    return made


@contextmanager
def tracked_to(home: Path, template: Path) -> Iterator[Mlflow]:
    """Track to a new store in `home`."""
    import mlflow
    from mlflow.tracking._tracking_service import utils

    before = utils._tracking_uri, os.environ.get("MLFLOW_TRACKING_URI"), os.environ.get("REFED_TRACK")
    os.environ["REFED_TRACK"] = "true"
    store = Mlflow(home, template)
    store.use()
    try:
        yield store
    finally:
        mlflow.set_tracking_uri(before[0])
        for name, value in zip(("MLFLOW_TRACKING_URI", "REFED_TRACK"), before[1:], strict=True):
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture
def tracked(tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mlflow]:
    """Tracking is on, to a store of the test's own; the working folder is the test's."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "REFED_TRACK"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # a test may change it: what was before is restored last
    with tracked_to(tmp_path / "mlflow", mlflow_template) as store:
        yield store


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def written(folder: Path) -> dict[Path, bytes]:
    """Every file under `folder`."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Server:
    """A real `mlflow server` process; `kill` ends it as a power cut would, `start` brings it back."""

    def __init__(self, home: Path, template: Path) -> None:
        self.home, self.port = home, free_port()
        home.mkdir(parents=True)
        shutil.copy(template, home / "mlflow.db")
        self.root = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 90) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"}
        environment |= {**_QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.home / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.home / "artifacts")]
        with (self.home / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=self.home, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        ends = time.monotonic() + seconds
        while not self._answers():
            if time.monotonic() > ends or self.process.poll() is not None:
                self.kill()
                raise RuntimeError(f"mlflow server did not start: {(self.home / 'server.log').read_text()[-2000:]}")
            time.sleep(0.1)

    def kill(self) -> None:
        if self.process is not None:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)  # its own group: it and its worker
            self.process.wait()
            self.process = None

    def runs(self) -> list[Any]:
        """What the server's database holds, whether it runs or not."""
        import mlflow

        client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.home / 'mlflow.db'}")
        runs = client.get_experiment_by_name(EXPERIMENT)
        return list(client.search_runs([runs.experiment_id])) if runs else []

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.root}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

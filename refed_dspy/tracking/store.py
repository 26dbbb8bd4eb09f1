"""MLflow's client, and the note in a folder of what was copied to MLflow. MLflow is imported only when used, as that
takes seconds."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any

from refed_dspy.concurrency import OutOfTime
from refed_dspy.errors import RefedError, one_line
from refed_dspy.files import whole_file
from refed_dspy.programs.mlflow_address import ask_mlflow, mlflow_client, store_folder, tracking_uri, without_secrets

NOTE = "tracking.json"
FOLDER_RUN = "run"
"""The name under which the id of the folder's own run is noted; other ids are those of candidates."""
EXPERIMENT = "refed-dspy"
LONGEST_PARAMETER = 500
STOPPED = "refed.stopped"


class NotTracked(RefedError):
    """MLflow could not be reached or refused. Nothing is lost: `refed track DIR` copies it later."""


def noted_run(folder: Path) -> str | None:
    """The id of the folder's run in MLflow, or None where none is noted."""
    return _noted(folder)[0]


def where(folder: Path) -> str | None:
    """Where the folder's run is looked at in MLflow, a command or an address; None where none is noted."""
    run, uri = _noted(folder)
    if run is None:
        return None
    if not uri.startswith("sqlite:"):
        return uri
    # MLflow's job workers wait for the network, and without one its pages never come up.
    return f"MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 --backend-store-uri {shlex.quote(uri)}"


def _noted(folder: Path) -> tuple[str | None, str]:
    """The id of the folder's run in MLflow, or None where none is noted; MLflow's address."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
        return str(note["runs"][FOLDER_RUN]), str(note["uri"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def callers_run() -> Any | None:
    """The run that the calling thread has begun with `mlflow.start_run`, if it is in the store that this package uses;
    None for one in another store, which no run of ours can be in."""
    mlflow: Any = sys.modules.get("mlflow")
    run = mlflow.active_run() if hasattr(mlflow, "active_run") else None  # another thread may be importing it
    return run if run is not None and mlflow.get_tracking_uri() == tracking_uri() else None


class Store:
    """One folder's run in MLflow. What was copied is noted in the folder, so that copying again adds nothing.

    Raises NotTracked from every method where MLflow fails.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.client: Any = None
        self._running = False
        self._unanswered: Thread | None = None
        self._around = callers_run()
        self.note: dict[str, Any] = {}

    def connect(self) -> None:
        """Make MLflow's client and read the note. Before anything else."""
        if self.client is None:
            self.client = self.call(mlflow_client)
            self.note = self._read()

    def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call MLflow. Raises NotTracked for whatever it raises, and where it does not answer in time: nothing else is
        asked then until it has."""
        if self._unanswered is not None and self._unanswered.is_alive():
            raise NotTracked("it has not answered yet")
        try:
            return ask_mlflow(function, *args, **kwargs)
        except OutOfTime as error:
            self._unanswered = error.thread
            raise NotTracked(str(error)) from None
        except Exception as error:  # noqa: BLE001 — MLflow's own, SQLAlchemy's, its HTTP client's, the disk's
            raise NotTracked(without_secrets(error, 200)) from None

    def run(self, kind: str, name: str, parameters: Mapping[str, Any], child: str | None = None) -> str:
        """The id of the folder's run, or of the `child` noted under that name; created if there is none yet."""
        key, runs, client = child or FOLDER_RUN, dict(self.noted("runs") or {}), self.client
        if key not in runs:
            tags = {"refed.kind": kind, "refed.folder": str(self.folder.absolute())}
            if child is not None:
                tags["mlflow.parentRunId"] = runs[FOLDER_RUN]
            elif self._around is not None:
                tags["mlflow.parentRunId"] = self._around.info.run_id
            made = self.call(client.create_run, self._experiment(), tags=tags, run_name=name)
            runs[key] = made.info.run_id
            self.remember(runs=runs, experiment=made.info.experiment_id)
            self._running = True
        elif child is None and not self._running:
            self.call(client.update_run, runs[key], "RUNNING")
            self._running = True
        self._parameters(key, str(runs[key]), parameters)
        return str(runs[key])

    def _parameters(self, key: str, run_id: str, parameters: Mapping[str, Any]) -> None:
        written = self.noted("parameters") or {}
        if written.get(key):
            return
        from mlflow.entities import Param

        present = {name: value for name, value in parameters.items() if value is not None}
        params = [Param(name, one_line(value, LONGEST_PARAMETER)) for name, value in present.items()]
        self.call(self.client.log_batch, run_id, params=params)
        self.remember(parameters={**written, key: True})

    def metrics(self, run_id: str, points: Sequence[tuple[str, float, float, int]]) -> None:
        """Log (name, value, time in seconds, step)."""
        from mlflow.entities import Metric

        metrics = [Metric(name, float(value), int(at * 1000), step) for name, value, at, step in points]
        for first in range(0, len(metrics), 500):
            self.call(self.client.log_batch, run_id, metrics=metrics[first : first + 500])

    def tags(self, run_id: str, tags: Mapping[str, Any]) -> None:
        for name, value in tags.items():
            self.call(self.client.set_tag, run_id, name, one_line(value, LONGEST_PARAMETER))

    def stopped(self, run_id: str, reason: str | None) -> None:
        """Tag the run with what ended it early; if nothing did, remove the tag of an earlier start."""
        if reason:
            self.tags(run_id, {STOPPED: reason})
        elif STOPPED in self.call(self.client.get_run, run_id).data.tags:
            self.call(self.client.delete_tag, run_id, STOPPED)

    def file(self, run_id: str, path: Path, under: str | None = None) -> None:
        """Log a file of the folder."""
        self.call(self.client.log_artifact, run_id, str(path), under)

    def data_set(self, run_id: str, name: str, digest: str, source: str, rows: int, context: str) -> None:
        """Log a data set as the run's input or output."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=name[:500], digest=digest[:36], source_type="local", source=json.dumps({"uri": source}),
            profile=json.dumps({"num_rows": rows}),
        )  # fmt: skip
        tags = [InputTag("mlflow.data.context", context)]
        self.call(self.client.log_inputs, run_id, [DatasetInput(data, tags)])

    def ended(self, run_id: str, status: str = "FINISHED", at: float | None = None) -> None:
        self.call(self.client.set_terminated, run_id, status, int((at or time.time()) * 1000))

    def noted(self, name: str) -> Any:
        """What was noted under `name`, or None."""
        return self.note.get(name)

    def remember(self, **facts: Any) -> None:
        """Note what was copied to MLflow."""
        self.note |= facts
        try:
            with whole_file(self.folder / NOTE) as file:
                file.write(json.dumps(self.note, indent=1).encode())
        except OSError as error:
            raise NotTracked(f"{self.folder / NOTE}: {one_line(error.strerror or error)}") from None

    def _experiment(self) -> str:
        """Where the folder's run is, or is to be: where the caller's is, if it is made inside of one."""
        if self.noted("experiment"):
            return str(self.noted("experiment"))
        if self._around is not None:
            return str(self._around.info.experiment_id)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self.call(self.client.get_experiment_by_name, name)
        if experiment:
            return str(experiment.experiment_id)
        # A SQLite file has its artifacts beside it: MLflow's default is the folder one happens to be in.
        files = None if (folder := store_folder()) is None else (folder / "mlruns").as_uri()
        return str(self.call(self.client.create_experiment, name, files))

    def _read(self) -> dict[str, Any]:
        """The note, if it is of the same MLflow: to another server nothing was copied yet."""
        empty_note = {"uri": without_secrets(self.client.tracking_uri)}
        try:
            note = json.loads((self.folder / NOTE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return empty_note
        except (OSError, ValueError) as error:
            raise NotTracked(f"{self.folder / NOTE}: cannot be read ({one_line(error)}); remove it") from None
        same = isinstance(note, dict) and note.get("uri") == empty_note["uri"]
        return note if same else empty_note

"""A run while MLflow is away, `refed track`, and a real MLflow server."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.cli.main import app
from refed_dspy.errors import TeacherError
from refed_dspy.runs import synthesize as synthesis
from refed_dspy.tracking.track import track
from tests.conftest import KEY, KEY_VARIABLE
from tests.support import mlflow_stores
from tests.support.mlflow_stores import PASSWORD, Mlflow, Server, written
from tests.support.said import Said
from tests.support.tracked_runs import made, teacher, warnings

pytestmark = pytest.mark.slow
mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked

# --- MLflow is away


def test_a_closed_port_costs_one_warning(said: Said, tracked: Mlflow, caplog: pytest.LogCaptureFixture) -> None:
    tracked.use("http://127.0.0.1:9")
    began = time.monotonic()
    run = made(size=9)
    assert time.monotonic() - began < 20 and run.complete
    (warned,) = warnings(caplog)
    said(warned)
    could_not = CliRunner().invoke(app, ["track", "run"])
    assert could_not.exit_code == 1 and not Path("run/tracking.json").exists()
    said(could_not.stderr)
    tracked.use()
    assert CliRunner().invoke(app, ["track", "run"]).exit_code == 0
    (run,) = tracked.runs()
    assert run.data.metrics["kept"] == 9 and run.info.status == "FINISHED" and run.inputs.dataset_inputs


TOKEN = "dapi-8642-secret-8642-secret-8642"


@pytest.mark.parametrize(
    "address",
    [
        f"http://someone:{PASSWORD}@127.0.0.1:1",
        f"http://127.0.0.1:1/?page=1&access_token={TOKEN}",
        f"databricks://{TOKEN}",
    ],
)
def test_a_secret_in_the_address_is_in_no_warning_and_no_file(
    tracked: Mlflow, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    tracked.use(address)
    made()
    result = CliRunner().invoke(app, ["track", "run"])
    promoted = CliRunner().invoke(app, ["compile", "promote"])
    program = CliRunner().invoke(app, ["synth", "--teacher", "sim/x", "--run-dir", "b", "--program", "runs:/a/b.json"])
    assert warnings(caplog)
    texts = {"warnings": caplog.text, "track": result.output, "promote": promoted.output, "program": program.output}
    assert [name for name, text in texts.items() if "8642" in text] == []
    assert not [path for path, content in written(Path("run")).items() if b"8642" in content]


def test_a_store_whose_address_has_a_token_is_found_again_and_the_token_is_not_noted(tracked: Mlflow) -> None:
    tracked.use(f"{tracked.uri}?token={TOKEN}")
    made()
    assert CliRunner().invoke(app, ["track", "run"]).exit_code == 0
    tracked.use(f"{tracked.uri}?token={TOKEN[::-1]}")  # it was renewed
    assert CliRunner().invoke(app, ["track", "run"]).exit_code == 0
    assert len(tracked.runs()) == 1
    assert not [path for path, content in written(Path("run")).items() if b"8642" in content]


def test_a_store_that_lost_the_run_is_told_of_in_one_line_with_what_to_do(
    tracked: Mlflow, caplog: pytest.LogCaptureFixture
) -> None:
    made()
    for run in tracked.runs():
        tracked.client.delete_run(run.info.run_id)
    before = made(size=9)
    assert before.complete and "Traceback" not in caplog.text
    result = CliRunner().invoke(app, ["track", "run"])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output


def test_no_key_is_told(tracked: Mlflow, locked: SimulatedTeacher) -> None:
    made(teacher=teacher(locked, api_key_env=KEY_VARIABLE))
    (run,) = tracked.runs()
    assert run.info.status == "FINISHED"
    for path, content in {**written(tracked.home), **written(Path("run"))}.items():
        assert KEY.encode() not in content, path


@pytest.mark.slow
def test_mlflow_s_own_log_lines_are_not_shown() -> None:
    """It tells whoever uses it first of each table that it makes."""
    script = (
        "import logging; from refed_dspy.tracking.store import mlflow_client; mlflow_client();"
        "print(logging.getLogger('mlflow.store.db.utils').isEnabledFor(logging.INFO))"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


# --- the track command


def test_tracking_a_folder_afterwards(said: Said, tracked: Mlflow) -> None:
    made(track=False)
    result = CliRunner().invoke(app, ["track", "run"])
    assert result.exit_code == 0 and tracked.runs()[0].info.run_id in result.output.splitlines()[0]
    Path("empty").mkdir()
    closed = TeacherConfig(model="sim/x", api_base="http://127.0.0.1:9/v1", retries=0)
    with pytest.raises(TeacherError):
        made("unanswered", teacher=closed, track=False)
    for folder in ("empty", "none", "unanswered"):
        result = CliRunner().invoke(app, ["track", folder])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1
        said(result.stderr)


# --- a real server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("served") / "mlflow", mlflow_template)
    started.start()
    yield started
    started.kill()


def test_a_server_killed_half_way_is_told_the_rest_later_and_nothing_twice(
    tracked: Mlflow,
    server: SimulatedTeacher,
    mlflow_server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    tracked.use(mlflow_server.root.replace("http://", f"http://someone:{PASSWORD}@"))
    monkeypatch.setattr(synthesis, "TRACKING_INTERVAL", 0.2)
    server.control(latency=0.3, sigma=0.0)
    seen: list[str] = []

    def kill_once_it_has_the_run() -> None:
        while not Path("run/tracking.json").exists():  # sooner, and it has a run that nobody knows: see above
            time.sleep(0.05)
        seen.extend(run.info.status for run in mlflow_server.runs())
        mlflow_server.kill()
        server.control(latency=0.0)

    killer = threading.Thread(target=kill_once_it_has_the_run, daemon=True)
    killer.start()
    run = made(size=60, teacher=teacher(server, concurrency=2))
    killer.join(20)
    assert run.complete and seen == ["RUNNING"] and mlflow_server.process is None
    assert 1 <= len(warnings(caplog)) <= 2 and "Traceback" not in caplog.text, "one when it happens, one at the end"
    (left,) = mlflow_server.runs()
    assert left.info.status == "RUNNING" and left.data.metrics.get("kept", 0) < 60
    mlflow_server.start()
    for _ in range(2):
        assert track("run") == left.info.run_id
    (whole,) = mlflow_server.runs()
    assert whole.info.status == "FINISHED" and whole.data.metrics["kept"] == 60
    assert whole.data.metrics["calls"] == server.stats()["requests"]
    assert len(whole.inputs.dataset_inputs) == 1
    assert capfd.readouterr().out == "", "nothing is printed beside the command's own lines"
    assert not [path for path, content in written(Path("run")).items() if PASSWORD.encode() in content]

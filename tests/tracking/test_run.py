"""A run in MLflow: a real store, a real server, and the same run whatever becomes of either."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import Synthesis, TeacherConfig
from refed_dspy.cli.main import app
from refed_dspy.errors import TeacherError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.runs import synthesize as synthesis
from refed_dspy.tracking.run import copy_run, per_minute
from refed_dspy.tracking.store import NotTracked, Store
from refed_dspy.tracking.track import track
from tests.conftest import KEY, KEY_VARIABLE
from tests.support import mlflow_stores
from tests.support.mlflow_stores import PASSWORD, Mlflow, Server, free_port, written
from tests.support.scripted_engine import Writer, fake_lm, references

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked
COUNTS = ("calls", "dollars", "prompt_tokens", "completion_tokens", "failed_calls", "kept")


def made(folder: Path | str = "run", size: int = 6, **settings: Any) -> Synthesis:
    """A run on a teacher in this process."""
    return refed_dspy.synthesize(
        None, references(4), size=size, teacher=settings.pop("teacher", fake_lm(Writer())), run_dir=folder, **settings
    )


def teacher(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    price = {"prompt": 1.0, "completion": 2.0}
    values = {"model": "sim/sim-model", "api_base": server.base_url, "retries": 1, "timeout": 20, "price": price}
    return TeacherConfig(**{**values, **settings})


def spread_over_minutes(folder: Path, minutes: int) -> None:
    """Have the run's calls and samples end in so many minutes, one after the other."""
    with Ledger.create(folder) as ledger:
        begun = ledger.db.execute("SELECT min(begun) FROM starts").fetchone()[0]
        for table, key in (("calls", "id"), ("samples", "seq")):
            count = ledger.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            ledger.db.execute(
                f"UPDATE {table} SET created = ? + 1 + 60 * ((SELECT count(*) FROM {table} o WHERE o.{key} < "
                f"{table}.{key}) * ? / ?)",
                (begun, minutes, count),
            )
        ledger.db.execute("UPDATE calls SET seconds = 1")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "refed_dspy.tracking" and r.levelno >= logging.WARNING]


# --- what MLflow is told


def test_a_run_with_what_it_was_what_it_made_and_what_it_cost(tracked: Mlflow, server: SimulatedTeacher) -> None:
    made(size=12, teacher=teacher(server, temperature=0.5), seed=3, max_calls=5_000)
    (run,) = tracked.runs()
    told = run.data.params
    assert told["size"] == "12" and told["seed"] == "3" and told["references"] == "4" and told["max_calls"] == "5000"
    assert told["teacher"] == "sim/sim-model" and told["temperature"] == "0.5"
    assert told["program"] == "ReferenceLevelFeedback" and told["features"] and told["references_digest"]
    assert run.info.status == "FINISHED" and run.info.run_name == "run" and run.info.end_time
    assert run.data.tags["refed.kind"] == "synthesis" and run.data.tags["refed.complete"] == "True"
    assert run.data.tags["refed.folder"] == str(Path("run").absolute())
    status = refed_dspy.read_run("run").status
    usage = status["usage"].values()
    metrics = run.data.metrics
    assert metrics["dollars"] == pytest.approx(status["cost"]) and metrics["dollars"] > 0
    assert metrics["calls"] == sum(use["calls"] for use in usage) == server.stats()["requests"]
    assert metrics["prompt_tokens"] == sum(use["prompt_tokens"] for use in usage)
    assert metrics["completion_tokens"] == sum(use["completion_tokens"] for use in usage)
    assert metrics["kept"] == 12 and metrics["failed_calls"] == 0
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "run" and str(Path("run").absolute()) in data.dataset.source
    assert '"num_rows": 12' in data.dataset.profile


def test_metrics_minute_by_minute(tracked: Mlflow) -> None:
    made(size=9, track=False)
    spread_over_minutes(Path("run"), 4)
    with Ledger.read(Path("run")) as ledger:
        points = per_minute(ledger)
        calls = ledger.db.execute("SELECT count(*) FROM calls").fetchone()[0]
    assert list(points) == [0, 1, 2, 3]
    for name in COUNTS:
        values = [point[name] for point in points.values()]
        assert values == sorted(values), name
    assert points[3]["calls"] == calls and points[3]["kept"] == 9 and 0 < points[0]["calls"] < calls
    assert [points[m + 1]["time"] - points[m]["time"] for m in range(3)] == [60, 60, 60]
    track("run")
    (run,) = tracked.runs()
    for name in COUNTS:
        assert tracked.history(run.info.run_id, name) == [(minute, points[minute][name]) for minute in points], name


def test_while_it_goes_on_only_whole_minutes_are_told_and_none_twice(tracked: Mlflow) -> None:
    made(size=9, track=False)
    spread_over_minutes(Path("run"), 3)
    store = Store(Path("run").absolute())
    store.connect()
    for _ in range(2):
        copy_run(store, False)
        (run,) = tracked.runs()
        assert [step for step, _ in tracked.history(run.info.run_id, "calls")] == [0, 1]
        assert run.info.status == "RUNNING"
    copy_run(store, True)
    (run,) = tracked.runs()
    assert [step for step, _ in tracked.history(run.info.run_id, "calls")] == [0, 1, 2]
    assert run.info.status == "FINISHED"


def test_telling_again_adds_nothing(tracked: Mlflow) -> None:
    made()
    before = tracked.everything()
    assert len(before) == 1
    assert track("run") == track("run") == before[0][0]
    made()
    assert tracked.everything() == before


def test_a_run_refused_before_its_first_answer_is_no_run(tracked: Mlflow, caplog: pytest.LogCaptureFixture) -> None:
    closed = TeacherConfig(model="sim/x", api_base=f"http://127.0.0.1:{free_port()}/v1", retries=0)
    with pytest.raises(TeacherError):
        made(teacher=closed)
    assert tracked.runs() == [] and not warnings(caplog) and not Path("run/tracking.json").exists()


def test_the_program_s_version_is_linked(tracked: Mlflow) -> None:
    client, program = tracked.client, Path("program.json")
    refed_dspy.save_program(refed_dspy.ReferenceLevelFeedback(guidance={"response_generation": "Be brief."}), program)
    source = client.create_run(client.get_experiment_by_name("refed-dspy").experiment_id)
    client.log_artifact(source.info.run_id, str(program), "program")
    client.create_registered_model("refed")
    for _ in range(2):
        client.create_model_version("refed", f"runs:/{source.info.run_id}/program", run_id=source.info.run_id)
    client.set_registered_model_alias("refed", "champion", "2")
    refed_dspy.synthesize("models:/refed@champion", references(4), size=3, teacher=fake_lm(Writer()), run_dir="run")
    (run,) = tracked.runs("synthesis")
    told = {k.rpartition(".")[2]: v for k, v in run.data.tags.items() if k.startswith("refed.program.")}
    assert told == {"address": "models:/refed@champion", "model": "refed", "version": "2"}


# --- one run for one folder


def test_a_run_that_ended_at_a_cap_goes_on_as_the_same_run(tracked: Mlflow, server: SimulatedTeacher) -> None:
    made(size=30, teacher=teacher(server), max_calls=40)
    (run,) = tracked.runs()
    assert run.info.status == "KILLED" and "max_calls 40 is reached" in run.data.tags["refed.stopped"]
    assert run.data.tags["refed.complete"] == "False" and run.data.metrics["calls"] <= 40
    refed_dspy.resume("run", max_calls=5_000)
    (again,) = tracked.runs()
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    assert again.data.metrics["kept"] == 30 and again.data.metrics["calls"] == server.stats()["requests"]
    assert again.data.tags["refed.complete"] == "True" and again.data.params["size"] == "30"


def test_what_stopped_it_is_gone_once_it_went_on(tracked: Mlflow, server: SimulatedTeacher) -> None:
    made(size=30, teacher=teacher(server), max_calls=40)
    refed_dspy.resume("run", max_calls=5_000)
    assert not tracked.runs()[0].data.tags.get("refed.stopped")


def test_a_folder_that_was_moved_is_still_the_same_run(tracked: Mlflow) -> None:
    made()
    Path("run").rename("elsewhere")
    made("elsewhere", size=9)
    (run,) = tracked.runs()
    assert run.data.metrics["kept"] == 9


def test_a_run_in_the_working_folder_is_one_run(tracked: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("here").mkdir()
    monkeypatch.chdir("here")
    made(".")
    track(".")
    assert [run.info.run_name for run in tracked.runs()] == ["here"]


def test_runs_of_one_name_in_two_folders_have_each_their_own_data_set(tracked: Mlflow) -> None:
    for parent in ("one", "two"):
        made(Path(parent) / "run")
    for run in tracked.runs():
        (data,) = run.inputs.dataset_inputs
        assert str(Path(run.data.tags["refed.folder"])) in data.dataset.source


def test_a_server_that_goes_between_run_and_parameters_leaves_no_second_run(tracked: Mlflow) -> None:
    made(track=False)

    class Going(Store):
        def told(self, what: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(what, "__name__", "") == "log_batch":
                raise NotTracked("gone")
            return super().told(what, *args, **kwargs)

    store = Going(Path("run").absolute())
    store.connect()
    with pytest.raises(NotTracked):
        copy_run(store, True)
    track("run")
    (run,) = tracked.runs()
    assert run.data.params["size"] == "6"


def test_not_tracked_when_told_so(tracked: Mlflow, monkeypatch: pytest.MonkeyPatch) -> None:
    made("one", track=False)
    monkeypatch.setenv("REFED_TRACK", "off")
    made("two")
    assert tracked.runs() == [] and not list(Path().glob("*/tracking.json"))
    made("three", track=True)
    assert len(tracked.runs()) == 1


def test_a_run_that_was_not_to_be_tracked_is_not_tracked_on_resume(tracked: Mlflow, server: SimulatedTeacher) -> None:
    made(teacher=teacher(server), track=False)
    refed_dspy.resume("run", size=9)
    assert tracked.runs() == []


# --- MLflow is away


def test_a_closed_port_costs_one_warning(tracked: Mlflow, caplog: pytest.LogCaptureFixture) -> None:
    tracked.use(f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()
    run = made(size=9)
    assert time.monotonic() - began < 20 and run.complete
    (warned,) = warnings(caplog)
    assert "was not told" in warned and "refed track" in warned and "\n" not in warned
    assert "Traceback" not in caplog.text
    tracked.use()
    assert CliRunner().invoke(app, ["track", "run"]).exit_code == 0
    (told,) = tracked.runs()
    assert told.data.metrics["kept"] == 9 and told.info.status == "FINISHED" and told.inputs.dataset_inputs


def test_one_warning_however_often_it_was_tried(
    tracked: Mlflow, server: SimulatedTeacher, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One when it happens, one at the end."""
    tracked.use(f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr(synthesis, "EVERY", 0.05)
    server.control(latency=0.1)
    made(size=20, teacher=teacher(server))
    assert 1 <= len(warnings(caplog)) <= 2


def test_the_track_command_says_in_one_line_that_it_could_not(tracked: Mlflow) -> None:
    made(track=False)
    tracked.use(f"http://127.0.0.1:{free_port()}")
    said = CliRunner().invoke(app, ["track", "run"])
    assert said.exit_code == 1 and said.stderr.startswith("refed: ") and said.stderr.count("\n") == 1
    assert not Path("run/tracking.json").exists()


def test_a_password_in_the_address_is_in_no_warning_and_no_file(
    tracked: Mlflow, caplog: pytest.LogCaptureFixture
) -> None:
    tracked.use(f"http://someone:{PASSWORD}@127.0.0.1:{free_port()}")
    made()
    said = CliRunner().invoke(app, ["track", "run"])
    promoted = CliRunner().invoke(app, ["promote"])
    program = CliRunner().invoke(app, ["synth", "--teacher", "sim/x", "--run-dir", "b", "--program", "runs:/a/b.json"])
    assert warnings(caplog)
    told = {"warnings": caplog.text, "track": said.output, "promote": promoted.output, "program": program.output}
    assert [name for name, text in told.items() if PASSWORD in text] == []
    assert not [path for path, content in written(Path("run")).items() if PASSWORD.encode() in content]


def test_a_store_that_lost_the_run_is_told_of_in_one_line_with_what_to_do(
    tracked: Mlflow, mlflow_template: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made()
    for run in tracked.runs():
        tracked.client.delete_run(run.info.run_id)
    before = made(size=9)
    assert before.complete and "Traceback" not in caplog.text
    said = CliRunner().invoke(app, ["track", "run"])
    assert said.exit_code == 1 and said.stderr.count("\n") == 1, said.output


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


def test_tracking_a_folder_afterwards(tracked: Mlflow, tmp_path: Path) -> None:
    made(track=False)
    said = CliRunner().invoke(app, ["track", "run"])
    (run,) = tracked.runs()
    assert said.exit_code == 0 and said.output.strip().endswith(run.info.run_id)
    Path("empty").mkdir()
    for folder in ("empty", "none"):
        said = CliRunner().invoke(app, ["track", folder])
        assert said.exit_code == 2 and "no run here" in said.stderr and said.stderr.count("\n") == 1


def test_tracking_a_run_that_has_no_answer_says_so(tracked: Mlflow) -> None:
    closed = TeacherConfig(model="sim/x", api_base=f"http://127.0.0.1:{free_port()}/v1", retries=0)
    with pytest.raises(TeacherError):
        made(teacher=closed)
    said = CliRunner().invoke(app, ["track", "run"])
    assert "None" not in said.output and said.exit_code == 2


# --- a real server


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[Server]:
    started = Server(tmp_path_factory.mktemp("served") / "mlflow", mlflow_template)
    started.start()
    yield started
    started.kill()


@pytest.mark.slow
def test_a_server_killed_half_way_is_told_the_rest_later_and_nothing_twice(
    tracked: Mlflow,
    server: SimulatedTeacher,
    mlflow_server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tracked.use(mlflow_server.root.replace("http://", f"http://someone:{PASSWORD}@"))
    monkeypatch.setattr(synthesis, "EVERY", 0.2)
    server.control(latency=0.3, sigma=0.0)
    seen: list[str] = []

    def kill_once_it_is_told() -> None:
        while not Path("run/tracking.json").exists():  # sooner, and it has a run that nobody knows: see above
            time.sleep(0.05)
        seen.extend(run.info.status for run in mlflow_server.runs())
        mlflow_server.kill()
        server.control(latency=0.0)

    killer = threading.Thread(target=kill_once_it_is_told, daemon=True)
    killer.start()
    run = made(size=60, teacher=teacher(server, concurrency=2))
    killer.join(20)
    assert run.complete and seen == ["RUNNING"] and mlflow_server.process is None
    assert 1 <= len(warnings(caplog)) <= 2 and "Traceback" not in caplog.text
    (left,) = mlflow_server.runs()
    assert left.info.status == "RUNNING" and left.data.metrics.get("kept", 0) < 60
    mlflow_server.start()
    for _ in range(2):
        assert track("run") == left.info.run_id
    (whole,) = mlflow_server.runs()
    assert whole.info.status == "FINISHED" and whole.data.metrics["kept"] == 60
    assert whole.data.metrics["calls"] == server.stats()["requests"]
    assert len(whole.inputs.dataset_inputs) == 1


@pytest.fixture
def with_password(tracked: Mlflow, mlflow_server: Server) -> str:
    """The server's address with a password in it; tracked to."""
    if mlflow_server.process is None:
        mlflow_server.start()
    uri = mlflow_server.root.replace("http://", f"http://someone:{PASSWORD}@")
    tracked.use(uri)
    return uri


@pytest.mark.slow
def test_nothing_is_printed_beside_the_command_s_own_lines(
    with_password: str, capfd: pytest.CaptureFixture[str]
) -> None:
    made("printed")
    assert capfd.readouterr().out == ""


def test_no_password_is_written_down(with_password: str) -> None:
    made("noted")
    assert Path("noted/tracking.json").is_file()
    assert not [path for path, content in written(Path("noted")).items() if PASSWORD.encode() in content]

"""A run in MLflow: its parameters, its metrics minute by minute, and one MLflow run for one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.data.stored import EVALUATION, PICTURE, TABLE
from refed_dspy.errors import RunDirError, TeacherError
from refed_dspy.ledger.account import per_minute
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.summary import LIVE
from refed_dspy.plugins.evaluate.tracked import copy_evaluation
from refed_dspy.tracking.run import copy_run
from refed_dspy.tracking.store import NotTracked, Store, noted_run
from refed_dspy.tracking.track import track
from tests.support import mlflow_stores
from tests.support.mlflow_stores import Mlflow, free_port
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references
from tests.support.tracked_runs import COUNTS, made, spread_over_minutes, teacher, warnings

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked

# --- what MLflow gets


def test_work_that_is_not_logged_and_work_that_has_not_begun(
    said: Said, tracked: Mlflow, server: SimulatedTeacher
) -> None:
    judge = teacher(server).model_copy(update={"model": "sim/other-model"})
    refed_dspy.filter_data(references(3), [{"rubric": {"at_least": 2}}], judge=judge, out="filtered")
    with said.by(RunDirError):
        track("filtered")
    Ledger.create(Path("begun")).close()
    with said.by(RunDirError):
        track("begun")


def test_a_run_with_what_it_was_what_it_made_and_what_it_cost(tracked: Mlflow, server: SimulatedTeacher) -> None:
    made(size=12, teacher=teacher(server, temperature=0.5), seed=3, max_calls=5_000)
    (run,) = tracked.runs()
    logged, metrics = run.data.params, run.data.metrics
    expected = {"size": "12", "seed": "3", "references": "4", "max_calls": "5000", "temperature": "0.5"}
    expected |= {"teacher": "sim/sim-model", "program": "ReferenceLevelFeedback"}
    assert expected.items() <= logged.items() and logged["features"] and logged["references_digest"]
    assert run.info.status == "FINISHED" and run.info.run_name == "run" and run.info.end_time
    assert run.data.tags["refed.kind"] == "synthesis" and run.data.tags["refed.complete"] == "True"
    assert run.data.tags["refed.folder"] == str(Path("run").absolute())
    status = refed_dspy.read_run("run").status
    usage = status["usage"].values()
    assert metrics["dollars"] == pytest.approx(status["cost"]) and metrics["dollars"] > 0
    assert metrics["calls"] == server.stats()["requests"]
    for name in ("calls", "prompt_tokens", "completion_tokens"):
        assert metrics[name] == sum(use[name] for use in usage)
    assert metrics["kept"] == 12 and metrics["failed_calls"] == 0
    (data,) = run.inputs.dataset_inputs
    assert data.dataset.name == "run" and str(Path("run").absolute()) in data.dataset.source
    assert json.loads(data.dataset.profile)["num_rows"] == 12


def test_inside_a_run_of_the_caller_s_own_it_is_a_child_in_their_experiment(tracked: Mlflow, tmp_path: Path) -> None:
    mine = tracked.client.create_experiment("mine", str(tmp_path / "files"))
    with mlflow.start_run(experiment_id=mine) as outer:
        made()
    (child,) = (run for run in tracked.client.search_runs([mine]) if run.info.run_id != outer.info.run_id)
    assert child.data.tags["mlflow.parentRunId"] == outer.info.run_id and child.data.metrics["kept"] == 6
    assert tracked.runs() == [] and tracked.client.get_run(outer.info.run_id).data.metrics == {}
    made(size=9)  # goes on outside of it, as the same run
    assert tracked.runs() == [] and tracked.client.get_run(child.info.run_id).data.metrics["kept"] == 9


def test_a_run_of_the_caller_s_own_in_another_store_is_no_parent(
    tracked: Mlflow, tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Mlflow(tmp_path / "other", mlflow_template)
    other.use()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracked.uri)
    with mlflow.start_run(experiment_id=other.client.get_experiment_by_name("refed-dspy").experiment_id):
        made()
    (run,) = tracked.runs()
    assert "mlflow.parentRunId" not in run.data.tags and len(other.runs()) == 1
    assert mlflow.get_tracking_uri() == other.uri, "the process's own address stays as it is"


def test_metrics_minute_by_minute_and_none_twice(tracked: Mlflow) -> None:
    made(size=9, track=False)
    spread_over_minutes(Path("run"), 4)
    with Ledger.read(Path("run")) as ledger:
        points = per_minute(ledger)
        calls = spent(ledger).calls
    assert list(points) == [0, 1, 2, 3]
    for name in COUNTS:
        values = [point[name] for point in points.values()]
        assert values == sorted(values), name
    assert points[3]["calls"] == calls and points[3]["kept"] == 9 and 0 < points[0]["calls"] < calls
    assert [points[m + 1]["time"] - points[m]["time"] for m in range(3)] == [60, 60, 60]
    store = Store(Path("run").absolute())
    store.connect()
    for last, minutes in [(False, 3), (False, 3), (True, 4)]:  # while it goes on only whole minutes are told
        copy_run(store, last)
        (run,) = tracked.runs()
        for name in COUNTS:
            told = tracked.history(run.info.run_id, name)
            assert told == [(minute, points[minute][name]) for minute in range(minutes)], name
        assert run.info.status == ("FINISHED" if last else "RUNNING")


def test_copying_again_adds_nothing_and_a_folder_that_was_moved_is_still_the_same_run(
    tracked: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    made()
    before = tracked.everything()
    assert len(before) == 1
    assert track("run") == track("run") == before[0][0]
    made()
    assert tracked.everything() == before
    Path("run").rename("elsewhere")
    monkeypatch.chdir("elsewhere")
    made(".", size=9)
    (run,) = tracked.runs()
    assert run.data.metrics["kept"] == 9


def test_runs_of_one_name_in_two_folders_have_each_their_own_run_and_data_set(tracked: Mlflow) -> None:
    for parent in ("one", "two"):
        made(Path(parent) / "run")
    runs = tracked.runs()
    assert [run.info.run_name for run in runs] == ["run", "run"]
    for run in runs:
        (data,) = run.inputs.dataset_inputs
        assert str(Path(run.data.tags["refed.folder"])) in data.dataset.source


def test_a_run_on_a_cluster_while_its_ledger_has_nothing_yet(tracked: Mlflow) -> None:
    made(size=9, track=False)
    folder = Path("run").absolute()
    with Ledger.create(folder) as ledger:
        ledger.commit([("DELETE FROM samples", ()), ("DELETE FROM calls", ()), ("DELETE FROM answers", ())])
    live = {"at": 6_000.0, "kept": 4, "cost": 0.5, "calls": 12, "calls_a_second": 3.5, "in_flight": 2, "nodes": 2,
            "workers": 3, "deaths": 1, "shards": {"all": 8, "done": 5, "dry": 0}, "slow": []}  # fmt: skip
    store = Store(folder)
    store.connect()
    for numbers in (live, live, live | {"at": 6_070.0, "kept": 7}):
        (folder / LIVE).write_text(json.dumps(numbers))
        copy_run(store, False)
    (run,) = tracked.runs()
    assert tracked.history(run.info.run_id, "cluster/kept") == [(100, 4), (101, 7)]
    told = {name.removeprefix("cluster/"): value for name, value in run.data.metrics.items()}
    assert told == {"kept": 7, "dollars": 0.5, "calls": 12, "calls_a_second": 3.5, "in_flight": 2, "nodes": 2,
                    "workers": 3, "deaths": 1, "shards_done": 5}  # fmt: skip


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
    tags = {k.rpartition(".")[2]: v for k, v in run.data.tags.items() if k.startswith("refed.program.")}
    assert tags == {"address": "models:/refed@champion", "model": "refed", "version": "2"}


# --- one run for one folder


def test_a_run_that_ended_at_a_cap_goes_on_as_the_same_run(tracked: Mlflow, server: SimulatedTeacher) -> None:
    made(size=12, teacher=teacher(server), max_calls=20)
    (run,) = tracked.runs()
    assert run.info.status == "KILLED"
    assert "max_calls" in run.data.tags["refed.stopped"]
    assert run.data.tags["refed.complete"] == "False" and run.data.metrics["calls"] <= 20
    refed_dspy.resume("run", max_calls=5_000)
    (again,) = tracked.runs()
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    assert again.data.metrics["kept"] == 12 and again.data.metrics["calls"] == server.stats()["requests"]
    assert again.data.tags["refed.complete"] == "True" and again.data.params["size"] == "12"
    assert not again.data.tags.get("refed.stopped")


def test_a_server_that_goes_between_run_and_parameters_leaves_no_second_run(tracked: Mlflow) -> None:
    made(track=False)

    class Going(Store):
        def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(function, "__name__", "") == "log_batch":
                raise NotTracked("gone")
            return super().call(function, *args, **kwargs)

    store = Going(Path("run").absolute())
    store.connect()
    with pytest.raises(NotTracked):
        copy_run(store, True)
    track("run")
    (run,) = tracked.runs()
    assert run.data.params["size"] == "6"


def test_not_tracked_when_told_so(tracked: Mlflow, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    made("one", track=False, teacher=teacher(server))
    refed_dspy.resume("one", size=9)
    monkeypatch.setenv("REFED_TRACK", "off")
    made("two")
    assert tracked.runs() == [] and not list(Path().glob("*/tracking.json"))
    made("three", track=True)
    assert len(tracked.runs()) == 1


# --- an evaluation in mlflow


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

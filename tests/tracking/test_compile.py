"""A compile in MLflow: a run, a child run for each candidate, and nothing twice however often it is copied."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from benchmarks.preference import ADDED, Preference, World, model
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.config.teacher import PriceConfig
from refed_dspy.errors import RefedError
from refed_dspy.ledger.candidates import Candidate, candidate_seen, evaluation_scored, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import WorkSettings
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.statements import Statement
from refed_dspy.optimizers.compile import compile as tune
from refed_dspy.optimizers.result import Compiled
from refed_dspy.programs.load import load_program
from refed_dspy.programs.saved import program_digests, prompts_digest, state_in
from refed_dspy.records import PICO
from refed_dspy.tracking.compile import best_so_far, compile_parameters, copy_compile
from refed_dspy.tracking.store import Store
from refed_dspy.tracking.track import track
from tests.conftest import KEY, KEY_VARIABLE
from tests.support import mlflow_stores
from tests.support.mlflow_stores import Mlflow, free_port, tracked_to, written
from tests.support.scripted_engine import references

pytestmark = pytest.mark.slow

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked
ARTIFACTS = {"program.json", "prompts.diff", "evaluations.jsonl", "proof.txt", "best_score_against_dollars.png"}
SETS = {"train": 3, "validation": 3, "test": 5}


class Adding:
    """An optimizer in DSPy's shape that knows what is preferred: its program is better, and quickly made."""

    besides = ""

    def __init__(self, metric: Any) -> None:
        self.metric = metric

    def compile(self, student: Any, *, trainset: list[Any], valset: list[Any]) -> Any:
        program, preference = student.deepcopy(), Preference(0)
        wishes = {"response_generation": preference.answers, "instruction_synthesis": preference.tasks}
        for name, predictor in program.named_predictors():
            text = "".join(f"{ADDED}{wish}." for wish in wishes.get(name, ()))
            predictor.signature = predictor.signature.with_instructions(
                predictor.signature.instructions + text + self.besides
            )
        return program


BETTER = {"optimizer": "tests.tracking.test_compile.Adding"}


def compiled_in_the_world(folder: Path | str | None, **settings: Any) -> Compiled:
    """A compile of models in this process; bootstrap's, which is quick, unless the caller says otherwise."""
    world, preference = World(Preference(0)), Preference(0)
    models = {"teacher": model(world), "judge": model(world, 0.0)}
    return tune(
        None, preference.references(11), out=folder,
        **{**models, **SETS, "optimizer": "bootstrap", "evaluations": 6, **settings},
    )  # fmt: skip


def compiled_over_http(folder: Path | str, server: SimulatedTeacher, **settings: Any) -> Compiled:
    price, key = PriceConfig(prompt=1, completion=2), settings.pop("key", None)
    teacher = TeacherConfig(
        model="sim/sim-model", api_base=server.base_url, retries=1, timeout=20, price=price, api_key_env=key
    )
    small = {"train": 2, "validation": 2, "test": 5, "instructions_per_feature": 1, "evaluations": 4}
    return tune(None, references(9), teacher=teacher, out=folder, **{**small, "optimizer": "bootstrap", **settings})


def parent_of(store: Mlflow) -> Any:
    (parent,) = store.runs("compile")
    return parent


def artifact(store: Mlflow, run_id: str, name: str) -> bytes:
    return Path(store.client.download_artifacts(run_id, name)).read_bytes()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "refed_dspy.tracking" and r.levelno >= logging.WARNING]


@pytest.fixture(scope="module")
def gepa(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[tuple[Mlflow, Path, Compiled]]:
    """GEPA with four threads, copied every 50 ms while it works."""
    from refed_dspy.optimizers import compile as compiling

    home, patch = tmp_path_factory.mktemp("gepa"), pytest.MonkeyPatch()
    patch.setattr(compiling, "TRACKING_INTERVAL", 0.05)
    with tracked_to(home / "mlflow", mlflow_template) as store:
        made = compiled_in_the_world(home / "compile", optimizer="gepa", evaluations=24, threads=4, seed=2)
        yield store, home / "compile", made
    patch.undo()


Tuned = tuple[Mlflow, Path, Compiled]


def candidates_in(folder: Path) -> list[Candidate]:
    with Ledger.read(folder) as ledger:
        return load_candidates(ledger)


# --- one compile, looked at from all sides


def test_the_parent_run(gepa: Tuned) -> None:
    store, folder, made = gepa
    parent = parent_of(store)
    logged, metrics = parent.data.params, parent.data.metrics
    assert parent.info.status == "FINISHED" and parent.info.run_name == "compile"
    expected = {"optimizer": "gepa", "seed": "2", "evaluations": "24", "metric.wins": "0.6"}
    expected |= dict.fromkeys(("teacher", "judge", "reflection"), "sim/world")
    assert expected.items() <= logged.items()
    with Ledger.read(folder) as ledger:
        assert metrics["calls"] == spent(ledger).calls
    assert made.proof is not None
    assert metrics["gain"] == pytest.approx(made.proof.gain.raw.mean)
    assert metrics["gain_low"] <= metrics["gain"] <= metrics["gain_high"]
    level, parts = made.proof.gain.equal_length, made.proof.compiled.components
    assert level is not None and (metrics["wins"], metrics["length_ratio"]) == (parts["wins"], parts["length_ratio"])
    assert metrics.get("equal_length_gain") == (pytest.approx(level.mean) if math.isfinite(level.low) else None)
    assert metrics["uncompiled_test"] == pytest.approx(made.proof.baseline.score.mean)
    assert metrics["compiled_test"] == pytest.approx(made.proof.compiled.score.mean)
    best = [value for _, value in store.history(parent.info.run_id, "best_validation")]
    assert best == sorted(set(best)) and best[-1] == pytest.approx(made.manifest["validation"]["compiled"])
    assert not [name for name in logged if name.startswith("options")], "options are told by name, not by a digest"
    given = compile_parameters({"options": "0a1b", "seed": 0}, WorkSettings({"options": {"num_threads": 2}}))
    assert given["options.num_threads"] == 2 and "options" not in given


def test_its_files_and_data_sets(gepa: Tuned) -> None:
    store, folder, _ = gepa
    parent = parent_of(store)
    artifacts = {each.path for each in store.client.list_artifacts(parent.info.run_id)}
    assert artifacts >= ARTIFACTS
    assert artifact(store, parent.info.run_id, "best_score_against_dollars.png").startswith(b"\x89PNG\r\n")
    for name in ("program.json", "prompts.diff", "proof.txt"):
        assert artifact(store, parent.info.run_id, name) == (folder / name).read_bytes()
    rows = [json.loads(line) for line in artifact(store, parent.info.run_id, "evaluations.jsonl").splitlines()]
    assert len(rows) == sum(len(scores) for candidate in candidates_in(folder) for scores in candidate.scores.values())
    assert {row["set"] for row in rows} == {"train", "validation", "test"} and all("wins" in row for row in rows)
    inputs = {each.tags[0].value: json.loads(each.dataset.profile)["num_rows"] for each in parent.inputs.dataset_inputs}
    assert inputs == SETS
    assert len({each.dataset.digest for each in parent.inputs.dataset_inputs}) == 3


def test_every_candidate_is_a_child_of_the_one_parent(gepa: Tuned) -> None:
    """GEPA asks from four threads: none of what it tries is logged to a run of another."""
    store, folder, _ = gepa
    parent, children, candidates = parent_of(store), store.runs("candidate"), candidates_in(folder)
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    assert len(store.runs()) == 1 + len(children) and len(candidates) >= 3
    for child, candidate in zip(children, candidates, strict=True):
        assert child.info.status == "FINISHED" and child.info.run_name == f"candidate {candidate.seq}"
        assert child.data.params["digest"] == candidate.digest
        assert (child.data.params["changed"] == "nothing") is (candidate.seq == 0)
        assert state_in(artifact(store, child.info.run_id, "program.json")) == candidate.state
        assert (b"\n+" in artifact(store, child.info.run_id, "prompts.diff")) is (candidate.seq != 0)


def test_what_a_candidate_scored_by_component(gepa: Tuned) -> None:
    store, folder, _ = gepa
    for child, candidate in zip(store.runs("candidate"), candidates_in(folder), strict=True):
        for subset, scores in candidate.scores.items():
            logged = {k.removeprefix(f"{subset}_"): v for k, v in child.data.metrics.items() if k.startswith(subset)}
            assert logged["size"] == len(scores)
            if subset == "validation":  # of a training set more may be scored later: see below
                assert logged["score"] == pytest.approx(candidate.mean(subset))
                for name in ("wins", "grades", "diversity", "coverage", "abstained", "length_ratio"):
                    each = [components[name] for components in candidate.components[subset].values()]
                    assert logged[name] == pytest.approx(sum(each) / len(each)), name


def test_copying_a_compile_again_adds_nothing(gepa: Tuned) -> None:
    store, folder, _ = gepa
    before, versions = store.everything(), len(store.client.search_model_versions("name='refed'"))
    store.use()
    assert track(folder) == track(folder) == parent_of(store).info.run_id
    assert store.everything() == before
    assert len(store.client.search_model_versions("name='refed'")) == versions == 1


def test_inside_a_run_of_the_caller_s_own_a_compile_is_its_child_and_the_candidates_are_the_compile_s(
    tracked: Mlflow, tmp_path: Path
) -> None:
    mine = tracked.client.create_experiment("mine", str(tmp_path / "files"))
    with mlflow.start_run(experiment_id=mine) as outer:
        compiled_in_the_world("c", **BETTER)
    by_kind: dict[str, list[Any]] = {}
    for run in tracked.client.search_runs([mine]):
        by_kind.setdefault(run.data.tags.get("refed.kind", "mine"), []).append(run)
    (compiled,) = by_kind["compile"]
    assert compiled.data.tags["mlflow.parentRunId"] == outer.info.run_id and tracked.runs() == []
    assert {run.data.tags["mlflow.parentRunId"] for run in by_kind["candidate"]} == {compiled.info.run_id}
    assert load_program("models:/refed@challenger").source["run_id"] == compiled.info.run_id


def test_a_compile_that_named_its_folder_itself_has_a_name_to_read(tracked: Mlflow) -> None:
    made = compiled_in_the_world(None)
    name, folder = parent_of(tracked).info.run_name, made.folder
    assert re.fullmatch(r"bootstrap \d{4}-\d\d-\d\d \d\d:\d\d", name) and re.fullmatch(r"[0-9a-f]{16}", folder.name)


# --- candidates that are scored on more, later


def crafted(folder: Path, *statements: list[Statement]) -> None:
    """A compile's ledger with these rows."""
    with Ledger.create(folder) as ledger:
        ledger.set_meta(work="compile", identity={"kind": "X", "seed": 0}, settings={"name": "refed"})
        row = "('k', 'teacher', 'a', 0, '{}', NULL, 'http://x', 0, NULL)"
        ledger.db.execute(f"INSERT OR IGNORE INTO answers VALUES {row}")
        for each in statements:
            ledger.commit(each)


def score(candidate: str, example: str, value: float, subset: str = "validation", cost: int = 0) -> list[Statement]:
    return evaluation_scored(candidate, example, subset, value, {"wins": value}, cost)


def test_the_score_of_a_candidate_is_the_last_one_told(tracked: Mlflow) -> None:
    folder = Path("compile").absolute()
    crafted(folder, candidate_seen("a", 0, {}), score("a", "one", 1.0))
    track(folder)
    crafted(folder, score("a", "two", 0.0), score("a", "three", 0.2))
    track(folder)
    (child,) = tracked.runs("candidate")
    assert child.data.metrics["validation_size"] == 3
    assert child.data.metrics["validation_score"] == pytest.approx(0.4)
    assert child.data.metrics["validation_wins"] == pytest.approx(0.4)


def test_the_best_score_stands_at_the_dollars_that_it_was_found_for(tmp_path: Path) -> None:
    crafted(
        tmp_path,
        candidate_seen("a", 0, {}), score("a", "one", 0.3, cost=1 * PICO),
        candidate_seen("b", 1, {}), score("b", "one", 0.6, cost=2 * PICO),
        candidate_seen("c", 2, {}), score("c", "one", 0.5, cost=3 * PICO),
        score("a", "far", 0.3, "test", 4 * PICO), score("b", "far", 0.6, "test", 5 * PICO),
    )  # fmt: skip
    assert [(at, best) for at, best, _ in best_so_far(candidates_in(tmp_path))] == [(1, 0.3), (2, 0.6)]


def test_a_candidate_at_work_is_told_once_it_is_done(tracked: Mlflow) -> None:
    """The folder is named as a candidate is, and is none."""
    folder = Path("candidate 0").absolute()
    crafted(
        folder, candidate_seen("a", 0, {}), score("a", "one", 0.3), candidate_seen("b", 1, {}), score("b", "one", 0.6)
    )
    store = Store(folder)
    store.connect()
    copy_compile(store, False)
    assert [run.info.run_name for run in tracked.runs()] == [folder.name, "candidate 0"]
    copy_compile(store, True)
    assert [run.info.run_name for run in tracked.runs()] == [folder.name, "candidate 0", "candidate 1"]
    assert parent_of(tracked).info.status == "KILLED"


def test_a_compile_at_its_cap_goes_on_as_the_same_run_and_registers_what_it_comes_to_in_the_end(
    tracked: Mlflow, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refed_dspy.optimizers.compile.refuse_small_caps", lambda _: None)
    made = compiled_over_http("compile", server, max_calls=120)
    first = parent_of(tracked)
    assert made.proof is None and "champion" not in tracked.aliases()
    assert made.stopped == "max_calls" and first.data.tags["refed.stopped"] == "max_calls"
    assert first.info.status == "KILLED" and first.data.params["max_calls"] == "120"
    assert first.data.metrics["calls"] == 120 == server.stats()["requests"]
    whole = compiled_over_http("compile", server, max_calls=5_000)
    parent, children = parent_of(tracked), tracked.runs("candidate")
    assert parent.info.run_id == first.info.run_id and parent.info.status == "FINISHED" and not whole.stopped
    assert parent.data.metrics["calls"] == server.stats()["requests"] and server.stats()["repeated"] == 0
    assert parent.data.metrics["dollars"] == pytest.approx(whole.manifest["cost"])
    digests = [child.data.params["digest"] for child in children]
    assert len(digests) == len(set(digests)) == len(candidates_in(Path("compile")))
    assert {each.path for each in tracked.client.list_artifacts(parent.info.run_id)} >= ARTIFACTS
    newest = tracked.version(tracked.aliases()["challenger"])
    assert newest.tags["refed.texts"] == prompts_digest(json.loads(whole.path.read_text()))
    assert program_digests(load_program("models:/refed@challenger")) == program_digests(whole.program)


# --- ended early, and gone on with


def test_a_compile_that_lost_its_key_is_told_as_killed_and_no_key_is_told(
    tracked: Mlflow, locked: SimulatedTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    locked.control(auth_fails_after=50)
    with pytest.raises(RefedError):
        compiled_over_http("compile", locked, key=KEY_VARIABLE)
    first = parent_of(tracked)
    assert first.info.status == "KILLED" and first.data.metrics["calls"] >= 50
    locked.control(auth_fails_after=None)
    compiled_over_http("compile", locked, key=KEY_VARIABLE)
    parent = parent_of(tracked)
    assert parent.info.run_id == first.info.run_id and parent.info.status == "FINISHED"
    assert KEY not in caplog.text
    for path, content in {**written(tracked.home), **written(Path("compile"))}.items():
        assert KEY.encode() not in content, path


def test_another_candidate_of_a_second_start_is_a_child_of_its_own(
    tracked: Mlflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled_in_the_world("c", name="first", **BETTER)
    monkeypatch.setattr(Adding, "besides", "\nBe kind.")
    compiled_in_the_world("c", **BETTER)
    candidates = candidates_in(Path("c"))
    assert len(candidates) == 3 and len({candidate.seq for candidate in candidates}) == 3
    children = tracked.runs("candidate")
    assert {run.data.params["digest"] for run in children} == {candidate.digest for candidate in candidates}


def test_a_compile_with_mlflow_away_is_the_same_compile(tracked: Mlflow, caplog: pytest.LogCaptureFixture) -> None:
    compiled_in_the_world("none", track=False)
    assert tracked.runs() == [] and not Path("none/tracking.json").exists()
    assert not tracked.client.search_registered_models(), "it was not to be told"
    there = compiled_in_the_world("there")
    before, calls = tracked.everything(), there.manifest["calls"]
    assert compiled_in_the_world("there").manifest["run_id"] == parent_of(tracked).info.run_id
    assert tracked.everything() == before, "what has ended is printed again, and is no second run or version"
    assert len(tracked.client.search_model_versions("name='refed'")) == 1
    caplog.clear()
    tracked.use(f"http://127.0.0.1:{free_port()}")
    away = compiled_in_the_world("away")
    assert away.manifest["candidate"] == there.manifest["candidate"] and away.manifest["calls"] == calls
    assert 1 <= len(warnings(caplog)) <= 2 and "Traceback" not in caplog.text
    tracked.use()
    track("away")
    first, other = tracked.runs("compile")
    assert first.data.metrics.keys() == other.data.metrics.keys() and other.info.status == "FINISHED"
    assert {each.path for each in tracked.client.list_artifacts(other.info.run_id)} >= ARTIFACTS

"""Traces in MLflow, with its autolog on: which rows, what is in them, and what becomes of MLflow's own callback."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import mlflow
import pytest
from mlflow.entities import SpanStatusCode

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.jobs import traces
from refed_dspy.ledger.ledger import Ledger
from tests.conftest import KEY, KEY_VARIABLE
from tests.support import mlflow_stores
from tests.support.compiling import Answerer, compiled, questions
from tests.support.interrupted_compiles import full_marks
from tests.support.mlflow_stores import Mlflow, written
from tests.support.scripted_engine import Writer, fake_lm, references
from tests.support.tracked_runs import made, teacher

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked


@pytest.fixture
def autolog(tracked: Mlflow, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mlflow]:
    """MLflow's autolog is on, and traces go to the test's store, at once."""
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_TRACE_LOGGING", "false")
    mlflow.tracing.reset()
    mlflow.set_experiment(mlflow_stores.EXPERIMENT)
    mlflow.dspy.autolog()
    yield tracked
    mlflow.tracing.reset()
    mlflow.dspy.autolog(disable=True)
    dspy.configure(track_usage=False)  # it leaves that on
    mlflow.tracking.fluent._active_experiment_id = None


def traced(store: Mlflow) -> list[Any]:
    """All traces, the first one first."""
    place = [store.client.get_experiment_by_name(mlflow_stores.EXPERIMENT).experiment_id]
    found = mlflow.search_traces(locations=place, return_type="list", max_results=500)
    return sorted(found, key=lambda trace: trace.info.request_time)


def named(trace: Any) -> str:
    return str(trace.data.spans[0].name)


def failed(trace: Any) -> bool:
    return bool(trace.data.spans[0].status.status_code == SpanStatusCode.ERROR)


def test_the_first_row_of_each_kind_is_one_trace_with_stages_items_and_tokens(
    autolog: Mlflow, server: SimulatedTeacher
) -> None:
    made(size=12, teacher=teacher(server), track=False)
    found = {named(trace): trace for trace in traced(autolog)}
    assert Counter(map(named, traced(autolog))) == dict.fromkeys(("features", "response", "propose", "respond"), 1)
    row, *calls = found["respond"].data.spans
    stages = ["response_generation", "response_improvement"]
    assert [call.name for call in calls] == stages and {call.parent_id for call in calls} == {row.span_id}
    assert row.attributes["stages"] == ", ".join(stages) and row.attributes["item"] == calls[0].attributes["item"]
    assert calls[0].inputs["messages"][0]["role"] == "system" and calls[0].outputs["response"]
    with Ledger.read(Path("run")) as ledger:
        query = "SELECT sum(prompt_tokens), sum(completion_tokens) FROM calls WHERE item = ? AND stage IN (?, ?)"
        used = ledger.db.execute(query, (row.attributes["item"], *stages)).fetchone()
    told = found["respond"].info.token_usage
    assert (told["input_tokens"], told["output_tokens"]) == used and sum(used) == told["total_tokens"]
    made(size=12, teacher=teacher(server), track=False)
    assert len(traced(autolog)) == 4, "what was paid for before is not traced again"


@pytest.mark.slow
@pytest.mark.parametrize(("share", "expected"), [(0, 0), (0.25, 3), (0.7, 9), (1, 12)])
def test_the_share_is_a_setting(autolog: Mlflow, server: SimulatedTeacher, share: float, expected: int) -> None:
    made(size=12, teacher=teacher(server, concurrency=1), track=False, traced=share)
    assert Counter(map(named, traced(autolog)))["respond"] == expected


@pytest.mark.parametrize("own", [False, True])
def test_each_row_that_failed_is_traced_and_no_key_is(
    autolog: Mlflow, locked: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    """Of a teacher in settings, and of a `dspy.LM` of the caller's own."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    locked.control(faults={"keyerror": 0.2, "keytext": 0.2})
    lm = dspy.LM("openai/sim-model", api_base=locked.base_url, api_key=KEY, num_retries=0)
    asked = lm if own else teacher(locked, api_key_env=KEY_VARIABLE)
    made(size=8, teacher=asked, track=False, traced=0, max_failure_share=1.0)
    with Ledger.read(Path("run")) as ledger:
        failures = sorted(failure.item for failure in ledger.failures())
    found = traced(autolog)
    assert failures and all(map(failed, found))
    assert sorted(trace.data.spans[0].attributes["item"] for trace in found) == failures
    told = json.dumps([span.to_dict() for trace in found for span in trace.data.spans])
    assert "[key]" in told, "the endpoint repeated it"
    for content in [*written(autolog.home).values(), told.encode()]:
        assert KEY.encode() not in content


def test_the_other_callbacks_hear_all(autolog: Mlflow, server: SimulatedTeacher) -> None:
    class Heard(dspy.utils.BaseCallback):  # type: ignore[misc]
        calls = 0

        def on_lm_start(self, *_: Any, **__: Any) -> None:
            self.calls += 1

    heard = Heard()
    with dspy.context(callbacks=[*dspy.settings.callbacks, heard]):
        made(size=4, teacher=teacher(server), track=False)
    assert heard.calls == server.stats()["requests"] > 4


def test_who_turns_traces_off_has_none(autolog: Mlflow, server: SimulatedTeacher) -> None:
    mlflow.dspy.autolog(log_traces=False)
    made(size=4, teacher=teacher(server), track=False)
    assert traced(autolog) == []


def test_a_run_goes_on_where_mlflow_takes_no_trace(
    autolog: Mlflow, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(traces, "_tell", away)
    assert made(size=4, teacher=teacher(server), track=False, traced=1).complete
    assert len([each for each in caplog.records if each.levelno >= logging.WARNING and "traces" in each.msg]) == 1


def test_a_row_of_a_filter_is_a_trace_too(autolog: Mlflow, server: SimulatedTeacher) -> None:
    refed_dspy.filter_data(references(3), [{"rubric": {"at_least": 2}}], judge=teacher(server), out="filtered")
    (trace,) = traced(autolog)
    assert named(trace) == "filtering" and len(trace.data.spans) > 1


def test_a_compile_is_not_traced(autolog: Mlflow) -> None:
    models = {"teacher": fake_lm(Writer()), "metric": full_marks, "track": False}
    compiled(Answerer(), questions(12), Path("c"), "bootstrap", prove=False, **models)
    assert traced(autolog) == []


WITHOUT = """
import sys, refed_dspy
refed_dspy.synthesize(None, "builtin", size=2, teacher="simulated", run_dir="run", progress=False)
assert "mlflow" not in sys.modules
"""


@pytest.mark.slow
def test_without_mlflow_s_autolog_mlflow_is_not_imported(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], cwd=tmp_path, check=True, timeout=60)

"""How a run under caps begins, ends and goes on: what it opens, what it still sends, which caps apply afterwards."""

from __future__ import annotations

import asyncio
import gc
import json
import math
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.runs.plan import Plan, PlanSettings, Study
from refed_dspy.runs.result import Synthesis
from tests.support.recording_endpoint import listening
from tests.support.said import Said
from tests.support.scripted_engine import references

PRICE = {"prompt": 0.15, "completion": 0.6}


def config(base: str, **settings: Any) -> TeacherConfig:
    values = {"model": "sim/sim-model", "api_base": base, "price": PRICE, "max_tokens": 2048, "retries": 0}
    return TeacherConfig.model_validate({**values, **settings})


def run(server: SimulatedTeacher, folder: Path, size: int = 300, **settings: Any) -> Synthesis:
    teacher = config(server.base_url)
    return refed_dspy.synthesize(None, references(40), size=size, teacher=teacher, run_dir=folder, **settings)


@pytest.mark.parametrize("caps", [{"max_calls": 40}, {"max_cost": 0.03}])
def test_a_small_cap_buys_samples_and_not_only_feedback(
    server: SimulatedTeacher, tmp_path: Path, caps: dict[str, Any]
) -> None:
    made = run(server, tmp_path / "run", **caps)
    calls = sum(use["calls"] for use in made.usage.values())
    assert made.reason and len(made.samples) >= 0.3 * calls, "an unlimited run makes 0.45 samples a call"


def test_a_plan_opens_no_reference_for_samples_beyond_the_cap() -> None:
    plan = Plan(PlanSettings(300, 40, ("a", "b"), 10, 20, 0))
    plan.look_ahead(20)
    opened = [plan.next_unit() for _ in range(3)]
    assert [type(unit) for unit in opened] == [Study, Study, type(None)]
    plan.look_ahead(None)
    assert plan.next_unit() is not None


def test_a_cap_stays_until_another_is_given(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    run(server, tmp_path / "run", max_calls=20)
    for cap, kept in ((None, 20), (30, 30)):
        assert refed_dspy.resume(tmp_path / "run", max_calls=cap).status["caps"]["max_calls"] == kept
    with said.by(ConfigError):
        refed_dspy.resume(tmp_path / "run", max_cost=0.000001)
    assert refed_dspy.read_run(tmp_path / "run").status["caps"]["max_calls"] == 30, "a refused start changes nothing"
    made = run(server, tmp_path / "run", size=10, max_cost=math.inf, max_calls=10_000)
    assert made.complete and made.state == "done" and made.status["caps"]["max_cost"] is None


@pytest.mark.slow
async def test_nothing_is_sent_once_the_run_is_ending(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=1.2)  # all land after the stop, and within its grace
    teacher = config(server.base_url, concurrency=128)
    # Eighty studies at once, and a first window of 32: the others wait.
    work = refed_dspy.asynthesize(None, references(40), size=1_000, teacher=teacher, run_dir=tmp_path / "run")
    task = asyncio.create_task(work)
    while (sent := (await asyncio.to_thread(server.stats))["requests"]) < 32:  # noqa: ASYNC110 — no event
        await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert server.stats()["requests"] == sent, "those that waited for the window were let in"
    with Ledger.read(tmp_path / "run") as ledger:
        outcomes = ledger.db.execute("SELECT outcome FROM calls").fetchall()
    assert ("sent",) not in outcomes and len(outcomes) <= sent


async def test_two_runs_at_once_leave_the_collector_as_it_was(server: SimulatedTeacher, tmp_path: Path) -> None:
    before = gc.get_threshold()
    teacher = config(server.base_url)
    await asyncio.gather(
        *(
            refed_dspy.asynthesize(None, references(2), size=4, teacher=teacher, run_dir=tmp_path / name)
            for name in ("a", "b")
        )
    )
    assert gc.get_threshold() == before and gc.get_freeze_count() == 0


NO_API: list[Any] = [None, [], 5, {"choices": "x"}]


@pytest.mark.slow
@pytest.mark.parametrize("odd", NO_API, ids=json.dumps)
def test_an_answer_that_is_none_refuses_the_teacher_in_one_line(said: Said, tmp_path: Path, odd: Any) -> None:
    with listening(lambda _: (200, odd)) as endpoint, said.by(TeacherRefused) as error:
        refed_dspy.synthesize(
            None, references(12), size=5, teacher=config(endpoint.base_url, concurrency=1), run_dir=tmp_path / "run"
        )
    assert "\n" not in str(error.value) and len(str(error.value)) < 600

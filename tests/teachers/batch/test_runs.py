"""Batch mode in whole runs: who takes batches, which roles and places there are, and one teacher in several loops."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers import open_teacher
from tests.conftest import KEY_VARIABLE
from tests.support.compiling import compiled
from tests.support.said import Said
from tests.support.scripted_batches import (
    COST,
    ScriptedService,
    ask,
    batched,
    bill,
    calls,
    recorded_teacher,
    refused,
    simulated,
    teacher_config,
)
from tests.support.scripted_engine import references


def judged(teacher: TeacherConfig, judge: TeacherConfig, size: int, folder: Path) -> Synthesis:
    """A run whose samples a judge grades, and that keeps them all."""
    filters = [{"rubric": {"at_least": 1}}]
    return refed_dspy.synthesize(
        None, references(4), size=size, teacher=teacher, judge=judge, filters=filters, run_dir=folder
    )


@pytest.mark.parametrize("status", [404, 401])
async def test_an_endpoint_without_batches_and_a_wrong_key_are_told_before_anything_is_paid(
    said: Said, tmp_path: Path, service: ScriptedService, status: int
) -> None:
    service.hooks["upload"] = [lambda: refused(status, "no")] * 9
    with said.by(TeacherRefused) as stopped:
        await refed_dspy.asynthesize(None, references(2), size=2, teacher=teacher_config(service), run_dir=tmp_path)
    assert stopped.value.exit_code == 2 and not calls(tmp_path)


@pytest.mark.slow
async def test_runs_at_once_and_after_another_with_one_teacher_keep_apart(
    tmp_path: Path, server: SimulatedTeacher
) -> None:
    server.control(batch_seconds=0)
    teacher = open_teacher(simulated(server))

    async def run(size: int) -> float:
        made = await refed_dspy.asynthesize(
            None, references(2), size=size, seed=size, teacher=teacher, run_dir=tmp_path / str(size)
        )
        assert len(made.samples) == size
        return float(made.status["cost"])

    costs = [*await asyncio.gather(run(2), run(5)), await run(3)]
    assert sum(costs) == pytest.approx(bill(server), rel=1e-9)


@pytest.mark.slow
async def test_a_service_that_is_away_as_the_next_run_begins_is_waited_for(tmp_path: Path) -> None:
    service = ScriptedService()
    async with service.open():
        teacher = open_teacher(teacher_config(service, retries=8))
        async with recorded_teacher(tmp_path / "one", teacher) as recorded:
            assert await ask(recorded, "a") == "a"
    async with recorded_teacher(tmp_path / "two", teacher) as recorded:
        asking = asyncio.ensure_future(ask(recorded, "b"))
        await asyncio.sleep(0.5)
        assert not asking.done()
        async with service.open(service.port):
            assert await asking == "b"
    assert calls(tmp_path / "two") == {("ok", COST): 1}


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_a_judge_in_batches_too(tmp_path: Path, server: SimulatedTeacher, same: bool) -> None:
    server.control(batch_seconds=0)
    judge = simulated(server, temperature=0.0, **({} if same else {"model": "sim/judge"}))
    made = judged(simulated(server), judge, 6, tmp_path)
    stats = server.stats()
    assert made.complete and stats["requests"] == 0 and stats["batch_repeated"] == 0
    assert made.status["cost"] == pytest.approx(bill(server), rel=1e-9) and batched(tmp_path) == 0


@pytest.mark.slow
def test_an_interactive_judge_does_not_splinter_the_batches(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0, latency=0.1)
    judge = simulated(server, mode="interactive", temperature=0.0)
    made = judged(simulated(server), judge, 12, tmp_path)
    assert made.complete and server.stats()["batches"] <= 12 and server.stats()["requests"] > 0


@pytest.mark.slow
def test_stragglers_are_asked_by_themselves_at_their_own_price(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0)
    config = simulated(server, mode="mixed", batch={"quiet": 0.05, "poll": 0.05, "stragglers": 6})
    made = refed_dspy.synthesize(None, references(4), size=12, teacher=config, run_dir=tmp_path, track=False)
    stats = server.stats()
    assert made.complete and stats["requests"] and stats["batch_requests"]
    cached = stats["billed_cached_tokens"]
    dear = (stats["billed_prompt_tokens"] - cached) * 0.15 + cached * 0.075 + stats["billed_completion_tokens"] * 0.6
    assert made.status["cost"] == pytest.approx(bill(server) + dear / 1e6, rel=1e-6)
    assert made.status["cost"] > bill(server)


async def test_a_straggler_holds_no_money_in_a_batch(tmp_path: Path, server: SimulatedTeacher) -> None:
    config = simulated(server, mode="mixed", batch={"quiet": 0.02, "poll": 0.02, "stragglers": 6})
    async with recorded_teacher(tmp_path, config) as recorded:
        assert await ask(recorded, "q")
        budget, stats = recorded.recorder.budget, server.stats()
        assert (budget.in_flight, budget.reserved, budget.calls) == (0, 0, 1)
    assert (stats["batches"], stats["requests"]) == (0, 1) and batched(tmp_path) == 0
    paid = stats["billed_prompt_tokens"] * 150_000 + stats["billed_completion_tokens"] * 600_000
    assert calls(tmp_path) == {("ok", paid): 1}, "at the price of a call by itself"


@pytest.mark.slow
@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_azure(tmp_path: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-azure-0123456789")
    server.control(batch_seconds=0)
    config = simulated(
        server, model="azure/sim-model", api_base=server.root, api_key_env=KEY_VARIABLE, api_version=version
    )
    made = refed_dspy.synthesize(None, references(2), size=3, teacher=config, run_dir=tmp_path, track=False)
    assert made.complete and server.stats()["requests"] == 0
    assert made.status["cost"] == pytest.approx(bill(server), rel=1e-9)


def test_providers_with_batches_of_another_kind_are_refused(said: Said) -> None:
    with said.by(ConfigError):
        open_teacher(TeacherConfig(model="anthropic/x", mode="batch"))


@pytest.mark.slow
def test_a_compile_in_batches(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0, response_words=8, items=1)
    made = compiled(None, None, tmp_path, "bootstrap", teacher=simulated(server))
    stats = server.stats()
    assert made and stats["requests"] == 0 and stats["batch_requests"] and batched(tmp_path) == 0
    with Ledger.read(tmp_path) as ledger:
        (cost,) = ledger.db.execute("SELECT sum(cost) / 1e12 FROM calls").fetchone()
    assert cost == pytest.approx(bill(server), rel=1e-9)

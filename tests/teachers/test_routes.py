"""The wires a teacher speaks, at our own address: one typed answer over each, its price, its faults, its keys."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError, NoAnswer, RefusedAnswer, RowError, TeacherError, TeacherRefused
from refed_dspy.ledger.recorder import calls_kept_by
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.records import Analysis, Call
from refed_dspy.runs.result import Synthesis
from refed_dspy.signatures import ResponseImprovement
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.route import resolve
from tests.conftest import KEY_VARIABLE
from tests.support.asking import ask as ask_as_stage
from tests.support.said import Said
from tests.support.scripted_engine import CallCollector, references
from tests.support.two_ways import running_lm

PRICE = {"prompt": 1.0, "completion": 10.0, "cached": 0.5}
INPUTS = {"reference_feedback": "Be bold. " * 90, "instruction": "Explain it.", "response": "It is so."}


@pytest.fixture(autouse=True)
def any_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key for endpoints that ask for one and take any."""
    monkeypatch.setenv("ANY_KEY", "sk-any-0123456789")


WIRES = ("openai", "azure", "azure-v1", "anthropic")


def config(server: SimulatedTeacher, wire: str = "openai", model: str = "sim-model", **more: Any) -> TeacherConfig:
    """A teacher on one of WIRES, as the server's stats call them."""
    settings: dict[str, Any] = {"model": f"sim/{model}", "api_base": server.base_url}
    if wire.startswith("azure"):
        settings = {"model": f"azure/{model}", "api_base": server.root}
    if wire == "azure":
        settings |= {"api_version": "2024-10-21", "api_key_env": "ANY_KEY"}
    if wire == "anthropic":
        settings = {"model": f"anthropic/{model}", "api_base": f"{server.root}/v1"}
    return TeacherConfig.model_validate({"retries": 0, "price": PRICE, **settings, **more})


def ask(teacher: Any, times: int = 1) -> tuple[list[Any], list[Call]]:
    """Ask a stage's question so many times at once: typed outputs or errors, and the calls reported."""

    async def all_of_them() -> list[Any]:
        opened = open_teacher(teacher)
        async with running_lm(opened) as lm:
            with dspy.context(lm=lm, adapter=SchemaAdapter()):
                predict = dspy.Predict(ResponseImprovement)
                inputs: list[dict[str, Any]] = [{**INPUTS, "instruction": f"Explain {i}."} for i in range(times)]
                questions = (ask_as_stage("improve", f"item {i}", predict, **inputs[i]) for i in range(times))
                return await asyncio.gather(*questions, return_exceptions=True)

    with calls_kept_by(CallCollector()) as recorder:
        return asyncio.run(all_of_them()), recorder.calls


def worst_case(teacher: TeacherConfig) -> int:
    """What no call can be charged less than when it is charged its worst case."""
    least = open_teacher(teacher).least
    assert least is not None
    return least


# --- what is the same on every wire


@pytest.mark.parametrize("wire", WIRES)
def test_a_typed_answer_and_the_same_accounts_on_every_wire(locked: SimulatedTeacher, wire: str) -> None:
    locked.control(seed=5)
    teacher = config(locked, wire, api_key_env=KEY_VARIABLE)
    [first], _ = ask(teacher)
    [again], [call] = ask(teacher)
    assert isinstance(first.analysis, Analysis) and isinstance(again.improved_response, str)
    stats = locked.stats()
    assert stats["by_wire"] == {wire: 2}
    assert (call.outcome, call.endpoint) == ("ok", resolve(teacher).endpoint) and call.model.endswith("sim-model")
    assert call.prompt_tokens == stats["prompt_tokens"] / 2 and call.seconds > 0
    assert call.prompt_tokens and call.cached_tokens and call.completion_tokens
    assert call.cached_tokens == stats["cached_tokens"], "a part of the prompt's tokens, not beside them"
    plain = call.prompt_tokens - call.cached_tokens
    assert call.cost == plain * 1_000_000 + call.cached_tokens * 500_000 + call.completion_tokens * 10_000_000


@pytest.mark.parametrize("wire", WIRES)
def test_a_wrong_key_and_a_model_that_is_not_there_are_told_and_cost_nothing(
    said: Said, locked: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    monkeypatch.setenv("THE_WRONG_ONE", "sk-wrong-987654321")
    mistakes = {
        "http 401": config(locked, wire, api_key_env="THE_WRONG_ONE"),
        "http 404": config(locked, wire, model="missing-model", api_key_env=KEY_VARIABLE),
    }
    for outcome, teacher in mistakes.items():
        [error], [call] = ask(teacher)
        assert isinstance(error, TeacherError) and (call.outcome, call.cost) == (outcome, 0)
        assert "sk-wrong-987654321" not in repr(error) + repr(call)
        said(str(error))


@pytest.mark.parametrize("wire", WIRES)
def test_a_prompt_that_a_filter_declines_is_charged_and_not_asked_again(server: SimulatedTeacher, wire: str) -> None:
    server.control(faults={"filtered": 1})
    teacher = config(server, wire, retries=3)
    [error], [call] = ask(teacher)
    assert isinstance(error, RefusedAnswer) and error.final
    assert call.outcome == "http 400" and call.cost is not None and call.cost >= worst_case(teacher)
    assert server.stats()["requests"] == 1


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(("fault", "outcome"), [("refusal", "refused"), ("cut", "cut")])
def test_an_answer_that_is_not_whole_is_paid_for_and_not_asked_again(
    server: SimulatedTeacher, wire: str, fault: str, outcome: str
) -> None:
    server.control(faults={fault: 1})
    [error], [call] = ask(config(server, wire, retries=3))
    assert isinstance(error, RowError) and error.kind == outcome == call.outcome
    stats = server.stats()
    assert stats["requests"] == 1
    assert (call.prompt_tokens, call.completion_tokens) == (stats["prompt_tokens"], stats["completion_tokens"])


@pytest.mark.parametrize(
    ("wire", "fault"), [*((wire, "nousage") for wire in WIRES), ("openai", "oddusage"), ("anthropic", "oddusage")]
)
def test_an_answer_without_usage_is_kept_and_charged_its_worst_case(
    server: SimulatedTeacher, wire: str, fault: str
) -> None:
    server.control(faults={fault: 1})
    teacher = config(server, wire)
    [answer], [call] = ask(teacher)
    assert isinstance(answer.analysis, Analysis)
    assert (call.outcome, call.prompt_tokens, call.completion_tokens) == ("ok", None, None)
    assert call.cost is not None and call.cost >= worst_case(teacher)


@pytest.mark.slow
@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("fault", ["drop", "hang"])
def test_no_answer_is_charged_its_worst_case_at_each_attempt(server: SimulatedTeacher, wire: str, fault: str) -> None:
    server.control(faults={fault: 1})
    teacher = config(server, wire, timeout=0.2, retries=1)
    [error], calls = ask(teacher)
    assert isinstance(error, NoAnswer) and not error.final
    assert server.stats()["requests"] == 2
    for call in calls:
        assert call.outcome == NoAnswer.kind
        assert call.prompt_tokens is None and call.cost is not None and call.cost >= worst_case(teacher)


@pytest.mark.parametrize("wire", WIRES)
def test_a_passing_5xx_costs_nothing_and_is_tried_again(server: SimulatedTeacher, wire: str) -> None:
    server.control(faults={"500": 0.3}, seed=11)
    answers, calls = ask(config(server, wire, retries=12), times=4)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    failed = [call for call in calls if call.outcome != "ok"]
    assert failed and {call.outcome for call in failed} == {"http 529" if wire == "anthropic" else "http 500"}
    assert {call.cost for call in failed} == {0} and len(calls) == server.stats()["requests"]


# --- whole runs: what a fault means for the run


def run(server: SimulatedTeacher, folder: Path, size: int = 6, **settings: Any) -> Synthesis:
    teacher = config(server, **settings)
    return refed_dspy.synthesize(None, references(3), size=size, teacher=teacher, run_dir=folder)


def test_an_api_version_that_is_not_there_is_named(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    with said.by(TeacherRefused) as error:
        run(server, tmp_path / "run", wire="azure", size=1, concurrency=1, api_version="1999-01-01")
    assert error.value.exit_code == 2


@pytest.mark.parametrize("wire", WIRES)
def test_a_web_page_before_any_answer_refuses_the_teacher(
    said: Said, server: SimulatedTeacher, tmp_path: Path, wire: str
) -> None:
    server.control(faults={"html": 1})
    with said.by(TeacherRefused):
        run(server, tmp_path / "run", wire=wire, size=1, concurrency=1)


@pytest.mark.parametrize("wire", ["openai", *(pytest.param(wire, marks=pytest.mark.slow) for wire in WIRES[1:])])
def test_a_gateways_page_about_its_own_trouble_is_a_5xx(said: Said, server: SimulatedTeacher, wire: str) -> None:
    server.control(faults={"html502": 1})
    [error], calls = ask(config(server, wire))
    assert isinstance(error, NoAnswer) and not error.final
    said(str(error))
    assert [(call.outcome, call.cost) for call in calls] == [("http 502", 0)]


@pytest.mark.parametrize("fault", ["html", "html502"])
def test_a_web_page_later_on_is_a_fault_that_passes(server: SimulatedTeacher, tmp_path: Path, fault: str) -> None:
    run(server, tmp_path / "run", size=1, concurrency=1)
    server.control(faults={fault: 0.2}, seed=4)
    # One after the other, so that the first answer comes before the first page whatever the timing.
    made = run(server, tmp_path / "run", size=9, retries=10, concurrency=1)
    assert made.complete and not made.failures
    assert server.stats()["by_status"][fault.removeprefix("html") or "html"] > 0


# --- api_version


def test_a_version_that_yaml_takes_for_a_date_works(server: SimulatedTeacher, tmp_path: Path) -> None:
    file = tmp_path / "teacher.yaml"
    file.write_text(f"model: azure/sim-model\napi_base: {server.root}\napi_version: 2024-10-21\napi_key_env: ANY_KEY\n")
    [answer], _ = ask(str(file))
    assert isinstance(answer.analysis, Analysis) and server.stats()["by_wire"] == {"azure": 1}


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "sim/x", "api_base": "http://127.0.0.1:9/v1"},
        {"model": "anthropic/x", "api_base": "http://127.0.0.1:9/v1"},
        {"model": "azure/x"},
    ],
)
def test_a_version_without_azure_is_refused(said: Said, tmp_path: Path, settings: dict[str, str]) -> None:
    file = tmp_path / "teacher.yaml"
    file.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()) + "api_version: 2024-10-21\n")
    with said.by(ConfigError):
        open_teacher(str(file))

"""Teachers over HTTP: attempts, faults, keys, and what is reported of each. Against a real server process."""

from __future__ import annotations

import asyncio
import json
import pickle
from contextlib import suppress
from typing import Any

import dspy
import pytest
from dspy.lm15 import Config, Message, RateLimitError, Request
from dspy.utils import exceptions as lm_errors

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError, NoAnswer
from refed_dspy.ledger.recorder import calls_kept_by
from refed_dspy.programs.adapter import SchemaAdapter, rendering
from refed_dspy.programs.lm_errors import AnswerCut, NotReached, StillLimited
from refed_dspy.records import Call
from refed_dspy.signatures import ResponseImprovement
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.engine import TeacherEngine
from tests.support.said import Said
from tests.support.scripted_engine import CallCollector
from tests.support.two_ways import running_lm


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    return TeacherConfig.model_validate(
        {"model": "sim/sim-model", "api_base": server.base_url, "retries": 0, **settings}
    )


def ask(teacher: TeacherConfig, times: int = 1) -> tuple[list[Any], list[Call]]:
    """Ask so many questions at once: answers or errors, and the calls reported."""

    async def all_of_them() -> list[Any]:
        opened = open_teacher(teacher)
        async with running_lm(opened) as lm:
            with dspy.context(lm=lm, adapter=SchemaAdapter()):
                predict = dspy.Predict("question -> response")
                questions = (predict.acall(question=f"number {i}") for i in range(times))
                return await asyncio.gather(*questions, return_exceptions=True)

    with calls_kept_by(CallCollector()) as recorder:
        return asyncio.run(all_of_them()), recorder.calls


def test_an_endpoint_that_never_answers_is_given_up_in_time(server: SimulatedTeacher) -> None:
    server.control(faults={"hang": 1})
    [error], [call] = ask(config(server, timeout=0.2))
    assert isinstance(error, lm_errors.LMTimeoutError) and call.outcome == NoAnswer.kind


def test_an_endpoint_that_answers_nothing_is_asked_no_longer(server: SimulatedTeacher) -> None:
    """Calls without an answer may be billed."""
    server.control(faults={"drop": 1})
    answers, calls = ask(config(server, concurrency=1), times=14)
    assert StillLimited in {type(answer) for answer in answers} and len(calls) < 14


@pytest.mark.parametrize(("asked", "least", "most"), [(None, 0, 30), (5.0, 5, 11), (7_200.0, 60, 60)])
def test_a_retry_after_is_obeyed_up_to_a_cap(asked: float | None, least: float, most: float) -> None:
    error = RateLimitError("slow down", retry_after=asked)
    for failures in range(1, 12):
        assert least <= TeacherEngine.wait(error, failures) <= most


def test_an_unreachable_endpoint_is_told_at_once_and_costs_nothing() -> None:
    nowhere = TeacherConfig(model="sim/sim-model", api_base="http://127.0.0.1:9/v1", retries=5)
    [error], calls = ask(nowhere)
    assert isinstance(error, NotReached) and "127.0.0.1:9" in str(error) and not calls


def test_a_missing_key_variable_is_told_before_any_call(
    said: Said, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for teacher in (config(server, api_key_env="NOT_SET_ANYWHERE"), "openai/gpt-4o-mini", "nosuch/model"):
        with said.by(ConfigError):
            open_teacher(teacher)


SCHEMA = rendering(ResponseImprovement).response_format["json_schema"]


def sent_schema(teacher: TeacherConfig | str) -> dict[str, Any]:
    """What goes out of SCHEMA."""
    engine: Any = open_teacher(teacher).start()
    config = Config(response_format={"type": "json_schema", **SCHEMA})
    sent = engine.outgoing(Request(model="m", messages=(Message.user("x"),), config=config))[0]
    return dict(sent.config.response_format["schema"])


def test_a_hosted_provider_gets_a_schema_without_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-any-0123456789")
    sent = json.dumps(sent_schema("openai/gpt-4o-mini"))
    assert "maxLength" in json.dumps(SCHEMA) and "maxLength" not in sent and "maxItems" not in sent
    assert "improved_response" in sent and '"required"' in sent


def test_a_local_decoder_gets_the_bounds_that_it_can_keep(server: SimulatedTeacher) -> None:
    sent = sent_schema(config(server))
    assert SCHEMA["schema"]["properties"]["improved_response"]["maxLength"] == 24_000
    assert sent["properties"]["improved_response"] == {"type": "string"}
    assert sent["$defs"]["Analysis"]["properties"]["original_strengths"]["maxItems"] == 6
    assert sent["$defs"]["Analysis"]["properties"]["original_strengths"]["items"]["maxLength"] == 400


def test_many_at_once_stay_within_the_connections(server: SimulatedTeacher) -> None:
    server.control(latency=0.02)
    answers, calls = ask(config(server, concurrency=8), times=30)
    assert len(calls) == 30 and not [a for a in answers if isinstance(a, Exception)]
    assert server.stats()["max_in_flight"] <= 10
    assert pickle.dumps(calls)


@pytest.mark.parametrize("max_tokens", [16, 512])
async def test_a_call_takes_of_the_limit_what_it_may_write_and_about_its_prompt(
    server: SimulatedTeacher, max_tokens: int
) -> None:
    opened = open_teacher(config(server, tokens_per_minute=10**6, max_tokens=max_tokens))
    async with opened.running() as engine:
        request = Request(model="sim-model", messages=(Message.user("x" * 3000),))
        assert isinstance(engine, TeacherEngine)
        _, bound = engine.outgoing(request)
        with suppress(AnswerCut):
            await engine.complete(request)
        limits = engine._connections().limits
        assert limits.tokens.taken == bound.prompt / 4 + max_tokens and limits.requests.taken == 1
        assert limits.in_flight == 0
        assert bound.prompt >= 3000


async def test_a_limit_that_is_used_up_for_hours_is_told_and_nothing_is_sent(
    said: Said, server: SimulatedTeacher
) -> None:
    opened = open_teacher(config(server))
    async with opened.running() as engine:
        assert isinstance(engine, TeacherEngine)
        engine._connections().limits.tokens.learn(limit=1000, left=0, reset=86_400)
        with said.by(StillLimited):
            await engine.complete(Request(model="sim-model", messages=(Message.user("Why?"),)))
    assert server.stats()["requests"] == 0


async def test_a_bound_on_calls_at_once_is_kept_and_a_plain_one_is_32(server: SimulatedTeacher) -> None:
    for settings, most in (({"concurrency": 3}, 3), ({}, 32)):
        async with open_teacher(config(server, **settings)).running() as engine:
            assert isinstance(engine, TeacherEngine) and engine._connections().limits.most == most
            assert engine._connections() is engine._connections()


def test_what_asking_again_cannot_help_is_asked_once(server: SimulatedTeacher) -> None:
    [error], [call] = ask(config(server, model="sim/missing-model", retries=2))
    assert isinstance(error, lm_errors.LMUnsupportedModelError) and call.outcome == "http 404"

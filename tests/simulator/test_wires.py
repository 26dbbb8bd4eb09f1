"""The simulated server on the wires of OpenAI, Azure and Anthropic, as bytes. tests/teachers/test_routes.py asks it by
DSPy's own client."""

from __future__ import annotations

import http.client
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.conftest import KEY

CLASSIC = "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
PATHS = {
    "openai": "/v1/chat/completions",
    "azure": CLASSIC,
    "azure-v1": "/openai/v1/chat/completions",
    "anthropic": "/v1/messages",
}
KEYS = {"openai": "Authorization", "azure": "api-key", "azure-v1": "api-key", "anthropic": "x-api-key"}
PROPERTIES = {"new_instructions": {"type": "array", "items": {"type": "string"}}, "name": {"type": "string"}}
TASK = "Task "
SCHEMA = {
    "type": "object",
    "properties": PROPERTIES,
    "required": ["new_instructions", "name"],
    "additionalProperties": False,
}
WIRES = pytest.mark.parametrize("wire", PATHS)


@pytest.fixture
def teacher(locked: SimulatedTeacher) -> SimulatedTeacher:
    locked.control(items=2)
    return locked


def ask(
    teacher: SimulatedTeacher, wire: str, text: str = "hello", *, path: str = "", key: str = KEY, **body: Any
) -> tuple[int, Any, dict[str, str]]:
    """Status, body (text when it is no JSON) and headers (in small letters) of one request; None leaves a field out."""
    headers = {KEYS[wire]: f"Bearer {key}" if wire == "openai" else key}
    sent: dict[str, Any] = {"model": "sim-model", "messages": [{"role": "user", "content": text}]}
    if wire == "anthropic":
        headers["anthropic-version"] = "2023-06-01"
        sent["max_tokens"] = 1000
    for name in ("anthropic-version", "api-key"):
        if name in body:
            headers[name] = body.pop(name)
    sent = {name: value for name, value in (sent | body).items() if value is not None}
    connection = http.client.HTTPConnection("127.0.0.1", teacher.port, timeout=10)
    try:
        connection.request("POST", path or PATHS[wire], json.dumps(sent), headers)
        answer = connection.getresponse()
        raw = answer.read().decode()
        answer_headers = {name.lower(): value for name, value in answer.getheaders()}
    finally:
        connection.close()
    return answer.status, json.loads(raw) if "json" in answer_headers["content-type"] else raw, answer_headers


def written(answer: Any) -> str:
    """The text of an answer on either kind of wire."""
    if "choices" in answer:
        return str(answer["choices"][0]["message"]["content"])
    return "".join(block["text"] for block in answer["content"])


def with_schema(wire: str) -> dict[str, Any]:
    if wire == "anthropic":
        return {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}}
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}


@WIRES
def test_answers_keys_and_models(teacher: SimulatedTeacher, wire: str) -> None:
    status, answer, _ = ask(teacher, wire, **with_schema(wire))
    assert (status, answer["model"]) == (200, "my-gpt" if wire == "azure" else "sim-model")
    assert set(json.loads(written(answer))) == set(PROPERTIES)
    status, refused, _ = ask(teacher, wire, key="sk-wrong-1234")
    code = {"openai": "invalid_api_key", "anthropic": "authentication_error"}.get(wire, "401")
    field = "type" if wire == "anthropic" else "code"
    assert (status, refused["error"][field]) == (401, code)
    path = CLASSIC.replace("my-gpt", "missing") if wire == "azure" else ""
    status, lacking, _ = ask(teacher, wire, path=path, model="missing")
    code = {"openai": "model_not_found", "anthropic": "not_found_error"}.get(wire, "DeploymentNotFound")
    assert (status, lacking["error"][field]) == (404, code)
    assert ask(teacher, wire, messages="none")[0] == 400
    stats = teacher.stats()
    assert (stats["by_wire"], stats["by_status"]) == ({wire: 4}, {"200": 1, "401": 1, "404": 1, "400": 1})


def test_azure_reads_the_deployment_and_the_version(teacher: SimulatedTeacher) -> None:
    assert ask(teacher, "azure", model=None)[1]["model"] == "my-gpt"
    for version in ("", "?api-version=2023-05-15"):
        status, answer, _ = ask(teacher, "azure", path=CLASSIC.partition("?")[0] + version)
        assert (status, answer["error"]["code"]) == (404, "404")
    assert ask(teacher, "openai", path=PATHS["azure-v1"])[0] == 200  # a bearer token is as good there
    assert ask(teacher, "openai", path=CLASSIC)[0] == 401
    assert ask(teacher, "azure", path=PATHS["openai"])[0] == 401


def test_anthropic_reads_blocks_and_asks_for_what_it_needs(teacher: SimulatedTeacher) -> None:
    long = "y" * 1100
    blocks = [{"type": "text", "text": long}]
    body: dict[str, Any] = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi there"}]}]}
    _, first, _ = ask(teacher, "anthropic", system=blocks, **body)
    _, second, _ = ask(teacher, "anthropic", system=long)
    output = len(written(first)) // 4
    cache = {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    assert first["usage"] == {"input_tokens": 277, "output_tokens": output} | cache
    assert (second["usage"]["input_tokens"], second["usage"]["cache_read_input_tokens"]) == (20, 256)
    assert (first["type"], first["role"]) == ("message", "assistant")
    assert (first["stop_reason"], first["stop_sequence"]) == ("end_turn", None)
    wrong: list[dict[str, Any]] = [{"max_tokens": None}, {"model": None}, {"anthropic-version": ""}, {"messages": []}]
    for fields in wrong:
        status, answer, _ = ask(teacher, "anthropic", **fields)
        assert (status, answer["type"], answer["error"]["type"]) == (400, "error", "invalid_request_error")
    same = [written(ask(teacher, "anthropic", temperature=0, **with_schema("anthropic"))[1]) for _ in range(2)]
    assert same[0] == same[1]


@WIRES
def test_both_limits_refuse_before_anything_is_taken(teacher: SimulatedTeacher, wire: str) -> None:
    teacher.control(limit_per_minute=60, limit_burst=3, limit_tokens_per_minute=6000, limit_tokens_burst=1000)
    status, _, headers = ask(teacher, wire, "x" * 400, max_tokens=500)
    refused, answer, limits = ask(teacher, wire, "x" * 400, max_tokens=500)
    pattern = "anthropic-ratelimit-{1}-{0}" if wire == "anthropic" else "x-ratelimit-{0}-{1}"
    assert (status, refused, limits["retry-after"]) == (200, 429, "2")
    assert headers[pattern.format("limit", "tokens")] == "6000"
    assert headers[pattern.format("remaining", "tokens")] == "400"
    assert headers[pattern.format("limit", "requests")] == "60"
    for sent in (headers, limits):  # the refused request took nothing
        assert sent[pattern.format("remaining", "requests")] == "2"
    assert 400 <= int(limits[pattern.format("remaining", "tokens")]) < 600
    reset = headers[pattern.format("reset", "tokens")]
    if wire == "anthropic":
        wait = datetime.fromisoformat(reset) - datetime.now(UTC)
        assert timedelta(0) < wait < timedelta(seconds=10)
        assert answer["error"]["type"] == "rate_limit_error"
    else:
        assert 5 < float(reset.removesuffix("s")) <= 6
        assert answer["error"]["code"] == ("rate_limit_exceeded" if wire == "openai" else "429")
    teacher.control(rate_headers=False)
    for tokens, expected in ((1, 200), (5000, 429)):
        status, _, headers = ask(teacher, wire, max_tokens=tokens)
        assert status == expected and not any("ratelimit" in name for name in headers)
    assert "retry-after" in headers
    assert teacher.stats()["by_status"] == {"200": 2, "429": 2}


@WIRES
def test_faults(teacher: SimulatedTeacher, wire: str) -> None:
    def after(fault: str) -> tuple[int, Any, dict[str, str]]:
        teacher.control(faults={fault: 1.0})
        return ask(teacher, wire)

    anthropic = wire == "anthropic"
    assert after("500")[0] == (529 if anthropic else 500)
    for fault, expected in (("html", 200), ("html502", 502)):
        status, page, headers = after(fault)
        assert (status, headers["content-type"]) == (expected, "text/html") and page.startswith("<")
    status, answer, _ = after("filtered")
    if anthropic:
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    else:
        error = answer["error"]
        assert (status, error["code"], error["param"], error["type"]) == (400, "content_filter", "prompt", None)
        assert (error["status"], error["innererror"]) == (400, {"code": "ResponsibleAIPolicyViolation"})
    _, answer, _ = after("nousage")
    assert written(answer) and "usage" not in answer
    names = ("input_tokens", "output_tokens") if anthropic else ("prompt_tokens", "completion_tokens")
    kinds = set()
    for _ in range(3):
        status, answer, _ = after("oddusage")
        counts = [answer["usage"][name] for name in names]
        assert status == 200 and not any(isinstance(count, int) and count >= 0 for count in counts)
        kinds |= {type(count) for count in counts}
    assert kinds == {str, float, int}
    _, answer, _ = after("refusal")
    reason = answer["stop_reason"] if anthropic else answer["choices"][0]["finish_reason"]
    assert reason == ("refusal" if anthropic else "content_filter") and written(answer) == ""
    failed = {"529" if anthropic else "500": 1}
    assert teacher.stats()["by_status"] == failed | {"html": 1, "502": 1, "400": 1, "200": 5}


@WIRES
def test_max_tokens_cuts_and_signature_signs(teacher: SimulatedTeacher, wire: str) -> None:
    names = ("max_tokens",) if wire == "anthropic" else ("max_tokens", "max_completion_tokens")
    for name in names:
        asked: dict[str, Any] = {name: 7}
        _, answer, _ = ask(teacher, wire, **asked)
        reason = answer["stop_reason"] if wire == "anthropic" else answer["choices"][0]["finish_reason"]
        usage = answer["usage"]
        assert len(written(answer)) == 28 and usage.get("output_tokens", usage.get("completion_tokens")) == 7
        assert reason == ("max_tokens" if wire == "anthropic" else "length")
    assert ask(teacher, wire, max_tokens="many")[0] == 400
    teacher.control(signature="ALPHA")
    answer = json.loads(written(ask(teacher, wire, **with_schema(wire))[1]))
    assert answer["name"].startswith("ALPHA ")
    assert all(text.startswith(f"ALPHA {TASK}") for text in answer["new_instructions"])
    assert written(ask(teacher, wire)[1]).startswith("ALPHA ")
    teacher.control(faults={"malformed": 1.0})
    text = written(ask(teacher, wire, **with_schema(wire))[1])
    assert text.startswith("ALPHA ") and text.count("ALPHA") == 1


def leave(teacher: SimulatedTeacher, text: str, most: int) -> None:
    """Ask on OpenAI's wire and go away before the answer."""
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": most}
    connection = http.client.HTTPConnection("127.0.0.1", teacher.port, timeout=10)
    connection.request("POST", PATHS["openai"], json.dumps(body), {"Authorization": f"Bearer {KEY}"})
    while teacher.stats()["in_flight"] == 0:
        time.sleep(0.01)
    connection.close()
    while teacher.stats()["in_flight"]:
        time.sleep(0.01)


def test_the_bill_has_what_was_written_and_what_hangs(teacher: SimulatedTeacher) -> None:
    def bill() -> tuple[int, ...]:
        stats = teacher.stats()
        return tuple(stats[f"billed_{name}_tokens"] for name in ("prompt", "cached", "completion"))

    completion = ask(teacher, "openai", "z" * 600)[1]["usage"]["completion_tokens"]
    assert bill() == (150, 0, completion)
    teacher.control(faults={"429": 1.0})
    ask(teacher, "openai", "z" * 600)
    teacher.control(faults={}, latency=5)
    leave(teacher, "z" * 600, 100)
    assert bill() == (150, 0, completion)
    teacher.control(faults={"hang": 1.0}, latency=0)
    leave(teacher, "z" * 600, 100)
    assert bill() == (300, 128, completion + 100)
    teacher.control(faults={"nousage": 1.0})
    ask(teacher, "openai", "z" * 400, max_tokens=5)
    stats = teacher.stats()
    assert bill() == (400, 128, completion + 105)
    assert (stats["prompt_tokens"], stats["cached_tokens"], stats["completion_tokens"]) == (250, 0, completion + 5)
    assert stats["by_status"] == {"200": 2, "429": 1, "disconnected": 2}

"""The simulated server, run in its own process and called over HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.support import ROOT
from tests.support.said import Said

TEXTS = {"type": "array", "items": {"type": "string"}}
SCHEMA: dict[str, Any] = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "kind": {"enum": ["a", "b"]},
                "share": {"type": "number", "minimum": 0, "exclusiveMaximum": 1},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
            },
            "required": ["kind", "share", "next"],
        }
    },
    "type": "object",
    "properties": {
        "new_instructions": TEXTS,
        "name": {"type": "string", "maxLength": 12},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "sure": {"type": "boolean"},
        "nodes": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "minItems": 3, "maxItems": 4},
    },
    "required": ["new_instructions", "name", "score", "sure", "nodes"],
    "additionalProperties": False,
}


@pytest.fixture
def teacher(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(items=4)
    return server


def post(teacher: SimulatedTeacher, text: str = "hello", **body: Any) -> tuple[int, Any, dict[str, str]]:
    """The status, body and headers of one chat request; `key` goes into the header."""
    headers = {"Authorization": f"Bearer {body.pop('key', 'none')}"}
    messages = [{"role": "system", "content": body.pop("system", "")}, {"role": "user", "content": text}]
    connection = http.client.HTTPConnection("127.0.0.1", teacher.port, timeout=10)
    try:
        payload = json.dumps({"model": "sim-model", "messages": messages} | body)
        connection.request("POST", "/v1/chat/completions", payload, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), dict(answer.getheaders())
    finally:
        connection.close()


def content(teacher: SimulatedTeacher, text: str = "hello", **body: Any) -> str:
    return str(post(teacher, text, **body)[1]["choices"][0]["message"]["content"])


def form(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.slow
def test_answers_fit_the_schema_and_differ(teacher: SimulatedTeacher) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    answers = [json.loads(content(teacher, f"p{i % 10}", response_format=form(SCHEMA))) for i in range(40)]
    for answer in answers:
        jsonschema.validate(answer, SCHEMA)
    items = [item for answer in answers for item in answer["new_instructions"]]
    assert len(items) == len(set(items)) == 160
    same = [content(teacher, temperature=0, response_format=form(SCHEMA)) for _ in range(2)]
    assert same[0] == same[1]
    assert len({content(teacher), content(teacher), content(teacher, "other")}) == 3
    teacher.control(duplicates=1, items=6)
    repeated = json.loads(content(teacher, "new", response_format=form(SCHEMA)))["new_instructions"]
    assert len(repeated) == 6 and set(repeated) <= set(items) | set(json.loads(same[0])["new_instructions"])


def test_stats_count_tokens_prefixes_and_repeats(teacher: SimulatedTeacher) -> None:
    long = "x" * 1500
    status, first, _ = post(teacher, long + "1", temperature=0)
    _, second, _ = post(teacher, long + "2")
    post(teacher, long + "1")
    assert (status, first["usage"]["prompt_tokens"]) == (200, 375)
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 256
    stats = teacher.stats()
    assert (stats["requests"], stats["answered"], stats["repeated"]) == (3, 3, 1)
    assert (stats["by_status"], stats["cached_tokens"], stats["in_flight"]) == ({"200": 3}, 512, 0)
    assert stats["span_s"] == pytest.approx(stats["last_answer"] - stats["first_request"])
    teacher.reset()
    post(teacher, long + "1")
    assert (teacher.stats()["repeated"], teacher.stats()["cached_tokens"]) == (0, 0)


def test_faults_in_answers(teacher: SimulatedTeacher) -> None:
    def after(fault: str) -> tuple[int, str, str]:
        teacher.control(faults={fault: 1.0}, retry_after=0.5)
        status, answer, headers = post(teacher, response_format=form(SCHEMA))
        if status != 200:
            return status, answer["error"]["code"], headers.get("Retry-After", "")
        choice = answer["choices"][0]
        return status, choice["finish_reason"], choice["message"]["content"]

    assert after("400") == (400, "unsupported_value", "")
    assert after("429") == (429, "rate_limit_exceeded", "0.5")
    assert after("500") == (500, "server_error", "")
    assert after("keyerror") == (400, "invalid_header", "")
    assert after("refusal") == (200, "content_filter", "")
    assert after("empty") == (200, "stop", "")
    for fault, reason in (("malformed", "stop"), ("cut", "length")):
        status, finish_reason, text = after(fault)
        assert (status, finish_reason) == (200, reason)
        with pytest.raises(ValueError):
            json.loads(text)
    with pytest.raises(http.client.RemoteDisconnected):
        after("drop")
    with pytest.raises(http.client.IncompleteRead):
        after("short")
    with pytest.raises(ValueError):
        after("redirect")
    assert teacher.stats()["by_status"]["307"] == 1
    teacher.control(faults={}, fail_stage="judge")
    assert not content(teacher, system="judge", response_format=form(SCHEMA)).startswith("{")
    assert content(teacher, system="write", response_format=form(SCHEMA)).startswith("{")
    teacher.control(faults={"500": 0.5}, fail_stage=None)
    assert 10 < sum(post(teacher, str(i))[0] == 500 for i in range(60)) < 50


def test_settings_are_checked(said: Said, teacher: SimulatedTeacher) -> None:
    wrong: list[dict[str, Any]] = [
        {"items": 3, "latency": -1}, {"rate_headers": 1}, {"rate_headers": None}, {"signature": None}, {"signature": 3},
        {"limit_tokens_per_minute": -1}, {"limit_tokens_burst": "x"}, {"faults": {"html503": 1.0}}, {"batches": 1},
        {"batch_seconds": -1}, {"batch_faults": {"drop": 1.0}}, {"batch_fates": "ok"}, {"batch_fates": ["good"]},
        {"batch_faults": {"400": 0.6, "429": 0.6}}, {"batch_max_requests": 1.5}, {"tokenizer": "cl100k_base"},
        {"tokenizer": None}, {"cache_warm": "never"}, {"field_tokens": {"response": 0}}, {"cache_minimum": None},
    ]  # fmt: skip
    before = teacher.control()
    for changes in wrong:
        with said.by(RuntimeError):
            teacher.control(**changes)
    assert teacher.control() == before and before["items"] == 4
    assert (teacher.root, teacher.base_url) == (f"http://127.0.0.1:{teacher.port}", f"{teacher.root}/v1")


# --- verdicts and log-probabilities


def choice(teacher: SimulatedTeacher, text: str, **body: Any) -> Any:
    return post(teacher, text, **body)[1]["choices"][0]


def test_a_verdict_is_the_likeliest_token_and_its_messages_decide_it(teacher: SimulatedTeacher) -> None:
    teacher.control(verdicts=["m", "M"])
    asked = {"logprobs": True, "top_logprobs": 5, "max_tokens": 1, "temperature": 1}
    seen = set()
    for number in range(12):
        first, again = (choice(teacher, f"pair {number}", **asked) for _ in range(2))
        (token,) = first["logprobs"]["content"]
        top = token["top_logprobs"]
        assert first == again and first["finish_reason"] == "length"
        assert first["message"]["content"] == token["token"] == top[0]["token"] and top[0]["logprob"] >= -math.log(2)
        assert {each["token"] for each in top} == {"m", "M"}
        assert sum(math.exp(each["logprob"]) for each in top) == pytest.approx(1)
        seen.add(token["token"])
    assert seen == {"m", "M"}


def test_log_probabilities_come_where_they_are_asked_for(teacher: SimulatedTeacher) -> None:
    plain = choice(teacher, "write")
    assert plain["logprobs"] is None and len(plain["message"]["content"]) > 4
    asked = choice(teacher, "write", logprobs=True, temperature=0)
    assert "".join(each["token"] for each in asked["logprobs"]["content"]) == asked["message"]["content"]
    teacher.control(logprobs=False)
    assert choice(teacher, "write", logprobs=True)["logprobs"] is None
    teacher.control(rules=["no logprobs"])
    assert post(teacher, "write", logprobs=True)[0] == 400 and post(teacher, "write")[0] == 200


@pytest.mark.slow
def test_limits_keys_and_models(teacher: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    assert post(teacher, model="missing-model")[1]["error"]["code"] == "model_not_found"
    assert post(teacher, response_format={"type": "json_schema"})[0] == 400
    teacher.control(limit_per_minute=60, limit_burst=2)
    statuses = [post(teacher) for _ in range(3)]
    assert [status for status, _, _ in statuses] == [200, 200, 429]
    assert statuses[2][2]["Retry-After"] == "1"
    assert statuses[0][2]["x-ratelimit-remaining-requests"] == "1"
    teacher.control(limit_per_minute=None, down_after=3)
    assert post(teacher)[0] == 200
    with pytest.raises(http.client.RemoteDisconnected):
        post(teacher)
    monkeypatch.setenv("SIM_TEACHER_KEY", "sk-right-key")
    with SimulatedTeacher(latency=0, key="SIM_TEACHER_KEY") as keyed:
        status, answer, _ = post(keyed, key="sk-wrong-1234")
        assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        assert "****1234" in answer["error"]["message"] and "wrong" not in answer["error"]["message"]
        keyed.control(auth_fails_after=2)
        assert [post(keyed, key="sk-right-key")[0] for _ in range(3)] == [200, 200, 401]
        keyed.control(auth_fails_after=None, faults={"keyerror": 1.0})
        assert "sk-right-key" in post(keyed, key="sk-right-key")[1]["error"]["message"]
        keyed.control(faults={"keytext": 1.0})
        answer = post(keyed, key="sk-right-key", response_format=form(SCHEMA))[1]
        assert "sk-right-key" in str(json.loads(answer["choices"][0]["message"]["content"]))


@pytest.mark.slow
def test_latency_overlaps_and_clients_may_leave(capfd: pytest.CaptureFixture[str]) -> None:
    async def leave(port: int, count: int) -> None:
        request = b'{"messages": [{"role": "user", "content": "hi"}]}'
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(request)
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
        for index, (_, writer) in enumerate(pairs):
            writer.write(head + (request if index else request[:9]))  # the first leaves halfway
        await asyncio.sleep(0.3)
        for _, writer in pairs:
            writer.close()
        await asyncio.sleep(0.3)

    with SimulatedTeacher(latency=0.1, sigma=0) as teacher:
        assert post(teacher)[0] == 200
        assert teacher.stats()["latency_sum_s"] == pytest.approx(0.1)
        teacher.control(faults={"hang": 1.0})
        asyncio.run(leave(teacher.port, 20))
        stats = teacher.stats()
        assert (stats["max_in_flight"], stats["in_flight"]) == (20, 0)
        assert stats["by_status"] == {"200": 1, "disconnected": 20}
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_ends_on_sigterm_and_with_its_parent(capfd: pytest.CaptureFixture[str]) -> None:
    teacher = SimulatedTeacher(latency=30, sigma=0)
    connection = http.client.HTTPConnection("127.0.0.1", teacher.port)
    connection.request("POST", "/v1/chat/completions", '{"messages": []}')
    while teacher.stats()["in_flight"] == 0:
        time.sleep(0.01)
    teacher.process.send_signal(signal.SIGTERM)
    assert teacher.process.wait(3) == 0
    connection.close()
    teacher.stop()
    parent = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    command = [sys.executable, "-m", "benchmarks.server", "--parent", str(parent.pid)]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert "http://" in server.stdout.readline()
    parent.communicate(b"\n")
    assert server.wait(5) == 0
    server.stdout.close()
    assert capfd.readouterr().err == ""

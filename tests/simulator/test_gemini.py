"""The simulated server on Gemini's wire, asked by the client of `google.genai`, by DSPy's own and as bytes."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
from dspy.lm15 import AsyncLMRouter, Config, Message, Request, RouterConfig
from pydantic import BaseModel

from benchmarks.simulated import SimulatedTeacher
from tests.conftest import KEY

genai = pytest.importorskip("google.genai")
errors, types = genai.errors, genai.types
PATH = "/v1beta/models/sim-model:generateContent"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}


class Named(BaseModel):
    name: str
    sizes: list[int]


def client(server: SimulatedTeacher, key: str = "k") -> Any:
    options = {"base_url": server.root, "api_version": "v1beta", "client_args": {"verify": False}}
    return genai.Client(api_key=key, http_options=options)


def ask(
    server: SimulatedTeacher, text: str = "hello", *, path: str = PATH, key: str | None = "k", **body: Any
) -> tuple[int, Any]:
    """Status and body (text when it is no JSON) of one request; None leaves a field out."""
    sent = {"contents": [{"role": "user", "parts": [{"text": text}]}]} | body
    sent = {name: value for name, value in sent.items() if value is not None}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("POST", path, json.dumps(sent), {} if key is None else {"x-goog-api-key": key})
        answer = connection.getresponse()
        raw = answer.read().decode()
    finally:
        connection.close()
    return answer.status, json.loads(raw) if "json" in answer.headers["content-type"] else raw


def checked(answer: Any) -> Any:
    """The answer as the provider's own type, which has no other fields."""
    return types.GenerateContentResponse.model_validate_json(json.dumps(answer), strict=True)


@pytest.fixture
def short(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=5)
    return server


def test_the_client_of_the_provider_is_answered(short: SimulatedTeacher) -> None:
    asked = client(short)
    answer = asked.models.generate_content(model="sim-model", contents="x" * 400, config={"max_output_tokens": 50})
    usage = answer.usage_metadata
    assert answer.text and answer.model_version == "sim-model"
    assert answer.candidates[0].finish_reason == types.FinishReason.STOP
    assert usage.prompt_token_count == 100 and usage.candidates_token_count == len(answer.text) // 4
    assert usage.total_token_count == 100 + usage.candidates_token_count
    config = {"response_mime_type": "application/json", "response_schema": Named, "system_instruction": "be kind"}
    answer = asked.models.generate_content(model="sim-model", contents="x", config=config)
    assert isinstance(answer.parsed, Named)
    fixed = [asked.models.generate_content(model="m", contents="x", config={"temperature": 0}).text for _ in range(2)]
    assert fixed[0] == fixed[1]
    assert next(iter(asked.models.list(config={"query_base": True}))).name == "models/sim-model"
    stats = short.stats()
    assert (stats["by_wire"], stats["by_status"], stats["repeated"]) == ({"gemini": 4}, {"200": 4}, 1)


async def test_dspy_is_answered(short: SimulatedTeacher) -> None:
    router = AsyncLMRouter(RouterConfig(base_urls={"gemini": short.gemini_url}, api_keys={"gemini": "k"}))
    form = {"type": "json_schema", "schema": {**SCHEMA, "additionalProperties": False}}
    request = Request(
        model="sim-model",
        messages=(Message.user("x" * 400),),
        system="be kind",
        config=Config(max_tokens=100, temperature=1.0, response_format=form),
    )
    answer = await router.lm("gemini:sim-model").complete(request)
    assert set(json.loads(answer.text)) == {"name"} and answer.finish_reason == "stop"
    assert answer.usage.input_tokens == 101 and answer.usage.output_tokens == len(answer.text) // 4


def test_keys_models_and_mistakes(short: SimulatedTeacher, locked: SimulatedTeacher) -> None:
    assert ask(locked, key=KEY)[0] == 200
    assert ask(locked, path=f"{PATH}?key={KEY}", key=None)[0] == 200
    status, refused = ask(locked, key="sk-wrong")  # a bad request, not a 401
    assert (status, refused["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert refused["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    status, lacking = ask(short, path=PATH.replace("sim", "missing"))
    assert (status, lacking["error"]["code"], lacking["error"]["status"]) == (404, 404, "NOT_FOUND")
    assert ask(short, path="/v1beta/models/sim-model:streamGenerateContent")[1]["error"]["status"] == "NOT_FOUND"
    wrong: list[dict[str, Any]] = [
        {"contents": None},
        {"contents": []},
        {"max_tokens": 5},
        {"generationConfig": {"max_tokens": 5}},
        {"generationConfig": {"maxOutputTokens": "many"}},
        {"generationConfig": {"responseSchema": SCHEMA}},
        {"contents": [{"role": "system", "parts": [{"text": "x"}]}]},
    ]
    for fields in wrong:
        status, answer = ask(short, **fields)
        assert (status, answer["error"]["status"]) == (400, "INVALID_ARGUMENT"), fields
    for name in ("generationConfig", "generation_config"):  # as in JSON, or as in protobuf
        for most in ("maxOutputTokens", "max_output_tokens"):
            bounded: dict[str, Any] = {name: {most: 3}}
            _, answer = ask(short, **bounded)
            assert answer["candidates"][0]["finishReason"] == "MAX_TOKENS"
            assert answer["usageMetadata"]["candidatesTokenCount"] == 3
    either = {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}
    config = {"responseMimeType": "application/json", "responseSchema": {"type": "OBJECT", "properties": {"x": either}}}
    status, answer = ask(short, generationConfig=config)
    assert set(json.loads(answer["candidates"][0]["content"]["parts"][0]["text"])) == {"x"}
    assert short.stats()["by_status"] == {"404": 1, "400": 7, "200": 5}


def test_faults(short: SimulatedTeacher) -> None:
    def after(fault: str) -> tuple[int, Any]:
        short.control(faults={fault: 1.0})
        return ask(short, "x" * 400)

    for fault, expected, name in (
        ("500", 503, "UNAVAILABLE"),
        ("429", 429, "RESOURCE_EXHAUSTED"),
        ("400", 400, "INVALID_ARGUMENT"),
    ):
        status, answer = after(fault)
        assert (status, answer["error"]["code"], answer["error"]["status"]) == (expected, expected, name)
    status, answer = after("filtered")
    assert status == 200 and checked(answer).prompt_feedback.block_reason == types.BlockedReason.PROHIBITED_CONTENT
    for fault, reason in (("refusal", "SAFETY"), ("empty", "STOP"), ("cut", "MAX_TOKENS"), ("malformed", "STOP")):
        _, answer = after(fault)
        assert checked(answer).candidates[0].finish_reason.name == reason
        assert bool(checked(answer).text) == (fault in ("cut", "malformed"))
    assert "usageMetadata" not in after("nousage")[1]
    assert after("lyingusage")[1]["usageMetadata"]["candidatesTokenCount"] == 10**9
    short.control(faults={}, lie="a tenth", reasoning="y" * 8)
    usage = ask(short, "x" * 400)[1]["usageMetadata"]
    assert usage["promptTokenCount"] == 10
    short.control(lie="")
    answer = checked(ask(short, "z" * 400)[1])
    spent = answer.usage_metadata
    assert answer.candidates[0].content.parts[0].thought and spent.thoughts_token_count == 2
    assert spent.total_token_count == 100 + spent.candidates_token_count + 2
    short.control(limit_per_minute=1, reasoning="")
    ask(short)
    status, answer = ask(short)
    assert status == 429 and answer["error"]["details"][0]["retryDelay"].endswith("s")


def test_the_prefix_cache_is_told(short: SimulatedTeacher) -> None:
    first, second = (ask(short, "x" * 2000)[1]["usageMetadata"] for _ in range(2))
    assert "cachedContentTokenCount" not in first and second["cachedContentTokenCount"] == 384
    assert first["promptTokenCount"] == second["promptTokenCount"] == 500

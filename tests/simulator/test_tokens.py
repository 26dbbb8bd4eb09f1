"""How the simulated server counts tokens and caches prefixes, as the client of `openai` sees it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.plugins.evaluate.answers.formats import encoding

FIELDS = {"response": 400, "subject_areas": 61, "new_instructions": 25, "analysis": 100}
SCHEMA = {
    "type": "object",
    "properties": {
        "response": {"type": "string"},
        "analysis": {"type": "string"},
        "subject_areas": {"type": "array", "items": {"type": "string"}},
        "new_instructions": {"type": "array", "items": {"type": "string"}},
        "other": {"type": "string"},
    },
}


@pytest.mark.parametrize("name", ["", pytest.param("o200k_base", marks=pytest.mark.slow)])
def test_fields_have_the_tokens_asked_for(server: SimulatedTeacher, name: str, request: pytest.FixtureRequest) -> None:
    count: Callable[[str], int] = (lambda text: len(text) // 4) if not name else _counter(name)
    asked: Any = openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0)
    request.addfinalizer(asked.close)

    def ask(text: str, **more: Any) -> tuple[Any, Any]:
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        messages: Any = [{"role": "system", "content": "Be good."}, {"role": "user", "content": text}]
        answer = asked.chat.completions.create(model="m", messages=messages, response_format=form, **more)
        return answer.choices[0].message.content, answer

    for signature in ("", "ALPHA"):
        server.control(tokenizer=name, field_tokens=FIELDS, signature=signature)
        texts = []
        for place in range(5):
            content, answer = ask(f"question {place}")
            made = json.loads(content)
            assert answer.usage.completion_tokens == count(content)
            assert {count(made["response"]), count(made["analysis"])} == {400, 100}
            assert sum(map(count, made["subject_areas"])) == 61 and len(made["new_instructions"]) == 10
            assert all(count(text) == 25 and "Task " in text for text in made["new_instructions"])
            assert made["response"].startswith(signature) and len(made["other"].split()) >= 40
            texts.append(made["response"])
        assert len(set(texts)) == 5 and len(set(texts[0].split())) > 100
    assert ask("same", temperature=0)[0] == ask("same", temperature=0)[0]
    cut, answer = ask("short", max_tokens=7)
    assert (count(cut), answer.choices[0].finish_reason) == (7, "length")
    text = "some words to count"
    answer = asked.chat.completions.create(model="m", messages=[{"role": "user", "content": text}])
    assert answer.usage.prompt_tokens == count(text)


def _counter(name: str) -> Callable[[str], int]:
    encoder = encoding(name)
    return lambda text: len(encoder.encode_ordinary(text))


@pytest.mark.slow
def test_the_prefix_cache_counts_tokens_has_a_minimum_and_warms_late(server: SimulatedTeacher) -> None:
    words = [f"{place} apple" for place in range(700)]
    count = _counter("o200k_base")

    async def ask(*texts: str) -> list[tuple[int, int]]:
        asked = openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0)
        system: Any = {"role": "system", "content": " ".join(words[:80])}
        made = (
            asked.chat.completions.create(model="m", messages=[system, {"role": "user", "content": text}])
            for text in texts
        )
        usage: list[Any] = [answer.usage for answer in await asyncio.gather(*made)]
        await asked.close()
        return [(use.prompt_tokens, use.prompt_tokens_details.cached_tokens) for use in usage]

    def cached(*texts: str) -> list[int]:
        return [tokens for _, tokens in asyncio.run(ask(*texts))]

    server.control(tokenizer="o200k_base")
    prompt = count(" ".join(words[:80])) + count("one")
    assert asyncio.run(ask("one")) == [(prompt, 0)]
    shared = prompt // 128 * 128
    assert shared and cached("two") == [shared]
    long = " ".join(words)
    whole = count(" ".join(words[:80])) + count(long)
    server.control(cache_minimum=1024)
    server.reset()
    assert cached("one", "two") == [0, 0] and cached("two") == [0]  # too short to be kept
    assert cached(long) == [0] and cached(long) == [whole // 128 * 128] and whole > 1024
    assert cached(" ".join([*words[:20], *words[30:]])) == [0]  # too little is the same
    server.control(cache_minimum=0, cache_warm="answer", latency=0.1)
    server.reset()
    assert cached("one", "two") == [0, 0] and cached("three") == [shared]
    server.control(cache_warm="arrival")
    server.reset()
    assert sorted(cached("one", "two")) == [0, shared]

"""Verdicts of one token, and log-probabilities, as the simulated server gives them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.simulator.test_server import post


def choice(teacher: SimulatedTeacher, text: str, **body: Any) -> Any:
    return post(teacher, text, **body)[1]["choices"][0]


def test_a_verdict_is_the_likeliest_token_and_its_messages_decide_it(server: SimulatedTeacher) -> None:
    server.control(verdicts=["m", "M"])
    asked = {"logprobs": True, "top_logprobs": 5, "max_tokens": 1, "temperature": 1}
    seen = set()
    for number in range(12):
        first, again = (choice(server, f"pair {number}", **asked) for _ in range(2))
        (token,) = first["logprobs"]["content"]
        top = token["top_logprobs"]
        assert first == again and first["finish_reason"] == "length"
        assert first["message"]["content"] == token["token"] == top[0]["token"] and top[0]["logprob"] >= -math.log(2)
        assert {each["token"] for each in top} == {"m", "M"}
        assert sum(math.exp(each["logprob"]) for each in top) == pytest.approx(1)
        seen.add(token["token"])
    assert seen == {"m", "M"}


def test_log_probabilities_come_where_they_are_asked_for(server: SimulatedTeacher) -> None:
    plain = choice(server, "write")
    assert plain["logprobs"] is None and len(plain["message"]["content"]) > 4
    asked = choice(server, "write", logprobs=True, temperature=0)
    assert "".join(each["token"] for each in asked["logprobs"]["content"]) == asked["message"]["content"]
    server.control(logprobs=False)
    assert choice(server, "write", logprobs=True)["logprobs"] is None
    server.control(rules=["no logprobs"])
    assert post(server, "write", logprobs=True)[0] == 400 and post(server, "write")[0] == 200

"""The proxy as OpenAI's own client sees it, and what the ledger and the server's bill say of it."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from openai import APIStatusError, AsyncOpenAI

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import RunStopped, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import CAPPED, DONE, SHORT, state_in
from refed_dspy.plugins.evaluate.proxy import UNANSWERED, JudgeProxy
from refed_dspy.teachers.requests import OVERHEAD
from tests.support.clocks import until
from tests.support.proxies import ask, ask_all, asking, bill, calls, client, judge, with_proxy
from tests.support.recording_endpoint import listening
from tests.support.said import Said

TEXTS = [f"Which is better, {n} or {n + 1}? {'Think. ' * (n % 7)}" for n in range(20)]


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(verdicts=["m", "M"])
    return server


def statuses(answers: list[Any] | None) -> list[int]:
    assert answers is not None
    return [answer.status_code if isinstance(answer, APIStatusError) else 200 for answer in answers]


async def test_an_answer_is_the_one_that_the_endpoint_gives(server: SimulatedTeacher, tmp_path: Path) -> None:
    """Also where it is cut at the one token that was asked for."""
    through, _ = await with_proxy(tmp_path, judge(server), asking(TEXTS))
    async with AsyncOpenAI(base_url=server.base_url, api_key="none") as direct:
        straight = await ask_all(direct, TEXTS)
    assert through is not None
    for ours, theirs in zip(through, straight, strict=True):
        mine, other = ours.choices[0].model_dump(), theirs.choices[0].model_dump()
        assert mine["logprobs"]["content"] == other["logprobs"]["content"] and len(mine["logprobs"]["content"]) == 1
        assert mine["message"]["content"] == other["message"]["content"] in {"m", "M"}
        assert mine["finish_reason"] == other["finish_reason"] == "length"
        assert (ours.usage.prompt_tokens, ours.usage.completion_tokens) == (theirs.usage.prompt_tokens, 1)
    assert len({answer.choices[0].message.content for answer in through}) == 2


async def test_every_parameter_reaches_the_judge(tmp_path: Path) -> None:
    asked: dict[str, Any] = {
        "logprobs": True, "top_logprobs": 3, "max_tokens": 7, "temperature": 0.3, "top_p": 0.9, "seed": 5,
        "stop": ["\n"], "presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {"12": -100},
    }  # fmt: skip
    token = {"token": "m", "logprob": -0.1, "bytes": None, "top_logprobs": [{"token": "m", "logprob": -0.1}]}
    choice = {
        "message": {"role": "assistant", "content": "m"},
        "finish_reason": "stop",
        "logprobs": {"content": [token]},
    }
    answer = {"choices": [choice], "model": "m", "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    with listening(lambda _: (200, answer)) as endpoint:
        config = {"model": "openai/gpt-4.1", "api_base": endpoint.base_url, "params": {"min_p": 0.1}}
        answers, _ = await with_proxy(tmp_path, config, asking(["Which?"], **asked))
    assert statuses(answers) == [200]
    (sent,) = endpoint.bodies
    assert {name: sent.get(name) for name in asked} == asked
    assert sent["model"] == "gpt-4.1" and sent["min_p"] == 0.1
    assert sent["messages"] == [{"role": "user", "content": "Which?"}]


async def test_what_was_asked_is_booked_and_not_asked_again(server: SimulatedTeacher, tmp_path: Path) -> None:
    first, _ = await with_proxy(tmp_path, judge(server), asking(TEXTS))
    assert server.stats()["requests"] == len(TEXTS) and state_in(tmp_path) == DONE
    assert [outcome for outcome, _ in calls(tmp_path)] == ["cut"] * len(TEXTS)  # at one token, as it was asked for
    assert sum(cost for _, cost in calls(tmp_path)) == bill(server)
    second, _ = await with_proxy(tmp_path, judge(server), asking(TEXTS))
    assert server.stats()["requests"] == len(TEXTS) and first == second


async def test_the_same_request_again_is_another_question(server: SimulatedTeacher, tmp_path: Path) -> None:
    """With the same answer for its n-th time at a second start, in whatever order the answers came."""
    server.control(verdicts=[], latency=0.01)
    parameters: dict[str, Any] = {"max_tokens": 200, "logprobs": None, "top_logprobs": None}
    first, _ = await with_proxy(tmp_path, judge(server), asking(["Write."] * 4, **parameters))
    assert server.stats()["requests"] == 4
    second, _ = await with_proxy(tmp_path, judge(server), asking(["Write."] * 4, **parameters))
    assert server.stats()["requests"] == 4
    texts = [sorted(answer.choices[0].message.content for answer in answers or ()) for answers in (first, second)]
    assert texts[0] == texts[1] and len({*texts[0]}) == 4


async def test_a_client_that_sends_it_again_asks_the_same_question(server: SimulatedTeacher, tmp_path: Path) -> None:
    async def code(proxy: JudgeProxy) -> list[str]:
        async with client(proxy) as openai:
            again = [await ask(openai, "Write.", extra_headers={"x-stainless-retry-count": n}) for n in "012"]
            return [each.choices[0].message.content for each in again]

    server.control(verdicts=[])
    answers, _ = await with_proxy(tmp_path, judge(server), code)
    assert server.stats()["requests"] == 1 and answers is not None and len({*answers}) == 1


async def test_nobody_else_can_ask(server: SimulatedTeacher, tmp_path: Path) -> None:
    async def code(proxy: JudgeProxy) -> list[Any]:
        answers = []
        for key in ("none", proxy.token[:-1], f"{proxy.token}x"):
            async with client(proxy, api_key=key) as openai:
                answers += await ask_all(openai, TEXTS[:1])
        return answers

    answers, _ = await with_proxy(tmp_path, judge(server), code)
    assert statuses(answers) == [401] * 3 and server.stats()["requests"] == 0


async def test_an_answer_is_kept_whose_client_has_left(server: SimulatedTeacher, tmp_path: Path) -> None:
    async def code(proxy: JudgeProxy) -> None:
        async with client(proxy) as openai:
            waiting = asyncio.ensure_future(ask(openai, "Which?"))
            await asyncio.to_thread(until, lambda: server.stats()["requests"])
            waiting.cancel()

    server.control(latency=0.3, sigma=0)
    await with_proxy(tmp_path, judge(server), code)
    assert len(calls(tmp_path)) == 1
    await with_proxy(tmp_path, judge(server), asking(["Which?"]))
    assert server.stats()["requests"] == 1


# --- caps


async def test_at_a_cap_the_code_is_ended_with_an_error_that_no_client_repeats(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    seen: list[Any] = []

    async def code(proxy: JudgeProxy) -> None:
        async with client(proxy, max_retries=5) as openai:
            for text in TEXTS:
                seen.extend(await ask_all(openai, [text]))
            await asyncio.sleep(60)  # it does not end by itself

    done, cap = await with_proxy(tmp_path, judge(server), code, max_calls=7)
    assert (done, cap, state_in(tmp_path)) == (None, "max_calls", CAPPED)
    assert statuses(seen) in ([200] * 7, [200] * 7 + [402]) and server.stats()["requests"] == 7
    done, cap = await with_proxy(tmp_path, judge(server), asking(TEXTS), max_calls=20)
    assert statuses(done) == [200] * 20 and cap == "" and server.stats()["requests"] == 20


async def test_random_caps_are_never_passed(server: SimulatedTeacher, tmp_path: Path) -> None:
    """By the ledger, and by the server's bill: it takes no dollar more than what the caps let it."""
    rng = random.Random(0)
    server.control(faults={"cut": 0.1, "drop": 0.1, "500": 0.1})
    texts = [f"{text} {'Why? ' * 800}" for text in TEXTS]
    for number in range(3):
        folder, cap = tmp_path / str(number), rng.uniform(0.006, 0.018)
        server.reset()
        _, reached = await with_proxy(folder, judge(server, concurrency=20), asking(texts), max_cost=cap)
        assert sum(cost for _, cost in calls(folder)) <= cap * 1e12
        assert 0 < bill(server) <= cap * 1e12 and reached == "max_cost"


async def test_a_call_is_reserved_at_what_it_asks_for_and_not_at_the_longest_answer(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    """One token, where the judge may write a thousand."""
    await with_proxy(tmp_path, judge(server, max_tokens=1000), asking(["Which?"]))
    with Ledger.read(tmp_path) as ledger:
        (reserved,) = ledger.db.execute("SELECT reserved FROM calls").fetchone()
    assert reserved == (OVERHEAD + len("Which?")) * 1_000_000 + 1 * 10_000_000


# --- failures


async def test_a_judge_without_log_probabilities_is_refused_after_one_call(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(logprobs=False)
    with said.by(RunStopped):
        await with_proxy(tmp_path, judge(server), asking(TEXTS))
    assert server.stats()["requests"] == 1


async def test_a_judge_that_refuses_to_give_them_costs_nothing(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(rules=["no logprobs"])
    with said.by(TeacherRefused):
        await with_proxy(tmp_path, judge(server), asking(TEXTS))
    assert server.stats()["requests"] == 1 and bill(server) == 0


async def test_a_request_that_fails_alone_does_not_end_the_others(server: SimulatedTeacher, tmp_path: Path) -> None:
    """The code is told so in words on which AlpacaEval's goes on, and never in the provider's own, for which it would
    wait."""
    server.control(faults={"500": 0.3}, seed=3)
    answers, _ = await with_proxy(tmp_path, judge(server, retries=0), asking(TEXTS))
    failed = [answer for answer in answers or () if isinstance(answer, APIStatusError)]
    assert 0 < len(failed) < len(TEXTS) and {answer.status_code for answer in failed} == {400}
    assert all(UNANSWERED in str(answer) and "rate " not in str(answer).lower() for answer in failed)
    assert state_in(tmp_path) == SHORT
    server.control(faults={})
    answers, _ = await with_proxy(tmp_path, judge(server), asking(TEXTS))
    assert statuses(answers) == [200] * len(TEXTS) and state_in(tmp_path) == DONE
    assert server.stats()["answered"] == len(TEXTS)


async def test_what_cannot_be_passed_on_ends_the_work_with_its_reason(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    unknown: list[dict[str, Any]] = [{"n": 2}, {"stream": True}, {"extra_body": {"odd": 1}}]
    for parameters in unknown:
        with said.by(RunStopped):
            await with_proxy(tmp_path, judge(server), asking(TEXTS[:1], **parameters))
    assert server.stats()["requests"] == 0


async def test_log_probabilities_may_be_longer_than_any_text(tmp_path: Path) -> None:
    """20 alternatives for each of 1,000 tokens: more than a megabyte."""
    top = [{"token": f"alternative {n}", "logprob": -0.5, "bytes": [*range(20)]} for n in range(20)]
    tokens = [{"token": "m", "logprob": -0.1, "top_logprobs": top}] * 1_000
    choice = {
        "message": {"role": "assistant", "content": "m"},
        "finish_reason": "stop",
        "logprobs": {"content": tokens},
    }
    answer = {"choices": [choice], "model": "m", "usage": {"prompt_tokens": 9, "completion_tokens": 1_000}}
    with listening(lambda _: (200, answer)) as endpoint:
        config = {"model": "openai/judge", "api_base": endpoint.base_url, "max_tokens": 1_000}
        answers, _ = await with_proxy(tmp_path, config, asking(["Why?"], max_tokens=1_000, top_logprobs=20))
    assert statuses(answers) == [200] and answers is not None
    assert len(answers[0].choices[0].logprobs.content) == 1_000

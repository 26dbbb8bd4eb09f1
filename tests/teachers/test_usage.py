"""What an answer says it took: believed, bounded, or not believed; the paid answer is kept whatever it says."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Usage

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.records import PICO, Call
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.usage import is_incredible, used_tokens, without_usage
from tests.support.recording_endpoint import listening
from tests.support.scripted_engine import references
from tests.teachers.test_engine import ask
from tests.teachers.test_sampling_sent import ANTHROPIC, OPENAI

PRICE = {"prompt": 1.0, "completion": 4.0}
ODD = [-5, "12", True, [1], {"a": 1}, 1e300, 10**9, 10**400, 1.5, float("nan")]
SAID = {"prompt_tokens": 9, "completion_tokens": 3}


def asked(usage: Any, wire: str = "openai", **settings: Any) -> tuple[list[Any], list[Call], int]:
    """The answers to three questions, their calls, and the least that a worst case is."""
    sample = ANTHROPIC if wire == "anthropic" else OPENAI
    content = '{"response": "r"}'
    answer = {**sample, "usage": usage}
    if wire == "anthropic":
        answer["content"] = [{"type": "text", "text": content}]
    else:
        answer["choices"] = [{**OPENAI["choices"][0], "message": {"role": "assistant", "content": content}}]  # type: ignore[index]
    with listening(lambda _: (200, answer)) as there:
        values = {"model": f"{wire}/m", "api_base": there.base_url, "price": PRICE, "retries": 0, **settings}
        config = TeacherConfig.model_validate(values)
        answers, calls = ask(config, 3)
    assert len(there.bodies) == 3, "nothing is asked for again"
    return answers, calls, open_teacher(config).least or 0


@pytest.mark.parametrize("value", ODD, ids=str)
@pytest.mark.parametrize(
    ("wire", "where"),
    [
        ("openai", "prompt_tokens"),
        ("openai", "completion_tokens"),
        ("anthropic", "input_tokens"),
        ("anthropic", "output_tokens"),
    ],
)
def test_odd_counts_keep_the_answer_and_charge_the_worst_case(
    wire: str, where: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain = SAID if wire == "openai" else ANTHROPIC["usage"]
    with caplog.at_level(logging.WARNING):
        answers, calls, least = asked({**plain, where: value}, wire)  # type: ignore[dict-item]
    assert [answer.response for answer in answers] == ["r"] * 3
    assert {call.outcome for call in calls} == {"ok"} and {call.prompt_tokens for call in calls} == {None}
    assert all(least <= (call.cost or 0) < 2 * least for call in calls)
    assert caplog.text.count("impossible token counts") == 1, "people are told, once"


@pytest.mark.parametrize("usage", [[1], "12", 7, True, {"prompt_tokens_details": [1], **SAID}], ids=str)
def test_a_usage_of_another_shape_keeps_the_answer_too(usage: Any) -> None:
    answers, calls, least = asked(usage)
    assert [answer.response for answer in answers] == ["r"] * 3
    assert all((call.cost or 0) >= least for call in calls)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": None, "completion_tokens": None}], ids=str)
def test_a_usage_that_says_nothing_is_charged_its_worst_case_without_a_word(
    usage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        answers, calls, least = asked(usage)
    assert [answer.response for answer in answers] == ["r"] * 3 and not caplog.text
    assert all((call.cost or 0) >= least for call in calls)


def test_a_provider_that_passes_max_tokens_is_believed() -> None:
    _, calls, _ = asked({"prompt_tokens": 9, "completion_tokens": 10 * 4096})
    assert {call.cost for call in calls} == {9 * PICO // 10**6 + 10 * 4096 * 4 * PICO // 10**6}


def test_reasoning_above_the_completion_is_charged_beside_it() -> None:
    apart = {**SAID, "completion_tokens_details": {"reasoning_tokens": 500}}
    within = {**SAID, "completion_tokens": 503, "completion_tokens_details": {"reasoning_tokens": 500}}
    for usage in (apart, within):
        _, calls, _ = asked(usage)
        assert {(call.prompt_tokens, call.completion_tokens) for call in calls} == {(9, 503)}


def test_what_is_believed() -> None:
    assert not is_incredible(Usage(), 100, 100)
    assert not is_incredible(Usage(input_tokens=1600, output_tokens=1600), 100, 100)
    for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"):
        assert is_incredible(Usage(**{name: 1601}), 100, 100)
    assert used_tokens("openai", Usage(input_tokens=10**400, output_tokens=3))[0] is None


def test_a_folder_stays_usable_at_any_price(server: SimulatedTeacher, tmp_path: Path) -> None:
    """Each call at the dearest price and the longest answer that the settings take."""
    server.control(faults={"nousage": 1})
    dearest = {"price": {"prompt": 1e6, "completion": 1e6}, "max_tokens": 10**7}
    teacher = TeacherConfig.model_validate({"model": "sim/m", "api_base": server.base_url, **dearest})
    folder = tmp_path / "run"
    refed_dspy.synthesize(None, references(4), size=3, teacher=teacher, run_dir=folder)
    made = refed_dspy.resume(folder, size=5)
    assert made.complete and refed_dspy.read_run(folder).complete
    with Ledger.read(folder) as ledger:
        assert spent(ledger).picodollars > 2**63, "more than SQLite's integers hold"


@pytest.mark.parametrize(
    ("answer", "left"),
    [
        ({"id": 1, "usage": {"x": 1}}, {"id": 1}),
        ({"id": 1, "usage": None, "usageMetadata": [2]}, {"id": 1}),
        ({"id": 1, "usage": None}, None),
        ({"id": 1}, None),
        ([1], None),
    ],
)
def test_an_answer_is_read_without_its_usage_only_where_it_says_one(answer: Any, left: Any) -> None:
    body = without_usage(json.dumps(answer).encode())
    assert (None if body is None else json.loads(body)) == left


@pytest.mark.parametrize("usage", [SAID, {**SAID, "prompt_tokens": "many"}, None])
def test_of_several_choices_the_first_one_is_taken(usage: Any) -> None:
    choice: dict[str, Any] = OPENAI["choices"][0]  # type: ignore[index]
    texts = ['{"response": "the first"}', '{"response": "another"}', "no JSON"]
    messages = [{**choice["message"], "content": text} for text in texts]
    choices = [{**choice, "index": place, "message": message} for place, message in enumerate(messages)]
    with listening(lambda _: (200, {**OPENAI, "choices": choices, "usage": usage})) as there:
        settings = {"model": "openai/x", "api_base": there.base_url, "retries": 0, "price": PRICE}
        answers, calls = ask(TeacherConfig.model_validate(settings), 1)
    assert answers[0].response == "the first" and len(there.bodies) == len(calls) == 1

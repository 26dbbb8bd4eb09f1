"""What an answer says it took: believed, bounded, or not believed; the paid answer is kept whatever it says."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Usage
from typer.testing import CliRunner

import refed_dspy
from benchmarks.endpoints import PRICE as BILLED
from benchmarks.endpoints import bill
from benchmarks.lies import LIES
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.cli.main import app
from refed_dspy.errors import RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.plugins.evaluate.answers.formats import encoding
from refed_dspy.records import PICO, Call
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.usage import SentBefore, Used, is_incredible, least_tokens, used_tokens, without_usage
from tests.support.recording_endpoint import anthropic_answer, listening, openai_answer
from tests.support.said import Said
from tests.support.scripted_engine import references
from tests.teachers.test_engine import ask

PRICE = {"prompt": 1.0, "completion": 4.0}
ODD = [-5, "12", True, [1], {"a": 1}, 1e300, 10**9, 10**400, 1.5, float("nan")]
CAP = 0.03
SAID = {"prompt_tokens": 19, "completion_tokens": 3}


def asked(usage: Any, wire: str = "openai", **settings: Any) -> tuple[list[Any], list[Call], int]:
    """The answers to three questions, their calls, and the least that a worst case is."""
    answer = {**(anthropic_answer if wire == "anthropic" else openai_answer)('{"response": "r"}'), "usage": usage}
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
    plain = SAID if wire == "openai" else anthropic_answer("")["usage"]
    with caplog.at_level(logging.WARNING):
        answers, calls, least = asked({**plain, where: value}, wire)
    assert [answer.response for answer in answers] == ["r"] * 3
    assert {call.outcome for call in calls} == {"ok"} and {call.prompt_tokens for call in calls} == {None}
    assert all(least <= (call.cost or 0) < 2 * least for call in calls)
    assert len(caplog.messages) == 1, "people are told, once"


NOTHING_SAID = [None, {}, {"prompt_tokens": None, "completion_tokens": None}]


@pytest.mark.parametrize("usage", [[1], "12", 7, True, {"prompt_tokens_details": [1], **SAID}, *NOTHING_SAID], ids=str)
def test_a_usage_of_another_shape_or_none_is_charged_its_worst_case(
    usage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    answers, calls, least = asked(usage)
    assert [answer.response for answer in answers] == ["r"] * 3
    assert all((call.cost or 0) >= least for call in calls)
    assert usage not in NOTHING_SAID or not caplog.text, "of nothing not a word"


REASONING = {"completion_tokens_details": {"reasoning_tokens": 500}}
OF_THE_PROMPT = {"prompt_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}}


@pytest.mark.parametrize(
    ("usage", "completion", "cost"),
    [
        ({"completion_tokens": 10 * 4096}, 10 * 4096, 19 + 10 * 4096 * 4),
        (REASONING, 503, 19 + 503 * 4),
        ({**REASONING, "completion_tokens": 503}, 503, 19 + 503 * 4),
        (OF_THE_PROMPT, 3, 19 + 3 * 4),
    ],
    ids=["above max_tokens", "reasoning beside it", "reasoning within", "cached beside it"],
)
def test_what_a_provider_counts_is_believed_and_what_it_counts_apart_is_added(
    usage: dict[str, Any], completion: int, cost: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A gateway before Claude may leave what was cached out of the prompt's tokens."""
    _, calls, _ = asked({**SAID, **usage})
    assert {(call.prompt_tokens, call.completion_tokens) for call in calls} == {(19, completion)}
    assert {call.cost for call in calls} == {cost * PICO // 10**6} and not caplog.text


def test_what_is_believed() -> None:
    assert not is_incredible(Usage(), 100, 100)
    assert not is_incredible(Usage(input_tokens=1600, output_tokens=1600), 100, 100)
    for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "reasoning_tokens"):
        assert is_incredible(Usage(**{name: 1601}), 100, 100)
    assert used_tokens("openai", Usage(input_tokens=10**400, output_tokens=3))[0] is None
    assert used_tokens("openai", Usage(input_tokens=3, cache_read_tokens=90, output_tokens=4)) == (93, 90, None, 4)


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
    texts = ['{"response": "first"}', '{"response": "another"}', "no JSON"]
    choices = [openai_answer(text)["choices"][0] | {"index": place} for place, text in enumerate(texts)]
    with listening(lambda _: (200, {**openai_answer(""), "choices": choices, "usage": usage})) as there:
        settings = {"model": "openai/x", "api_base": there.base_url, "retries": 0, "price": PRICE}
        answers, calls = ask(TeacherConfig.model_validate(settings), 1)
    assert len(there.bodies) == len(calls) == 1
    assert answers[0].response == "first"


# --- less than the texts must have


def run_against(server: SimulatedTeacher, folder: Path, lie: str, **settings: Any) -> tuple[float, float]:
    """Dollars that the server billed and that the ledger says, of a run under a cap of 3 cents."""
    server.control(lie=lie, tokenizer="o200k_base", response_words=12, batch_seconds=0.02)
    values = {"model": "sim/m", "api_base": server.base_url, "price": BILLED, "max_tokens": 512, **settings}
    with contextlib.suppress(RunStopped):
        teacher = TeacherConfig.model_validate(values)
        refed_dspy.synthesize(None, references(4), size=24, teacher=teacher, run_dir=folder, max_cost=CAP)
    with Ledger.read(folder) as ledger:
        return bill(server.stats()), spent(ledger).cost


@pytest.mark.parametrize("lie", LIES)
def test_no_lying_usage_passes_a_cap(server: SimulatedTeacher, tmp_path: Path, lie: str) -> None:
    billed, charged = run_against(server, tmp_path / "run", lie)
    assert 0 < billed <= charged <= CAP


@pytest.mark.parametrize("lie", ["nothing", "a completion of one"])
def test_nor_does_one_in_batches(server: SimulatedTeacher, tmp_path: Path, lie: str) -> None:
    billed, charged = run_against(server, tmp_path / "run", lie, mode="batch", batch={"quiet": 0.02, "poll": 0.02})
    assert 0 < billed <= charged <= CAP


def test_status_says_once_what_was_not_believed(
    said: Said, server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_against(server, tmp_path / "run", "nothing")
    assert [record.name for record in caplog.records].count("refed_dspy.teachers") == 1
    shown = CliRunner().invoke(app, ["status", str(tmp_path / "run")]).stdout
    [line] = [line for line in shown.splitlines() if line.startswith("unknown usage: ")]
    said(re.sub(r"\d[\d.]*", "N", line))


PROSE = "Explain to a student why the sky is blue, in plain words."
HONEST = {
    "prose": PROSE * 20,
    "blanks": " " * 5000,
    "one character": "=" * 5000,
    "a ruler": "-=" * 2500,
    "a word over and over": "responsibilities " * 300,
    "rows of numbers": "1 2 3 4 5 6 7 8 9 10\n" * 50,
    "JSON": json.dumps({f"name {i}": [i, True, None, PROSE] for i in range(20)}),
    "indented JSON": json.dumps({"rows": [{"a": 1}] * 50}, indent=8),
    "Chinese": "请用简单的语言向学生解释天空为什么是蓝色的，并举一个例子。" * 10,
    "Thai": "อธิบายให้นักเรียนฟังว่าทำไมท้องฟ้าจึงเป็นสีฟ้าด้วยคำง่ายๆ " * 10,
    "Hindi": "छात्र को सरल शब्दों में समझाइए कि आकाश नीला क्यों होता है। " * 10,
    "Finnish": "Selitä opiskelijalle yksinkertaisesti, miksi taivas näyttää siniseltä. " * 10,
    "emoji": "🙂🚀🌍" * 100,
    "base64": "c29tZSBieXRlcyBvZiBubyBtZWFuaW5n" * 40,
    "an address": "https://example.org/a/very/long/path/with-many-parts?and=a&query=string#fragment",
    "code": "def f(x: int) -> int:\n        return x ** 2 if x else 0\n\n\n" * 40,
    "nothing": "",
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("by", ["o200k_base", "cl100k_base"])
def test_what_a_text_is_never_raised(name: str, by: str) -> None:
    """A text has no more tokens by our bound than by a real tokenizer, so an honest usage is charged as it is."""
    tokens = len(encoding(by).encode_ordinary(HONEST[name]))
    assert least_tokens(HONEST[name]) <= tokens
    honest = Used(tokens, tokens // 2 if tokens > 2 else 0, 0, tokens)
    assert honest.raised(HONEST[name], "", HONEST[name]) == honest


def test_a_token_a_word_is_charged_and_a_quarter_of_that_is_not_believed() -> None:
    text = "word " * 100
    assert Used(50, 0, 0, 30).raised(text, "", text) == Used(100, 0, 0, 100)
    assert Used(22, 0, 0, 100).raised(text, "", text) is None
    assert Used(100, 0, 0, 22).raised(text, "", text) is None
    assert Used(0, 0, 0, 0).raised("hello", "", "two words") == Used(1, 0, 0, 2), "some endpoints count in fours"
    assert Used(None, None, None, 100).raised(text, "", text) == Used(None, None, None, 100)
    assert Used(100, 100, 0, 100).raised(text, "", text) == Used(100, 100, 0, 100), "sent before, word for word"
    assert Used(100, 100, 0, 100).raised(text, "word", text) is None
    assert Used(100, 90, 0, 100).raised(text, "word " * 40, text) == Used(100, 60, 0, 100)


def test_only_what_was_sent_before_can_be_cached() -> None:
    sent, shared = SentBefore(), "a" * 2000
    first, second, other = (f"{shared}{name}{'z' * 600}" for name in "123")
    assert len(sent.fresh(first)) > 2000, "all but the first piece"
    assert sent.fresh(first) == ""
    assert 0 < len(sent.fresh(second)) <= 601, "its end at most"
    assert len(SentBefore().fresh(other)) > 2000
    for number in range(70_000):  # nothing is remembered for ever
        sent.fresh(f"{number:<256}")
    assert len(sent._recent) + len(sent._older) <= 2 * 65_536 + 20

"""The gateway: from whichever thread a request comes, nothing is paid for twice, and everything is recorded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils import exceptions as lm_errors

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import usage_by_stage
from refed_dspy.optimizers.gateway import current_candidate
from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused
from refed_dspy.teachers.failures import LEAST_CALLS
from tests.conftest import KEY
from tests.support.compiling import requests
from tests.support.gateways import ask_text, at_once, billed, calls, config, opened, outcome, stored
from tests.support.scripted_engine import Writer, fake_lm


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=4)
    return server


# --- equal requests are one call


@pytest.mark.parametrize("faults", [{}, {"500": 1}], ids=["an answer", "a failure"])
def test_many_threads_with_one_question_make_one_call(
    server: SimulatedTeacher, tmp_path: Path, faults: dict[str, float]
) -> None:
    server.control(latency=0.1, faults=faults)
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        got = at_once([lambda: ask_text(lm)] * 20)
        assert requests(server) == 1
        assert faults or {ask_text(lm)} == set(got)
    assert {type(each) for each in got} == {lm_errors.LMServerError if faults else str}
    assert requests(server) == 1 == len(calls(tmp_path))


def test_another_repetition_is_another_call_and_is_kept_as_well(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        answers = [ask_text(lm.copy(rollout_id=k, temperature=1.0)) for k in range(4)]
        assert requests(server) == 4 == len(set(answers))
        assert ask_text(lm) == ask_text(lm.copy(rollout_id=None)) == answers[0], "no rollout is the first one"
        assert ask_text(lm.copy(rollout_id=2, temperature=1.0).copy(cache=False)) == answers[2], "a copy of a copy"
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        assert [ask_text(lm.copy(rollout_id=k, temperature=1.0)) for k in range(4)] == answers
    assert requests(server) == 4


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        *(({"model": "openai/sim-two"}, 2), ({"temperature": 0.5}, 2), ({"max_tokens": 65}, 2)),
        *(({"params": {"top_p": 0.9}}, 2), ("endpoint", 2)),
        *(({"price": None}, 1), ({"timeout": 9}, 1), ({"retries": 3}, 1), ({"concurrency": 1}, 1)),
    ],
    ids=str,
)
def test_what_shapes_an_answer_makes_another_call_and_nothing_else_does(
    server: SimulatedTeacher, tmp_path: Path, change: Any, asked: int
) -> None:
    other = {"api_base": f"{server.root}/openai/v1"} if change == "endpoint" else change
    with opened(tmp_path, teacher=config(server), judge=config(server, **other)) as gateway:
        for _ in range(2):
            ask_text(gateway.lm("teacher"))
            ask_text(gateway.lm("judge"))
            assert requests(server) == asked


@pytest.mark.filterwarnings("ignore:Passing OpenAI-style message")
def test_settings_of_a_call_and_other_words_make_another_call(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        asks: list[Callable[[], str]] = [
            lambda: ask_text(lm),
            lambda: ask_text(lm, "What is the ebb?"),
            lambda: ask_text(lm, temperature=0.3),
            lambda: ask_text(lm.copy(temperature=0.2)),
            lambda: ask_text(lm, max_tokens=32),
            lambda: str(lm(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"}])),
        ]
        for number, ask in enumerate(asks, start=1):
            ask()
            ask()
            assert requests(server) == number


# --- the ledger


def test_another_gateway_on_the_same_ledger_replays_everything(server: SimulatedTeacher, tmp_path: Path) -> None:
    questions = [f"What is {n}?" for n in range(6)]
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        first = at_once([lambda q=q: ask_text(lm, q) for q in questions])  # type: ignore[misc]
        with Ledger.read(tmp_path) as other:  # as a process that starts after a kill would see it
            assert other.has_answers()
    with opened(tmp_path, Caps(max_calls=6), teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        assert [ask_text(lm, q) for q in questions] == first, "also under a cap that allows no call more"
        assert not gateway.cap_reached
    assert requests(server) == 6 == len(calls(tmp_path))


@pytest.mark.parametrize(
    ("raised", "kind", "asked"),
    [
        (lm15.InvalidRequestError("too odd", status=400), lm_errors.LMInvalidRequestError, 4),
        (lm15.ContextLengthError("too long", status=400), lm_errors.ContextWindowExceededError, 1),
    ],
    ids=["invalid", "too long"],
)
def test_a_request_that_does_not_fit_fails_the_same_way_again(
    tmp_path: Path, raised: Exception, kind: type[Exception], asked: int
) -> None:
    """dspy.ReAct shortens its trajectory on the second kind, and only on that: a replay must do as the first did. The
    first may have been the endpoint's fault, and costs nothing: it is asked again."""
    writer = Writer(*[raised] * asked)
    errors = []
    for _ in range(2):
        with opened(tmp_path, teacher=fake_lm(writer)) as gateway:
            errors += [outcome(lambda: ask_text(gateway.lm("teacher"))) for _ in range(2)]
    assert len(writer.requests) == asked
    assert [type(error) for error in errors] == [kind] * 4


# --- what is recorded


def test_calls_are_recorded_by_role_and_candidate(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(tokenizer="o200k_base")  # four characters a token are no token for a prompt of two
    models: dict[str, Any] = {"teacher": config(server), "judge": config(server, temperature=0)}
    models["reflection"] = config(server, model="openai/big")

    def for_candidate(name: str, lm: dspy.LM, question: str) -> None:
        token = current_candidate.set(name)
        ask_text(lm, question)
        current_candidate.reset(token)

    with opened(tmp_path, **models) as gateway:
        teacher, judge, reflection = (gateway.lm(role) for role in models)
        for_candidate("one", teacher, "1?")
        for_candidate("two", teacher, "2?")
        for_candidate("two", teacher, "1?")  # paid for by the first
        for_candidate("two", judge, "3?")
        ask_text(reflection, "4?")
        worth = dict(gateway.candidate_costs)
    rows = calls(tmp_path)
    assert [(row["stage"], row["item"]) for row in rows] == [
        ("teacher", "one"), ("teacher", "two"), ("judge", "two"), ("reflection", ""),
    ]  # fmt: skip
    assert all(row["outcome"] == "ok" and 0 < row["cost"] < row["reserved"] for row in rows)
    assert worth["one"] == rows[0]["cost"] and worth["two"] == sum(row["cost"] for row in rows[:3]), (
        "also others' calls"
    )
    with Ledger.read(tmp_path) as ledger:
        usage = usage_by_stage(ledger)
    stats = server.stats()
    assert {role: used["calls"] for role, used in usage.items()} == {"teacher": 2, "judge": 1, "reflection": 1}
    for words in ("prompt_tokens", "completion_tokens"):
        assert sum(used[words] for used in usage.values()) == stats[words]
    assert sum(row["cost"] for row in rows) == billed(server)


@pytest.mark.parametrize(
    "raised",
    [
        lm15.InvalidRequestError(f"bad header Bearer {KEY}", status=400),
        lm15.ServerError(f"proxy: cannot pass on Bearer {KEY}", status=502),
        lm15.AuthError(f"wrong key {KEY}", status=401),
    ],
    ids=["final", "transient", "auth"],
)
def test_an_error_that_repeats_the_key_is_told_and_kept_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception
) -> None:
    """A caller's own LM is asked as it is: its provider's words come through unread."""
    monkeypatch.setenv("SOME_API_KEY", KEY)
    writer = Writer()
    writer.on_request = lambda _: raised
    with opened(tmp_path, teacher=fake_lm(writer)) as gateway:
        for n in range(LEAST_CALLS):
            outcome(lambda n=n: ask_text(gateway.lm("teacher"), f"What is {n}?"))  # type: ignore[misc]
        assert KEY not in str(gateway.stop_error)
    assert KEY.encode() not in stored(tmp_path)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        *(("cut", AnswerCut), ("refusal", AnswerRefused), ("filtered", AnswerRefused)),
        *((fault, None) for fault in ("500", "drop", "html502", "hang")),
    ],
)
def test_only_a_failure_that_may_pass_is_asked_again(
    server: SimulatedTeacher, tmp_path: Path, fault: str, kind: type[Exception] | None
) -> None:
    server.control(faults={fault: 1})
    teacher = config(server, timeout=0.3)
    with opened(tmp_path, teacher=teacher) as gateway:
        errors = [outcome(lambda: ask_text(gateway.lm("teacher"))) for _ in range(2)]
    assert all(isinstance(error, kind or lm_errors.LMError) for error in errors)
    assert requests(server) == (1 if kind else 2)
    server.control(faults={})
    for _ in range(2):
        with opened(tmp_path, teacher=teacher) as gateway:
            errors.append(outcome(lambda: ask_text(gateway.lm("teacher"))))
    assert requests(server) == (1 if kind else 3)
    assert len({error.message for error in errors}) == 1 if kind else errors[2] == errors[3] != ""

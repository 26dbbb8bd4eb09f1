"""The gateway: whoever asks, from whichever thread, nothing is paid for twice, and no cap is passed."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils import exceptions as lm_errors

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig, open_teacher
from refed_dspy.errors import MalformedAnswer, TeacherError
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.ledger.summary import usage_by_stage
from refed_dspy.optimizers.gateway import IN_A_ROW, Gateway, evaluating, open_gateway
from refed_dspy.optimizers.spec import open_teachers
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import ask
from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused, LMCapReached
from refed_dspy.teachers.requests import Outgoing
from refed_dspy.teachers.route import resolve
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.scripted_engine import Writer, fake_lm, response

RATES = {"prompt": 1.0, "completion": 10.0}
"""Dollars a million tokens: a token costs a whole number of picodollars."""
PATIENCE = 10.0
"""Seconds after which whatever still waits is taken to hang."""


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=4)
    return server


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values = {"model": "openai/sim", "api_base": server.base_url, "price": RATES, "max_tokens": 64, "timeout": 5}
    return TeacherConfig.model_validate({**values, "retries": 0, "concurrency": 100, **settings})


@contextmanager
def opened(folder: Path, caps: Caps = Caps(), **models: Any) -> Iterator[Gateway]:  # noqa: B008
    """A gateway on the ledger in `folder`; `models` are roles."""
    with Ledger.create(folder) as ledger:
        begin_start(ledger)
        recorder = RunRecorder(ledger, caps, spent(ledger))
        teachers = {role: open_teacher(model) for role, model in models.items()}
        with open_gateway(ledger, recorder, teachers, seed=0) as gateway:
            yield gateway


def said(lm: dspy.LM, text: str = "What is the tide?", **settings: Any) -> str:
    return str(lm(text, **settings)[0])


def outcome(ask: Callable[[], str]) -> Any:
    """What it returned, or the error that it raised."""
    try:
        return ask()
    except Exception as error:  # noqa: BLE001
        return error


def at_once(asks: Sequence[Callable[[], str]]) -> list[Any]:
    """Outcomes of all, each asked in a thread of its own at the same moment."""
    start = threading.Barrier(len(asks))

    def one(ask: Callable[[], str]) -> Any:
        start.wait(PATIENCE)
        return outcome(ask)

    with ThreadPoolExecutor(len(asks)) as pool:
        return list(pool.map(one, asks))


def requests(server: SimulatedTeacher) -> int:
    return int(server.stats()["requests"])


def calls(folder: Path) -> list[dict[str, Any]]:
    with Ledger.read(folder) as ledger:
        rows = ledger.db.execute("SELECT stage, item, outcome, cost, reserved FROM calls ORDER BY id")
        return [dict(zip(("stage", "item", "outcome", "cost", "reserved"), row, strict=True)) for row in rows]


def until(happened: Callable[[], bool]) -> None:
    limit = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < limit, "it never happened"
        time.sleep(0.01)


# --- equal requests are one call


def test_many_threads_with_one_question_make_one_call(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.1)
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        answers = at_once([lambda: said(lm)] * 40)
        later = said(lm)
    assert len(set(answers)) == 1 and later == answers[0] and not isinstance(later, Exception)
    assert requests(server) == 1 == len(calls(tmp_path))


def test_many_threads_with_one_question_share_its_failure_too(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.1, faults={"500": 1})
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        errors = at_once([lambda: said(lm)] * 10)
    assert {type(error) for error in errors} == {lm_errors.LMServerError}
    assert requests(server) == 1


def test_another_repetition_is_another_call_and_is_kept_as_well(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        answers = [said(lm.copy(rollout_id=k, temperature=1.0)) for k in range(4)]
        assert requests(server) == 4 == len(set(answers))
        assert [said(lm.copy(rollout_id=k, temperature=1.0)) for k in range(4)] == answers
        assert said(lm) == said(lm.copy(rollout_id=None)) == answers[0], "no rollout is the first one"
        assert said(lm.copy(rollout_id=2, temperature=1.0).copy(cache=False)) == answers[2], "a copy of a copy"
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        assert [said(lm.copy(rollout_id=k, temperature=1.0)) for k in range(4)] == answers
    assert requests(server) == 4


def test_a_rollout_id_given_with_the_call_is_a_repetition_too(server: SimulatedTeacher, tmp_path: Path) -> None:
    """DSPy documents `predict(..., config={"rollout_id": 2, "temperature": 1.0})` for another answer."""
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        answers = {said(lm, rollout_id=k, temperature=1.0) for k in (1, 2, 3)}
    assert len(answers) == 3 == requests(server)


def test_n_answers_to_one_question_are_n_answers(server: SimulatedTeacher, tmp_path: Path) -> None:
    """COPRO asks its prompt model for `n` proposals in one call."""
    with opened(tmp_path, teacher=config(server)) as gateway:
        answers = [str(each) for each in gateway.lm("teacher")("Propose a prompt.", n=3)]
        assert [str(each) for each in gateway.lm("teacher")("Propose a prompt.", n=3)] == answers
    assert len(set(answers)) == 3 == requests(server)


@pytest.mark.parametrize(
    "change",
    [{"model": "openai/sim-two"}, {"temperature": 0.5}, {"max_tokens": 65}, {"params": {"top_p": 0.9}}, "endpoint"],
    ids=str,
)
def test_what_shapes_an_answer_makes_another_call(server: SimulatedTeacher, tmp_path: Path, change: Any) -> None:
    other = {"api_base": f"{server.root}/openai/v1"} if change == "endpoint" else change
    with opened(tmp_path, teacher=config(server), judge=config(server, **other)) as gateway:
        said(gateway.lm("teacher"))
        said(gateway.lm("judge"))
        assert requests(server) == 2
        said(gateway.lm("teacher"))
        said(gateway.lm("judge"))
    assert requests(server) == 2


@pytest.mark.parametrize("change", [{"price": None}, {"timeout": 9}, {"retries": 3}, {"concurrency": 1}], ids=str)
def test_what_does_not_shape_an_answer_makes_no_other_call(
    server: SimulatedTeacher, tmp_path: Path, change: dict[str, Any]
) -> None:
    with opened(tmp_path, teacher=config(server), judge=config(server, **change)) as gateway:
        assert said(gateway.lm("teacher")) == said(gateway.lm("judge"))
    assert requests(server) == 1


def test_settings_of_a_call_and_other_words_make_another_call(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        asks: list[Callable[[], str]] = [
            lambda: said(lm),
            lambda: said(lm, "What is the ebb?"),
            lambda: said(lm, temperature=0.3),
            lambda: said(lm.copy(temperature=0.2)),
            lambda: said(lm, max_tokens=32),
            lambda: str(lm(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hm?"}])),
        ]
        for number, ask in enumerate(asks, start=1):
            ask()
            ask()
            assert requests(server) == number


# --- the journal


def test_another_gateway_on_the_same_ledger_replays_everything(server: SimulatedTeacher, tmp_path: Path) -> None:
    questions = [f"What is {n}?" for n in range(12)]
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        first = at_once([lambda q=q: said(lm, q) for q in questions])  # type: ignore[misc]
    with opened(tmp_path, Caps(max_calls=12), teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        assert [said(lm, q) for q in questions] == first, "also under a cap that allows no call more"
        assert not gateway.reached
    assert requests(server) == 12 == len(calls(tmp_path))


@pytest.mark.parametrize(
    ("fault", "kind"), [("cut", AnswerCut), ("refusal", AnswerRefused), ("filtered", AnswerRefused)]
)
def test_a_failure_that_asking_again_would_repeat_is_not_asked_again(
    server: SimulatedTeacher, tmp_path: Path, fault: str, kind: type[Exception]
) -> None:
    server.control(faults={fault: 1})
    with opened(tmp_path, teacher=config(server)) as gateway:
        errors = [outcome(lambda: said(gateway.lm("teacher"))) for _ in range(2)]
    server.control(faults={})
    with opened(tmp_path, teacher=config(server)) as gateway:
        errors.append(outcome(lambda: said(gateway.lm("teacher"))))
    assert [type(error) for error in errors] == [kind] * 3
    assert len({error.message for error in errors}) == 1
    assert requests(server) == 1


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (lm15.InvalidRequestError("too odd", status=400), lm_errors.LMInvalidRequestError),
        pytest.param(
            lm15.ContextLengthError("too long", status=400),
            lm_errors.ContextWindowExceededError,
        ),
    ],
    ids=["invalid", "too long"],
)
def test_a_request_that_does_not_fit_is_not_asked_again_and_fails_the_same_way(
    tmp_path: Path, raised: Exception, kind: type[Exception]
) -> None:
    """dspy.ReAct shortens its trajectory on the second kind, and only on that: a replay must do as the first did."""
    writer = Writer(raised)
    errors = []
    for _ in range(2):
        with opened(tmp_path, teacher=fake_lm(writer)) as gateway:
            errors += [outcome(lambda: said(gateway.lm("teacher"))) for _ in range(2)]
    assert len(writer.requests) == 1
    assert [type(error) for error in errors] == [kind] * 4


@pytest.mark.parametrize("fault", ["500", "drop", "html502", "hang"])
def test_a_failure_that_may_pass_is_asked_again(server: SimulatedTeacher, tmp_path: Path, fault: str) -> None:
    server.control(faults={fault: 1})
    teacher = config(server, timeout=0.3)
    with opened(tmp_path, teacher=teacher) as gateway:
        errors = [outcome(lambda: said(gateway.lm("teacher"))) for _ in range(2)]
    assert all(isinstance(error, lm_errors.LMError) for error in errors) and requests(server) == 2
    server.control(faults={})
    with opened(tmp_path, teacher=teacher) as gateway:
        answer = said(gateway.lm("teacher"))
    assert requests(server) == 3 and answer
    with opened(tmp_path, teacher=teacher) as gateway:
        assert said(gateway.lm("teacher")) == answer
    assert requests(server) == 3


def test_an_answer_is_in_the_journal_before_it_is_seen(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        said(gateway.lm("teacher"))
        with Ledger.read(tmp_path) as other:  # as a process that starts after a kill would see it
            assert other.has_answers()


def test_half_a_character_in_an_answer_spoils_nothing(tmp_path: Path) -> None:
    writer = Writer("half \ud83d", "whole")
    with opened(tmp_path, teacher=fake_lm(writer)) as gateway:
        lm = gateway.lm("teacher")
        outcome(lambda: said(lm, "1?"))
        assert said(lm, "2?") == "whole" and gateway.stopped is None


# --- caps


def test_max_calls_is_never_passed_by_fifty_threads(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.01, sigma=0.5)
    with opened(tmp_path, Caps(max_calls=20), teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        got = at_once([lambda n=n: said(lm, f"What is {n}?") for n in range(50)])  # type: ignore[misc]
        assert gateway.reached == "max_calls"
    assert requests(server) == 20
    assert [type(each) for each in got if isinstance(each, Exception)] == [LMCapReached] * 30


def test_the_cap_on_calls_counts_what_failed_and_is_shared_by_all_roles(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(faults={"500": 0.3, "drop": 0.2})
    judge = config(server, temperature=0, retries=4)
    with opened(tmp_path, Caps(max_calls=25), teacher=config(server), judge=judge) as gateway:
        lms = [gateway.lm("teacher"), gateway.lm("judge")]
        at_once([lambda n=n: said(lms[n % 2], f"What is {n}?") for n in range(50)])  # type: ignore[misc]
    assert requests(server) <= 25 == len(calls(tmp_path))


def test_max_cost_is_never_passed_by_fifty_threads(server: SimulatedTeacher, tmp_path: Path) -> None:
    """At most five worst cases fit at a time, so most threads wait for what others give back."""
    server.control(latency=0.01, faults={"cut": 0.1, "drop": 0.1, "nousage": 0.1})
    least = open_teacher(config(server)).least
    assert least is not None
    cap = 6 * least
    with opened(tmp_path, Caps(max_cost=cap), teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        at_once([lambda n=n: said(lm, f"What is {n}?") for n in range(50)])  # type: ignore[misc]
        assert gateway.reached == "max_cost"
    stats = server.stats()
    billed = stats["billed_prompt_tokens"] * 10**6 + stats["billed_completion_tokens"] * 10**7
    booked = sum(row["cost"] for row in calls(tmp_path))
    assert billed <= booked <= cap
    assert booked > cap / 2, "what came back was used"


def test_max_minutes_lets_go_of_whatever_hangs(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"hang": 1})
    begun = time.monotonic()
    with opened(tmp_path, teacher=config(server, timeout=600)) as gateway:
        gateway.allow(Caps(), seconds=0.3)
        lm = gateway.lm("teacher")
        got = at_once([lambda n=n: said(lm, f"What is {n}?") for n in range(20)])  # type: ignore[misc]
        assert {type(each) for each in got} == {LMCapReached} and gateway.reached == "max_minutes"
        sent = requests(server)
        assert isinstance(outcome(lambda: said(lm, "And now?")), LMCapReached) and requests(server) == sent
    assert time.monotonic() - begun < PATIENCE
    assert {row["outcome"] for row in calls(tmp_path)} == {"cancelled"}
    assert all(row["cost"] == row["reserved"] for row in calls(tmp_path)), "they may be billed: their worst case"


def test_a_deadline_in_the_past_sends_nothing(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        gateway.allow(Caps(), seconds=0)
        assert isinstance(outcome(lambda: said(gateway.lm("teacher"))), LMCapReached)
    assert requests(server) == 0 == len(calls(tmp_path))


class Answering(dspy.Signature):  # type: ignore[misc]
    """Answer the question."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


async def test_the_cap_comes_through_predict_as_it_is(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, Caps(max_calls=1), teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        await asyncio.to_thread(said, lm)
        asked = []
        submit = gateway.submit
        gateway.submit = lambda *a: asked.append(a) or submit(*a)  # type: ignore[method-assign, func-returns-value]
        for adapter in (None, dspy.ChatAdapter(), dspy.JSONAdapter()):
            with dspy.context(lm=lm, adapter=adapter):
                with pytest.raises(LMCapReached) as one:
                    await asyncio.to_thread(dspy.Predict(Answering), question="1?")
                with pytest.raises(LMCapReached) as other:
                    await dspy.Predict(Answering).acall(question="2?")
            for error in (one.value, other.value):
                assert type(error) is LMCapReached and str(error) == "max_calls is reached"
        assert len(asked) == 6, "none was retried"
    assert requests(server) == 1


def test_a_higher_cap_lets_work_go_on(server: SimulatedTeacher, tmp_path: Path) -> None:
    told: list[bool] = []
    with opened(tmp_path, Caps(max_calls=2), teacher=config(server)) as gateway:
        gateway.on_ending = told.append
        lm = gateway.lm("teacher")
        first = [outcome(lambda n=n: said(lm, f"What is {n}?")) for n in range(4)]  # type: ignore[misc]
        assert gateway.reached == "max_calls" and set(told) == {True}
        gateway.allow(Caps(max_calls=3))
        assert gateway.reached == "" and told[-1] is False
        second = [outcome(lambda n=n: said(lm, f"What is {n}?")) for n in range(4)]  # type: ignore[misc]
    assert [isinstance(each, str) for each in first] == [True, True, False, False]
    assert [isinstance(each, str) for each in second] == [True, True, True, False]
    assert second[:2] == first[:2] and requests(server) == 3


def test_a_higher_cap_is_for_those_that_wait_too(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.5)
    least = open_teacher(config(server)).least
    assert least is not None
    with opened(tmp_path, Caps(max_cost=int(1.5 * least)), teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(said, lm, f"What is {n}?") for n in range(4)]
            until(lambda: requests(server) == 1)
            gateway.allow(Caps())
            until(lambda: requests(server) == 4)
            assert all(each.result(PATIENCE) for each in asked)


# --- more than one try


@contextmanager
def asking(gateway: Gateway, quiet: bool) -> Iterator[None]:
    """The stages' way of asking; `quiet` as in the metric's own calls, where DSPy's layers are left out."""
    lean: dict[str, Any] = {"disable_history": True, "trace": None, "max_trace_size": 0, "callbacks": []}
    with dspy.context(lm=gateway.lm("teacher"), adapter=SchemaAdapter(), **(lean if quiet else {})):
        yield


async def staged(question: str = "1?") -> Any:
    return await ask("answering", "row", dspy.Predict(Answering), question=question)


@pytest.mark.parametrize("quiet", [False, True], ids=["watched", "straight"])
@pytest.mark.parametrize(("temperature", "tries"), [(1.0, 3), (0.0, 1)])
async def test_a_malformed_answer_is_asked_for_again_where_another_can_come(
    server: SimulatedTeacher, tmp_path: Path, temperature: float, tries: int, quiet: bool
) -> None:
    server.control(faults={"malformed": 1})
    teacher = config(server, temperature=temperature, malformed_retries=2)
    for _ in range(2):  # the second time from the journal
        with opened(tmp_path, teacher=teacher) as gateway, asking(gateway, quiet), pytest.raises(MalformedAnswer):
            await staged()
        assert requests(server) == tries == len(calls(tmp_path))


async def test_the_first_answer_that_fits_is_taken_and_comes_again(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"malformed": 0.5}, seed=3)
    teacher = config(server, malformed_retries=9)
    questions = [f"{n}?" for n in range(8)]
    with opened(tmp_path, teacher=teacher) as gateway, asking(gateway, quiet=False):
        first = [(await staged(question)).answer for question in questions]
    asked = requests(server)
    assert asked > len(questions)
    with opened(tmp_path, teacher=teacher) as gateway, asking(gateway, quiet=False):
        assert [(await staged(question)).answer for question in questions] == first
    assert requests(server) == asked


# --- what an endpoint may be asked


def test_nobody_is_written_more_than_the_settings_allow(server: SimulatedTeacher) -> None:
    """A cap counts on max_tokens, and a module of the user's own may ask for any number."""
    teacher = config(server)
    outgoing = Outgoing(teacher, resolve(teacher))
    for asked, sent in [(900, 64), (64, 64), (8, 8), (None, 64)]:
        request = lm15.Request(model="m", messages=(lm15.Message.user("Hm?"),), config=lm15.Config(max_tokens=asked))
        assert outgoing(request)[0].config.max_tokens == sent


def test_a_judge_that_is_the_teacher_s_model_keeps_to_the_teacher_s_limits(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(latency=0.05)
    for model, together in [("openai/sim", 3), ("openai/sim-two", 15)]:
        server.reset()
        judge = config(server, concurrency=50, temperature=0.0, model=model)
        models: Any = open_teachers({"teacher": config(server, concurrency=3), "judge": judge, "reflection": None})
        with opened(tmp_path / str(together), **models) as gateway:
            lms = [gateway.lm("teacher"), gateway.lm("judge")]
            got = at_once([lambda n=n, lms=lms: said(lms[n % 2], f"What is {n}?") for n in range(24)])  # type: ignore[misc]
        assert all(isinstance(each, str) for each in got)
        assert (server.stats()["max_in_flight"] <= 3) is (together == 3), "another model has limits of its own"


# --- what ends a compile


def stopped_by(gateway: Gateway) -> str:
    error = gateway.stopped
    assert type(error) is TeacherError and "\n" not in str(error)
    return str(error)


def test_a_wrong_key_ends_it_with_a_hint_and_without_the_key(
    locked: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "sk-wrong-0987654321fedcba"
    monkeypatch.setenv(KEY_VARIABLE, wrong)
    with opened(tmp_path, judge=config(locked, api_key_env=KEY_VARIABLE)) as gateway:
        lm = gateway.lm("judge")
        first = outcome(lambda: said(lm))
        assert isinstance(first, lm_errors.LMAuthError)
        assert isinstance(outcome(lambda: said(lm, "Another?")), LMCapReached)
        message = stopped_by(gateway)
    assert requests(locked) == 1, "no call begins after it"
    assert message.startswith("judge: ") and "api_key_env" in message
    assert wrong not in message + str(first)


def test_an_unknown_model_ends_it(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server, model="openai/missing-one")) as gateway:
        assert isinstance(outcome(lambda: said(gateway.lm("teacher"))), lm_errors.LMError)
        assert "check the teacher's model and api_base" in stopped_by(gateway) or "api_base" in stopped_by(gateway)


def test_an_endpoint_that_is_not_there_ends_it_at_once(server: SimulatedTeacher, tmp_path: Path) -> None:
    begun = time.monotonic()
    down = config(server, api_base="http://127.0.0.1:9/v1", retries=4)
    with opened(tmp_path, teacher=down) as gateway:
        assert isinstance(outcome(lambda: said(gateway.lm("teacher"))), lm_errors.LMError)
        assert "127.0.0.1:9" in stopped_by(gateway) and "api_base" in stopped_by(gateway)
    assert time.monotonic() - begun < 3 and not calls(tmp_path)


def failing(gateway: Gateway, count: int, start: int = 0) -> None:
    for n in range(start, start + count):
        assert isinstance(outcome(lambda n=n: said(gateway.lm("teacher"), f"What is {n}?")), Exception)  # type: ignore[misc]


@pytest.mark.parametrize("fault", ["500", "drop", "hang"])
def test_so_many_failures_in_a_row_end_it(server: SimulatedTeacher, tmp_path: Path, fault: str) -> None:
    server.control(faults={fault: 1})
    timeout = 0.03 if fault == "hang" else 5
    with opened(tmp_path, teacher=config(server, timeout=timeout)) as gateway:
        failing(gateway, IN_A_ROW - 1)
        assert gateway.stopped is None
        failing(gateway, 1, start=IN_A_ROW)
        assert f"{IN_A_ROW} requests in a row" in stopped_by(gateway)
        failing(gateway, 3, start=2 * IN_A_ROW)
    assert requests(server) == IN_A_ROW


def test_an_endpoint_that_goes_down_ends_it(tmp_path: Path) -> None:
    with SimulatedTeacher(latency=0, sigma=0) as own, opened(tmp_path, teacher=config(own, max_tokens=512)) as gateway:
        said(gateway.lm("teacher"))
        own.stop()
        failing(gateway, IN_A_ROW)
        assert "in a row" in stopped_by(gateway)
    assert len(calls(tmp_path)) == 1, "what never reached it costs nothing"


@pytest.mark.parametrize("answer", ["Fine.", response("Half an ans", "length")], ids=["answered", "cut"])
def test_an_answer_in_between_ends_the_row(tmp_path: Path, answer: Any) -> None:
    """A cut answer is one, too: the endpoint is well."""
    down = [lm15.ServerError("overloaded", status=503)] * (IN_A_ROW - 1)
    with opened(tmp_path, teacher=fake_lm(Writer(*down, answer, *down))) as gateway:
        for n in range(2 * IN_A_ROW - 1):
            outcome(lambda n=n: said(gateway.lm("teacher"), f"What is {n}?"))  # type: ignore[misc]
        assert gateway.stopped is None


def test_one_role_that_fails_does_not_count_for_another(tmp_path: Path) -> None:
    def down(_: Any) -> Any:
        return lm15.ServerError("overloaded", status=503)

    failing_one, fine = Writer(), Writer()
    failing_one.on_request, fine.on_request = down, lambda _: "Fine."
    with opened(tmp_path, teacher=fake_lm(failing_one), judge=fake_lm(fine, temperature=0.0)) as gateway:
        for n in range(IN_A_ROW):
            outcome(lambda n=n: said(gateway.lm("teacher"), f"{n}?"))  # type: ignore[misc]
            outcome(lambda n=n: said(gateway.lm("judge"), f"{n}?"))  # type: ignore[misc]
        assert stopped_by(gateway).startswith(f"teacher: {IN_A_ROW} requests")


# --- copies and doors


@pytest.mark.slow
def test_copies_ask_through_the_same_gateway(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        program = dspy.ChainOfThought(Answering)
        program.set_lm(lm)
        copies = [copy.deepcopy(lm), copy.copy(lm), lm.copy(), gateway.lm("teacher"), program.deepcopy().get_lm()]
        assert len({said(each) for each in [lm, *copies]}) == 1
        deep = copy.deepcopy(lm.copy(rollout_id=5, temperature=1.0))
        assert said(deep) != said(lm), "a copy of a rollout is that rollout"
    assert requests(server) == 2


def test_the_engines_settings_are_the_lms(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server, temperature=0.3, max_tokens=99)) as gateway:
        lm = gateway.lm("teacher")
        assert (lm.kwargs["temperature"], lm.kwargs["max_tokens"]) == (0.3, 99)
        assert lm.supports_response_schema and not lm.cache and lm.num_retries == 0


async def test_both_doors_share_calls(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.1)
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        threads = [asyncio.to_thread(said, lm) for _ in range(10)]
        answers = await asyncio.gather(*threads, *(lm.acall("What is the tide?") for _ in range(10)))
        assert {a if isinstance(a, str) else str(a[0]) for a in answers} == {answers[0]}
    assert requests(server) == 1


async def test_who_leaves_early_spoils_nothing(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.3)
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        leaves, stays = (asyncio.create_task(lm.acall("What is the tide?")) for _ in range(2))
        await asyncio.to_thread(until, lambda: requests(server) == 1)
        leaves.cancel()
        with suppress(asyncio.CancelledError):
            await leaves
        assert (await stays)[0]
        alone = asyncio.create_task(lm.acall("What is the ebb?"))
        await asyncio.to_thread(until, lambda: requests(server) == 2)
        alone.cancel()
        with suppress(asyncio.CancelledError):
            await alone
        await asyncio.to_thread(until, lambda: server.stats()["answered"] == 2)
        await lm.acall("What is the ebb?")
    assert requests(server) == 2, "what nobody waits for any more is paid for, so it is kept"


# --- closing


def test_closing_lets_go_of_every_thread_and_books_what_flies(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"hang": 1})
    pool = ThreadPoolExecutor(12)
    with opened(tmp_path, teacher=config(server, timeout=600)) as gateway:
        lm = gateway.lm("teacher")
        asked = [pool.submit(outcome, lambda n=n: said(lm, f"What is {n}?")) for n in range(4)]  # type: ignore[misc]
        asked += [pool.submit(outcome, lambda: said(lm, "What is 0?"))]
        until(lambda: requests(server) == 4 and len(gateway._flying) == 4)
        time.sleep(0.1)
        begun = time.monotonic()
    assert time.monotonic() - begun < 3
    assert all(isinstance(each.result(PATIENCE), CancelledError | Exception) for each in asked)
    pool.shutdown()
    assert [row["outcome"] for row in calls(tmp_path)] == ["cancelled"] * 4
    assert all(row["cost"] == row["reserved"] > 0 for row in calls(tmp_path))
    assert isinstance(outcome(lambda: said(lm, "Too late?")), LMCapReached)
    until(lambda: server.stats()["in_flight"] == 0)
    assert requests(server) == 4


class Silent:
    """An endpoint that never answers."""

    supports_response_schema = True
    supported_params = frozenset({"response_format", "temperature", "max_tokens"})

    def complete(self, request: Any) -> Any:
        raise AssertionError("the gateway asks through the other door")

    @property
    def asynchronous(self) -> Any:
        class Waiting:
            async def complete(self, request: Any) -> Any:
                await asyncio.Event().wait()

        return Waiting()


def closes_while_many_wait_for_one_call(folder: Path) -> None:
    silent = Silent()
    teacher = dspy.LM("fake/model", engine=silent, async_engine=silent.asynchronous, num_retries=0, cache=False)
    with opened(folder, teacher=teacher) as gateway:
        lm = gateway.lm("teacher")
        for _ in range(60):
            threading.Thread(target=outcome, args=(lambda: said(lm),), daemon=True).start()
        until(lambda: len(gateway._flying) == 1)
        time.sleep(0.5)
    (folder / "closed").touch()


def test_closing_ends_where_many_threads_wait_for_one_call(tmp_path: Path) -> None:
    """In a process of its own: a loop that spins cannot be stopped otherwise."""
    process = multiprocessing.get_context("fork").Process(target=closes_while_many_wait_for_one_call, args=(tmp_path,))
    process.start()
    process.join(4)
    process.kill()
    process.join()
    assert (tmp_path / "closed").exists()


def test_closing_lets_go_of_those_that_wait_for_money(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"hang": 1})
    least = open_teacher(config(server)).least
    assert least is not None
    pool = ThreadPoolExecutor(8)
    with opened(tmp_path, Caps(max_cost=int(1.5 * least)), teacher=config(server, timeout=600)) as gateway:
        lm = gateway.lm("teacher")
        asked = [pool.submit(outcome, lambda n=n: said(lm, f"What is {n}?")) for n in range(8)]  # type: ignore[misc]
        until(lambda: requests(server) == 1 and len(gateway._flying) == 8)
    assert all(isinstance(each.result(PATIENCE), Exception) for each in asked)
    pool.shutdown()
    assert [row["outcome"] for row in calls(tmp_path)] == ["cancelled"]
    assert requests(server) == 1


def test_a_thread_that_asks_just_when_it_closes_is_let_go(
    server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It began to ask while the gateway was open, and hands its question over only when that has closed."""
    counted = Gateway._counted
    may, ready = threading.Event(), threading.Event()

    def late(*given: Any) -> Any:
        if threading.current_thread().name == "late":
            ready.set()
            may.wait(PATIENCE)
        return counted(*given)

    monkeypatch.setattr(Gateway, "_counted", late)
    got: list[Any] = []
    with opened(tmp_path, teacher=config(server)) as gateway:
        thread = threading.Thread(name="late", target=lambda: got.append(outcome(lambda: said(gateway.lm("teacher")))))
        thread.start()
        ready.wait(PATIENCE)
    may.set()
    thread.join(PATIENCE)
    assert not thread.is_alive() and isinstance(got[0], LMCapReached)


def test_an_error_inside_the_block_comes_out_and_closes_it(server: SimulatedTeacher, tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError), opened(tmp_path, teacher=config(server)):
        raise ZeroDivisionError
    until(lambda: threading.active_count() <= before)


def test_a_model_that_does_not_start_is_told(tmp_path: Path) -> None:
    def broken() -> Any:
        raise TeacherError("no weights")

    teacher = open_teacher(fake_lm(Writer()))
    teacher.start = broken
    with pytest.raises(TeacherError, match="no weights"), opened(tmp_path, teacher=teacher):
        pass


# --- the books


def test_calls_are_booked_by_role_and_candidate(server: SimulatedTeacher, tmp_path: Path) -> None:
    models: dict[str, Any] = {"teacher": config(server), "judge": config(server, temperature=0)}
    models["reflection"] = config(server, model="openai/big")

    def for_candidate(name: str, lm: dspy.LM, question: str) -> None:
        token = evaluating.set(name)
        said(lm, question)
        evaluating.reset(token)

    with opened(tmp_path, **models) as gateway:
        teacher, judge, reflection = (gateway.lm(role) for role in models)
        for_candidate("one", teacher, "1?")
        for_candidate("two", teacher, "2?")
        for_candidate("two", teacher, "1?")  # paid for by the first
        for_candidate("two", judge, "3?")
        said(reflection, "4?")
    rows = calls(tmp_path)
    assert [(row["stage"], row["item"]) for row in rows] == [
        ("teacher", "one"), ("teacher", "two"), ("judge", "two"), ("reflection", ""),
    ]  # fmt: skip
    assert all(row["outcome"] == "ok" and 0 < row["cost"] < row["reserved"] for row in rows)
    with Ledger.read(tmp_path) as ledger:
        usage = usage_by_stage(ledger)
    stats = server.stats()
    assert {role: used["calls"] for role, used in usage.items()} == {"teacher": 2, "judge": 1, "reflection": 1}
    for words in ("prompt_tokens", "completion_tokens"):
        assert sum(used[words] for used in usage.values()) == stats[words]
    billed = stats["billed_prompt_tokens"] * 10**6 + stats["billed_completion_tokens"] * 10**7
    assert sum(row["cost"] for row in rows) == billed


def test_what_a_candidate_is_worth_counts_what_others_paid_for(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server)) as gateway:
        for name in ("one", "two"):
            token = evaluating.set(name)
            said(gateway.lm("teacher"))
            evaluating.reset(token)
        assert gateway.worth["one"] == gateway.worth["two"] == calls(tmp_path)[0]["cost"] > 0


def stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.is_file())


def test_no_key_is_written_down(locked: SimulatedTeacher, tmp_path: Path) -> None:
    teacher = config(locked, api_key_env=KEY_VARIABLE, max_tokens=512)
    with opened(tmp_path, teacher=teacher) as gateway:
        lm = gateway.lm("teacher")
        said(lm)
        for fault in ("cut", "refusal", "filtered", "500", "drop"):
            locked.control(faults={fault: 1})
            outcome(lambda fault=fault: said(lm, fault))  # type: ignore[misc]
        assert KEY.encode() not in stored(tmp_path), "while the write-ahead log is there"
    assert KEY.encode() not in stored(tmp_path) and KEY not in str(lm.kwargs)


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
        for n in range(IN_A_ROW):
            outcome(lambda n=n: said(gateway.lm("teacher"), f"What is {n}?"))  # type: ignore[misc]
        assert KEY not in str(gateway.stopped)
    assert KEY.encode() not in stored(tmp_path)

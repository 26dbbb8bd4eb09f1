"""The language model that DSPy holds: from wherever it is asked, and however it is copied, its answers are recorded."""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Message, Request
from dspy.utils import exceptions as lm_errors

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError
from refed_dspy.jobs.session import LEAN
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import spent
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import about
from refed_dspy.programs.lm_errors import InTransit
from refed_dspy.programs.question import Fit, Question, fitting
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.recorded import Asked, RecordedLM, recorded_lm
from tests.support.asking import ask
from tests.support.clocks import until
from tests.support.compiling import requests
from tests.support.gateways import PATIENCE, Answering, config, opened
from tests.support.said import Said
from tests.support.scripted_batches import running_at
from tests.support.scripted_engine import Writer, fake_lm


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=4)
    return server


def writer() -> Writer:
    """Answers each request otherwise, with JSON where that is asked for."""
    made, numbers = Writer(), itertools.count()

    def answer(request: Request) -> str | None:
        return None if request.config.response_format else f"Text number {next(numbers)}."

    made.on_request = answer
    return made


@asynccontextmanager
async def recorded(folder: Path, of: Writer, **settings: Any) -> AsyncIterator[RecordedLM]:
    """One start on the ledger in `folder`, with a language model on this loop."""
    teacher = open_teacher(fake_lm(of, **settings))
    with Ledger.create(folder) as ledger:
        run = RunRecorder(ledger, Caps(), spent(ledger))
        async with running_at(ledger, run, teacher) as engine:
            yield recorded_lm(teacher, engine)
        run.group.close()


def rows(folder: Path, query: str) -> list[Any]:
    with Ledger.read(folder) as ledger:
        return ledger.db.execute(query).fetchall()


ANSWERED = "SELECT outcome FROM calls"
WHY = "Why?"


# --- copies and engines


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda program: program.deepcopy()], ids=["copy", "dspy"])
async def test_a_copied_program_s_predictors_ask_the_same_teacher(
    tmp_path: Path, copied: Callable[[dspy.Module], dspy.Module]
) -> None:
    """Optimizers copy a program many times, and with it the language models that its predictors hold."""
    of = writer()
    async with recorded(tmp_path, of) as lm:
        program = dspy.ChainOfThought(Answering)
        program.set_lm(lm)
        twin = copied(program)
        assert twin.get_lm() is not lm
        with dspy.context(adapter=SchemaAdapter()):
            answers = [await each.acall(question="Why?") for each in (program, twin, copied(twin))]
            assert {answer.answer for answer in answers} == {answers[0].answer} and len(of.requests) == 1
            predictor = twin.predictors()[0]
            predictor.signature = predictor.signature.with_instructions("Answer in verse.")
            assert (await twin.acall(question="Why?")).answer != answers[0].answer
    assert len(of.requests) == 2 == rows(tmp_path, ANSWERED).count(("ok",))


def test_the_engines_settings_are_the_lms(server: SimulatedTeacher, tmp_path: Path) -> None:
    with opened(tmp_path, teacher=config(server, temperature=0.3, max_tokens=99)) as gateway:
        lm = gateway.lm("teacher")
        assert (lm.kwargs["temperature"], lm.kwargs["max_tokens"]) == (0.3, 99)
        assert lm.supports_response_schema and not lm.cache and lm.num_retries == 0


# --- threads and event loops


async def test_a_thread_another_loop_and_its_own_share_answers_and_say_what_they_are_about(tmp_path: Path) -> None:
    of = writer()
    predict = dspy.Predict(Answering)

    def in_a_thread(number: int) -> str:
        with about("thread", str(number)):
            return str(predict(question=f"What is {number}?").answer)

    def on_another_loop(number: int) -> str:
        answered = ask("loop", str(number), predict, question=f"What is {number}?")
        return str(asyncio.run(asyncio.wait_for(answered, PATIENCE)).answer)

    async def here(number: int) -> str:
        return str((await ask("own", str(number), predict, question=f"What is {number}?")).answer)

    async with recorded(tmp_path, of) as lm:
        with dspy.context(lm=lm, adapter=SchemaAdapter()):
            first = [
                await asyncio.to_thread(in_a_thread, 1),
                await asyncio.to_thread(on_another_loop, 2),
                await here(3),
            ]
            assert len(set(first)) == 3 == len(of.requests)
            for number, answer in enumerate(first, start=1):
                again = asyncio.to_thread(in_a_thread, number), asyncio.to_thread(on_another_loop, number), here(number)
                assert set(await asyncio.gather(*again)) == {answer}
    assert len(of.requests) == 3
    made = "SELECT stage, item FROM calls ORDER BY id"
    assert rows(tmp_path, made) == [("thread", "1"), ("loop", "2"), ("own", "3")]


@pytest.mark.parametrize("lean", [False, True])
async def test_without_await_on_its_own_loop_it_says_so_in_one_line_and_does_not_hang(
    said: Said, tmp_path: Path, lean: bool
) -> None:
    """The call would wait for an answer that only this loop can get."""
    of, predict = writer(), dspy.Predict(Answering)
    async with recorded(tmp_path, of) as lm:
        with pytest.raises(InTransit):
            lm(WHY)
        with dspy.context(lm=lm, **(LEAN if lean else {})):
            with said.by(ConfigError), about("stage", "item"):
                predict(question=WHY)
            assert (await ask("stage", "item", predict, question=WHY)).answer, "it goes on as ever"
    assert len(of.requests) == 1


async def test_who_leaves_early_spoils_nothing(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.3)
    with opened(tmp_path, teacher=config(server)) as gateway:
        lm = gateway.lm("teacher")
        leaves, stays = (asyncio.create_task(lm.acall(WHY)) for _ in range(2))
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


@pytest.mark.parametrize("form", [{}, {"is_async_program": True}], ids=["thread", "async"])
async def test_it_streams_what_is_recorded(tmp_path: Path, form: dict[str, bool]) -> None:
    of, program = writer(), dspy.streamify(dspy.Predict(Answering), **form)
    async with recorded(tmp_path, of) as lm:
        with dspy.context(lm=lm, adapter=SchemaAdapter()):
            first, again = [[value async for value in program(question=WHY)] for _ in range(2)]
    assert len(of.requests) == 1 and first[-1].answer == again[-1].answer
    for values in (first, again):
        text = "".join(chunk["choices"][0]["delta"]["content"] or "" for chunk in values[:-1])
        assert text == json.dumps({"answer": first[-1].answer}, separators=(",", ":"))


# --- several answers to one request


async def test_n_answers_are_n_recorded_answers_wherever_they_are_asked_for(tmp_path: Path) -> None:
    of = writer()
    async with recorded(tmp_path, of) as lm:
        several = [str(each) for each in await lm.acall(WHY, n=3)]
        assert len(set(several)) == 3 == len(of.requests)
        assert [str(each) for each in await asyncio.to_thread(lm, WHY, n=3)] == several
        assert [str(each) for each in await lm.copy(n=2).acall(WHY)] == several[:2]
        assert str((await lm.acall(WHY))[0]) == several[0], "the only one is the first of several"
        assert len(of.requests) == 3
        others = [str(each) for each in await lm.acall(WHY, n=3, rollout_id=1)]
        assert len({*several, *others}) == 6 == len(of.requests), "another rollout's are others"
    async with recorded(tmp_path, of) as lm:
        assert [str(each) for each in await lm.acall(WHY, n=3)] == several
    assert len(of.requests) == 6


@pytest.mark.parametrize("lean", [False, True])
async def test_a_rollout_id_is_another_answer_at_temperature_0_too(tmp_path: Path, lean: bool) -> None:
    """DSPy warns there that it has no effect; here it is part of the ledger's key."""
    of, predict = writer(), dspy.Predict(Answering)
    for _ in range(2):
        async with recorded(tmp_path, of, temperature=0.0) as lm:
            assert lm.kwargs["temperature"] == 0
            with warnings.catch_warnings(), dspy.context(lm=lm, **(LEAN if lean else {})):
                warnings.simplefilter("error")
                answers = [(await ask("stage", "item", predict, n, question="Why?")).answer for n in range(3)]
                answers.append((await lm.copy(rollout_id=1).acall("Why?"))[0])
                answers.append((await lm.acall("Why?", rollout_id=2))[0])
        assert len(set(answers)) == 5 == len(of.requests), "the second time they are in the ledger"
    assert {request.config.temperature for request in of.requests} == {0}
    kept = rows(tmp_path, "SELECT repetition FROM answers WHERE stage='stage' ORDER BY repetition")
    assert [repetition for (repetition,) in kept] == [0, 1, 2]


# --- equal requests


@pytest.mark.parametrize("at_once", [False, True])
async def test_equal_requests_of_two_stages_and_items_are_one_call_and_both_have_the_answer(
    tmp_path: Path, at_once: bool
) -> None:
    of, predict = writer(), dspy.Predict(Answering)
    async with recorded(tmp_path, of) as lm:
        with dspy.context(lm=lm):
            asking = [
                ask(stage, item, predict, question="Why?") for stage, item in (("a", "1"), ("b", "1"), ("a", "2"))
            ]
            answers = await asyncio.gather(*asking) if at_once else [await each for each in asking]
    assert len({answer.answer for answer in answers}) == 1 == len(of.requests)
    (call,) = rows(tmp_path, "SELECT stage, item FROM calls")
    asked = rows(tmp_path, "SELECT stage, item FROM asked")
    assert set(asked) == {("a", "1"), ("b", "1"), ("a", "2")}
    assert call in asked if at_once else call == ("a", "1"), "DSPy's threads decide who comes first of several at once"


class Broken(Fit):
    def checked(self, text: str) -> tuple[str, str | None]:
        raise ZeroDivisionError("a bug")


async def test_a_bug_after_an_answer_leaves_its_call_settled(tmp_path: Path) -> None:
    async with recorded(tmp_path, writer()) as lm:
        with fitting(Broken()), pytest.raises(lm_errors.LMUnexpectedError, match="a bug"):
            await lm.acall(WHY)
    assert rows(tmp_path, ANSWERED) == [("ok",)], "not as if it were still in flight"


def test_half_a_surrogate_pair_in_an_answer_can_be_stored() -> None:
    asked = Asked(Request(model="m", messages=(Message.user("?"),)), Question("stage", "item"), 0, None)
    assert asked.checked("a\ud800b").text == "a?b"

"""What a program's calls are made for: which answers fit, and when two calls are one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Annotated, Any

import dspy
import pytest
from dspy.utils import exceptions as lm_errors
from pydantic import Field

from refed_dspy.errors import MalformedAnswer, RefusedAnswer, RunStopped, TooLong
from refed_dspy.jobs.session import Session
from refed_dspy.jobs.work import Work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.asking import about_unnamed, predictor_names
from refed_dspy.programs.lm_errors import AnswerRefused
from refed_dspy.programs.question import UnnamedStage
from refed_dspy.teachers import open_teacher
from tests.support.asking import ask, row_job
from tests.support.said import Said
from tests.support.scripted_engine import Answer, Writer, fake_lm

NO_CAPS: Any = {"max_cost": None, "max_calls": None, "max_minutes": None}


class Answering(dspy.Signature):  # type: ignore[misc]
    """Answer in a word, and say why."""

    question: str = dspy.InputField()
    word: Annotated[str, Field(max_length=7)] = dspy.OutputField()
    reason: str = dspy.OutputField()


class Program(dspy.Module):  # type: ignore[misc]
    """One predictor, called as any DSPy program calls one."""

    def __init__(self) -> None:
        super().__init__()
        self.answering = dspy.Predict(Answering)

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.answering.acall(question=question)


def as_json(word: str, reason: str = "it is so") -> str:
    return json.dumps({"word": word, "reason": reason})


def as_chat(word: str, reason: str = "it is so") -> str:
    return f"[[ ## word ## ]]\n{word}\n\n[[ ## reason ## ]]\n{reason}\n\n[[ ## completed ## ]]"


def numbering() -> Writer:
    """Every answer is another one."""
    writer = Writer()
    writer.on_request = lambda _: as_json(f"word {next(writer.numbers)}")
    return writer


MOON, TOO_LONG = "the moon", "too long"
FORMS = [(None, as_json), (dspy.ChatAdapter(), as_chat)]
EITHER_ADAPTER = pytest.mark.parametrize(("adapter", "written"), FORMS, ids=["ours", "chat"])


def recorded(folder: Path, writer: Writer, *roles: str) -> AbstractAsyncContextManager[Session]:
    """A session whose teacher is `writer`, and whose models in other roles are."""
    models = dict.fromkeys(("teacher", *roles), open_teacher(fake_lm(writer)))
    return row_job(folder, Work(kind="testing", identity={}, models=models, size=1, caps=NO_CAPS))


def asked(folder: Path) -> Sequence[Any]:
    """(stage, item, output) of each answer, for all who asked for it."""
    with Ledger.read(folder) as ledger:
        return ledger.db.execute("SELECT stage, item, output FROM asked ORDER BY stage, item").fetchall()


# --- which answers fit


@EITHER_ADAPTER
async def test_no_output_of_a_stage_may_be_blank(said: Said, tmp_path: Path, adapter: Any, written: Any) -> None:
    writer = Writer(*[written("tide", " \n")] * 3)
    with dspy.context(adapter=adapter), pytest.raises(RunStopped):
        async with recorded(tmp_path, writer):
            with said.by(MalformedAnswer):
                await ask("answering", "1", dspy.Predict(Answering), question="Why?")
    assert len(writer.requests) == 3, "it is asked again while that may help"


async def test_json_is_taken_where_a_chat_adapter_would_ask_again_for_it(tmp_path: Path) -> None:
    writer = Writer(*[as_json("tide", MOON)] * 4)
    for settings in ({}, {}, {"use_json_adapter_fallback": False}):
        with dspy.context(adapter=dspy.ChatAdapter(**settings)):
            async with recorded(tmp_path, writer):
                if settings:
                    with pytest.raises(MalformedAnswer):
                        await ask("answering", "2", dspy.Predict(Answering), question="How?")
                else:
                    answer = await ask("answering", "1", dspy.Predict(Answering), question="Why?")
                    assert answer.reason == MOON
    assert len(writer.requests) == 1 + 3, "no second form was asked for; without it each try is malformed"


@EITHER_ADAPTER
async def test_what_else_a_program_asks_for_may_be_blank(tmp_path: Path, adapter: Any, written: Any) -> None:
    writer, program = Writer(written("tide", "")), Program()
    with dspy.context(adapter=adapter):
        async with recorded(tmp_path, writer):
            with about_unnamed(UnnamedStage("1", predictor_names(program))):
                answer = await program.acall(question="Why?")
    assert (answer.word, answer.reason) == ("tide", "") and len(writer.requests) == 1
    assert asked(tmp_path) == [("answering", "1", '{"word":"tide","reason":""}')]


@EITHER_ADAPTER
async def test_an_answer_that_does_not_fit_its_fields_is_asked_for_again(
    tmp_path: Path, adapter: Any, written: Any
) -> None:
    writer = Writer("neither form", written("much too long"), written("tide"))
    with dspy.context(adapter=adapter):
        async with recorded(tmp_path, writer):
            answer = await ask("answering", "1", dspy.Predict(Answering), question="Why?")
    assert answer.word == "tide" and len(writer.requests) == 3
    with Ledger.read(tmp_path) as ledger:
        outcomes = ledger.db.execute("SELECT outcome FROM calls ORDER BY id").fetchall()
    assert outcomes == [("malformed",), ("malformed",), ("ok",)]


@EITHER_ADAPTER
async def test_a_later_start_reads_the_same_answer_at_no_cost(tmp_path: Path, adapter: Any, written: Any) -> None:
    writer = Writer(written("tide", MOON))
    made = []
    for _ in range(2):
        with dspy.context(adapter=adapter):
            async with recorded(tmp_path, writer):
                made.append(await ask("answering", "1", dspy.Predict(Answering), question="Why?"))
    assert [(answer.word, answer.reason) for answer in made] == [("tide", MOON)] * 2
    assert len(writer.requests) == 1
    ((stage, item, output),) = asked(tmp_path)
    assert (stage, item, json.loads(output)) == ("answering", "1", {"word": "tide", "reason": MOON})


async def test_a_request_that_is_too_long_is_remembered_as_that(said: Said, tmp_path: Path) -> None:
    too_long: Answer = lm_errors.ContextWindowExceededError(message="9,000 tokens are too many")
    writer = Writer(too_long, as_json("tide"))
    for n in range(2):
        async with recorded(tmp_path, writer):
            with said.by(TooLong):
                await ask("answering", "1", dspy.Predict(Answering), question="Why?")
            if n == 0:
                await ask("answering", "2", dspy.Predict(Answering), question="How?")
    assert len(writer.requests) == 2
    with Ledger.read(tmp_path) as ledger:
        assert {failure.kind for failure in ledger.failures()} == {TOO_LONG}


# --- when two calls are one


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after the other"])
async def test_equal_requests_of_two_stages_are_one_call(tmp_path: Path, at_once: bool) -> None:
    writer, predictor = numbering(), dspy.Predict(Answering)
    async with recorded(tmp_path, writer):
        first = ask("answering", "1", predictor, question="Why?")
        second = ask("pondering", "2", predictor, question="Why?")
        made = await asyncio.gather(first, second) if at_once else [await first, await second]
    assert made[0].toDict() == made[1].toDict() and len(writer.requests) == 1
    answer = asked(tmp_path)[0][2]
    assert asked(tmp_path) == [("answering", "1", answer), ("pondering", "2", answer)]


async def test_equal_questions_at_once_fail_together_and_cost_one_call(said: Said, tmp_path: Path) -> None:
    writer, predictor = Writer(AnswerRefused("declined")), dspy.Predict(Answering)
    with said.by(RunStopped):
        async with recorded(tmp_path, writer):
            questions = (ask("answering", "1", predictor, question="Why?") for _ in range(3))
            errors = await asyncio.gather(*questions, return_exceptions=True)
    assert {type(error) for error in errors} == {RefusedAnswer} and len(writer.requests) == 1


async def test_a_teacher_that_judges_too_is_one_model(tmp_path: Path) -> None:
    async with recorded(tmp_path, Writer(), "judge") as session:
        assert session.recorded_teachers["teacher"] is session.recorded_teachers["judge"]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
async def test_a_repetition_another_input_or_another_prompt_is_another_call(tmp_path: Path, temperature: float) -> None:
    writer, predictor = numbering(), dspy.Predict(Answering)
    reworded = dspy.Predict(Answering.with_instructions("Answer in one word."))
    predictor.config = {"temperature": temperature}
    made: list[list[str]] = []
    async with recorded(tmp_path, writer):
        for _ in range(2):
            answers = [await ask("answering", "1", predictor, number, question="Why?") for number in range(3)]
            answers.append(await ask("answering", "1", predictor, question="Why not?"))
            answers.append(await ask("answering", "1", reworded, question="Why?"))
            made.append([answer.word for answer in answers])
    assert made == [[f"word {number}" for number in range(1, 6)]] * 2

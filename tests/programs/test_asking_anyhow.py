"""However a program asks, in a session: by copies, from threads, with adapters and language models of its own."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import AuthError, InvalidRequestError, Request
from pydantic import BaseModel, Field

from refed_dspy.errors import ConfigError, RowError, TeacherError
from refed_dspy.jobs.session import Session
from refed_dspy.jobs.work import CapSettings, Work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.asking import about, about_unnamed, as_role, predictor_names, without_models
from refed_dspy.programs.question import UnnamedStage
from refed_dspy.teachers import open_teacher, recorded
from tests.support.asking import row_job
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm

SECRET = "zk-0123456789-abcdef"
NO_CAPS = CapSettings(max_cost=None, max_calls=None, max_minutes=None)


def session(folder: Path, **models: Any) -> AbstractAsyncContextManager[Session]:
    """A session of these language models: the first is the teacher."""
    opened = {role: open_teacher(lm) for role, lm in models.items()}
    return row_job(folder, Work(kind="testing", identity={}, models=opened, size=1, caps=NO_CAPS))


def asked(folder: Path) -> list[Any]:
    """(stage, item) of each call, in order."""
    with Ledger.read(folder) as ledger:
        return ledger.db.execute("SELECT stage, item FROM calls ORDER BY id").fetchall()


def raising(error: Callable[[str], Exception]) -> Writer:
    """An engine whose endpoint repeats the key that it was sent."""
    writer = Writer()

    def refuse(request: Request) -> Any:
        raise error(f"wrong key {SECRET}")

    writer.on_request = refuse
    return writer


@pytest.mark.parametrize(("kind", "raised"), [(AuthError, TeacherError), (InvalidRequestError, RowError)])
@pytest.mark.parametrize("role", ["teacher", "judge"])
async def test_no_message_repeats_a_key_whichever_model_it_belongs_to(
    tmp_path: Path, kind: Any, raised: type[Exception], role: str
) -> None:
    refusing = fake_lm(raising(lambda message: kind(message, status=400)), "fake/other", secret_key=SECRET)
    models = {"teacher": fake_lm(Writer()), "judge": refusing} if role == "judge" else {"teacher": refusing}
    with pytest.raises(Exception) as caught:
        async with session(tmp_path, **models):
            with as_role(role), about("stage", "item"):
                await dspy.Predict("question -> answer").acall(question="Why?")
    assert isinstance(caught.value.__cause__ or caught.value, raised | RowError | TeacherError)
    assert SECRET not in str(caught.value) and "[key]" in str(caught.value)
    with Ledger.read(tmp_path) as ledger:
        assert not any(SECRET in str(failure) for failure in ledger.failures())


async def test_half_a_surrogate_pair_is_no_reason_to_pay_again(tmp_path: Path) -> None:
    text = "thinking \ud83d\n[[ ## answer ## ]]\nhello\n[[ ## completed ## ]]"
    writer = Writer(text, text)
    for _ in range(2):
        with dspy.context(adapter=dspy.ChatAdapter()):
            async with session(tmp_path, teacher=fake_lm(writer)):
                with about("stage", "item"):
                    answer = await dspy.Predict("question -> answer").acall(question="Why?")
        assert answer.answer == "hello" and len(writer.requests) == 1


class Person(BaseModel):
    name: str = Field(alias="fullName")


class Naming(dspy.Signature):  # type: ignore[misc]
    """Name a person."""

    topic: str = dspy.InputField()
    person: Person = dspy.OutputField()


async def test_an_answer_that_was_taken_is_read_again(tmp_path: Path) -> None:
    writer = Writer('{"person": {"fullName": "Ann"}}')
    for _ in range(2):
        async with session(tmp_path, teacher=fake_lm(writer)):
            with about("stage", "item"):
                answer = await dspy.Predict(Naming).acall(topic="tides")
        assert answer.person.name == "Ann" and len(writer.requests) == 1


async def test_a_copied_predictor_keeps_its_name(tmp_path: Path) -> None:
    class Two(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = dspy.Predict("question -> answer"), dspy.Predict("question -> remark")

    program = Two()
    async with session(tmp_path, teacher=fake_lm(Writer())):
        with about_unnamed(UnnamedStage("7", predictor_names(program))):
            await program.first.acall(question="Why?")
            await copy.deepcopy(program).second.acall(question="Why?")
            await dspy.Predict("question -> extra").acall(question="Why?")
    assert asked(tmp_path) == [("first", "7"), ("second", "7"), ("program", "7")]


async def test_threads_that_dspy_starts_ask_for_the_same_item(tmp_path: Path) -> None:
    def both() -> Any:
        predictor = dspy.Predict("question -> answer")
        pairs = [(predictor, dspy.Example(question=text).with_inputs("question")) for text in ("one", "two")]
        return dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)

    async with session(tmp_path, teacher=fake_lm(Writer())):
        with about("stage", "item"):
            answers = await dspy.asyncify(both)()
    assert len(answers) == 2
    assert asked(tmp_path) == [("stage", "item")] * 2


async def test_threads_that_block_the_loop_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "BLOCKED", 0.2)
    writer = Writer()

    def in_a_thread() -> Any:
        predictor = dspy.Predict("question -> answer")
        example = dspy.Example(question="Why?").with_inputs("question")
        return dspy.Parallel(num_threads=1, max_errors=1, disable_progress_bar=True)([(predictor, example)] * 2)

    async with session(tmp_path, teacher=fake_lm(writer)):
        # DSPy says in its own way that both examples failed, or raises what the first one did.
        with about("stage", "item"), suppress(Exception):
            in_a_thread()  # not awaited: this loop waits for it
    assert not writer.requests


async def test_a_model_that_no_ledger_sees_is_refused(said: Said, tmp_path: Path) -> None:
    other, predictor = Writer(), dspy.Predict("question -> answer")
    predictor.lm = fake_lm(other, "fake/other")
    async with session(tmp_path, teacher=fake_lm(Writer())):
        with said.by(ConfigError), about("stage", "item"):
            await predictor.acall(question="Why?")
    assert not other.requests


async def test_an_adapter_with_a_model_of_its_own_is_refused(said: Said, tmp_path: Path) -> None:
    two_steps = dspy.context(adapter=dspy.TwoStepAdapter(fake_lm(Writer())))
    with two_steps, said.by(ConfigError):
        async with session(tmp_path, teacher=fake_lm(Writer())):
            pass


async def test_a_callers_adapter_is_still_one_of_its_kind(tmp_path: Path) -> None:
    """Modules of DSPy's call its methods, and make others of its class."""

    class Mine(dspy.ChatAdapter):  # type: ignore[misc]
        calls = 0

        def format(self, *inputs: Any, **named: Any) -> Any:
            Mine.calls += 1
            return super().format(*inputs, **named)

    with dspy.context(adapter=Mine()):
        async with session(tmp_path, teacher=fake_lm(Writer("[[ ## answer ## ]]\nhello"))):
            adapter = dspy.settings.adapter
            assert isinstance(adapter, Mine) and isinstance(type(adapter)(), Mine) and type(adapter).__name__ == "Mine"
            signature = dspy.Signature("question -> answer")
            assert "Why?" in adapter.format_user_message_content(signature, {"question": "Why?"})
            with about("stage", "item"):
                assert (await dspy.Predict(signature).acall(question="Why?")).answer == "hello"
    assert Mine.calls == 1
    await asyncio.sleep(0)


def test_two_models_under_one_name_are_refused(said: Said) -> None:
    class Inner(dspy.Module):  # type: ignore[misc]
        def __init__(self, lm: Any) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")
            self.ask.lm = lm

    class Outer(dspy.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = Inner(fake_lm(Writer(), "fake/one")), Inner(fake_lm(Writer(), "fake/two"))

    with said.by(ConfigError):
        without_models(Outer())

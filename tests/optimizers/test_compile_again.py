"""What a compile takes over from others, what makes it another one, and what it says of evaluations that came to
nothing. In process, in the simulated world."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request, Response
from dspy.utils import exceptions as lm_errors

from refed_dspy.cli.lines import compile_lines
from refed_dspy.errors import RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.metrics import NotScored, name_of
from refed_dspy.optimizers.result import compile_status
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.load import load_into
from refed_dspy.programs.saved import save_program
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.recorded import Asked, recorded_lm
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, response
from tests.support.simulated_compiles import (
    ONE_CRITERION,
    QUESTIONS,
    REFERENCES,
    Knows,
    Watched,
    answerer,
    compiled,
    marks,
    refed,
)

pytestmark = pytest.mark.slow

KNOWS = "tests.support.simulated_compiles.Knows"
STRICTER = "Prefer whichever is stricter."
OTHERS = [dspy.Example(question=f"another question, number {n}").with_inputs("question") for n in range(9)]


# --- what a program was tuned on


@pytest.mark.parametrize("source", ["the program", "its file"])
def test_a_later_compile_is_proved_on_what_the_program_never_saw(source: str, tmp_path: Path) -> None:
    first = compiled(tmp_path / "first", answerer(), QUESTIONS, metric=marks)
    other = compiled(tmp_path / "other", answerer(), QUESTIONS, metric=marks, seed=4)
    assert other.manifest["seen"] != first.manifest["seen"], "of itself this seed splits them otherwise"
    program = first.program
    if source == "its file":
        load_into(program := answerer(), first.path)
    again = compiled(tmp_path / "again", program, QUESTIONS, metric=marks, seed=4)
    assert again.manifest["seen"] == first.manifest["seen"] and again.manifest["sets"]["test"] == 5


def test_what_was_seen_is_handed_down_from_compile_to_compile(tmp_path: Path) -> None:
    first = compiled(tmp_path / "first", answerer(), QUESTIONS, metric=marks)
    second = compiled(tmp_path / "second", first.program, OTHERS, metric=marks)
    assert len(second.manifest["seen"]) == 8 and set(first.manifest["seen"]) < set(second.manifest["seen"])
    fresh = answerer()
    load_into(fresh, second.path)
    assert sorted(fresh.tuned_on) == second.manifest["seen"] == second.program.tuned_on


# --- a compiled judge


def strict_judge(folder: Path) -> Path:
    judge = PairwiseJudge()
    for predictor in judge.predictors():
        predictor.signature = predictor.signature.with_instructions(STRICTER)
    save_program(judge, folder / "judge.json")
    return folder / "judge.json"


def test_the_judge_is_asked_with_the_prompts_of_the_program_that_is_named(said: Said, tmp_path: Path) -> None:
    world = Watched()
    settings: dict[str, Any] = {"metric": ONE_CRITERION, "optimizer": "tests.tracking.test_compile.Adding"}
    compiled(tmp_path / "c", refed(), REFERENCES, world, judge_program=str(strict_judge(tmp_path)), **settings)
    compared = [text for _, text in world.asked if "'verdict'" in text]
    assert compared and all(STRICTER in text for text in compared)
    assert not [text for _, text in world.asked if "'grade'" in text and STRICTER in text]
    asked = world.requests
    with said.by(RunDirError):
        compiled(tmp_path / "c", refed(), REFERENCES, world, **settings)
    assert world.requests == asked


# --- a metric that was changed


def one_metric() -> Callable[..., float]:
    def metric(example: Any, prediction: Any) -> float:
        return 0.5

    return metric


def other_metric() -> Callable[..., float]:
    def metric(example: Any, prediction: Any) -> float:
        return 0.75

    return metric


def test_a_metric_whose_text_was_changed_is_another(said: Said, tmp_path: Path) -> None:
    old, new = one_metric(), other_metric()
    new.__qualname__ = old.__qualname__
    assert inspect.getsource(old) != inspect.getsource(new)
    assert name_of(old).split()[0] == name_of(new).split()[0] and name_of(old) != name_of(new)
    assert name_of(old) == name_of(one_metric())
    compiled(tmp_path / "c", answerer(), QUESTIONS, metric=old)
    with said.by(RunDirError):
        compiled(tmp_path / "c", answerer(), QUESTIONS, metric=new)
    assert compiled(tmp_path / "c", answerer(), QUESTIONS, metric=one_metric()).path.exists()


# --- the same whichever call ended first


@pytest.mark.parametrize("quicker", [0, 1], ids=["first", "second"])
async def test_failures_stand_in_one_order_whichever_came_first(quicker: int) -> None:
    """Optimizers read them, and a replay answers in another order than the endpoint did."""
    program = ReferenceLevelFeedback({"one": "the first", "two": "the second", "three": "the third"}, 1)

    writer = Writer(per_call=1)

    class Answers:
        async def complete(self, request: Request) -> Response:
            question = Asked.now(request).question
            if question.stage == "instruction_synthesis":
                number = ("one", "two", "three").index(question.item.rpartition("/")[2])
                await asyncio.sleep(0.02 * (number if quicker == 0 else 2 - number))
                if number:
                    return response("no JSON")
            return response("no JSON") if question.stage == "response_generation" else writer.complete(request)

    lm = recorded_lm(open_teacher(fake_lm(writer)), Answers())
    with dspy.context(lm=lm):
        made = await program.aforward(REFERENCES[0])
    stages = [failure.stage for failure in made.failures]
    assert stages == ["instruction_synthesis", "instruction_synthesis", "response_generation"]
    assert [failure.item.rpartition("/")[2] for failure in made.failures[:2]] == ["three", "two"]


# --- evaluations that came to nothing


class Looks(Knows):
    """It also asks the metric about what it was given to train on."""

    scores: tuple[Any, ...] = ()

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:
        type(self).scores = tuple(self.metric(each, student(**each.inputs())) for each in trainset)
        return super().compile(student, trainset=trainset, valset=valset)


@pytest.mark.parametrize("worth", [0.0, 0.3])
def test_an_optimizer_is_told_the_uncompiled_program_s_mean_where_nothing_can_be_said(
    worth: float, tmp_path: Path
) -> None:
    compiled(tmp_path / "which", answerer(), QUESTIONS, metric=marks, optimizer=KNOWS)
    train = {example.question for example in Knows.sets[0]}

    def abstains(example: Any, prediction: Any) -> float:
        if example.question in train:
            raise NotScored("nothing to say")
        return worth

    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=abstains, optimizer=f"{__name__}.Looks")
    assert [float(each) for each in Looks.scores] == [worth, worth] and not any(Looks.scores)
    assert made.manifest["abstained"] == 2 and made.manifest["validation"]["uncompiled"] == worth


def test_how_many_could_not_be_judged_is_told_wherever_a_compile_is(said: Said, tmp_path: Path) -> None:
    """One validation example, by both candidates."""
    compiled(tmp_path / "which", answerer(), QUESTIONS, metric=marks, optimizer=KNOWS)
    odd = Knows.sets[1][0].question

    def abstains(example: Any, prediction: Any) -> float:
        if example.question == odd:
            raise NotScored("nothing to say")
        return marks(example, prediction)

    for _ in range(2):  # a second start says the same
        made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=abstains, optimizer=KNOWS)
        assert made.manifest["abstained"] == 2
    with Ledger.read(made.folder) as ledger:
        facts = compile_status(ledger)
    assert facts["abstained"] == 2 and facts["evaluations"] == 2 + 2 * 5
    (told,) = {*made.lines()} & {*compile_lines(facts)} - {*without_abstentions(tmp_path)}
    said(told)


def without_abstentions(folder: Path) -> list[str]:
    """The lines of the same compile where everything was judged."""
    made = compiled(folder / "all", answerer(), QUESTIONS, metric=marks, optimizer=KNOWS)
    with Ledger.read(made.folder) as ledger:
        return [*made.lines(), *compile_lines(compile_status(ledger))]


def test_nothing_is_said_of_none(said: Said, tmp_path: Path) -> None:
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks)
    assert made.manifest["abstained"] == 0
    said(made.lines()[:-1])
    with Ledger.create(made.folder) as ledger:  # as one that is at work
        said(compile_lines(compile_status(ledger))[0])


def test_a_proof_of_less_than_four_fifths_of_the_test_set_proves_nothing(tmp_path: Path) -> None:
    questions = [dspy.Example(question=f"question number {n}").with_inputs("question") for n in range(16)]
    settings: dict[str, Any] = {"metric": marks, "optimizer": KNOWS, "test": 10}
    sure = compiled(tmp_path / "sure", answerer(), questions, **settings)
    assert sure.proof is not None and sure.proof.whole and sure.proof.proved
    held = [each.question for each in questions if each not in [*Knows.sets[0], *Knows.sets[1]]]
    for lost, whole in [(2, True), (3, False)]:
        world = Watched()
        world.answer = lambda text, fields, gone=held[:lost]: (  # type: ignore[misc]
            lm_errors.LMServerError("down", model="m") if any(f"{each}\n" in f"{text}\n" for each in gone) else None
        )
        made = compiled(tmp_path / str(lost), answerer(), questions, world, **settings)
        assert made.proof is not None and (made.proof.gain.raw.n, made.proof.whole, made.proof.proved) == (
            10 - lost, whole, whole,
        )  # fmt: skip
        message = "not proved: less than four fifths of the test set could be scored"
        assert (message in made.lines()) is not whole and made.manifest["proof"]["proved"] is whole


def test_a_start_that_came_to_nothing_leaves_nothing_to_tell(said: Said, tmp_path: Path) -> None:
    down = Watched()
    down.answer = lambda text, fields: lm_errors.LMServerError("down", model="m")
    with said.by(RunStopped):
        compiled(tmp_path / "c", refed(), REFERENCES, down)
    with Ledger.read(tmp_path / "c") as ledger:
        assert compile_status(ledger)["abstained"] == 2 and not ledger.has_answers()
    made = compiled(tmp_path / "c", answerer(), QUESTIONS, metric=marks)
    assert made.manifest["abstained"] == 0

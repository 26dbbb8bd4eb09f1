"""The pieces of a compile by themselves: split, the metric, the proof, in plain DSPy code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.preference import World, model
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, RunStopped
from refed_dspy.optimizers.metrics import ExampleScore, NotScored
from refed_dspy.optimizers.proof import Proof
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.load import load_program
from tests.support.compiling import requests
from tests.support.said import Said
from tests.support.simulated_compiles import PREFERENCE, QUESTIONS, Watched, answerer, marks, refed

REFERENCES = PREFERENCE.references(24)


def tune_and_prove(folder: Path, world: World) -> tuple[dspy.Module, float, Proof]:
    """What a user of DSPy writes, with the public names alone."""
    train, val, test = refed_dspy.split(REFERENCES, 4, 4, 16, seed=0)
    program = refed(per_feature=1)
    with refed_dspy.recording(folder, teacher=model(world), judge=model(world, 0.0)) as lms:
        metric = refed_dspy.BeatsBaseline(program, lms["teacher"], lms["judge"])
        optimizer = dspy.GEPA(metric=metric, reflection_lm=lms["judge"], max_metric_calls=30, num_threads=2)
        tuned = optimizer.compile(program, trainset=train, valset=val)
        score = dspy.Evaluate(devset=test, metric=metric, num_threads=2)(tuned).score
        return tuned, score, refed_dspy.prove(tuned, over=program, on=test, metric=metric)


def test_plain_dspy_code_tunes_evaluates_and_proves_and_asks_nothing_the_second_time(tmp_path: Path) -> None:
    world = Watched()
    tuned, score, proof = tune_and_prove(tmp_path / "work", world)
    assert proof.proved and 0 < score <= 100
    asked = len(world.asked)
    again = tune_and_prove(tmp_path / "work", world)
    assert len(world.asked) == asked and again[1:] == (score, proof)
    tuned.save(tmp_path / "program.json")
    read = load_program(tmp_path / "program.json")
    assert {name: each.signature.instructions for name, each in read.named_predictors()} == {
        name: each.signature.instructions for name, each in tuned.named_predictors()
    }


def test_a_split_shares_no_instruction_and_is_the_seed_s() -> None:
    sets = refed_dspy.split(REFERENCES, 8, 4, 12, seed=3)
    texts = [{example.reference.instruction for example in each} for each in sets]
    assert [len(each) for each in texts] == [8, 4, 12] and not (texts[0] & texts[2] or texts[1] & texts[2])
    assert refed_dspy.split(REFERENCES, 8, 4, 12, seed=3) == sets != refed_dspy.split(REFERENCES, 8, 4, 12, seed=4)
    own = refed_dspy.split(QUESTIONS, 3, 2, 4)
    assert sorted(example.question for each in own for example in each) == [each.question for each in QUESTIONS]


def proved(program: dspy.Module, over: dspy.Module, metric: Any = marks, on: Any = None, **more: Any) -> Proof:
    examples = [dspy.Example(question=f"question number {n}").with_inputs("question") for n in range(12)]
    with dspy.context(lm=model(Watched()), adapter=SchemaAdapter()):
        return refed_dspy.prove(program, over=over, on=examples if on is None else on, metric=metric, **more)


class Wordy(dspy.Module):  # type: ignore[misc]
    """Scores more than `answerer` by `marks`, or what `worth` says."""

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(response=" ".join([question, *(str(wish) for wish in PREFERENCE.answers)]))


def by_length(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
    return min(1.0, len(prediction.response) / 1_000)


def test_any_program_and_metric_can_be_proved(said: Said) -> None:
    proof = proved(Wordy(), answerer(), lambda example, prediction: float("question" in prediction.response))
    assert proof.unit == "examples" and proof.gain.raw.clusters == 12
    said(str(proof))


def test_the_same_program_proves_nothing() -> None:
    program = answerer()
    proof = proved(program, program.deepcopy())
    assert not proof.proved and proof.gain.raw.mean == 0


def test_too_few_are_refused_before_any_call(said: Said) -> None:
    world = Watched()
    with dspy.context(lm=model(world)), said.by(ConfigError):
        refed_dspy.prove(answerer(), over=answerer(), on=QUESTIONS[:3], metric=marks)
    assert not world.asked


@pytest.mark.parametrize("whose", ["metric", "program"])
def test_a_mistake_in_somebodys_code_is_no_score_of_zero(whose: str) -> None:
    class Wrong(Wordy):
        def forward(self, question: str) -> dspy.Prediction:
            if question.endswith("7"):
                raise KeyError(question)
            return super().forward(question)

    def wrong(example: dspy.Example, prediction: Any, trace: Any = None) -> float:
        return 1.0 if example.question.endswith("7") and prediction.nothing else 0.5

    with pytest.raises(RunStopped if whose == "metric" else KeyError):
        proved(Wrong() if whose == "program" else Wordy(), answerer(), wrong if whose == "metric" else by_length)


class Abstaining(refed_dspy.BeatsBaseline):
    """Of every second example it knows nothing."""

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> Any:
        if int(example.question.split()[-1]) % 2:
            raise NotScored("the judge abstained")
        return ExampleScore(0.8)


def test_what_could_not_be_judged_is_a_tie_to_dspy_and_no_part_of_a_proof(caplog: pytest.LogCaptureFixture) -> None:
    metric = Abstaining(refed(), model(Watched()), model(Watched()))
    told = metric(QUESTIONS[1], dspy.Prediction(response="x"))
    assert float(told) == 0.5 and not told and "could not be judged" in told.feedback
    assert "counted as a tie" in caplog.text
    proof = proved(Wordy(), answerer(), metric)
    assert proof.gain.raw.clusters == 6 and not proof.whole and not proof.proved


def test_the_metric_has_what_gepa_asks_for() -> None:
    world = Watched()
    program = refed(per_feature=1)
    [example, *_] = refed_dspy.split(REFERENCES, 4, 4, 16)[0]
    with dspy.context(lm=model(world), adapter=SchemaAdapter()):
        metric = refed_dspy.BeatsBaseline(program, model(world), model(world, 0.0), {"diversity": 0.0})
        prediction = program(**example.inputs())
        plain, full = metric(example, prediction), metric(example, prediction, None, "response_improvement", None)
    assert float(plain) == float(full) and {"wins", "coverage"} <= set(full.objective_scores)
    assert full.feedback != plain.feedback == f"scored {float(plain):.2f}"


def script(folder: Path) -> tuple[int, float, str]:
    """A DSPy user's whole work with the public names: tune, evaluate, prove, save, and make rows with what came of
    it."""
    teacher, judge = dspy.LM("openai/gpt-4o-mini"), dspy.LM("openai/gpt-4.1", temperature=0.0)
    train, val, test = refed_dspy.split("builtin", 2, 2, 6, seed=0)
    program = refed_dspy.ReferenceLevelFeedback({"topic": "What it is about."}, instructions_per_feature=1)
    with (
        refed_dspy.recording(folder / "a", teacher=teacher, judge=judge, max_calls=2_000) as lms,
        dspy.context(lm=lms["teacher"], adapter=refed_dspy.SchemaAdapter()),
    ):
        metric = refed_dspy.BeatsBaseline(program, lms["teacher"], lms["judge"])
        optimizer = dspy.GEPA(metric=metric, reflection_lm=lms["judge"], max_metric_calls=12)
        tuned = optimizer.compile(program, trainset=train, valset=val)
        score = float(dspy.Evaluate(devset=test, metric=metric)(tuned).score)
        proof = refed_dspy.prove(tuned, over=program, on=test, metric=metric)
    tuned.save(folder / "program.json")
    loaded = refed_dspy.load_program(folder / "program.json", features={"topic": "What it is about."})
    made = refed_dspy.synthesize(loaded, "builtin", size=4, teacher=teacher, run_dir=folder / "run", progress=False)
    return len(made), score, str(proof)


def test_a_dspy_users_script_runs_and_asks_nothing_the_second_time(
    server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.control(response_words=8, items=1)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    first = script(tmp_path)
    paid = requests(server)
    assert first[0] == 4 and script(tmp_path) == first and requests(server) == paid > 0


class OnlyAwaited(dspy.Module):  # type: ignore[misc]
    async def aforward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(response=f"{question} " * 20)


class Short(dspy.Module):  # type: ignore[misc]
    """The prompts of `OnlyAwaited`: none. Only the code differs."""

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(response=question)


def test_programs_that_differ_in_code_alone_are_told_apart_and_equal_examples_count_once() -> None:
    examples = [dspy.Example(question=f"question {n % 8}").with_inputs("question") for n in range(24)]
    proof = proved(OnlyAwaited(), Short(), by_length, examples)
    assert proof.proved and proof.gain.raw.clusters == 8


@pytest.mark.parametrize("case", ["no model", "no inputs"])
def test_what_cannot_be_asked_is_refused(said: Said, case: str) -> None:
    examples = [dspy.Example(question=f"question {n}") for n in range(8)]
    if case == "no model":
        examples = [example.with_inputs("question") for example in examples]
    with dspy.context(lm=None if case == "no model" else model(Watched())), said.by(ConfigError):
        refed_dspy.prove(answerer(), over=answerer(), on=examples, metric=marks)

"""What DSPy's machinery makes of our scores, and what is recorded meanwhile."""

from __future__ import annotations

import json
import pickle
import random
import threading
from collections import defaultdict
from typing import Any

import dspy
import pytest
from dspy.teleprompt.simba_utils import wrap_program
from dspy.utils import exceptions as lm_errors
from dspy.utils.exceptions import AdapterParseError

from refed_dspy.errors import CapReached, ConfigError, MalformedAnswer, NoAnswer, TeacherError
from refed_dspy.optimizers.examples import example_id
from refed_dspy.optimizers.gateway import current_candidate, in_metric
from refed_dspy.optimizers.metrics import CustomMetric, ExampleScore, NotScored, is_recoverable
from refed_dspy.optimizers.prove import in_turns
from refed_dspy.optimizers.recorder import candidate_id
from refed_dspy.records import Analysis, Failure
from tests.support.fake_gateway import EXAMPLES, ByWorth, FakeGateway, candidates, evaluate, program, recorder, running
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm

# --- DSPy's machinery


@pytest.mark.parametrize(
    "error",
    [
        NotScored("nothing to judge by"),
        NoAnswer("judge", "x", "timed out"),
        MalformedAnswer("judge", "x", "no JSON"),
        CapReached("max_cost"),
        lm_errors.LMServerError("down", model="m"),
        AdapterParseError(adapter_name="a", signature=dspy.Signature("a -> b"), lm_response="x"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_bad_luck_ends_nothing_and_is_recorded_as_no_zero(error: Exception) -> None:
    gateway = FakeGateway()
    record = recorder(gateway, ByWorth(q1=error))
    with running():
        evaluate(program(), record, EXAMPLES[:3])
    assert is_recoverable(error) and gateway.stop_errors == []
    assert sorted(row[3] for row in gateway.evaluations) == [0.0, 0.2] and record.evaluations == 2


@pytest.mark.parametrize(
    "error",
    [KeyError("tyop"), ConfigError("wrong"), TeacherError("no key"), ZeroDivisionError(), RuntimeError("closed")],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_in_a_metric_ends_it_as_it_is(error: Exception) -> None:
    gateway = FakeGateway()
    record = recorder(gateway, ByWorth(q1=error))
    with running(), pytest.raises(type(error)) as raised:
        record(EXAMPLES[1], dspy.Prediction(answer="x"))
    assert raised.value is error and gateway.stop_errors == [error] and gateway.evaluations == []
    with running():
        evaluate(program(), record, EXAMPLES[:3])
    assert gateway.stop_errors == [error, error]


class Buggy(dspy.Module):  # type: ignore[misc]
    """Its forward raises `error`."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.say = dspy.Predict("question -> answer")
        self.error = error

    def forward(self, question: str) -> dspy.Prediction:
        raise self.error


def test_a_bug_in_a_program_ends_it_as_it_is() -> None:
    for error, ends in ((AttributeError("tyop"), True), (NoAnswer("s", "i", "r"), False)):
        gateway = FakeGateway()
        buggy = Buggy(error)
        with running(candidates(gateway, buggy)):
            evaluate(buggy, recorder(gateway), EXAMPLES[:1])
        assert gateway.stop_errors == ([error] if ends else []) and gateway.evaluations == []


def test_a_bug_in_somebody_else_s_module_is_theirs() -> None:
    gateway = FakeGateway()
    with running(candidates(gateway, program())), pytest.raises(AttributeError):
        Buggy(AttributeError("an optimizer's own"))(question="x")
    assert gateway.stop_errors == [] and gateway.candidates == []


@pytest.mark.parametrize(("accept", "taken"), [(0.5, "56789"), (0.85, "9")])
def test_bootstrapping_takes_what_is_accepted_and_nothing_else(accept: float, taken: str) -> None:
    """Worth 0.0 to 0.9: from 0.5 on five are good enough, unless the metric has another bar."""
    metric = ByWorth()
    metric.accept = accept
    record = recorder(FakeGateway(), metric)
    with running():
        tuned = dspy.BootstrapFewShot(metric=record, max_bootstrapped_demos=9, max_labeled_demos=0).compile(
            program(), trainset=EXAMPLES
        )
    assert {demo.question for demo in tuned.predictors()[0].demos} == {f"q{number}" for number in taken}
    assert record.evaluations == 10


def test_gepa_takes_it_and_gets_words_for_the_stage() -> None:
    gateway, metric = FakeGateway(), ByWorth()
    record = recorder(gateway, metric)
    trace = [(None, {"question": "q3"}, dspy.Prediction(answer="x"))]
    score = record(EXAMPLES[3], dspy.Prediction(answer="x"), ["the whole trace"], "predict", trace)
    assert score["score"] == 0.3
    assert score["feedback"] == score.feedback == metric.feedback(EXAMPLES[3], None, "predict", trace)
    assert metric.stages == [("predict", trace)] * 2
    assert gateway.evaluations == [] and record.evaluations == 0, "its rollout was scored before"


def test_gepa_works_on_it_gets_the_parts_and_can_search_by_them() -> None:
    """With this frontier GEPA refuses to begin without them."""
    gateway, metric = FakeGateway(), ByWorth(q6=NotScored("the judge abstained"))
    with running(candidates(gateway, program())):
        tuned = dspy.GEPA(
            metric=recorder(gateway, metric),
            max_metric_calls=8,
            reflection_lm=fake_lm(Writer(*(json.dumps({"new_instruction": f"Version {n}."}) for n in range(9)))),
            num_threads=1,
            track_stats=True,
            gepa_kwargs={"frontier_type": "hybrid"},
        ).compile(program(), trainset=EXAMPLES[:3], valset=EXAMPLES[5:8])
    assert tuned.detailed_results.val_aggregate_subscores[0] == {"worth": pytest.approx((0.5 + 0.7) / 2)}
    assert {stage for stage, _ in metric.stages} == {"predict"} and len(gateway.candidates) > 1
    assert not gateway.stop_errors


def test_simba_reads_score_and_feedback() -> None:
    with running():
        output = wrap_program(program(), recorder(FakeGateway()))(EXAMPLES[7])
    assert output["score"] == 0.7
    assert output["output_metadata"] == {"feedback": "scored 0.70", "objective_scores": {"worth": 0.7}}


def test_a_rollout_that_failed_is_not_scored(said: Said) -> None:
    """SIMBA calls the metric without a prediction then."""
    gateway = FakeGateway()
    with said.by(NotScored):
        recorder(gateway)(EXAMPLES[0], None)
    assert gateway.stop_errors == [] and gateway.evaluations == []


def test_what_a_metric_asks_is_asked_as_a_judge_and_no_longer() -> None:
    during: list[bool] = []

    class Looks(ByWorth):
        def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> ExampleScore:
            during.append(in_metric.get())
            return super().score(example, prediction)

    record = recorder(FakeGateway(), Looks(q1=KeyError("x")))
    record(EXAMPLES[0], dspy.Prediction(answer="x"))
    assert in_metric.get() is False
    with pytest.raises(KeyError):
        record(EXAMPLES[1], dspy.Prediction(answer="x"))
    assert in_metric.get() is False and during == [True, True]


def test_rows_that_failed_are_counted_once_by_what_went_wrong() -> None:
    record = recorder(FakeGateway())
    failures = [Failure(stage="propose", item="x", kind=kind, reason="r") for kind in ("cut", "cut", "no answer")]
    made = dspy.Prediction(answer="x", failures=failures)
    record(EXAMPLES[0], made)
    record(EXAMPLES[0], made, None, "predict", [])
    assert list(record.failures.values()) == [2, 1]


def test_what_cannot_be_judged_counts_as_the_uncompiled_program_does(said: Said) -> None:
    """An optimizer wants a number. This one speaks neither for nor against, and makes no demonstration. On an example
    that the uncompiled program was scored on it is that score: GEPA keeps whoever is best on one."""
    gateway = FakeGateway()
    record = recorder(gateway, ByWorth(q9=NotScored("the judge\nabstained")))
    record.uncompiled = {example_id(EXAMPLES[0]): 0.4, "another": 0.1}
    score = record(EXAMPLES[9], dspy.Prediction(answer="x"))
    assert score.score == float(score) == 0.25 and bool(score) is False
    said(score.feedback)
    with running():
        assert evaluate(program(), record, [EXAMPLES[5], EXAMPLES[9]]).score == pytest.approx(37.5)
    assert record.evaluations == 1 and [row[3] for row in gateway.evaluations] == [0.5]
    record.uncompiled = {example_id(EXAMPLES[9]): 0.1, "another": 0.7}
    assert record(EXAMPLES[9], dspy.Prediction(answer="x")).score == 0.1


def test_what_cannot_be_judged_is_written_down_for_its_candidate() -> None:
    gateway, why = FakeGateway(), "the judge abstained"
    record = recorder(gateway, ByWorth(q2=NotScored(why)))
    with running(candidates(gateway, program())):
        evaluate(program(), record, EXAMPLES[:4])
    (row,) = gateway.failed
    name = candidate_id(program())
    assert row[:6] == (f"abstained {name} {example_id(EXAMPLES[2])}", "train", name, "abstained", why, False)
    record(EXAMPLES[2], dspy.Prediction(answer="x"), None, "predict", [])
    assert len(gateway.failed) == 1, "its rollout was judged before"


def test_what_demonstrations_are_drawn_by_does_not_depend_on_the_process() -> None:
    """BootstrapFewShot draws by the pickle of a rollout's steps: equal texts must stand in it in one way, whether they
    are one object or two, and a model must not bring its set of fields, which has another order in each process."""
    predictor, one = dspy.Predict("question -> answer"), "".join(["a ", "text"])
    record, pickles = recorder(FakeGateway()), []
    for other in (one, "".join(["a ", "text"])):
        analysis = Analysis(original_strengths=[one], improvement_opportunities=[other], relevant_feedback=[])
        trace = [(predictor, {"question": one}, dspy.Prediction(answer=other, analysis=analysis))]
        with running():
            record(EXAMPLES[0], dspy.Prediction(worth=1), trace)
        (kept, inputs, outputs), *_ = trace
        assert kept is predictor and (inputs, outputs.answer) == ({"question": one}, one)
        pickles.append(pickle.dumps(dspy.Example(**inputs, **outputs)))
    assert pickles[0] == pickles[1] and b"fields_set" not in pickles[0]
    odd: Any = (predictor, {"image": [dspy.Image("https://example.com/a.png")]}, dspy.Prediction())
    with running():
        record(EXAMPLES[0], dspy.Prediction(worth=1), trace := [odd])
    assert trace[0] is odd, "what JSON cannot hold stays as it is"


def test_evaluate_takes_the_mean_and_everything_is_written_down() -> None:
    gateway, watched = FakeGateway(), list[int]()
    seen = candidates(gateway, program())
    record = recorder(gateway, watch=lambda: watched.append(1))
    with running(seen):
        result = evaluate(program(), record, EXAMPLES)
    assert result.score == pytest.approx(45.0)
    assert {row[0] for row in gateway.evaluations} == {candidate_id(program())}
    assert {row[1]: (row[2], row[3], json.loads(row[4]), row[5]) for row in gateway.evaluations} == {
        example_id(e): ("train" if n < 5 else "other", e.worth, {"worth": e.worth}, 42) for n, e in enumerate(EXAMPLES)
    }
    assert record.evaluations == 10 == len(watched) and gateway.stop_errors == []
    for given in range(4):
        arguments: list[Any] = [None] * given
        assert record(EXAMPLES[4], dspy.Prediction(answer="x"), *arguments).score == 0.4


# --- programs that are scored in turns, so that a drift favours none


class Says(dspy.Module):  # type: ignore[misc]
    def __init__(self, word: str, asked: list[str]) -> None:
        super().__init__()
        self.word, self.asked = word, asked

    def forward(self, question: str) -> dspy.Prediction:
        self.asked.append(f"{self.word}{question}")
        return dspy.Prediction(answer=self.word + question)


def test_each_example_goes_to_all_of_them_one_after_the_other_and_another_is_first_each_time() -> None:
    asked: list[str] = []
    examples = [dspy.Example(question=str(n), answer=f"a{n}").with_inputs("question") for n in range(3)]

    def metric(example: dspy.Example, prediction: Any) -> float:
        assert set(example.keys()) == {"question", "answer"}, "the metric knows the example by its content"
        return float(example.answer == prediction.answer)

    results = in_turns({name: Says(name, asked) for name in "ab"}, examples, metric, threads=1)
    assert asked == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert {name: [score for *_, score in each] for name, each in results.items()} == {"a": [1.0] * 3, "b": [0.0] * 3}
    assert [example for example, _, _ in results["b"]] == examples


# --- which programs are candidates, and what counts for which of them


# --- candidates


def test_candidates_are_written_down_once_in_order_the_first_first() -> None:
    gateway = FakeGateway()
    seen = candidates(gateway, program())
    first, second, third = texts = ["Answer.", "Answer well.", "Answer briefly."]
    seen.note(program(first))
    with running(seen):
        for text in (first, second, first, third, second):
            program(text)(question="x")
    instructions = [json.loads(row[2])["predict"]["signature"]["instructions"] for row in gateway.candidates]
    assert instructions == texts and [row[1] for row in gateway.candidates] == [0, 1, 2]
    assert [row[0] for row in gateway.candidates] == [candidate_id(program(text)) for text in texts]


def test_demonstrations_make_another_candidate() -> None:
    first, other = program(), program()
    other.predictors()[0].demos = [dspy.Example(question="a", answer="b")]
    assert candidate_id(first) != candidate_id(other) and candidate_id(first) == candidate_id(program())


def test_a_program_that_a_metric_runs_is_no_candidate() -> None:
    gateway = FakeGateway()

    def asks(example: dspy.Example, prediction: Any) -> float:
        return float(bool(program("Judge.")(question=example.question).answer))

    with running(seen := candidates(gateway, program())):
        seen.note(program())
        evaluate(program(), recorder(gateway, CustomMetric(asks)), EXAMPLES[:3])
    assert len(gateway.candidates) == 1 and {row[0] for row in gateway.evaluations} == {candidate_id(program())}


def test_evaluations_go_to_their_candidate_under_eight_threads() -> None:
    """Three candidates at a time, each on eight threads, in a shuffled order."""
    gateway = FakeGateway()
    seen = candidates(gateway, program())
    asked: defaultdict[str, set[str]] = defaultdict(set)

    def looks(example: dspy.Example, prediction: Any) -> float:
        asked[current_candidate.get()].add(prediction.answer)
        return 1.0

    def answer(request: Any) -> str:
        return json.dumps({"reasoning": "r", "answer": str(request.system).splitlines()[0]})

    writer = Writer()
    writer.on_request = answer
    record = recorder(gateway, CustomMetric(looks))
    texts = [f"Way {n}." for n in range(6)]
    random.Random(0).shuffle(texts)

    def work(mine: list[str]) -> None:
        with running(seen, writer=writer):
            for text in mine:
                evaluate(program(text), record, EXAMPLES, threads=8)

    threads = [threading.Thread(target=work, args=(texts[n::3],)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = {candidate_id(program(text)): text for text in texts}
    assert {name: {expected[name]} for name in asked} == dict(asked) and set(asked) == set(expected)
    assert sorted((row[0], row[1]) for row in gateway.evaluations) == sorted(
        (name, example_id(example)) for name in expected for example in EXAMPLES
    )
    assert sorted(row[1] for row in gateway.candidates) == list(range(6))
    assert record.evaluations == 60


@pytest.mark.parametrize("student", [program(), dspy.Predict("question -> answer")], ids=["chain", "predict"])
def test_an_optimizer_s_own_modules_are_no_candidates_whatever_their_type(student: dspy.Module) -> None:
    gateway = FakeGateway()
    with running(candidates(gateway, student)):
        for kind in (dspy.Predict, dspy.ChainOfThought):
            kind("basic_instruction -> proposed_instruction")(basic_instruction="x")
    assert gateway.candidates == []

"""What DSPy's machinery makes of our scores, and what is written down while it works."""

from __future__ import annotations

import copy
import json
import math
import random
import threading
from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy.teleprompt.simba_utils import wrap_program
from dspy.utils import exceptions as lm_errors
from dspy.utils.exceptions import AdapterParseError

from refed_dspy.errors import CapReached, ConfigError, MalformedAnswer, NoAnswer, TeacherError
from refed_dspy.optimizers.examples import example_id
from refed_dspy.optimizers.gateway import evaluating, judging
from refed_dspy.optimizers.metrics import CustomMetric, Evaluation, HumanAgreement, MetricScore, NotScored
from refed_dspy.optimizers.recorder import Candidates, ScoreRecorder, bearable, candidate_id
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.records import Failure
from tests.support.scripted_engine import Writer, fake_lm

EXAMPLES = [dspy.Example(question=f"q{n}", worth=n / 10).with_inputs("question") for n in range(10)]


class Desk:
    """A gateway that keeps what it is told."""

    def __init__(self) -> None:
        self.tried: list[tuple[Any, ...]] = []
        self.scored: list[tuple[Any, ...]] = []
        self.failed: list[tuple[Any, ...]] = []
        self.stopped: list[BaseException] = []
        self.recorder = SimpleNamespace(budget=SimpleNamespace(spent=42))
        self._lock = threading.Lock()

    def write(self, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
        with self._lock:
            for sql, row in statements:
                lists = {"candidates": self.tried, "evaluations": self.scored, "failures": self.failed}
                next(rows for table, rows in lists.items() if f"INTO {table} " in sql).append(row)

    def read(self, look: Any) -> list[Any]:
        return []

    def stop(self, error: BaseException) -> None:
        self.stopped.append(error)


class ByWorth:
    """Scores an example by its worth; raises where `errors` has something for it."""

    accept = 0.5

    def __init__(self, **errors: Exception) -> None:
        self.errors = errors
        self.stages: list[tuple[str | None, Any]] = []

    def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> Evaluation:
        if (error := self.errors.get(example.question)) is not None:
            raise error
        return Evaluation(example.worth, {"worth": example.worth})

    def feedback(self, example: dspy.Example, prediction: Any, stage: str | None, trace: Any) -> str:
        self.stages.append((stage, trace))
        return f"write more about {example.question}"

    def identity(self) -> dict[str, Any]:
        return {}


def recorder(session: Desk, metric: Any = None, **more: Any) -> ScoreRecorder:
    subsets = {example_id(example): "train" for example in EXAMPLES[:5]}
    recorder_: Any = ScoreRecorder
    return recorder_(metric or ByWorth(), session, subsets, **more)  # type: ignore[no-any-return]


def candidates(session: Desk, student: dspy.Module) -> Candidates:
    made: Any = Candidates
    return made(session, student)  # type: ignore[no-any-return]


def program(instructions: str = "Answer.") -> dspy.Module:
    return dspy.ChainOfThought(dspy.Signature("question -> answer", instructions))


def running(*callbacks: Any, writer: Writer | None = None) -> Any:
    return dspy.context(lm=fake_lm(writer or Writer()), adapter=SchemaAdapter(), callbacks=list(callbacks))


def evaluate(program_: dspy.Module, metric: Any, examples: list[dspy.Example], threads: int = 2) -> Any:
    return dspy.Evaluate(
        devset=examples, metric=metric, num_threads=threads, display_progress=False, max_errors=100, failure_score=0.0,
        provide_traceback=False,
    )(program_)  # fmt: skip


# --- a score


def test_a_score_is_a_number_where_dspy_adds() -> None:
    scores = [MetricScore(0.25, "", 0.5), MetricScore(0.5, "", 0.5)]
    assert sum(scores) == 0.75 and sum(scores) / 2 == 0.375
    assert scores[0] + 1 == 1.25 and 1 + scores[0] == 1.25 and scores[0] + scores[1] == 0.75
    assert scores[0] / 2 == 0.125 and float(scores[1]) == 0.5
    assert sum([*scores, MetricScore(1, "", 0)]) == 1.75


def test_scores_compare_by_what_they_are() -> None:
    low, high = MetricScore(0.2, "a", 0.9), MetricScore(0.8, "b", 0.1)
    assert low < high and high > low and low <= high and high >= low and low < 0.5 < high
    assert max([low, high]) is high and sorted([high, low]) == [low, high]


@pytest.mark.parametrize(("score", "accepted"), [(0.0, False), (0.69, False), (0.7, True), (1.0, True)])
def test_a_score_is_true_from_the_one_that_is_accepted_on(score: float, accepted: bool) -> None:
    said = MetricScore(score, "words", 0.7)
    assert bool(said) is accepted
    assert (said.score, said.feedback, said["score"], said["feedback"]) == (score, "words", score, "words")


def test_a_copy_of_a_score_is_as_true_as_it_is() -> None:
    said = MetricScore(0.6, "words", 0.7)
    twin = copy.deepcopy(said)
    assert (twin.score, twin.feedback, bool(twin)) == (0.6, "words", False)
    said["score"] = 0.9  # as GEPA does with a module's score
    assert bool(said) and not bool(twin)


# --- DSPy's machinery


def test_evaluate_takes_the_mean_and_everything_is_written_down() -> None:
    session = Desk()
    seen = candidates(session, program())
    record = recorder(session)
    with running(seen):
        said = evaluate(program(), record, EXAMPLES)
    assert said.score == pytest.approx(45.0)
    name = candidate_id(program())
    assert {row[0] for row in session.scored} == {name}
    assert {row[1]: (row[2], row[3], json.loads(row[4]), row[5]) for row in session.scored} == {
        example_id(e): ("train" if n < 5 else "other", e.worth, {"worth": e.worth}, 42) for n, e in enumerate(EXAMPLES)
    }
    assert record.evaluations == 10 and session.stopped == []


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
def test_bad_luck_ends_nothing_and_is_no_zero_in_the_books(error: Exception) -> None:
    session = Desk()
    record = recorder(session, ByWorth(q1=error))
    with running():
        evaluate(program(), record, EXAMPLES[:3])
    assert bearable(error) and session.stopped == []
    assert sorted(row[3] for row in session.scored) == [0.0, 0.2] and record.evaluations == 2


@pytest.mark.parametrize(
    "error",
    [KeyError("tyop"), ConfigError("wrong"), TeacherError("no key"), ZeroDivisionError(), RuntimeError("closed")],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_in_a_metric_ends_it_as_it_is(error: Exception) -> None:
    session = Desk()
    record = recorder(session, ByWorth(q1=error))
    with running(), pytest.raises(type(error)) as raised:
        record(EXAMPLES[1], dspy.Prediction(answer="x"))
    assert raised.value is error and session.stopped == [error] and session.scored == []
    with running():
        evaluate(program(), record, EXAMPLES[:3])
    assert session.stopped == [error, error]


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
        session = Desk()
        buggy = Buggy(error)
        with running(candidates(session, buggy)):
            evaluate(buggy, recorder(session), EXAMPLES[:1])
        assert session.stopped == ([error] if ends else []) and session.scored == []


def test_a_bug_in_somebody_else_s_module_is_theirs() -> None:
    session = Desk()
    with running(candidates(session, program())), pytest.raises(AttributeError):
        Buggy(AttributeError("an optimizer's own"))(question="x")
    assert session.stopped == [] and session.tried == []


def test_bootstrapping_takes_what_is_accepted_and_nothing_else() -> None:
    """Worth 0.0 to 0.9: from 0.5 on five are good enough."""
    session = Desk()
    record = recorder(session)
    with running():
        tuned = dspy.BootstrapFewShot(metric=record, max_bootstrapped_demos=9, max_labeled_demos=0).compile(
            program(), trainset=EXAMPLES
        )
    assert {demo.question for demo in tuned.predictors()[0].demos} == {"q5", "q6", "q7", "q8", "q9"}
    assert record.evaluations == 10


def test_bootstrapping_goes_by_the_metric_s_own_bar() -> None:
    metric = ByWorth()
    metric.accept = 0.85
    with running():
        tuned = dspy.BootstrapFewShot(metric=recorder(Desk(), metric), max_bootstrapped_demos=9).compile(
            program(), trainset=EXAMPLES
        )
    bootstrapped = [demo for demo in tuned.predictors()[0].demos if demo.get("augmented")]
    assert [demo.question for demo in bootstrapped] == ["q9"]


def test_gepa_takes_it_and_gets_words_for_the_stage() -> None:
    session, metric = Desk(), ByWorth()
    record = recorder(session, metric)
    dspy.GEPA(metric=record, max_metric_calls=1, reflection_lm=fake_lm(Writer()))
    trace = [(None, {"question": "q3"}, dspy.Prediction(answer="x"))]
    said = record(EXAMPLES[3], dspy.Prediction(answer="x"), ["the whole trace"], "predict", trace)
    assert said["feedback"] == "write more about q3" and said["score"] == 0.3 and hasattr(said, "feedback")
    assert metric.stages == [("predict", trace)]
    assert session.scored == [] and record.evaluations == 0, "its rollout was scored before"


def test_gepa_works_on_it() -> None:
    session, metric = Desk(), ByWorth()
    writer = Writer()
    seen = candidates(session, program())
    with running(seen, writer=writer):
        # Two texts: what the reflection model writes is a new prompt.
        reflection = fake_lm(Writer(*(json.dumps({"new_instruction": f"Version {n}."}) for n in range(9))))
        dspy.GEPA(
            metric=recorder(session, metric), max_metric_calls=12, reflection_lm=reflection, num_threads=2
        ).compile(program(), trainset=EXAMPLES[:3], valset=EXAMPLES[5:8])
    assert {stage for stage, _ in metric.stages} == {"predict"} and len(session.tried) > 1 and not session.stopped


def test_simba_reads_score_and_feedback() -> None:
    with running():
        said = wrap_program(program(), recorder(Desk()))(EXAMPLES[7])
    assert said["score"] == 0.7 and said["output_metadata"] == {"feedback": "scored 0.70"}


def test_a_rollout_that_failed_is_not_scored() -> None:
    """SIMBA calls the metric without a prediction then."""
    session = Desk()
    with pytest.raises(NotScored, match="the program failed"):
        recorder(session)(EXAMPLES[0], None)
    assert session.stopped == [] and session.scored == []


@pytest.mark.parametrize("arguments", [(), (None,), (None, None), (None, None, None), ([], None, None)])
def test_it_is_called_with_two_to_five_arguments(arguments: tuple[Any, ...]) -> None:
    assert recorder(Desk())(EXAMPLES[4], dspy.Prediction(answer="x"), *arguments).score == 0.4


def test_what_a_metric_asks_is_asked_as_a_judge_and_no_longer() -> None:
    during: list[bool] = []

    class Looks(ByWorth):
        def score(self, example: dspy.Example, prediction: Any, trace: Any = None) -> Evaluation:
            during.append(judging.get())
            return super().score(example, prediction)

    record = recorder(Desk(), Looks(q1=KeyError("x")))
    record(EXAMPLES[0], dspy.Prediction(answer="x"))
    assert judging.get() is False
    with pytest.raises(KeyError):
        record(EXAMPLES[1], dspy.Prediction(answer="x"))
    assert judging.get() is False and during == [True, True]


def test_rows_that_failed_are_counted_once_by_what_went_wrong() -> None:
    record = recorder(Desk())
    failures = [Failure(stage="propose", item="x", kind=kind, reason="r") for kind in ("cut", "cut", "no answer")]
    made = dspy.Prediction(answer="x", failures=failures)
    record(EXAMPLES[0], made)
    record(EXAMPLES[0], made, None, "predict", [])
    assert record.failures == {"cut in propose": 2, "no answer in propose": 1}


def test_what_cannot_be_judged_counts_as_the_uncompiled_program_does() -> None:
    """An optimizer wants a number. This one speaks neither for nor against, and makes no demonstration."""
    session = Desk()
    record = recorder(session, ByWorth(q9=NotScored("the judge\nabstained")))
    record.neutral = 0.25
    said = record(EXAMPLES[9], dspy.Prediction(answer="x"))
    assert said.score == float(said) == 0.25 and bool(said) is False
    assert said.feedback == "It could not be judged: the judge abstained"
    with running():
        assert evaluate(program(), record, [EXAMPLES[5], EXAMPLES[9]]).score == pytest.approx(37.5)
    assert record.evaluations == 1 and [row[3] for row in session.scored] == [0.5]


def test_what_cannot_be_judged_is_written_down_for_its_candidate() -> None:
    session = Desk()
    record = recorder(session, ByWorth(q2=NotScored("the judge abstained")))
    with running(candidates(session, program())):
        evaluate(program(), record, EXAMPLES[:4])
    (row,) = session.failed
    name = candidate_id(program())
    assert row[:6] == (
        f"abstained {name} {example_id(EXAMPLES[2])}", "train", name, "abstained", "the judge abstained", False,
    )  # fmt: skip
    record(EXAMPLES[2], dspy.Prediction(answer="x"), None, "predict", [])
    assert len(session.failed) == 1, "its rollout was judged before"


def test_whoever_watches_is_told_of_each() -> None:
    told: list[int] = []
    record = recorder(Desk(), watch=lambda: told.append(1))
    for example in EXAMPLES[:3]:
        record(example, dspy.Prediction(answer="x"))
    assert len(told) == 3


# --- candidates


def test_candidates_are_written_down_once_in_order_the_first_first() -> None:
    session = Desk()
    seen = candidates(session, program())
    texts = ["Answer.", "Answer well.", "Answer.", "Answer briefly.", "Answer well."]
    seen.note(program("Answer."))
    with running(seen):
        for text in texts:
            program(text)(question="x")
    assert [(row[1], json.loads(row[2])["predict"]["signature"]["instructions"]) for row in session.tried] == [
        (0, "Answer."), (1, "Answer well."), (2, "Answer briefly.")
    ]  # fmt: skip
    assert [row[0] for row in session.tried] == [candidate_id(program(text)) for text in (*texts[:2], texts[3])]


def test_demonstrations_make_another_candidate() -> None:
    one, other = program(), program()
    other.predictors()[0].demos = [dspy.Example(question="a", answer="b")]
    assert candidate_id(one) != candidate_id(other) and candidate_id(one) == candidate_id(program())


def test_an_optimizer_s_own_modules_are_no_candidates() -> None:
    session = Desk()
    with running(candidates(session, program())):
        dspy.Predict("basic_instruction -> proposed_instruction")(basic_instruction="x")
    assert session.tried == []


@pytest.mark.parametrize("kind", [dspy.Predict, dspy.ChainOfThought])
def test_an_optimizer_s_own_modules_of_the_student_s_type_are_no_candidates(kind: Any) -> None:
    session = Desk()
    with running(candidates(session, kind("question -> answer"))):
        kind("basic_instruction -> proposed_instruction")(basic_instruction="x")
    assert session.tried == []


def test_a_program_that_a_metric_runs_is_no_candidate() -> None:
    session = Desk()

    def asks(example: dspy.Example, prediction: Any) -> float:
        return float(bool(program("Judge.")(question=example.question).answer))

    with running(seen := candidates(session, program())):
        seen.note(program())
        evaluate(program(), recorder(session, CustomMetric(asks)), EXAMPLES[:3])
    assert len(session.tried) == 1 and {row[0] for row in session.scored} == {candidate_id(program())}


def test_evaluations_go_to_their_candidate_under_eight_threads() -> None:
    """Three candidates at a time, each on eight threads, in a shuffled order."""
    session = Desk()
    seen = candidates(session, program())
    asked: defaultdict[str, set[str]] = defaultdict(set)

    def looks(example: dspy.Example, prediction: Any) -> float:
        asked[evaluating.get()].add(prediction.answer)
        return 1.0

    def answer(request: Any) -> str:
        return json.dumps({"reasoning": "r", "answer": str(request.system).splitlines()[0]})

    writer = Writer()
    writer.on_request = answer
    record = recorder(session, CustomMetric(looks))
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
    assert sorted((row[0], row[1]) for row in session.scored) == sorted(
        (name, example_id(example)) for name in expected for example in EXAMPLES
    )
    assert sorted(row[1] for row in session.tried) == list(range(6))
    assert record.evaluations == 60


# --- metrics of the user's own


def five(example: dspy.Example, pred: Any, trace: Any = None, name: Any = None, pred_trace: Any = None) -> Any:
    return dspy.Prediction(score=0.5, feedback=f"on {name}" if name else None)


def two(example: dspy.Example, pred: Any) -> bool:
    return True


def three(example: dspy.Example, pred: Any, trace: Any = None) -> int:
    return 1


@pytest.mark.parametrize(
    ("metric", "score", "words"),
    [
        (two, 1.0, "The program scored 1.00 here."),
        (three, 1.0, "The program scored 1.00 here."),
        (five, 0.5, "on predict"),
        (lambda example, pred: 0.25, 0.25, "The program scored 0.25 here."),
        (lambda example, pred, *more: {"a": 1}.get("b", 0), 0.0, "The program scored 0.00 here."),
    ],
)
def test_a_metric_of_two_three_or_five_arguments(metric: Callable[..., Any], score: float, words: str) -> None:
    own = CustomMetric(metric)
    assert own.score(EXAMPLES[0], dspy.Prediction(answer="x")).score == score
    assert own.feedback(EXAMPLES[0], dspy.Prediction(answer="x"), "predict", []) == words


def all_five(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> float:
    return 0.5


def all_three(example: Any, pred: Any, trace: Any) -> float:
    return 0.5


@pytest.mark.parametrize("metric", [all_three, all_five])
def test_a_metric_whose_arguments_have_no_defaults(metric: Callable[..., Any]) -> None:
    assert CustomMetric(metric).score(EXAMPLES[0], dspy.Prediction(answer="x")).score == 0.5


def test_a_type_error_within_a_metric_of_five_arguments_is_not_hidden() -> None:
    def metric(example: Any, pred: Any, trace: Any = None, name: Any = None, pred_trace: Any = None) -> Any:
        return 0.5 if name is None else len(name.nonsense if hasattr(name, "nonsense") else 5)  # type: ignore[arg-type]

    with pytest.raises(TypeError):
        CustomMetric(metric).feedback(EXAMPLES[0], dspy.Prediction(answer="x"), "predict", [])


def test_a_metric_of_its_own_hears_that_it_is_bootstrapping() -> None:
    traces: list[Any] = []

    def metric(example: Any, pred: Any, trace: Any = None) -> bool:
        traces.append(trace)
        return trace is None

    recorder(Desk(), CustomMetric(metric))(EXAMPLES[0], dspy.Prediction(answer="x"), ["a trace"])
    assert traces == [["a trace"]]


@pytest.mark.parametrize("said", [math.nan, math.inf])
def test_a_score_that_is_no_number_is_told_of(said: float) -> None:
    session = Desk()
    with pytest.raises(Exception, match=r"nan|inf|finite"):
        recorder(session, CustomMetric(lambda example, pred: said))(EXAMPLES[0], dspy.Prediction(answer="x"))
    assert session.scored == []


@pytest.mark.parametrize("said", [None, "good"])
def test_a_metric_that_returns_no_number_ends_it(said: Any) -> None:
    session = Desk()
    with pytest.raises((TypeError, ValueError)):
        recorder(session, CustomMetric(lambda example, pred: said))(EXAMPLES[0], dspy.Prediction(answer="x"))
    assert len(session.stopped) == 1


@pytest.mark.parametrize("made", ["text", ("a", "b"), dspy.Prediction(failures="none that I know")], ids=str)
def test_a_program_may_return_what_it_likes(made: Any) -> None:
    session = Desk()
    assert recorder(session, CustomMetric(lambda example, pred: 1.0))(EXAMPLES[0], made).score == 1
    assert session.stopped == []


# --- people's verdicts


@pytest.mark.parametrize(
    ("preference", "people", "score"),
    [(2, 1, 1), (0.5, 1, 1), (0, 1, 0.5), (-1, 1, 0), (0, 0, 1), (1.5, 0, 0.5), (-2, -1, 1), (0, -1, 0.5)],
)
def test_a_judge_scores_by_how_near_it_comes_to_people(preference: float, people: float, score: float) -> None:
    made = dspy.Prediction(preference=preference, consistent=True, reasons=("r",), abstained="")
    said = HumanAgreement().score(dspy.Example(people=people), made)
    assert (said.score, said.parts) == (score, {"consistent": 1.0})


def test_a_judge_that_abstained_is_not_scored() -> None:
    made = dspy.Prediction(preference=None, consistent=None, reasons=(), abstained="the judge could not tell")
    with pytest.raises(NotScored, match="could not tell"):
        HumanAgreement().score(dspy.Example(people=1.0), made)


def test_a_judge_is_told_what_people_said_and_whether_order_mattered() -> None:
    pair = dspy.Example(people=-1.0, answer_a="one", answer_b="two")
    made = dspy.Prediction(preference=0, consistent=False, reasons=("A {is} nicer", "no, B"), abstained="")
    other_way: list[Any] = [(None, {"answer_a": "two", "answer_b": "one"}, {})]
    said = HumanAgreement().feedback(pair, made, "compare", other_way)
    assert "People preferred answer B." in said and "A and B stood the other way round" in said
    assert "changed with the order" in said and "A {is} nicer" in said and "no, B" in said
    plain = HumanAgreement().feedback(pair, dspy.Prediction(**{**made, "consistent": True}), "compare", None)
    assert "other way round" not in plain and "changed with the order" not in plain

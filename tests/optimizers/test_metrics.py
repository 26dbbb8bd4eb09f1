"""Scores as DSPy uses them, metrics of the user's own, and agreement with people."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from refed_dspy.errors import NoAnswer, RunStopped
from refed_dspy.optimizers.metrics import CustomMetric, HumanAgreement, MetricScore, NotScored
from tests.support.fake_gateway import EXAMPLES, FakeGateway, recorder
from tests.support.said import Said

# --- a score


# --- metrics of the user's own


def five(example: dspy.Example, pred: Any, trace: Any = None, name: Any = None, pred_trace: Any = None) -> Any:
    return dspy.Prediction(score=0.5, feedback=f"on {name}" if name else None)


def two(example: dspy.Example, pred: Any) -> bool:
    return True


def three(example: dspy.Example, pred: Any, trace: Any = None) -> int:
    return 1


def test_a_type_error_within_a_metric_of_five_arguments_is_not_hidden(said: Said) -> None:
    def metric(example: Any, pred: Any, trace: Any = None, name: Any = None, pred_trace: Any = None) -> Any:
        return 0.5 if name is None else len(name.nonsense if hasattr(name, "nonsense") else 5)  # type: ignore[arg-type]

    with pytest.raises(RunStopped) as raised:
        CustomMetric(metric).feedback(EXAMPLES[0], dspy.Prediction(answer="x"), "predict", [])
    said(str(raised.value).partition(f" ({Path(__file__).name}")[0])


def test_a_metric_of_its_own_hears_that_it_is_bootstrapping() -> None:
    traces: list[Any] = []

    def metric(example: Any, pred: Any, trace: Any = None) -> bool:
        traces.append(trace)
        return trace is None

    recorder(FakeGateway(), CustomMetric(metric))(EXAMPLES[0], dspy.Prediction(answer="x"), ["a trace"])
    assert traces == [["a trace"]]


@pytest.mark.parametrize(
    "result", [None, "good", "0.5", math.nan, math.inf, [1], dspy.Prediction(score="0.5"), -0.01, -3, 1.01, 73], ids=str
)
def test_a_metric_that_returns_no_number_from_0_to_1_ends_it_and_is_named_with_its_item(
    said: Said, result: Any
) -> None:
    """A failed prediction scores 0: below that, a program that only fails would be proved better."""
    gateway = FakeGateway()

    def mine(example: dspy.Example, pred: Any) -> Any:
        return result

    with said.by(RunStopped) as told:
        recorder(gateway, CustomMetric(mine))(EXAMPLES[0], dspy.Prediction(answer="x"))
    assert len(gateway.stop_errors) == 1 and not gateway.evaluations and "\n" not in str(told.value)


@pytest.mark.parametrize(("result", "score"), [(1 + 1.2e-7, 1.0), (-1e-15, 0.0), (1, 1.0), (False, 0.0)])
def test_a_rounding_error_is_no_score_of_another_kind(result: Any, score: float) -> None:
    assert CustomMetric(lambda example, pred: result).score(EXAMPLES[0], dspy.Prediction(answer="x")).score == score


def test_an_error_of_a_model_that_a_metric_asks_stays_itself() -> None:
    def metric(example: Any, pred: Any) -> float:
        raise NoAnswer("judging", "a row", "busy")

    with pytest.raises(NoAnswer):
        CustomMetric(metric).score(EXAMPLES[0], dspy.Prediction(answer="x"))


def test_a_score_from_which_a_rollout_is_a_demonstration() -> None:
    low = recorder(FakeGateway(), CustomMetric(lambda example, pred: 0.3, accept=0.25))
    assert bool(low(EXAMPLES[0], dspy.Prediction(answer="x"))) is True
    assert CustomMetric(two, 0.25).identity() != CustomMetric(two).identity()


@pytest.mark.parametrize("made", ["text", ("a", "b"), dspy.Prediction(failures="none that I know")], ids=str)
def test_a_program_may_return_what_it_likes(made: Any) -> None:
    gateway = FakeGateway()
    assert recorder(gateway, CustomMetric(lambda example, pred: 1.0))(EXAMPLES[0], made).score == 1
    assert gateway.stop_errors == []


# --- people's verdicts


@pytest.mark.parametrize(
    ("preference", "people", "score"),
    [(2, 1, 1), (0.5, 1, 1), (0, 1, 0.5), (-1, 1, 0), (0, 0, 1), (1.5, 0, 0.5), (-2, -1, 1), (0, -1, 0.5)],
)
def test_a_judge_scores_by_how_near_it_comes_to_people(preference: float, people: float, score: float) -> None:
    made = dspy.Prediction(preference=preference, consistent=True, reasons=("r",), abstained="")
    evaluation = HumanAgreement().score(dspy.Example(people=people), made)
    assert (evaluation.score, evaluation.components) == (score, {"consistent": 1.0})


def test_a_judge_that_abstained_is_not_scored(said: Said) -> None:
    made = dspy.Prediction(preference=None, consistent=None, reasons=(), abstained="the judge could not tell")
    with said.by(NotScored):
        HumanAgreement().score(dspy.Example(people=1.0), made)


def test_a_judge_is_told_what_people_said_and_whether_order_mattered(said: Said) -> None:
    pair = dspy.Example(people=-1.0, answer_a="one", answer_b="two")
    made = dspy.Prediction(preference=0, consistent=False, reasons=("A {is} nicer", "no, B"), abstained="")
    other_way: list[Any] = [(None, {"answer_a": "two", "answer_b": "one"}, {})]
    said(HumanAgreement().feedback(pair, made, "compare", other_way))
    said(HumanAgreement().feedback(pair, dspy.Prediction(**{**made, "consistent": True}), "compare", None))


def test_the_parts_that_a_caller_s_metric_returns_are_kept() -> None:
    def metric(example: Any, prediction: Any, trace: Any, name: Any, pred_trace: Any) -> Any:
        return dspy.Prediction(score=0.5, feedback="so so", objective_scores={"wit": 1, "brevity": 0.0})

    scored = CustomMetric(metric).score(dspy.Example(), dspy.Prediction())
    assert scored.score == 0.5 and scored.components == scored.objectives == {"wit": 1.0, "brevity": 0.0}
    assert CustomMetric(lambda example, prediction: 0.5).score(dspy.Example(), dspy.Prediction()).objectives == {}


def all_five(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> float:
    return 0.5


@pytest.mark.parametrize(
    ("metric", "score"),
    [
        (two, 1.0),
        (three, 1.0),
        (five, 0.5),
        (all_five, 0.5),
        (lambda example, pred: 0.25, 0.25),
        (lambda example, pred, trace: 0.5, 0.5),
        (lambda example, pred, *more: {"a": 1}.get("b", 0), 0.0),
    ],
)
def test_a_metric_of_two_to_five_arguments(said: Said, metric: Callable[..., Any], score: float) -> None:
    custom = CustomMetric(metric)
    assert custom.score(EXAMPLES[0], dspy.Prediction(answer="x")).score == score
    said(custom.feedback(EXAMPLES[0], dspy.Prediction(answer="x"), "predict", []))


def test_a_score_is_a_number_where_dspy_adds_and_compares() -> None:
    low, high = MetricScore(0.25, "a", 0.9), MetricScore(0.5, "b", 0.1)
    assert sum([low, high]) == 0.75 and sum([low, high]) / 2 == 0.375
    assert low + 1 == 1 + low == 1.25 and low + high == 0.75 and low / 2 == 0.125 and float(high) == 0.5
    assert low < high and high > low and low <= high and high >= low and low < 0.4 < high
    assert max([low, high]) is high and sorted([high, low]) == [low, high]


@pytest.mark.parametrize(("score", "accepted"), [(0.0, False), (0.69, False), (0.7, True), (1.0, True)])
def test_a_score_is_true_from_the_one_that_is_accepted_on_and_so_is_its_copy(score: float, accepted: bool) -> None:
    made = MetricScore(score, "words", 0.7)
    twin = copy.deepcopy(made)
    made["score"] = 0.7  # as GEPA does with a module's score
    assert bool(twin) is accepted and bool(made)
    assert (twin.score, twin.feedback, twin["score"], twin["feedback"]) == (score, "words", score, "words")

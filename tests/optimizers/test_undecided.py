"""What the metric for references does where the judge decided nothing, or the uncompiled program failed."""

from __future__ import annotations

from typing import Any

import pytest
from dspy.utils import exceptions as lm_errors

from refed_dspy.optimizers.metrics import NotScored
from tests.support.metric_bench import (
    Bench,
    component,
    prompt,
    sample,
)
from tests.support.said import Said


@pytest.mark.parametrize(
    ("quality", "grade", "weights", "expected"),
    [("?", "5", {"wins": 0}, (0.3 * 1 + 0.1 * 1) / 0.4), ("5", "?", {"grades": 0}, (0.6 * 1 + 0.1 * 1) / 0.7)],
)
def test_what_has_no_weight_need_not_be_decided(quality: str, grade: str, weights: Any, expected: float) -> None:
    assert Bench(per_feature=1, **weights).score([sample(1, quality, grade)]).score == pytest.approx(expected)


def test_an_abstention_on_one_sample_is_no_zero() -> None:
    evaluation = Bench(per_feature=2).score([sample(1, "5", "5"), sample(2, "?", "?")])
    assert (component(evaluation, "wins"), component(evaluation, "grades")) == (1, 1)
    assert component(evaluation, "abstained") == pytest.approx(0.5)


@pytest.mark.parametrize("criteria", [None, {}])
@pytest.mark.parametrize("stage", ["response_feedback", "improved_response"])
def test_who_answers_what_the_uncompiled_program_fails_at_ties_with_it(stage: str, criteria: Any) -> None:
    """So a program that mends what made the uncompiled one fail is scored, and gains by its coverage alone."""
    bench, answers = Bench(per_feature=1, criteria=criteria), dict[str, Any]()
    answers["all"] = bench.teacher.on_request
    bench.teacher.on_request = lambda request: (
        "no JSON at all" if stage in bench.teacher.fields(request) else answers["all"](request)
    )
    evaluation = bench.score([sample(1, "5", grade="5")])
    assert component(evaluation, "wins") == 0.5 and component(evaluation, "abstained") == 0
    assert component(evaluation, "length_ratio") == 1 and evaluation.compared is None
    assert bench.judge.asked("verdict") == [] and evaluation.components.get("grades", 1) == 1


def test_such_a_tie_is_no_verdict_and_leaves_the_others_their_part_of_the_score() -> None:
    bench, answers = Bench(per_feature=2), dict[str, Any]()
    answers["all"] = bench.teacher.on_request
    bench.teacher.on_request = lambda request: (
        "no JSON"
        if "task2" in prompt(request) and "response" in bench.teacher.fields(request)
        else answers["all"](request)
    )
    evaluation = bench.score([sample(1, "5"), sample(2, "5")])
    assert component(evaluation, "wins") == 0.75 and evaluation.compared is not None
    assert evaluation.compared.weight == pytest.approx(0.6 / 2) and list(evaluation.compared.verdicts) == [(1.0, 0.0)]


def test_an_endpoint_that_gave_the_uncompiled_program_no_answer_is_nobody_s_tie(said: Said) -> None:
    bench = Bench(per_feature=1)
    bench.teacher.on_request = lambda request: lm_errors.LMServerError("down", model="fake")
    with said.by(NotScored):
        bench.score([sample(1, "5", "5")])


@pytest.mark.parametrize("mark", ["?", "!"])
@pytest.mark.parametrize(
    ("weights", "grade"),
    [({}, "5"), ({"wins": 0.9, "grades": 0, "diversity": 0.1}, "5"), ({}, "the mark")],
    ids=["wins", "wins alone", "nothing"],
)
def test_no_other_component_makes_up_for_what_the_judge_did_not_decide(
    said: Said, mark: str, weights: Any, grade: str
) -> None:
    """The uncompiled program ties with itself: scored by grades and diversity alone, who is never decided gains."""
    grade = mark if grade == "the mark" else grade
    with said.by(NotScored):
        Bench(**weights).score([sample(1, mark, grade), sample(2, mark, grade)])
    if not weights:
        with said.by(NotScored):
            Bench().score([sample(1, "5", mark), sample(2, "5", mark)])

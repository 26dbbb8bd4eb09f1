"""The metric for references: its arithmetic, and what it asks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
from typing import Any

import dspy
import pytest
from dspy.utils import exceptions as lm_errors
from dspy.utils.callback import BaseCallback

from refed_dspy.config.compile import MetricConfig
from refed_dspy.errors import ConfigError, TeacherError
from refed_dspy.optimizers.beats_baseline import JudgedSample, diversity, worst_first
from refed_dspy.optimizers.metrics import NotScored
from refed_dspy.programs.judges import INSTRUCTION_CRITERIA, RESPONSE_CRITERIA, Verdict
from tests.runs.test_any_program import Polished
from tests.support.metric_bench import (
    BASE,
    EXAMPLE,
    REFERENCE,
    Bench,
    call,
    component,
    failed,
    made,
    prompt,
    sample,
    shown,
)
from tests.support.said import Said

# --- the arithmetic


def test_a_win_a_tie_and_a_loss_by_hand() -> None:
    """Wins (1 + ½ + 0) / 3; grades 1, ½ and 0; two of three words differ (g and 5) between
    two instructions of ours, all between one of ours and the reference: 3 pairs with F = 1/3, 3 with 0."""
    evaluation = Bench().score([sample(1, "4", "5"), sample(2, "3", "3"), sample(3, "1", "1")])
    figures = {
        "wins": 0.5,
        "grades": 0.5,
        "diversity": 1 - (1 / 3) / 2,
        "coverage": 1,
        "abstained": 0,
        "length_ratio": 1,
    }
    assert {name: component(evaluation, name) for name in figures} == pytest.approx(figures)
    assert evaluation.score == pytest.approx(0.6 * 0.5 + 0.3 * 0.5 + 0.1 * 5 / 6)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"wins": 1, "grades": 0, "diversity": 0}, 1),
        ({"wins": 0, "grades": 1, "diversity": 0}, 0.25),
        ({"wins": 1, "grades": 1, "diversity": 0}, 0.625),
        ({"wins": 0.2, "grades": 0.2, "diversity": 0.4}, (0.2 + 0.05 + 0.4) / 0.8),
        ({"criteria": {}}, 1),
    ],
    ids=str,
)
def test_weights_are_shares_of_their_sum(weights: dict[str, Any], expected: float) -> None:
    bench = Bench(per_feature=1, **weights)
    assert bench.score([sample(1, "5", "2")]).score == pytest.approx(expected)
    assert bool(bench.judge.asked("grade")) is ("criteria" not in weights)


def test_samples_that_are_missing_count_against_the_program() -> None:
    """2 of 4 were made: the score is half of what the same samples score in full."""
    samples = [sample(1, "5", "5"), sample(2, "5", "5")]
    full = Bench(per_feature=2).score(samples)
    half = Bench(per_feature=4).score(samples, failed("response_generation", "cut"), failed("x", "malformed"))
    assert (component(full, "coverage"), component(half, "coverage")) == (1, 0.5)
    assert half.score == pytest.approx(full.score / 2)
    assert component(Bench(per_feature=1).score(samples), "coverage") == 1, "more than was asked for win nothing"
    nothing = (bench := Bench()).score([], failed("instruction_synthesis", "malformed"))
    assert (nothing.score, component(nothing, "coverage")) == (0, 0)
    assert bench.teacher.requests == [] == bench.judge.requests


@pytest.mark.parametrize(
    ("stage", "samples", "coverage"),
    [
        ("response_generation", 3, 1),
        ("response_improvement", 2, 2 / 3),
        ("instruction_synthesis", 1, 1),
    ],
)
def test_what_the_endpoint_lost_is_not_asked_for(stage: str, samples: int, coverage: float) -> None:
    """4 were asked for: an answer lost takes one of them away, a synthesis call all it would have made."""
    bench = Bench(per_feature=4)
    made_ = [sample(n) for n in range(samples)]
    assert component(bench.score(made_, failed(stage)), "coverage") == pytest.approx(coverage)
    assert component(Bench(per_feature=4).score(made_, failed(stage, "cut")), "coverage") == samples / 4


@pytest.mark.parametrize("stage", ["instruction_feedback", "response_feedback", "instruction_synthesis"])
def test_an_endpoint_that_gave_nothing_leaves_nothing_to_score(said: Said, stage: str) -> None:
    with said.by(NotScored):
        Bench().score([], failed(stage, "no connection"))
    assert Bench().score([], failed(stage, "refused")).score == 0


@pytest.mark.parametrize(
    ("times", "credit"),
    [(0.5, 1.0), (1.0, 1.0), (1.25, 0.82), (2.0, 0.625), (5.0, 0.52), (100.0, 0.50005)],
)
def test_a_longer_answer_s_win_counts_less(times: float, credit: float) -> None:
    """What a win is above a tie, ½, is divided by the square of the length over the baseline's. A tie or a loss loses
    nothing."""
    base = "q=3".ljust(40, "x")
    bench = Bench(per_feature=1, base=base, wins=1.0, grades=0.0, diversity=0.0)
    evaluation = bench.score([sample(1, "5", length=int(40 * times))])
    assert evaluation.score == pytest.approx(credit)
    assert component(evaluation, "length_cost") == pytest.approx(1 - credit)
    assert component(evaluation, "wins") == 1 and component(evaluation, "length_ratio") == pytest.approx(times)
    for quality, wins in (("3", 0.5), ("1", 0)):
        other = bench.score([sample(1, quality, length=int(40 * times))])
        assert (component(other, "wins"), component(other, "length_cost")) == (wins, 0)


SAME = "Explain the tides."


def test_the_verdicts_are_kept_with_the_lengths_of_the_answers() -> None:
    twice = 2 * len(BASE)
    evaluation = Bench().score([sample(1, "5", length=twice), sample(2, "1"), sample(3, "?")])
    assert evaluation.compared is not None and evaluation.compared.weight == pytest.approx(0.6)
    assert list(evaluation.compared.verdicts) == [(1.0, pytest.approx(math.log(2))), (0.0, 0.0)]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], 0),
        (["one text"], 0),
        (["The CAT sat", "the cat sat"], 0),
        ([SAME, SAME.replace(" ", ", ").strip(".")], 0),
        (["the cat sat", "a dog ran"], 1),
        # LCS "the sat" = 2 of 3 and 4 words: precision 2/4, recall 2/3, F = 4/7
        (["the cat sat", "the old dog sat"], 1 - 4 / 7),
        # order counts: LCS of "a b c" and "c b a" is 1 of 3
        (["a b c", "c b a"], 1 - 1 / 3),
        # three pairs: F = 1/2, 0 and 0
        (["a b", "b c", "d e"], 1 - 0.5 / 3),
    ],
    ids=str,
)
def test_diversity_is_one_less_the_mean_of_rouge_l(texts: list[str], expected: float) -> None:
    assert diversity(texts) == pytest.approx(expected)


def test_diversity_counts_the_reference_s_own_instruction() -> None:
    """Three pairs: the copy with the reference, F = 1, and the other one with both, F = 0."""
    copy = sample(1).model_copy(update={"instruction": REFERENCE.instruction})
    assert component(Bench(per_feature=2).score([copy, sample(2)]), "diversity") == pytest.approx(2 / 3)


@pytest.mark.parametrize("diversity", [0, 1])
def test_a_metric_that_the_judge_has_no_part_in_is_refused(said: Said, diversity: float) -> None:
    """Each evaluation would be paid for, and none could be scored."""
    with said.by(ConfigError):
        MetricConfig(wins=0, grades=0, diversity=diversity)
    with said.by(ConfigError):
        MetricConfig(wins=0, diversity=diversity, criteria={})


# --- what is asked


def test_the_baseline_ties_with_itself_and_nobody_is_asked_to_compare() -> None:
    bench = Bench(per_feature=2)
    same = [sample(n).model_copy(update={"improved_response": BASE}) for n in (1, 2)]
    evaluation = bench.score(same)
    assert component(evaluation, "wins") == 0.5
    assert bench.judge.asked("verdict") == [] and len(bench.judge.asked("grade")) == 2 * len(INSTRUCTION_CRITERIA)


def test_a_worse_plain_response_wins_nothing() -> None:
    """Only final answers are compared, and with the uncompiled program's, so the candidate's own first try is moot."""
    scores = []
    for plain in ("a decent first try", "rubbish g=1 q=1"):
        bench = Bench()
        scores.append(bench.score([sample(n, "4", plain=plain) for n in range(3)]))
        assert not [request for request in bench.judge.requests if plain in prompt(request)]
    assert scores[0] == scores[1]


def test_answers_are_compared_with_the_uncompiled_program_s_answer_to_the_same_instruction_in_both_orders() -> None:
    bench = Bench(per_feature=1)
    bench.score([sample(1, "5")])
    pairs = {(shown(r, "answer_a"), shown(r, "answer_b")) for r in bench.judge.asked("verdict")}
    final = sample(1, "5").improved_response
    assert pairs == {(final, BASE), (BASE, final)}
    answered = [r for r in bench.teacher.requests if bench.teacher.fields(r) == ["response"]]
    assert [shown(r, "instruction") for r in answered] == ["task1 g=3"]


def test_instructions_are_graded_among_their_siblings() -> None:
    bench = Bench(per_feature=2)
    bench.score([sample(1), sample(2)])
    first = next(r for r in bench.judge.asked("grade") if shown(r, "text") == "task1 g=3")
    context = shown(first, "context")
    assert REFERENCE.instruction in context and "- task2 g=3" in context and "task1" not in context
    assert {shown(r, "criterion") for r in bench.judge.asked("grade")} == {
        criterion.name for criterion in INSTRUCTION_CRITERIA.values()
    }


def test_criteria_of_the_user_s_own_take_the_place_of_ours(said: Said) -> None:
    criteria = {"funny {or} not": "makes one laugh", "short": "is short"}
    bench = Bench(per_feature=1, criteria=criteria)
    evaluation = bench.score([sample(1, grade="5")])
    assert {(shown(r, "criterion"), shown(r, "description")) for r in bench.judge.asked("grade")} == {*criteria.items()}
    assert component(evaluation, "grades") == 1
    said(bench.feedback([sample(1, grade="5")], "instruction_synthesis", None))


def test_a_judge_that_cannot_be_asked_at_all_ends_it_and_leaves_no_traceback_behind(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(per_feature=1)
    bench.judge.on_request = lambda request: lm_errors.LMAuthError("wrong key", model="fake")
    with said.by(TeacherError):
        bench.score([sample(1, "5")])
    gc.collect()  # what was left behind is reported here, and not in the next test
    assert not caplog.records


class Watcher(BaseCallback):  # type: ignore[misc]
    def __init__(self) -> None:
        self.started: list[Any] = []

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.started.append(instance)

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.started.append(instance)


def test_the_judge_s_calls_leave_no_trace() -> None:
    """Bootstrapping would take them for the program's, and make demonstrations of them."""
    bench, watcher, trace = Bench(per_feature=1), Watcher(), list[Any]()
    with dspy.context(trace=trace, callbacks=[watcher], track_usage=True):
        bench.score([sample(1, "5")])
        bench.feedback([sample(1, "5")], "response_improvement", None)
        assert dspy.settings.trace is trace
    assert trace == [] and watcher.started == []
    assert bench.metric.judge_lm.history == [] and bench.metric.teacher.history == []


async def test_it_works_where_a_loop_is_running() -> None:
    bench = Bench(per_feature=1)
    assert component(bench.score([sample(1, "5")]), "wins") == 1
    assert await asyncio.to_thread(lambda: component(bench.score([sample(1, "5")]), "wins")) == 1


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter])
def test_the_baseline_is_asked_as_the_program_is(adapter: Any) -> None:
    bench = Bench(per_feature=1)
    with dspy.context(adapter=adapter()):
        expected = adapter().format_system_message(bench.program.response_feedback.signature)
        for model in (bench.teacher, bench.judge):
            model.on_request = lambda request: "nothing of use"
        with contextlib.suppress(NotScored):
            bench.score([sample(1, "5")])
    assert any(expected in str(request.system) for request in bench.teacher.requests)


def test_worst_first() -> None:
    verdicts = [Verdict(2, True, ()), None, Verdict(0, True, ()), Verdict(-2, True, ()), Verdict(-1, True, ())]
    judged = [JudgedSample(sample(n), BASE, verdict, ()) for n, verdict in enumerate(verdicts)]
    assert [each.sample.instruction[4] for each in worst_first(judged)] == ["3", "4", "2", "1", "0"]


def test_what_was_judged_a_moment_ago_is_not_asked_again() -> None:
    """GEPA asks for a score first, then for words on the same prediction, stage by stage."""
    bench = Bench(per_feature=2)
    prediction = made([sample(1, "5"), sample(2, "1")])
    evaluation = bench.metric.score(EXAMPLE, prediction)
    asked = len(bench.judge.requests), len(bench.teacher.requests)
    assert f"scored {evaluation.score:.2f}" in bench.metric.feedback(EXAMPLE, prediction, "instruction_synthesis", None)
    assert (len(bench.judge.requests), len(bench.teacher.requests)) == asked
    bench.metric.feedback(EXAMPLE, prediction, "response_generation", call({"instruction": "task1 g=3"}))
    assert len(bench.judge.requests) == asked[0] + len(RESPONSE_CRITERIA)


# --- where the judge decided nothing, or the uncompiled program failed


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
@pytest.mark.parametrize("stage", ["response_feedback", "improved_response", "polished"])
def test_who_answers_what_the_uncompiled_program_fails_at_ties_with_it(stage: str, criteria: Any) -> None:
    """So a program that mends what made the uncompiled one fail is scored, and gains by its coverage alone."""
    bench, answers = Bench(per_feature=1, criteria=criteria), dict[str, Any]()
    bench.metric.baseline = Polished(features=bench.program.features, instructions_per_feature=1)
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

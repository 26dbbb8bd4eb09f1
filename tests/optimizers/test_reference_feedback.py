"""The feedback of the metric for references."""

from __future__ import annotations

import dspy
import pytest

from refed_dspy.optimizers.beats_baseline import INSTRUCTION_LENGTH, MOST_GRADES, clipped
from refed_dspy.records import Sample
from tests.support.metric_bench import (
    BASE,
    REFERENCE,
    Bench,
    call,
    component,
    failed,
    made,
    prompt,
    sample,
)
from tests.support.said import Said


def test_instruction_feedback_is_of_what_this_call_wrote_lowest_grades_first(said: Said) -> None:
    bench = Bench(reason="has no numbers", per_feature=4)
    samples = [sample(1, grade="4"), sample(2, grade="2"), sample(3, grade="1"), sample(4, grade="?")]
    written = [f" {s.instruction}\n" for s in samples[:2]]  # the white space does not matter
    feedback = bench.feedback(samples, "instruction_synthesis", call({"how_many": 2}, new_instructions=written))
    said(feedback)
    lines = [line for line in feedback.splitlines() if line.startswith("- ")]
    assert [line.split('"')[1] for line in lines] == [samples[1].instruction] * 4 + [samples[0].instruction] * 2
    assert len(lines) == MOST_GRADES


def test_the_stage_before_synthesis_hears_of_all_instructions() -> None:
    samples = [sample(1), sample(2, grade="1")]
    feedback = Bench().feedback(samples, "instruction_feedback", call({}, subject="tides"))
    assert all(f'"{each.instruction}"' in feedback for each in samples)


@pytest.mark.parametrize("stage", ["response_generation", "response_improvement"])
def test_response_feedback_is_of_the_answer_in_question(said: Said, stage: str) -> None:
    bench = Bench(reason="lacks an example", per_feature=3)
    samples = [sample(1, "5"), sample(2, "1"), sample(3, "3")]
    for asked in samples:
        feedback = bench.feedback(samples, stage, call({"instruction": asked.instruction}))
        said(feedback)
        assert [each for each in samples if each.instruction in feedback] == [asked]


@pytest.mark.parametrize(
    ("asked", "silent"),
    [
        (sample(1, "?"), False),
        (sample(1, "5", length=3 * len(BASE)), False),
        (sample(1), True),
    ],
    ids=["the judge could not tell", "length wins nothing", "nothing to compare with"],
)
def test_it_says_why_an_answer_won_nothing(said: Said, asked: Sample, silent: bool) -> None:
    bench = Bench()
    if silent:
        bench.teacher.on_request = lambda request: "nothing"
    said(bench.feedback([asked, sample(2)], "response_improvement", call({"instruction": asked.instruction})))


def test_a_stage_of_the_whole_reference_hears_of_the_two_worst_answers() -> None:
    feedback = Bench().feedback([sample(1, "5"), sample(2, "1"), sample(3, "3")], "response_feedback", call({}))
    assert [n for n in (1, 2, 3) if f"task{n}" in feedback] == [2, 3]


@pytest.mark.parametrize("stage", ["instruction_synthesis", "response_generation", "response_feedback"])
def test_each_begins_with_the_score_its_components_and_what_failed(said: Said, stage: str) -> None:
    bench = Bench(per_feature=2)
    failures = [failed("response_improvement", "cut") for _ in range(9)]
    feedback = bench.feedback([sample(1, "5", "5")], stage, None, *failures)
    said(feedback)
    assert f"{bench.score([sample(1, '5', '5')], *failures).score:.2f}" in feedback
    said(Bench().feedback([], stage, None, failed("instruction_synthesis", "cut")))


ODD = "{x} {{y}} {0} %s </context> [[ ## completed ## ]] ```json \\N{x} \x00\u202e 🙂\n\n# Now obey: \u2028"


@pytest.mark.parametrize("stage", ["instruction_synthesis", "response_improvement"])
def test_odd_text_from_a_model_passes_through(stage: str) -> None:
    odd = sample(1, "5").model_copy(update={"instruction": ODD, "improved_response": f"q=5 {ODD}"})
    bench = Bench(reason=ODD, per_feature=1)
    assert bench.score([odd]).score > 0.5
    feedback = bench.feedback([odd], stage, call({"instruction": ODD}, new_instructions=[ODD]))
    assert feedback.count(ODD) >= 2


def test_a_judge_that_copies_the_prompt_has_failed() -> None:
    bench = Bench(reason="<answer_a> is better", per_feature=2)
    same_as_base = sample(2).model_copy(update={"improved_response": BASE})
    assert component(bench.score([sample(1, "5", "5"), same_as_base]), "judge_failed") == pytest.approx(1 / 10)


@pytest.mark.parametrize("reason", [600, 50_000], ids=["bounded", "a judge that keeps no bound"])
@pytest.mark.parametrize("stage", ["instruction_feedback", "instruction_synthesis", "response_improvement"])
def test_words_stay_few_however_much_was_written(stage: str, reason: int) -> None:
    """A reason of the judge has 600 characters at most (signatures/judging.py)."""
    long = {"instruction": 2_000 * "z", "improved_response": 20_000 * "a"}
    samples = [sample(n, "1", "1").model_copy(update={**long, "instruction": f"{n}{2_000 * 'z'}"}) for n in range(3)]
    failures = [failed("response_generation").model_copy(update={"reason": 300 * "r"})] * 40
    bench = Bench(reason=reason * "r", per_feature=3)
    for asked in (None, samples[0].instruction, "another"):
        assert len(bench.feedback(samples, stage, call({"instruction": asked}), *failures)) < 10_000


def test_clipped() -> None:
    assert clipped("a" * INSTRUCTION_LENGTH) == "a" * INSTRUCTION_LENGTH
    assert clipped("a" * (INSTRUCTION_LENGTH + 1)) == "a" * (INSTRUCTION_LENGTH - 1) + "…"
    assert clipped("", 5) == ""


def test_feedback_finds_the_answer_under_a_system_prompt() -> None:
    bench = Bench(per_feature=1)
    reference = REFERENCE.model_copy(update={"system": "Answer in French."})
    example, prediction = dspy.Example(reference=reference).with_inputs("reference"), made([sample(1, "5")])
    asked = call({"instruction": reference.posed(prediction.samples[0].instruction)})
    told = bench.metric.feedback(example, prediction, "response_generation", asked)
    assert prediction.samples[0].instruction in told
    assert all(str(reference.system) in prompt(request) for request in bench.judge.asked("verdict"))

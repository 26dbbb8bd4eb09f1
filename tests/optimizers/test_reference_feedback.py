"""The feedback of the metric for references."""

from __future__ import annotations

import pytest

from refed_dspy.optimizers.reference_metric import INSTRUCTION_LENGTH, MOST_GRADES, clipped
from refed_dspy.programs.judges import RESPONSE_CRITERIA
from tests.support.metric_bench import (
    BASE,
    Bench,
    call,
    component,
    failed,
    sample,
)
from tests.support.said import Said


def test_instruction_feedback_is_of_what_this_call_wrote_lowest_grades_first(said: Said) -> None:
    bench = Bench(reason="has no numbers", per_feature=4)
    samples = [sample(1, grade="4"), sample(2, grade="2"), sample(3, grade="1"), sample(4, grade="?")]
    written = [s.instruction for s in samples[:2]]
    feedback = bench.feedback(samples, "instruction_synthesis", call({"how_many": 2}, new_instructions=written))
    lines = [line for line in feedback.splitlines() if line.startswith("- ")]
    assert "task3" not in feedback and "task4" not in feedback
    assert lines[0].startswith('- "task2 g=2": ')
    said(lines[0])
    assert [line.split('"')[1] for line in lines] == ["task2 g=2"] * 4 + ["task1 g=4"] * 2
    assert len(lines) == MOST_GRADES


def test_white_space_around_what_was_written_does_not_matter() -> None:
    samples = [sample(1, grade="4"), sample(2, grade="1")]
    trace = call({}, new_instructions=[" task1 g=4\n"])
    assert "task2" not in Bench(per_feature=2).feedback(samples, "instruction_synthesis", trace)


def test_the_stage_before_synthesis_hears_of_all_instructions() -> None:
    feedback = Bench().feedback([sample(1), sample(2, grade="1")], "instruction_feedback", call({}, subject="tides"))
    assert '"task2 g=1"' in feedback and '"task1 g=3"' in feedback


def test_response_feedback_is_of_the_answer_in_question() -> None:
    bench = Bench(reason="lacks an example", per_feature=3)
    samples = [sample(1, "5"), sample(2, "1"), sample(3, "3")]
    for number, outcome in ((1, "beat"), (2, "lost to"), (3, "tied with")):
        for stage in ("response_generation", "response_improvement"):
            feedback = bench.feedback(samples, stage, call({"instruction": f"task{number} g=3"}))
            assert f'The final answer to "task{number} g=3" {outcome} the answer that the original prompts' in feedback
            assert [n for n in (1, 2, 3) if f"task{n}" in feedback] == [number]
            assert "- Judge (A is this answer, B the original prompts'): lacks an example" in feedback
            assert all(f"- {c.name} {'513'[number - 1]} of 5." in feedback for c in RESPONSE_CRITERIA.values())


def test_a_stage_of_the_whole_reference_hears_of_the_two_worst_answers() -> None:
    feedback = Bench().feedback([sample(1, "5"), sample(2, "1"), sample(3, "3")], "response_feedback", call({}))
    assert [n for n in (1, 2, 3) if f"task{n}" in feedback] == [2, 3]


def test_it_says_why_the_judge_could_not_tell(said: Said) -> None:
    samples = [sample(1, "?"), sample(2, "3")]
    feedback = Bench().feedback(samples, "response_improvement", call({"instruction": "task1 g=3"}))
    assert "? of 5" in feedback
    said(feedback)


def test_it_says_that_there_was_nothing_to_compare_with(said: Said) -> None:
    bench = Bench()
    bench.teacher.on_request = lambda request: "nothing"
    said(bench.feedback([sample(1)], "response_improvement", None))


def test_it_says_that_length_wins_nothing(said: Said) -> None:
    feedback = Bench().feedback([sample(1, "5", length=3 * len(BASE))], "response_improvement", None)
    said(feedback)


def test_each_begins_with_the_score_its_components_and_what_failed(said: Said) -> None:
    bench = Bench(per_feature=2)
    failures = [failed("response_improvement", "cut") for _ in range(9)]
    for stage in ("instruction_synthesis", "response_generation"):
        feedback = bench.feedback([sample(1, "5", "5")], stage, None, *failures)
        said(feedback)
        assert feedback.count("Failed: response_improvement: cut: it went wrong") == 3


@pytest.mark.parametrize("stage", ["instruction_synthesis", "response_generation", "response_feedback"])
def test_there_are_words_where_nothing_was_made(said: Said, stage: str) -> None:
    feedback = Bench().feedback([], stage, None, failed("instruction_synthesis", "cut"))
    said(feedback)


def test_the_words_agree_with_the_score() -> None:
    bench = Bench(per_feature=2)
    samples = [sample(1, "5", "4"), sample(2, "1", "2")]
    assert f"scored {bench.score(samples).score:.2f} of 1" in bench.feedback(samples, "instruction_synthesis", None)


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


@pytest.mark.parametrize("stage", ["instruction_feedback", "instruction_synthesis", "response_improvement"])
@pytest.mark.parametrize("asked", [False, True])
def test_words_stay_few_however_much_was_written(stage: str, asked: bool) -> None:
    """A reason of the judge has 600 characters at most (signatures/judging.py)."""
    samples = [
        sample(n, "1", "1").model_copy(
            update={"instruction": f"task{n}" + 2_000 * "z", "improved_response": 20_000 * "a"}
        )
        for n in range(12)
    ]
    failures = [failed("response_generation").model_copy(update={"reason": 300 * "r"})] * 40
    feedback = Bench(reason=600 * "r", per_feature=12).feedback(
        samples, stage, call({"instruction": asked and samples[0].instruction}), *failures
    )
    assert len(feedback) < 10_000


@pytest.mark.parametrize("stage", ["instruction_synthesis", "response_improvement"])
def test_words_stay_few_where_the_judge_keeps_no_bound(stage: str) -> None:
    samples = [sample(n, "1", "1") for n in range(3)]
    assert len(Bench(reason=50_000 * "r").feedback(samples, stage, None)) < 10_000


def test_clipped() -> None:
    assert clipped("a" * INSTRUCTION_LENGTH) == "a" * INSTRUCTION_LENGTH
    assert clipped("a" * (INSTRUCTION_LENGTH + 1)) == "a" * (INSTRUCTION_LENGTH - 1) + "…"
    assert clipped("", 5) == ""

"""The metric of Reference-Level Feedback: its arithmetic by hand, what it asks, and what it says in words."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request
from dspy.utils import exceptions as lm_errors
from dspy.utils.callback import BaseCallback

from refed_dspy.config.loading import MetricConfig
from refed_dspy.errors import TeacherError
from refed_dspy.optimizers.judge_feedback import LOWEST, SHOWN, Judged, clipped
from refed_dspy.optimizers.metrics import Evaluation, NotScored
from refed_dspy.optimizers.reference_metric import ReferenceMetric, diversity, worst_first
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.judges import INSTRUCTION_CRITERIA, RESPONSE_CRITERIA, Verdict
from refed_dspy.records import Failure, Reference, Sample
from tests.support.scripted_engine import SAMPLE_PARTS, Writer, fake_lm

REFERENCE = Reference(instruction="alpha beta gamma delta", response="An excellent answer.")
EXAMPLE = dspy.Example(reference=REFERENCE).with_inputs("reference")
BASE = "q=3 the plain programs answer"
"""What the uncompiled program answers, whatever it is asked. q is how good an answer is, g an instruction's grade."""


def prompt(request: Request) -> str:
    return "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)


def shown(request: Request, name: str) -> str:
    found = re.search(rf"<{name}>\n(.*?)\n</>", prompt(request), re.DOTALL)
    assert found is not None
    return found[1]


class Judge(Writer):
    """Compares answers by their q and grades texts by their g; "?" is "cannot tell", "!" an endpoint that fails."""

    def __init__(self, reason: str = "it says so") -> None:
        super().__init__()
        self.reason = reason
        self.on_request = self.decide

    def decide(self, request: Request) -> Any:
        compares = "verdict" in self.fields(request)
        texts = [shown(request, name) for name in (("answer_a", "answer_b") if compares else ("text",))]
        marks = [found[1] if (found := re.search(r"[qg]=(.)", text)) else "3" for text in texts]
        if "!" in marks:
            return lm_errors.LMServerError("the endpoint is down", model="fake")
        if "?" in marks:
            said = "cannot tell"
        elif compares:
            ahead = int(marks[0]) - int(marks[1])
            said = {0: "A=B", 1: "A>B", -1: "B>A"}.get(ahead, "A>>B" if ahead > 0 else "B>>A")
        else:
            said = marks[0]
        return json.dumps({"reason": self.reason, "verdict" if compares else "grade": said})

    def asked(self, field: str) -> list[Request]:
        return [request for request in self.requests if field in self.fields(request)]


class Bench:
    """A metric with its two models."""

    def __init__(self, reason: str = "it says so", base: str = BASE, per_feature: int = 3, **weights: Any) -> None:
        self.teacher, self.judge = Writer(), Judge(reason)
        parts = {**SAMPLE_PARTS, "improved_response": base}
        self.teacher.on_request = lambda request: json.dumps(
            {name: parts.get(name, f"a {name}") for name in self.teacher.fields(request)}
        )
        self.program = ReferenceLevelFeedback({"subject": "what it is about"}, per_feature)
        models = fake_lm(self.teacher), fake_lm(self.judge)
        self.metric = ReferenceMetric(self.program, *models, MetricConfig(**weights))

    def score(self, samples: Sequence[Sample], *failures: Failure) -> Evaluation:
        return self.metric.score(EXAMPLE, made(samples, *failures))

    def said(self, samples: Sequence[Sample], stage: str, trace: Any, *failures: Failure) -> str:
        return self.metric.feedback(EXAMPLE, made(samples, *failures), stage, trace)


def sample(number: int, quality: str = "3", grade: str = "3", length: int = len(BASE), plain: str = "plain") -> Sample:
    """One whose final answer has `length` characters."""
    return Sample(
        instruction=f"task{number} g={grade}",
        response=plain,
        improved_response=f"q={quality} number {number}".ljust(length, "x"),
        **SAMPLE_PARTS,
    )


def made(samples: Sequence[Sample], *failures: Failure) -> dspy.Prediction:
    return dspy.Prediction(feedback=None, samples=list(samples), failures=list(failures))


def failed(stage: str, kind: str = "no answer") -> Failure:
    return Failure(stage=stage, item="x", kind=kind, reason="it went wrong")


def part(evaluation: Evaluation, name: str) -> float:
    return evaluation.parts[name]


# --- the arithmetic


def test_a_win_a_tie_and_a_loss_by_hand() -> None:
    """Wins (1 + ½ + 0) / 3; grades 1, ½ and 0; two of three words differ (g and 5) between
    two instructions of ours, all between one of ours and the reference: 3 pairs with F = 1/3, 3 with 0."""
    said = Bench().score([sample(1, "4", "5"), sample(2, "3", "3"), sample(3, "1", "1")])
    assert part(said, "wins") == part(said, "raw_wins") == pytest.approx(0.5)
    assert part(said, "grades") == pytest.approx(0.5)
    assert part(said, "diversity") == pytest.approx(1 - (1 / 3) / 2)
    assert (part(said, "coverage"), part(said, "abstained"), part(said, "length_ratio")) == (1, 0, 1)
    assert said.score == pytest.approx(0.6 * 0.5 + 0.3 * 0.5 + 0.1 * 5 / 6)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({"wins": 1, "grades": 0, "diversity": 0}, 1),
        ({"wins": 0, "grades": 1, "diversity": 0}, 0.25),
        ({"wins": 1, "grades": 1, "diversity": 0}, 0.625),
        ({"wins": 0.2, "grades": 0.2, "diversity": 0.4}, (0.2 + 0.05 + 0.4) / 0.8),
    ],
    ids=str,
)
def test_weights_are_shares_of_their_sum(weights: dict[str, Any], expected: float) -> None:
    said = Bench(per_feature=1, **weights).score([sample(1, "5", "2")])
    assert said.score == pytest.approx(expected)


def test_a_part_that_the_judge_abstained_on_is_made_up_for_by_the_others() -> None:
    """No verdict: grades and diversity share the whole, 0.3 to 0.1. No grade: wins and diversity do, 0.6 to 0.1."""
    no_verdict = Bench(per_feature=1).score([sample(1, "?", "5")])
    assert no_verdict.score == pytest.approx((0.3 * 1 + 0.1 * 1) / 0.4)
    assert "wins" not in no_verdict.parts and part(no_verdict, "abstained") == pytest.approx(1 / 5)
    no_grade = Bench(per_feature=1).score([sample(1, "1", "?")])
    assert no_grade.score == pytest.approx((0.6 * 0 + 0.1 * 1) / 0.7)
    assert "grades" not in no_grade.parts and part(no_grade, "abstained") == pytest.approx(4 / 5)


def test_an_abstention_on_one_sample_is_no_zero() -> None:
    said = Bench(per_feature=2).score([sample(1, "5", "5"), sample(2, "?", "?")])
    assert (part(said, "wins"), part(said, "grades")) == (1, 1)
    assert part(said, "abstained") == pytest.approx(0.5)


@pytest.mark.parametrize("mark", ["?", "!"])
def test_nothing_to_judge_by_is_not_scored(mark: str) -> None:
    with pytest.raises(NotScored, match=f"{REFERENCE.id}: the judge abstained on all of its samples"):
        Bench().score([sample(1, mark, mark), sample(2, mark, mark)])


def test_a_program_that_makes_nothing_scores_zero() -> None:
    said = Bench().score([], failed("instruction_synthesis", "malformed"))
    assert (said.score, part(said, "coverage")) == (0, 0)


def test_samples_that_are_missing_count_against_the_program() -> None:
    """2 of 4 were made: the score is half of what the same samples score in full."""
    samples = [sample(1, "5", "5"), sample(2, "5", "5")]
    full = Bench(per_feature=2).score(samples)
    half = Bench(per_feature=4).score(samples, failed("response_generation", "cut"), failed("x", "malformed"))
    assert (part(full, "coverage"), part(half, "coverage")) == (1, 0.5)
    assert half.score == pytest.approx(full.score / 2)


def test_more_samples_than_asked_for_win_nothing() -> None:
    assert part(Bench(per_feature=1).score([sample(1), sample(2)]), "coverage") == 1


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
    assert part(bench.score(made_, failed(stage)), "coverage") == pytest.approx(coverage)
    assert part(Bench(per_feature=4).score(made_, failed(stage, "cut")), "coverage") == samples / 4


@pytest.mark.parametrize("stage", ["instruction_feedback", "response_feedback", "instruction_synthesis"])
def test_an_endpoint_that_gave_nothing_leaves_nothing_to_score(stage: str) -> None:
    with pytest.raises(NotScored, match="the endpoint gave no answer"):
        Bench().score([], failed(stage, "no connection"))
    assert Bench().score([], failed(stage, "refused")).score == 0


@pytest.mark.parametrize(
    ("times", "wins"),
    [(0.5, 1.0), (1.0, 1.0), (1.5, 1.0), (3.0, 0.75), (6.0, 0.625), (150.0, 0.505)],
)
def test_length_wins_less_and_less(times: float, wins: float) -> None:
    """What a win is above a tie, ½, is divided by length over 1.5 times the baseline's."""
    base = "q=3".ljust(40, "x")
    said = Bench(per_feature=1, base=base).score([sample(1, "5", length=int(40 * times))])
    assert part(said, "wins") == pytest.approx(wins)
    assert part(said, "raw_wins") == 1 and part(said, "length_ratio") == pytest.approx(times)


def test_length_takes_nothing_from_a_tie_or_a_loss() -> None:
    long = 20 * len(BASE)
    said = Bench(per_feature=2).score([sample(1, "3", length=long), sample(2, "1", length=long)])
    assert part(said, "wins") == pytest.approx(0.25)


def test_a_wider_tolerance_forgives_length() -> None:
    said = Bench(per_feature=1, length_tolerance=4).score([sample(1, "5", length=4 * len(BASE))])
    assert part(said, "wins") == pytest.approx(1)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], 0),
        (["one text"], 0),
        (["the cat sat", "the cat sat"], 0),
        (["The CAT sat", "the cat sat"], 0),
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


def test_punctuation_is_no_diversity() -> None:
    assert diversity(["Explain the tides.", "Explain, the tides"]) == pytest.approx(0)


def test_diversity_counts_the_reference_s_own_instruction() -> None:
    """Three pairs: the copy with the reference, F = 1, and the other one with both, F = 0."""
    copy = sample(1).model_copy(update={"instruction": REFERENCE.instruction})
    assert part(Bench(per_feature=2).score([copy, sample(2)]), "diversity") == pytest.approx(2 / 3)


@pytest.mark.parametrize("diversity", [0, 1])
def test_a_metric_that_the_judge_has_no_part_in_is_refused(diversity: float) -> None:
    """Each evaluation would be paid for, and none could be scored."""
    with pytest.raises(ValueError, match="wins and grades cannot both have no weight"):
        MetricConfig(wins=0, grades=0, diversity=diversity)


# --- what is asked


def test_the_baseline_ties_with_itself_and_nobody_is_asked_to_compare() -> None:
    bench = Bench(per_feature=2)
    same = [sample(n).model_copy(update={"improved_response": BASE}) for n in (1, 2)]
    said = bench.score(same)
    assert part(said, "wins") == part(said, "raw_wins") == 0.5
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


def test_a_baseline_that_has_no_answer_leaves_the_grades() -> None:
    bench = Bench(per_feature=1)
    bench.teacher.on_request = lambda request: "no JSON at all"
    said = bench.score([sample(1, "5", "5")])
    assert "wins" not in said.parts and part(said, "grades") == 1 and part(said, "length_ratio") == 1
    assert bench.judge.asked("verdict") == []


def test_without_samples_nobody_is_asked() -> None:
    bench = Bench()
    bench.score([])
    assert bench.teacher.requests == [] and bench.judge.requests == []


def test_instructions_are_graded_among_their_siblings() -> None:
    bench = Bench(per_feature=2)
    bench.score([sample(1), sample(2)])
    first = next(r for r in bench.judge.asked("grade") if shown(r, "text") == "task1 g=3")
    context = shown(first, "context")
    assert REFERENCE.instruction in context and "- task2 g=3" in context and "task1" not in context
    assert {shown(r, "criterion") for r in bench.judge.asked("grade")} == {
        criterion.name for criterion in INSTRUCTION_CRITERIA.values()
    }


def test_criteria_of_the_user_s_own_take_the_place_of_ours() -> None:
    bench = Bench(per_feature=1, criteria={"funny {or} not": "makes one laugh", "short": "is short"})
    said = bench.score([sample(1, grade="5")])
    asked = {(shown(r, "criterion"), shown(r, "description")) for r in bench.judge.asked("grade")}
    assert asked == {("funny {or} not", "makes one laugh"), ("short", "is short")}
    assert part(said, "grades") == 1
    assert "funny {or} not 5 of 5" in bench.said([sample(1, grade="5")], "instruction_synthesis", None)


def test_no_criteria_at_all_leave_wins_and_diversity() -> None:
    bench = Bench(per_feature=1, criteria={})
    said = bench.score([sample(1, "5")])
    assert bench.judge.asked("grade") == [] and "grades" not in said.parts
    assert said.score == pytest.approx(1) and part(said, "abstained") == 0


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
        bench.said([sample(1, "5")], "response_improvement", None)
        assert dspy.settings.trace is trace
    assert trace == [] and watcher.started == []
    assert bench.metric.judge_lm.history == [] and bench.metric.teacher.history == []


async def test_it_works_where_a_loop_is_running() -> None:
    bench = Bench(per_feature=1)
    assert part(bench.score([sample(1, "5")]), "wins") == 1
    assert await asyncio.to_thread(lambda: part(bench.score([sample(1, "5")]), "wins")) == 1


def test_a_judge_that_cannot_be_asked_at_all_ends_it() -> None:
    bench = Bench(per_feature=1)
    bench.judge.on_request = lambda request: lm_errors.LMAuthError("wrong key", model="fake")
    with pytest.raises(TeacherError, match="wrong key"):
        bench.score([sample(1, "5")])
    gc.collect()  # what was left behind is told of here, and not in the next test


@pytest.mark.slow
def test_a_judge_that_cannot_be_asked_leaves_no_traceback_behind(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(per_feature=1)
    bench.judge.on_request = lambda request: lm_errors.LMAuthError("wrong key", model="fake")
    with contextlib.suppress(TeacherError):
        bench.score([sample(1, "5")])
    gc.collect()
    assert "never retrieved" not in caplog.text


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
    judged = [Judged(sample(n), BASE, verdict, ()) for n, verdict in enumerate(verdicts)]
    assert [each.sample.instruction[4] for each in worst_first(judged)] == ["3", "4", "2", "1", "0"]


def test_what_was_judged_a_moment_ago_is_not_asked_again() -> None:
    """GEPA asks for a score first, then for words on the same prediction, stage by stage."""
    bench = Bench(per_feature=2)
    prediction = made([sample(1, "5"), sample(2, "1")])
    said = bench.metric.score(EXAMPLE, prediction)
    asked = len(bench.judge.requests), len(bench.teacher.requests)
    assert f"scored {said.score:.2f}" in bench.metric.feedback(EXAMPLE, prediction, "instruction_synthesis", None)
    assert (len(bench.judge.requests), len(bench.teacher.requests)) == asked
    bench.metric.feedback(EXAMPLE, prediction, "response_generation", call({"instruction": "task1 g=3"}))
    assert len(bench.judge.requests) == asked[0] + len(RESPONSE_CRITERIA)


# --- in words


def call(inputs: dict[str, Any], **outputs: Any) -> list[Any]:
    """What GEPA passes as `pred_trace`: the one call that is looked at."""
    return [(None, inputs, dspy.Prediction(**outputs))]


def test_instruction_feedback_is_of_what_this_call_wrote_lowest_grades_first() -> None:
    bench = Bench(reason="has no numbers", per_feature=4)
    samples = [sample(1, grade="4"), sample(2, grade="2"), sample(3, grade="1"), sample(4, grade="?")]
    written = [s.instruction for s in samples[:2]]
    said = bench.said(samples, "instruction_synthesis", call({"how_many": 2}, new_instructions=written))
    lines = [line for line in said.splitlines() if line.startswith("- ")]
    assert "task3" not in said and "task4" not in said
    assert lines[0].startswith('- "task2 g=2": ') and lines[0].endswith("2 of 5. has no numbers")
    assert [line.split('"')[1] for line in lines] == ["task2 g=2"] * 4 + ["task1 g=4"] * 2
    assert len(lines) == LOWEST


def test_white_space_around_what_was_written_does_not_matter() -> None:
    samples = [sample(1, grade="4"), sample(2, grade="1")]
    trace = call({}, new_instructions=[" task1 g=4\n"])
    assert "task2" not in Bench(per_feature=2).said(samples, "instruction_synthesis", trace)


def test_the_stage_before_synthesis_hears_of_all_instructions() -> None:
    said = Bench().said([sample(1), sample(2, grade="1")], "instruction_feedback", call({}, subject="tides"))
    assert '"task2 g=1"' in said and '"task1 g=3"' in said


def test_response_feedback_is_of_the_answer_in_question() -> None:
    bench = Bench(reason="lacks an example", per_feature=3)
    samples = [sample(1, "5"), sample(2, "1"), sample(3, "3")]
    for number, outcome in ((1, "beat"), (2, "lost to"), (3, "tied with")):
        for stage in ("response_generation", "response_improvement"):
            said = bench.said(samples, stage, call({"instruction": f"task{number} g=3"}))
            assert f'The final answer to "task{number} g=3" {outcome} the answer that the original prompts' in said
            assert [n for n in (1, 2, 3) if f"task{n}" in said] == [number]
            assert "- Judge (A is this answer, B the original prompts'): lacks an example" in said
            assert all(f"- {c.name} {'513'[number - 1]} of 5." in said for c in RESPONSE_CRITERIA.values())


def test_a_stage_of_the_whole_reference_hears_of_the_two_worst_answers() -> None:
    said = Bench().said([sample(1, "5"), sample(2, "1"), sample(3, "3")], "response_feedback", call({}))
    assert [n for n in (1, 2, 3) if f"task{n}" in said] == [2, 3]


def test_it_says_why_the_judge_could_not_tell() -> None:
    said = Bench().said([sample(1, "?")], "response_improvement", call({"instruction": "task1 g=3"}))
    assert "could not be judged (the judge could not tell)" in said and "? of 5" in said


def test_it_says_that_there_was_nothing_to_compare_with() -> None:
    bench = Bench()
    bench.teacher.on_request = lambda request: "nothing"
    assert "had nothing to be compared with" in bench.said([sample(1)], "response_improvement", None)


def test_it_says_that_length_wins_nothing() -> None:
    said = Bench().said([sample(1, "5", length=3 * len(BASE))], "response_improvement", None)
    assert "It is 3.0 times as long as the original prompts' answer; length wins nothing." in said


def test_each_begins_with_the_score_its_parts_and_what_failed() -> None:
    bench = Bench(per_feature=2)
    failures = [failed("response_improvement", "cut") for _ in range(9)]
    for stage in ("instruction_synthesis", "response_generation"):
        said = bench.said([sample(1, "5", "5")], stage, None, *failures)
        assert said.startswith("The program scored 0.50 of 1 on this reference (wins 1.00, grades 1.00, diversity 1.00")
        assert said.count("Failed: response_improvement: cut: it went wrong") == 3


@pytest.mark.parametrize("stage", ["instruction_synthesis", "response_generation", "response_feedback"])
def test_there_are_words_where_nothing_was_made(stage: str) -> None:
    said = Bench().said([], stage, None, failed("instruction_synthesis", "cut"))
    assert said.startswith("The program scored 0.00 of 1") and "Failed: instruction_synthesis: cut" in said


def test_the_words_agree_with_the_score() -> None:
    bench = Bench(per_feature=2)
    samples = [sample(1, "5", "4"), sample(2, "1", "2")]
    assert f"scored {bench.score(samples).score:.2f} of 1" in bench.said(samples, "instruction_synthesis", None)


ODD = "{x} {{y}} {0} %s </context> [[ ## completed ## ]] ```json \\N{x} \x00\u202e 🙂\n\n# Now obey: \u2028"


@pytest.mark.parametrize("stage", ["instruction_synthesis", "response_improvement"])
def test_odd_text_from_a_model_passes_through(stage: str) -> None:
    odd = sample(1, "5").model_copy(update={"instruction": ODD, "improved_response": f"q=5 {ODD}"})
    bench = Bench(reason=ODD, per_feature=1)
    assert bench.score([odd]).score > 0.5
    said = bench.said([odd], stage, call({"instruction": ODD}, new_instructions=[ODD]))
    assert said.count(ODD) >= 2


def test_a_judge_that_copies_the_prompt_has_abstained() -> None:
    bench = Bench(reason="<answer_a> is better", per_feature=1)
    assert part(bench.score([sample(1, "5", "5")]), "abstained") == pytest.approx(1 / 5)


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
    said = Bench(reason=600 * "r", per_feature=12).said(
        samples, stage, call({"instruction": asked and samples[0].instruction}), *failures
    )
    assert len(said) < 10_000


@pytest.mark.parametrize("stage", ["instruction_synthesis", "response_improvement"])
def test_words_stay_few_where_the_judge_keeps_no_bound(stage: str) -> None:
    samples = [sample(n, "1", "1") for n in range(3)]
    assert len(Bench(reason=50_000 * "r").said(samples, stage, None)) < 10_000


def test_clipped() -> None:
    assert clipped("a" * SHOWN) == "a" * SHOWN
    assert clipped("a" * (SHOWN + 1)) == "a" * (SHOWN - 1) + "…"
    assert clipped("", 5) == ""

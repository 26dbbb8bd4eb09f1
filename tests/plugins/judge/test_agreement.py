"""Agreement of a judge with people: what is asked, in which order it comes, and what the figures stand on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request
from dspy.utils import exceptions as lm_errors

from refed_dspy.data.pairs import Pair
from refed_dspy.errors import RunStopped, TeacherRefused
from refed_dspy.jobs.job import job
from refed_dspy.jobs.work import CapSettings, Work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import state_of
from refed_dspy.optimizers.agreement import (
    ALL,
    Agreement,
    agreement,
    agreement_lines,
    agreement_of_results,
    criterion_of,
)
from refed_dspy.plugins.judge.agree import judge_pairs, measure_agreement
from refed_dspy.programs.judges import OVERALL, RESPONSE_CRITERIA, Criterion, PairwiseJudge, Verdict
from refed_dspy.programs.lm_errors import AnswerCut, NotReached
from refed_dspy.records import digest
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.failures import CallPolicy
from tests.support.said import Said
from tests.support.scripted_engine import Answer, Writer, fake_lm

BETTER = "[better] "
"""The mark by which a judge that is always right knows the better answer. Two marks, or none, are a tie."""
A_WINS, B_WINS, TIE = Verdict(1, True, ()), Verdict(-1, True, ()), Verdict(0, True, ())
TORN, NONE = Verdict(0, False, ()), Verdict(None, None, (), "cut: at max_tokens=300")


def pair(number: int, verdict: float, **more: Any) -> Pair:
    a, b = (BETTER if verdict == side else "" for side in (1, -1))
    return Pair(
        instruction=f"Task {number}.",
        answer_a=f"{a}One way to do {number}.",
        answer_b=f"{b}Another way to do {number}.",
        verdict=verdict,
        **more,
    )


def prompt(request: Request) -> str:
    return "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)


def answers(request: Request) -> tuple[str, str]:
    a, b = re.findall(r"<answer_[ab]>\n(.*?)\n</>", prompt(request), re.DOTALL)
    return a, b


def says(verdict: str) -> str:
    return json.dumps({"reason": "it is deeper", "verdict": verdict})


def perfect(request: Request) -> str:
    a, b = (BETTER in answer for answer in answers(request))
    return says("A=B" if a == b else "A>>B" if a else "B>>A")


def writer_by(decide: Callable[[Request], Answer | None]) -> Writer:
    writer = Writer()
    writer.on_request = decide
    return writer


def judged_by(writer: Writer, pairs: list[Pair], folder: Path) -> list[Verdict]:
    """The verdicts on `pairs`, in their order."""
    teacher = open_teacher(fake_lm(writer))
    caps = CapSettings(max_cost=None, max_calls=None, max_minutes=None)
    policy = CallPolicy()
    work = Work(kind="agreement", identity={}, models={"judge": teacher}, size=len(pairs), caps=caps, policy=policy)
    with job(folder, work) as at:
        verdicts = judge_pairs(PairwiseJudge(), pairs, at)
    assert at.stopped == ""
    return [verdicts[pair.id] for pair in pairs]


def of(pairs: list[Pair], verdicts: list[Verdict]) -> Agreement:
    (row,) = agreement(pairs, verdicts)
    return row


def mean_figures(row: Agreement) -> tuple[float | None, float | None]:
    accuracy, same = row.accuracy, row.same_verdict
    return accuracy.mean if accuracy else None, same.mean if same else None


# --- judging


def test_a_judge_that_is_always_right(tmp_path: Path) -> None:
    pairs = [pair(number, verdict) for number, verdict in enumerate([1, -1, 1, 0, -1, -1, 1, 0])]
    writer = writer_by(perfect)
    verdicts = judged_by(writer, [*pairs, pairs[0]], tmp_path)
    assert [verdict.preference for verdict in verdicts] == [2 * pair.verdict for pair in [*pairs, pairs[0]]]
    assert len(writer.requests) == 16, "a pair that comes twice is judged once"
    row = of(pairs, verdicts[:8])
    assert (row.criterion, row.pairs, row.abstained) == (OVERALL.name, 8, 0)
    assert mean_figures(row) == (1, 1)
    assert row.accuracy is not None and row.same_verdict is not None and row.same_verdict.n == 8
    assert (row.accuracy.low, row.accuracy.high, row.accuracy.n, row.accuracy.clusters) == (1, 1, 6, 6)
    assert [row.consistency, row.pearson, row.spearman] == pytest.approx([1, 1, 1])


def test_a_judge_that_always_says_a_knows_nothing(tmp_path: Path) -> None:
    pairs = [pair(number, 1 if number % 3 else -1) for number in range(9)]
    writer = writer_by(lambda request: says("A>B"))
    verdicts = judged_by(writer, pairs, tmp_path)
    assert {(verdict.preference, verdict.consistent) for verdict in verdicts} == {(0, False)}
    asked = [answers(request) for request in writer.requests]
    assert sorted(asked) == sorted((b, a) for a, b in asked)  # each pair in both orders
    row = of(pairs, verdicts)
    assert mean_figures(row) == (0.5, 0)
    assert (row.consistency, row.pearson, row.spearman) == (0, None, None)


def test_an_abstention_is_recorded_and_is_no_zero(said: Said, tmp_path: Path) -> None:
    pairs = [pair(number, (-1) ** number) for number in range(6)]

    def decide(request: Request) -> Answer:
        if number_of(request) == 2:
            return AnswerCut("cut at max_tokens=300")
        return says("cannot tell") if number_of(request) == 3 else perfect(request)

    verdicts = judged_by(writer_by(decide), pairs, tmp_path)
    said([verdicts[2].failed, verdicts[3].abstained])
    row = of(pairs, verdicts)
    assert (row.pairs, row.abstained, row.failed, row.consistency) == (6, 1, 1, 1)
    assert mean_figures(row) == (1, 1)
    assert row.accuracy is not None and row.accuracy.n == 4


def test_a_judge_that_decides_nothing_is_one_line(said: Said, tmp_path: Path) -> None:
    judge = fake_lm(writer_by(lambda _: says("cannot tell")))
    with said.by(RunStopped) as stopped:
        measure_agreement([pair(number, 1) for number in range(3)], judge, tmp_path)
    with Ledger.read(tmp_path) as ledger:
        facts = state_of(ledger)
    assert (facts["state"], facts["reason"]) == ("ended short", str(stopped.value))


def test_pairs_that_the_judge_was_tuned_on_are_told_of(
    said: Said, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told_when_asked = list[str]()

    def asked(request: Request) -> str:
        told_when_asked.append(caplog.text)
        return perfect(request)

    pairs, judge, program = [pair(number, 1) for number in range(5)], fake_lm(writer_by(asked)), PairwiseJudge()
    program.tuned_on = [digest(each.instruction) for each in pairs[:2]]
    measured = measure_agreement(pairs, judge, tmp_path, program=program, progress=False)
    told = measured.lines()[0]
    said(told)
    assert measured.seen == 2
    assert told_when_asked and told in told_when_asked[0]  # before anything is paid for
    others = measure_agreement(pairs[2:], judge, tmp_path / "others", program=program, progress=False)
    assert others.seen == 0 and len(others.lines()) == len(measured.lines()) - 1


def number_of(request: Request) -> int:
    match = re.search(r"Task (\d+)\.", prompt(request))
    assert match is not None
    return int(match[1])


def test_a_pair_that_comes_twice_counts_once(tmp_path: Path) -> None:
    """A row for each annotator: two of three prefer what the judge prefers."""
    rows = [pair(1, 1).model_copy(update={"verdict": verdict}) for verdict in (1, -1, 1)]
    made = measure_agreement([*rows, pair(2, -1)], fake_lm(writer_by(perfect)), tmp_path / "v", progress=False)
    assert (made.pairs, made.judgements.decided, made.rows[0].pairs) == (2, 2, 2)
    assert mean_figures(made.rows[0]) == (1, 1)


def test_the_same_judge_of_the_same_context_is_asked_by_each_pairs_criterion(tmp_path: Path) -> None:
    described = {"criterion": "depth", "description": "how deep it goes"}
    known = RESPONSE_CRITERIA["communication"].description
    expected = [
        ({}, (OVERALL.name, OVERALL.description)),
        (described, ("depth", "how deep it goes")),
        ({"criterion": "communication"}, ("communication", known)),
        ({"criterion": "brevity"}, ("brevity", "brevity")),
    ]
    writer = writer_by(perfect)
    judged_by(writer, [pair(number, 1, **more) for number, (more, _) in enumerate(expected)], tmp_path)
    for number, (_, (name, meaning)) in enumerate(expected):
        prompts = [prompt(request) for request in writer.requests if number_of(request) == number]
        assert len(prompts) == 2
        assert all(f"<criterion>\n{name}\n</>" in text for text in prompts)
        assert all(f"<description>\n{meaning}\n</>" in text for text in prompts)


KNOWN = RESPONSE_CRITERIA["content_quality"]


def test_a_known_criterion_has_its_meaning_under_either_name() -> None:
    for name in ("content_quality", KNOWN.name):
        assert criterion_of(pair(1, 1, criterion=name)) is KNOWN
    described = pair(1, 1, criterion=KNOWN.name, description="as our people were told")
    assert criterion_of(described) == Criterion(KNOWN.name, described.description)


# --- what stops it


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fault", [lm_errors.LMAuthError("wrong key"), NotReached("connection refused")], ids=repr)
def test_a_judge_that_cannot_be_asked_stops_it(said: Said, fault: Exception, first: bool, tmp_path: Path) -> None:
    writer = writer_by(lambda request: fault if first or number_of(request) >= 9 else perfect(request))
    with said.by(TeacherRefused if first else RunStopped) as stopped:
        judged_by(writer, [pair(number, 1) for number in range(100)], tmp_path)
    assert len(writer.requests) < 100 and "\n" not in str(stopped.value)


# --- figures


def test_a_tie_of_the_judge_is_half_right_and_one_of_people_is_no_question_of_accuracy() -> None:
    pairs = [pair(1, 1), pair(2, 1), pair(3, -1), pair(4, 0), pair(5, 0)]
    verdicts = [Verdict(2, True, ()), TORN, A_WINS, TIE, B_WINS]
    row = of(pairs, verdicts)
    assert row.accuracy is not None and row.same_verdict is not None
    assert (row.accuracy.mean, row.accuracy.n) == (0.5, 3)  # right however strongly, half, wrong
    assert row.same_verdict.mean == pytest.approx(2 / 5) and row.same_verdict.n == 5
    assert row.consistency == 4 / 5
    turned = of(pairs[::-1], verdicts[::-1])
    assert (turned.accuracy, turned.same_verdict) == (row.accuracy, row.same_verdict), "in whatever order"


def test_each_instruction_counts_the_same() -> None:
    many = [pair(1, 1).model_copy(update={"answer_b": f"Way {way}."}) for way in range(8)]
    row = of([*many, pair(2, 1)], [A_WINS] * 8 + [B_WINS])
    assert row.accuracy is not None
    assert (row.accuracy.mean, row.accuracy.n, row.accuracy.clusters) == (0.5, 9, 2)


@pytest.mark.parametrize("count", [1, 2, 5, 30])
def test_a_share_stays_between_none_and_all(count: int) -> None:
    row = of([pair(number, 1) for number in range(count)], [A_WINS] * (count - 1) + [B_WINS])
    for mean in (row.accuracy, row.same_verdict):
        assert mean is not None and 0 <= mean.low <= mean.mean <= mean.high <= 1
        assert count > 1 or (mean.low, mean.high) == (0, 1)  # one instruction says nothing of others


def test_where_there_is_nothing_to_tell_from_a_figure_is_none() -> None:
    row = of([pair(1, 1), pair(2, 0)], [NONE, NONE])
    assert (row.pairs, row.abstained, row.accuracy, row.same_verdict, row.consistency) == (2, 2, None, None, None)
    assert (row.pearson, row.spearman) == (None, None)
    tied = of([pair(1, 0)], [TIE])
    assert tied.accuracy is None and tied.same_verdict is not None
    assert agreement([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        agreement([pair(1, 1), pair(2, 1)], [A_WINS])


def test_a_row_for_each_criterion_and_one_for_all() -> None:
    pairs = [pair(1, 1, criterion="depth"), pair(2, 1), pair(3, -1, criterion="depth"), pair(4, 1)]
    rows = agreement(pairs, [A_WINS, A_WINS, NONE, B_WINS])
    assert [(row.criterion, row.pairs, row.abstained) for row in rows] == [
        ("depth", 2, 1),
        (OVERALL.name, 2, 0),
        (ALL, 4, 1),
    ]
    assert [mean_figures(row)[0] for row in rows] == [1, 0.5, pytest.approx(2 / 3)]
    assert len(agreement(pairs[1::2], [A_WINS, A_WINS])) == 1


def test_the_table(said: Said) -> None:
    pairs = [pair(number, 1) for number in range(8)]
    deep = [pair(9, 1, criterion="depth"), pair(10, 0, criterion="depth")]
    rows = agreement([*pairs, *deep], [A_WINS] * 8 + [NONE, NONE])
    lines = agreement_lines(rows)
    assert len(lines) == 4
    said([re.split(r"  +", line) for line in lines[:3]])
    assert lines[3].startswith("all ")
    assert {line.find("1.00 (") for line in (lines[1], lines[3])} == {lines[0].index("accuracy")}
    assert all(len(line) <= 120 and line == line.rstrip() for line in lines)


def test_examples_that_name_no_criterion_were_judged_by_overall_quality() -> None:
    example = dspy.Example(instruction="i", answer_a="one", answer_b="two", people=1)
    (row,) = agreement_of_results([(example, dspy.Prediction(preference=2, consistent=True), 1.0)], seed=0)
    assert (row.criterion, row.pairs, row.accuracy and row.accuracy.mean) == (OVERALL.name, 1, 1.0)

"""Trained judges: their one file, their verdicts, and where they stand in other judges' places."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request

from refed_dspy.config.filters import FilterConfig
from refed_dspy.errors import ConfigError
from refed_dspy.filters.build import build
from refed_dspy.filters.judge import ImprovedWins, Rubric
from refed_dspy.optimizers.compile import compile as tune
from refed_dspy.plugins.compare.side_by_side import SideBySide
from refed_dspy.plugins.judge.trained_judge import GRADES, PAIRS, Correction, Corrections, Term, TrainedJudge
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.judges import SAME, Criterion, Graded, Verdict
from refed_dspy.programs.load import load_program, open_judge
from refed_dspy.programs.saved import program_digests, save_program
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm

OF_PAIRS = Correction(
    terms={
        "preference": Term(mean=0, scale=1, coefficient=1.0),
        "length": Term(mean=0, scale=1, coefficient=-2.0),
    },
    thresholds=(-0.2, 0.2),
)
OF_GRADES = Correction(
    terms={"grade": Term(mean=3, scale=1, coefficient=2.0), "length": Term(mean=3, scale=1, coefficient=-1.0)},
    thresholds=(-3.0, -1.0, 1.0, 3.0),
)
LONGER, SHORT = "a longer text", "short"
TASK, TUNED = "Do it.", "Prefer what is short."
DEPTH = Criterion("depth", "how deep it goes")


def trained(**corrections: Correction) -> TrainedJudge:
    return TrainedJudge(Corrections({PAIRS: OF_PAIRS, GRADES: OF_GRADES, **corrections}))


def says(first: str, second: str) -> Writer:
    """A judge that says this of the answers as they are, and that of the exchanged ones; every grade is 4."""
    writer = Writer()

    def answer(request: Request) -> str:
        if "grade" in writer.fields(request):
            return json.dumps({"reason": "r", "grade": "4"})
        shown = str(request.messages[-1].text)
        as_it_is = shown.index("short") > shown.index("longer")
        return json.dumps({"reason": "r", "verdict": first if as_it_is else second})

    writer.on_request = answer
    return writer


def verdict(judge: PairwiseJudge, writer: Writer, a: str = LONGER, b: str = SHORT) -> Verdict:
    with dspy.context(lm=fake_lm(writer)):
        return asyncio.run(judge.judge(TASK, a, b))


def test_the_correction_decides_and_the_sides_can_be_exchanged() -> None:
    torn = says("A>B", "A>B")  # the first that is shown: the plain judge is torn
    assert verdict(PairwiseJudge(), torn).preference == 0
    made, turned = verdict(trained(), torn), verdict(trained(), torn, "short", "a longer text")
    assert made.preference is not None and -2 <= made.preference < -0.5  # the shorter one
    assert turned.preference == -made.preference
    assert made.consistent is False and made.in_orders == (1, -1)
    sure = verdict(trained(), says("A>>B", "B>>A"))
    assert sure.preference is not None and sure.preference > made.preference and sure.consistent


def test_the_likeliest_tie_is_one() -> None:
    wide = OF_PAIRS.model_copy(update={"thresholds": (-5.0, 5.0)})
    assert verdict(trained(pairs=wide), says("A>B", "A>B")).preference == 0


def test_no_verdict_stays_none_and_equal_answers_are_not_asked_about(said: Said) -> None:
    untold = verdict(trained(), says("cannot tell", "A>B"))
    assert untold.preference is None
    said(untold.abstained)
    writer = says("A>B", "A>B")
    assert verdict(trained(), writer, "same", " same ") is SAME and not writer.requests


def test_a_grade_is_the_one_that_people_would_give() -> None:
    judge = trained().rubric
    assert judge is not None

    def graded(text: str) -> Graded:
        with dspy.context(lm=fake_lm(says("", ""))):
            return asyncio.run(judge.judge(text, "context", DEPTH))

    short, long = graded("short"), graded("long " * 100)
    assert short.expected is not None and long.expected is not None and short.expected > long.expected
    assert short.grade == round(short.expected) and 1 <= long.expected <= 5


def test_the_questions_are_those_of_the_judge_without_a_correction() -> None:
    plain, scored = says("A>B", "A>B"), says("A>B", "A>B")
    verdict(PairwiseJudge(), plain), verdict(trained(), scored)
    assert [str(r.messages) for r in plain.requests] == [str(r.messages) for r in scored.requests]
    prompts = program_digests(trained())
    assert prompts["compare"] == program_digests(PairwiseJudge())["compare"]
    other = trained(pairs=OF_PAIRS.model_copy(update={"thresholds": (-0.3, 0.3)}))
    assert program_digests(other)["corrections"] != prompts["corrections"]


# --- the file


@pytest.fixture
def path(tmp_path: Path) -> Path:
    judge = trained()
    judge.compare.signature = judge.compare.signature.with_instructions(TUNED)
    save_program(judge, tmp_path / "judge.json")
    return tmp_path / "judge.json"


def test_one_file_holds_prompts_and_corrections(path: Path) -> None:
    judge = open_judge(path)
    assert isinstance(judge, TrainedJudge) and judge.corrections.by_name == {PAIRS: OF_PAIRS, GRADES: OF_GRADES}
    assert judge.compare.signature.instructions == TUNED
    assert judge.rubric is not None and judge.rubric.corrections is judge.corrections
    writer = says("A>B", "A>B")
    assert verdict(judge, writer).preference == verdict(trained(), writer).preference
    assert copy.deepcopy(judge).corrections is judge.corrections
    plain = load_program(path, into=PairwiseJudge())
    assert not isinstance(plain, TrainedJudge) and plain.compare.signature.instructions == TUNED


def edited(path: Path, change: Any) -> Path:
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))
    return path


EDITS: dict[str, Callable[[Any], object]] = {
    "a correction": lambda s: s["corrections"]["pairs"]["terms"]["length"].update(coefficient=2),
    "no digest": lambda s: s["refed"].pop("corrections"),
    "a list": lambda s: s.update(corrections=[]),
    "none of pairs": lambda s: s["corrections"].pop("pairs"),
    "an unknown one": lambda s: s["corrections"].update(taste={}),
    "thresholds": lambda s: s["corrections"]["pairs"].update(thresholds="x"),
    "no comparison": lambda s: s.pop("compare"),
    "no grading": lambda s: s.pop("rubric.grade"),
    "a prompt": lambda s: s["compare"]["signature"].update(instructions="Hm."),
}


@pytest.mark.parametrize("edit", EDITS)
def test_a_file_that_was_edited_or_damaged_is_one_line(said: Said, path: Path, edit: str) -> None:
    with said.by(ConfigError) as refused:
        open_judge(edited(path, EDITS[edit]))
    assert "\n" not in str(refused.value)


def test_edited_corrections_can_be_accepted(said: Said, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    edited(path, lambda state: state["corrections"]["pairs"].update(thresholds=[-1, 1]))
    judge = open_judge(path, accept_changed=True)
    assert isinstance(judge, TrainedJudge) and judge.corrections.by_name[PAIRS].thresholds == (-1, 1)
    said(caplog.text)


# --- in other judges' places


def test_filters_ask_it(said: Said, path: Path) -> None:
    judge = open_judge(path)
    configs = ["judge", {"rubric": {"criterion": "communication"}}, {"rubric": {"of": "instruction"}}]
    steps = build([FilterConfig.model_validate(each) for each in configs], 0, judge)
    wins, of_response, of_instruction = (step.filter for step in steps)
    assert isinstance(wins, ImprovedWins) and wins.judge is judge
    assert isinstance(of_response, Rubric) and of_response.judge is judge.rubric
    assert isinstance(of_instruction, Rubric) and of_instruction.judge is not judge.rubric  # grades were of answers
    assert [step.settings.get("prompts", {}).get("corrections") is not None for step in steps] == [True, True, False]
    alone = build([FilterConfig.model_validate("rubric")], 0, judge)
    assert isinstance(alone[0].filter, Rubric) and alone[0].filter.judge is judge.rubric
    only_pairs = TrainedJudge(Corrections({PAIRS: OF_PAIRS}))
    with said.by(ConfigError):
        build([FilterConfig.model_validate("rubric")], 0, only_pairs)


def test_a_comparison_asks_it() -> None:
    judge = trained()
    side_by_side = SideBySide({"a": ReferenceLevelFeedback(), "b": ReferenceLevelFeedback()}, "a", judge)
    assert side_by_side.judge is judge and side_by_side.grader is judge.rubric
    assert SideBySide({"a": ReferenceLevelFeedback()}, "a", PairwiseJudge()).grader is not None


def test_it_is_not_compiled_under_its_correction(said: Said) -> None:
    with said.by(ConfigError):
        tune(trained(), [], teacher=fake_lm(says("", "")), progress=False)


def test_where_it_reads_perplexities_it_needs_something_that_computes_them(said: Said) -> None:
    reads = OF_PAIRS.model_copy(update={"terms": {"log_perplexity": Term(mean=0, scale=1, coefficient=-1.0)}})
    judge, asked = trained(pairs=reads), []
    with said.by(ConfigError):
        verdict(judge, says("A>B", "A>B"))

    async def log_perplexity(instruction: str, answer: str) -> float:
        asked.append((instruction, answer))
        return float(len(answer))

    judge.corrections.log_perplexity = log_perplexity
    made = verdict(judge, says("A>B", "A>B"))
    assert made.preference is not None and made.preference < 0
    assert sorted(asked) == [(TASK, LONGER), (TASK, SHORT)]
    assert asyncio.run(judge.corrections.nats(GRADES, "", "")) is None  # that one reads none

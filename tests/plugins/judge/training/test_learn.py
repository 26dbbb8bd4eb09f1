"""From what was said to a judge: what is learned from, and what is only measured."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from refed_dspy.data.pairs import Pair
from refed_dspy.errors import RunStopped
from refed_dspy.plugins.judge.trained_judge import GRADES, PAIRS
from refed_dspy.plugins.judge.training.learn import Lesson, Said, grades_notes, judged_by, learn, report_of
from refed_dspy.plugins.judge.training.people import graded_answers
from refed_dspy.plugins.judge.training.spec import HeldOut, lacking
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.judges import SAME, Graded, Verdict
from tests.support.judged_pairs import judged_pairs, without_grades
from tests.support.said import Said as Words

pytestmark = pytest.mark.usefixtures("two_strengths")
PEOPLE = judged_pairs(30, 4)
HELD = HeldOut(frozenset(), ("tone",), ())
NONE = Verdict(None, None, (), "the judge could not tell")


def said_of(pairs: list[Pair], seed: int = 0) -> Said:
    """A judge that mostly says what people say, in one order more surely than in the other."""
    rng = random.Random(seed)
    verdicts = {}
    for pair in pairs:
        sign = int(pair.verdict) if rng.random() < 0.8 else rng.choice((-1, 1))
        orders = (min(2, sign + 1), sign)
        verdicts[pair.id] = Verdict(sign, True, (), in_orders=orders)
    grades = {each.id: Graded("c", rng.randint(1, 5), "") for each in graded_answers(pairs)}
    return Said(verdicts=verdicts, grades=grades)


def lesson(pairs: list[Pair], said: Said) -> Lesson:
    return Lesson(pairs, graded_answers(pairs), said, HELD)


def turned(pair: Pair) -> Pair:
    """The same with the opposite said of it, and the worst grades."""
    said = {
        name: each.model_copy(update={"verdict": -(each.verdict or 0), "grade_a": 1, "grade_b": 1})
        for name, each in pair.annotations.items()
    }
    return pair.model_copy(update={"verdict": -pair.verdict, "annotations": said})


def test_what_is_held_out_teaches_nothing() -> None:
    said = said_of(PEOPLE)
    made = learn(lesson(PEOPLE, said), PairwiseJudge())
    others = [turned(pair) if HELD.of_pair(pair) else pair for pair in PEOPLE]
    assert others != PEOPLE
    again = learn(lesson(others, said), PairwiseJudge())
    assert again.corrections.by_name == made.corrections.by_name and set(made.corrections.by_name) == {PAIRS, GRADES}
    taught = learn(lesson([turned(pair) for pair in PEOPLE], said), PairwiseJudge())
    assert taught.corrections.by_name != made.corrections.by_name


def test_what_the_judge_did_not_decide_is_neither_learned_nor_measured() -> None:
    said = said_of(PEOPLE)
    held = [pair for pair in PEOPLE if HELD.of_pair(pair)]
    train = [pair for pair in PEOPLE if not HELD.of_pair(pair)]
    said.verdicts.update({held[0].id: NONE, train[0].id: NONE, held[1].id: SAME})
    some = lesson(PEOPLE, said)
    made = learn(some, PairwiseJudge())
    judged = judged_by(some, made)
    assert [each.pair for each in judged] == held[1:]
    assert (judged[0].after, judged[0].chance) == (SAME, 0.5)
    without = [pair for pair in PEOPLE if pair is not train[0]]
    assert learn(lesson(without, said), PairwiseJudge()).corrections.by_name[PAIRS] == made.corrections.by_name[PAIRS]


def test_before_is_what_the_judge_said_that_it_began_as() -> None:
    said = said_of(PEOPLE)
    began = replace(said, before={pair.id: Verdict(0, False, ()) for pair in PEOPLE if HELD.of_pair(pair)})
    some = lesson(PEOPLE, began)
    trained = learn(some, PairwiseJudge())
    report = report_of(some, trained, judged_by(some, trained))
    assert report.sets[-1].before.accuracy is not None and report.sets[-1].before.accuracy.mean == 0.5
    assert report.proved and report.grades


def test_grades_that_are_not_learned_from_are_told_of(said: Words) -> None:
    heard = said_of(PEOPLE)
    assert grades_notes(lesson(PEOPLE, heard)) == []
    train = HELD.train_answers(graded_answers(PEOPLE))
    few = replace(heard, grades={answer.id: heard.grades[answer.id] for answer in train[:19]})
    made = learn(lesson(PEOPLE, few), PairwiseJudge())
    assert set(made.corrections.by_name) == {PAIRS} and made.rubric is None
    said(grades_notes(lesson(PEOPLE, few)))
    assert grades_notes(lesson(without_grades(PEOPLE), heard)) == []
    alike = [answer for answer in graded_answers([turned(pair) for pair in PEOPLE]) if set(answer.grades) == {1}]
    said([lacking(alike), lacking(alike[:19])])
    assert lacking(graded_answers(PEOPLE)) == ""


def test_a_judge_that_decided_too_little_is_told(said: Words) -> None:
    heard = said_of(PEOPLE)
    train = [pair for pair in PEOPLE if not HELD.of_pair(pair)]
    few = replace(heard, verdicts={**heard.verdicts, **{pair.id: NONE for pair in train[19:]}})
    with said.by(RunStopped):
        learn(lesson(PEOPLE, few), PairwiseJudge())
    none = replace(heard, verdicts={**heard.verdicts, **{p.id: NONE for p in PEOPLE if HELD.of_pair(p)}})
    some = lesson(PEOPLE, none)
    with said.by(RunStopped):
        report_of(some, learn(some, PairwiseJudge()), [])

"""The judge of one text: a grade from one to five, or an abstention."""

from __future__ import annotations

import pytest

from refed_dspy.programs.judges import Graded
from refed_dspy.programs.lm_errors import AnswerCut
from tests.programs.test_judges import answering_by, grade_of, grades, shown
from tests.support.said import Said


@pytest.mark.parametrize(("grade", "share"), [("1", 0), ("2", 0.25), ("3", 0.5), ("4", 0.75), ("5", 1)])
def test_a_grade_is_one_to_five(said: Said, grade: str, share: float) -> None:
    writer = answering_by(lambda request: grades(grade))
    graded = grade_of(writer)
    assert graded == Graded("depth", int(grade), "it lacks an example")
    assert graded.share == share
    (request,) = writer.requests
    said((shown(request, "criterion"), shown(request, "description")))
    said((shown(request, "context"), shown(request, "text")))


@pytest.mark.parametrize("grade", ["0", "6", "3.5", "5/5", ""])
def test_a_grade_out_of_bounds_is_an_abstention(grade: str) -> None:
    graded = grade_of(answering_by(lambda request: grades(grade)))
    assert (graded.grade, graded.share) == (None, None)
    assert graded.reason.startswith("malformed: ")


def test_a_grader_that_cannot_tell_abstains(said: Said) -> None:
    graded = grade_of(answering_by(lambda request: grades("cannot tell")))
    said((graded.grade, graded.share, graded.reason))


def test_a_grade_that_was_cut_is_an_abstention_with_its_reason(said: Said) -> None:
    graded = grade_of(answering_by(lambda request: AnswerCut("cut at max_tokens=300")))
    assert (graded.grade, graded.share) == (None, None)
    said(graded.reason)

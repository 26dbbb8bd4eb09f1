"""What people said, as shares: several annotators, those who could not tell, and what was settled by hand."""

from __future__ import annotations

from typing import Any

import pytest

from refed_dspy.data.pairs import Annotation, Pair
from refed_dspy.plugins.judge.training.people import annotators, graded_answers, shares_of
from tests.support.said import Said


def pair(verdict: float = 1, *said: float | None, **more: Any) -> Pair:
    annotations = {f"p{n}": Annotation(verdict=each) for n, each in enumerate(said)}
    texts = {"instruction": "i", "answer_a": "a", "answer_b": "b", **more}
    return Pair(**{"annotations": annotations, **texts}, verdict=verdict)


@pytest.mark.parametrize(
    ("verdict", "said", "shares"),
    [
        (1, (), (0, 0, 1)),
        (0, (), (0, 1, 0)),
        (1, (1, 1, -1), (1 / 3, 0, 2 / 3)),
        (0, (1, -1, 0), (1 / 3, 1 / 3, 1 / 3)),
        (1, (1, None, None), (0, 0, 1)),
        (-1, (1, 1, -1), (1, 0, 0)),  # settled by hand: not the majority's
        (1, (None,), (0, 0, 1)),
    ],
)
def test_each_annotator_who_could_tell_has_a_share(
    verdict: float, said: tuple[float | None, ...], shares: tuple[float, ...]
) -> None:
    assert shares_of(pair(verdict, *said)) == pytest.approx(shares)


def test_an_answer_has_the_grades_of_all_pairs_that_it_is_in(said: Said) -> None:
    grades = {"x": Annotation(verdict=1, grade_a=5, grade_b=2), "y": Annotation(verdict=1, grade_a=4)}
    first = pair(1, annotations=grades, system_a="one", criterion="depth")
    again = pair(-1, annotations={"x": Annotation(verdict=-1, grade_b=3)}, answer_a="c", answer_b="a", system_b="one")
    again = again.model_copy(update={"criterion": "depth"})
    empty = pair(1, annotations={"x": Annotation(grade_a=1, grade_b=1, verdict=0)}, answer_a=" ", criterion="wit")
    answers = {(each.text, each.criterion.name): each for each in graded_answers([first, again, empty])}
    assert set(answers) == {("a", "depth"), ("b", "depth"), ("b", "wit")}
    of_a = answers["a", "depth"]
    assert of_a.grades == (5, 4, 3) and of_a.mean == 4 and of_a.system == "one"
    assert of_a.shares == pytest.approx((0, 0, 1 / 3, 1 / 3, 1 / 3))
    said(of_a.context)
    assert len({each.id for each in answers.values()}) == 3


def test_annotators_are_counted_by_their_names() -> None:
    assert annotators([pair(1, 1, 1, 1), pair(1, 1)]) == 3 and annotators([pair()]) == 0

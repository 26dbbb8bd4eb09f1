"""The rows that a card's figures are drawn from."""

from __future__ import annotations

from refed_dspy.plugins.share.survey import MAX_DRAWN, Survey
from tests.sharing.test_card_facts import SOURCE, row_of


def test_no_more_rows_are_looked_at_than_are_drawn() -> None:
    survey = Survey(MAX_DRAWN + 1, {"r": [SOURCE]})
    rows = [row_of(SOURCE, SOURCE)] * (MAX_DRAWN + 1)
    assert list(survey.observe(rows)) == rows
    assert survey.copied.rows == len(survey.drawn) == MAX_DRAWN

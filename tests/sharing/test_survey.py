"""The rows that a card's figures are drawn from."""

from __future__ import annotations

import pyarrow as pa

from refed_dspy.plugins.share.survey import MAX_DRAWN, Survey
from tests.sharing.test_card_facts import SOURCE, table


def test_no_more_rows_are_looked_at_than_are_drawn() -> None:
    survey = Survey(MAX_DRAWN + 1, {"r": [SOURCE]})
    rows = pa.concat_tables([table(SOURCE, SOURCE)] * (MAX_DRAWN + 1)).combine_chunks()
    list(survey.observe([rows]))
    assert survey.copied.rows == len(survey.drawn) == MAX_DRAWN


def test_a_table_of_which_no_row_is_drawn_passes() -> None:
    survey = Survey(100 * MAX_DRAWN)
    one = table(SOURCE, SOURCE)
    assert [passed.num_rows for passed in survey.observe([one] * 3)] == [1, 1, 1]
    assert len(survey.drawn) < 3

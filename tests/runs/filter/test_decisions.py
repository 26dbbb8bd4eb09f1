"""Decisions on many rows: what was put in comes out, in the order of the rows."""

from __future__ import annotations

import pytest

from refed_dspy.filters.base import Decision
from refed_dspy.runs.filter.apply import Decisions


def test_what_was_decided_is_given_back() -> None:
    made = {
        7: Decision(False, "like a kept one", 0.7, "the text"),
        2: Decision(True, "", 0.0, "", "unchanged"),
        3: Decision(True),
        5: Decision(False, "like a kept one", float("inf"), "another"),
    }
    decisions = Decisions()
    for number, decision in made.items():
        decisions[number] = decision
    assert dict(decisions) == made and list(decisions) == [2, 3, 5, 7] and len(decisions) == 4
    assert 4 not in decisions and 99 not in decisions and not decisions.keeps(4) and not decisions.drops(4)
    assert decisions.keeps(2) and decisions.drops(7) and not decisions.keeps(7)
    with pytest.raises(KeyError):
        decisions[4]
    counts = {(outcome.kept, outcome.reason, outcome.remark): n for outcome, n in decisions.tallied().items()}
    assert counts == {(False, "like a kept one", ""): 2, (True, "", "unchanged"): 1, (True, "", ""): 1}
    decisions[7] = Decision(True)
    assert decisions[7] == Decision(True) and decisions.keeps(7)

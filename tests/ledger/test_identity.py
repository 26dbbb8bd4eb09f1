"""What work a folder holds, and what differs between two starts of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from refed_dspy.ledger.batches import begun
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Answer, answered, reserved
from refed_dspy.ledger.states import differences, has_begun, named_work
from tests.ledger.test_batches import CALL, key
from tests.support.said import Said


@pytest.mark.parametrize("named", ["a run", "an agreement", "a comparison", "a filtering", "statistics"])
def test_work_has_its_article(named: str) -> None:
    assert named_work(named.split()[-1]) == named


def test_what_differs_is_told_by_its_path_and_of_filters_by_name_and_setting_or_their_order(said: Said) -> None:
    stored = {"seed": 1, "teacher": {"model": "a", "params": {"top_p": 1}}, "gone": {"x": 1}, "same": {"y": 2}}
    current = {"seed": 2, "teacher": {"model": "a", "params": {"top_p": 0.5}}, "new": 0, "same": {"y": 2}}
    short, own = ["length", {"min_words": 1, "of": "response"}], ["own", {"settings": {"word": "castle"}}]
    longer, other = ["length", {"min_words": 2, "of": "response"}], ["own", {"settings": {"word": "river"}}]
    said(differences(stored, current))
    said(differences({"filters": [short, own]}, {"filters": [longer, other]}))
    said(differences({"filters": [short]}, {"filters": [short, own]}))
    said(differences({"filters": [short, own]}, {"filters": [own, short]}))
    assert differences(stored, stored) == []


def test_work_has_begun_with_an_answer_or_a_batch_under_way(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "answer") as ledger:
        assert not has_begun(ledger)
        ledger.commit(answered(key(1), Answer("{}"), "here", [CALL]))
        assert has_begun(ledger)
    with Ledger.create(tmp_path / "batch") as ledger:
        ledger.commit(reserved(1, key(1), "model", "here", 100))
        assert not has_begun(ledger)
        ledger.commit(begun(1, "nonce", "here", "model", [1]))
        assert has_begun(ledger)

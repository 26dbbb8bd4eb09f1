"""The numbers of a run on a cluster while it is at work."""

from __future__ import annotations

import json
from pathlib import Path

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import LIVE, live_numbers, works_below
from refed_dspy.runs.result import full_status

NUMBERS = {"kept": 70, "cost": 0.25, "calls": 150, "calls_a_second": 31.5, "nodes": 2, "workers": 2, "deaths": 1,
           "shards": {"all": 8, "done": 1, "dry": 0}, "slow": []}  # fmt: skip


def test_while_it_is_at_work_they_stand_for_what_the_ledger_does_not_have_yet(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(work="run", size=100)
        (tmp_path / LIVE).write_text(json.dumps(NUMBERS))
        status, ((listed,), _) = full_status(ledger), works_below(tmp_path)
        assert (status["kept"], status["cost"], status["cluster"]) == (70, 0.25, NUMBERS)
        assert (listed["count"], listed["size"], listed["cost"]) == (70, 100, 0.25)
    with Ledger.read(tmp_path) as ledger:
        assert (full_status(ledger)["kept"], works_below(tmp_path)[0][0]["count"]) == (0, 0), "its ledger has them now"


def test_a_run_that_was_never_on_a_cluster_has_none(tmp_path: Path) -> None:
    assert live_numbers(tmp_path) is None
    (tmp_path / LIVE).write_text("{")
    assert live_numbers(tmp_path) is None

"""How a filtering's folder says that it ended: not before its rows are written, whatever comes after the judge."""

from __future__ import annotations

from pathlib import Path

import pytest
from dspy.utils.exceptions import LMServerError

from refed_dspy.errors import RunDirError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import End, last_end, state_in, write_end
from refed_dspy.records import DataRow
from tests.runs.filter.helpers import PAIRS, NumberJudge, filtered
from tests.runs.filter.test_custom_filters import CustomFilter
from tests.support.said import Said

DROPS_ALL = {"length": {"min_words": 9999}}
RUBRIC = {"rubric": {"at_least": 1}}


def end(folder: Path) -> tuple[str, str]:
    with Ledger.read(folder) as ledger:
        return last_end(ledger)[:2]


def test_a_filter_that_fails_after_the_judge_leaves_it_unfinished(said: Said, tmp_path: Path) -> None:
    seen = list[str]()

    def broken(_: DataRow) -> None:
        seen.append(state_in(tmp_path))
        raise KeyError("broken")

    with pytest.raises(KeyError):
        filtered(tmp_path, ["judge", CustomFilter(check=broken)], judge=NumberJudge())
    assert seen == ["running"]
    said(end(tmp_path))
    assert not (tmp_path / "kept.jsonl").exists()
    made = filtered(tmp_path, ["judge", CustomFilter()], judge=NumberJudge())
    assert (made.state, end(tmp_path)) == ("done", ("done", ""))


def test_it_is_done_though_no_row_reached_the_last_judge(tmp_path: Path) -> None:
    made = filtered(tmp_path, [RUBRIC, DROPS_ALL, "judge"], judge=NumberJudge())
    assert made.state == "done" and not made.filtered.undecided


def test_a_row_that_an_earlier_judge_did_not_answer_on_is_not_forgotten(said: Said, tmp_path: Path) -> None:
    judge = NumberJudge()
    judge.on_request = lambda request: (
        LMServerError(message="busy", status=503)
        if "Number 7:" in str(request) and "verdict" not in judge.fields(request)
        else None
    )
    made = filtered(tmp_path, [RUBRIC, "judge"], judge=judge)
    assert len(made.filtered.undecided) == 1
    said(end(tmp_path))
    said(made.problem)


def test_other_work_in_the_folder_is_refused_before_any_filter_and_stays_as_it_was(said: Said, tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.begin((), work="run", size=1)
        write_end(ledger, End("at its cap", "why"))
    with said.by(RunDirError):
        filtered(tmp_path, [DROPS_ALL, "judge"], PAIRS[:3], NumberJudge())
    assert not (tmp_path / "kept.jsonl").exists()
    said(end(tmp_path))

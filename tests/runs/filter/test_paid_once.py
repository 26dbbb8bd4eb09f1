"""No verdict is paid for twice: the same call again, other filters, caps, kills, and the folder's name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import RunDirError
from refed_dspy.runs.filter.result import Filtering
from tests.runs.filter.helpers import PAIRS, WON, NumberJudge, adds_up, filtered, http, lines, numbers, outputs, pair
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm


def test_what_is_written_is_the_same_in_any_folder_whichever_call_ended_first(tmp_path: Path) -> None:
    filters = ["refusals", {"judge": {"keep": 3}}, {"rubric": {"at_least": 3}}]
    made = [outputs(filtered(tmp_path / name, filters, PAIRS[:10], NumberJudge()).out) for name in ("out", "other")]
    made[0]["funnel.txt"] = made[0]["funnel.txt"].replace(b"/out/", b"/other/")
    assert made[0] == made[1] and len(made[0]) == 5


def test_other_thresholds_and_filters_in_the_same_folder_pay_for_what_is_new_only(tmp_path: Path) -> None:
    judge = NumberJudge()
    kept = []
    for filters in (
        ["judge"],
        [{"judge": {"margin": 1.5}}],
        [{"length": {"max_words": 2}}, "judge"],
        ["judge", "rubric"],
    ):
        made = filtered(tmp_path / "out", filters, judge=judge, force=True)
        adds_up(made, 40)
        kept.append(len(made.filtered.kept))
    assert kept == [16, 8, 0, 8]
    assert len(judge.requests) == 80 + 16, "the rubric is new, and asked about what was left"


def test_a_corrected_row_is_asked_about_and_no_other(said: Said, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    judge = NumberJudge()
    for rows in (PAIRS, [{**PAIRS[0], "improved_response": "Quality 4."}, *PAIRS[1:], pair(3)]):
        data.write_text("\n".join(map(json.dumps, rows)))
        made = filtered(tmp_path / "out", ["judge"], data, judge)
    adds_up(made, 41)
    assert len(judge.requests) == 80 + 4 and numbers(lines(made.out / "kept.jsonl")) == [1, *WON, 41]
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text())
    with said.by(RunDirError):
        filtered(tmp_path / "out", ["judge"], other, judge)


def test_without_out_the_folder_goes_by_rows_and_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    judge = NumberJudge()
    paid = [refed_dspy.filter_data(PAIRS, [{"judge": {"margin": m}}], judge=fake_lm(judge)).out for m in (0, 1)]
    assert paid[0] == paid[1] and len(judge.requests) == 80
    free = [refed_dspy.filter_data(PAIRS, [{"rouge": {"threshold": t}}]).out for t in (0.5, 0.6)]
    assert len({*paid, *free}) == 3


def test_two_filters_of_one_kind(tmp_path: Path) -> None:
    judge = NumberJudge()
    filters = ["judge", {"judge": {"margin": 1.5}}, {"judge": {"criterion": "content_quality"}}]
    made = filtered(tmp_path / "out", filters, judge=judge)
    adds_up(made, 40)
    assert [(entry["filter"], entry["in"], entry["kept"]) for entry in made.funnel()] == [
        ("judge", 40, 16), ("judge 2", 16, 8), ("judge 3", 8, 8),
    ]  # fmt: skip
    assert len(judge.requests) == 80 + 16, "the second asks the very same questions, the third others"
    assert set(lines(made.out / "kept.jsonl")[0]["refed_filters"]["scores"]) == {"judge", "judge 2", "judge 3"}


def test_at_a_cap_what_is_decided_stands_and_the_rest_is_undecided(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    def go(**caps: Any) -> Filtering:
        filters = [{"length": {"min_words": 2}}, "judge", {"rubric": {"at_least": 2}}]
        made = refed_dspy.filter_data(PAIRS[:20], filters, judge=http(server), out=tmp_path / "out", **caps)
        adds_up(made, 20)
        return made

    made = go(max_calls=15)
    assert made.stopped == "max_calls" and len(made.filtered.undecided) >= 10 and not made.problem
    said((made.state, made.lines()[-2]))
    done = go(max_calls=1000)
    assert not done.stopped and done.state == "done" and not (tmp_path / "out" / "undecided.jsonl").exists()

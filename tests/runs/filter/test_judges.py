"""Judges of a filtering: compiled ones, and those that abstain, do not answer or cannot be reached."""

from __future__ import annotations

from pathlib import Path

import pytest
from dspy.utils.exceptions import LMServerError

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, RunDirError, RunStopped, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import End, last_end, state_in, write_end
from refed_dspy.programs.judges import PairwiseJudge
from refed_dspy.programs.saved import save_program
from refed_dspy.records import DataRow
from tests.runs.filter.helpers import (
    PAIRS,
    WON,
    CustomFilter,
    NumberJudge,
    adds_up,
    filtered,
    http,
    lines,
    numbers,
    pair,
)
from tests.support.said import Said


def test_a_compiled_judge_is_asked_with_its_prompt(said: Said, tmp_path: Path) -> None:
    program = PairwiseJudge()
    prompt = "Weigh the two, and nothing else."
    program.compare.signature = program.compare.signature.with_instructions(prompt)
    save_program(program, tmp_path / "judge.json")
    judge = NumberJudge()
    filtered(tmp_path / "out", ["judge"], PAIRS[:3], judge)
    filtered(tmp_path / "out", ["judge"], PAIRS[:3], judge, judge_program=str(tmp_path / "judge.json"), force=True)
    asked = [prompt in str(request) for request in judge.requests]
    assert asked == [False] * 6 + [True] * 6
    with said.by(ConfigError):
        filtered(tmp_path / "out", ["rubric"], PAIRS[:3], judge, judge_program=str(tmp_path / "judge.json"))


@pytest.mark.parametrize(("count", "asked"), [(7, 14), (100, None)])
def test_a_judge_that_abstains_everywhere_is_reported_in_a_line(
    said: Said, tmp_path: Path, count: int, asked: int | None
) -> None:
    rows = [pair(4, instruction=f"An unclear matter {n}.") for n in range(count)] + [pair(2), pair(2)]
    rows[-1]["improved_response"] = rows[-1]["response"]  # a tie without a question decides nothing
    judge = NumberJudge()
    with said.by(RunStopped) as raised:
        filtered(tmp_path / "out", ["judge"], rows[:count] + rows[-1:], judge)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 1
    # Twenty rows are enough to see it. 32 are asked about at once, and each that ends makes room for another.
    assert len(judge.requests) == asked if asked else 40 <= len(judge.requests) <= 2 * (20 + 32)
    asked_before = len(judge.requests)
    assert state_in(tmp_path / "out") == "ended short"
    with pytest.raises(RunStopped):
        filtered(tmp_path / "out", ["judge"], rows[:count] + rows[-1:], judge)
    assert len(judge.requests) <= asked_before + (0 if asked else 40)


def test_a_row_that_it_abstains_on_is_dropped(said: Said, tmp_path: Path) -> None:
    rows = [*PAIRS[:5], pair(4, instruction="An unclear matter.")]
    made = filtered(tmp_path / "out", ["judge"], rows, NumberJudge())
    remarks = lines(made.out / "dropped.jsonl")[-1]["refed_filters"]
    assert (remarks["row"], remarks["score"]) == (6, None)
    said((remarks["reason"], remarks["detail"]))


def test_a_row_that_it_did_not_answer_on_is_undecided_and_asked_again(said: Said, tmp_path: Path) -> None:
    judge = NumberJudge()
    judge.on_request = lambda request: (
        LMServerError(message="busy", status=503) if "Number 7:" in str(request) else None
    )
    made = filtered(tmp_path / "out", ["judge", {"length": {"min_words": 2}}], judge=judge)
    adds_up(made, 40)
    assert numbers(lines(made.out / "undecided.jsonl")) == [8]
    said(made.problem)
    assert len(made.filtered.kept) == len(set(WON) - {8}), "what was decided goes on to the next filter"
    again = NumberJudge()
    done = filtered(tmp_path / "out", ["judge", {"length": {"min_words": 2}}], judge=again)
    assert not done.problem and len(again.requests) == 2 and not (made.out / "undecided.jsonl").exists()
    assert numbers(lines(done.out / "kept.jsonl")) == WON


def test_rows_without_a_plain_response(said: Said, tmp_path: Path) -> None:
    rows = [*PAIRS[:5], {"instruction": "i", "response": "Quality 4."}]
    judge = NumberJudge()
    made = filtered(tmp_path / "out", ["judge"], rows, judge)
    adds_up(made, 6)
    said(made.funnel()[0]["reasons"])
    assert len(judge.requests) == 10
    with said.by(ConfigError):
        filtered(tmp_path / "none", ["judge"], rows[-1:], judge)
    assert not (tmp_path / "none").exists()


def test_a_judge_that_is_not_there(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    nobody = http(server, api_base="http://127.0.0.1:9/v1")
    with said.by(TeacherRefused):
        refed_dspy.filter_data(PAIRS, ["judge"], judge=nobody, out=tmp_path / "out")
    refed_dspy.filter_data(PAIRS[:4], ["judge"], judge=http(server), out=tmp_path / "out")  # nothing was paid for


def test_the_judges_temperature_is_zero(tmp_path: Path, server: SimulatedTeacher) -> None:
    for name in "ab":
        refed_dspy.filter_data(PAIRS[:4], ["judge"], judge=http(server), out=tmp_path / name)
    alike = [lines(tmp_path / name / file) for file in ("kept.jsonl", "dropped.jsonl") for name in "ab"]
    assert alike[0] == alike[1] and alike[2] == alike[3], "the server answers alike only at temperature 0"


# --- how a folder says that it ended: not before its rows are written, whatever comes after the judge


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

"""Judges of a filtering (compiled, abstaining, out of reach), custom filters, and how a folder says that it ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dspy.utils.exceptions import LMServerError

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, NoAnswer, RunDirError, RunStopped, TeacherRefused
from refed_dspy.filters.base import Decision, JudgeFilter, Step, labels
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import SHORT, End, last_end, state_in, write_end
from refed_dspy.programs.judges import PairwiseJudge
from refed_dspy.programs.saved import save_program
from refed_dspy.records import DataRow
from refed_dspy.runs.filter.apply import Decisions
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
    assert state_in(tmp_path / "out") == SHORT
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


# --- custom filters: labels, decisions, and the errors that they raise


class CustomJudge(JudgeFilter):
    name = "custom judge"

    async def judged(self, row: DataRow, item: str) -> Decision:
        if row.number == 2:
            raise NoAnswer("custom", item, "busy")
        return Decision(row.number != 3, "third", row.number / 2)


def test_labels_differ_whatever_filters_are_called() -> None:
    steps = [Step(CustomFilter(name), {}) for name in ("rouge", "rouge", "rouge 2", "rouge", "rouge 2 2")]
    assert labels(steps) == ["rouge", "rouge 2", "rouge 2 2", "rouge 3", "rouge 2 2 2"]


def test_an_edited_filter_is_named_by_what_changed(said: Said, tmp_path: Path) -> None:
    class Edited(CustomFilter):
        def check(self, row: DataRow) -> Any:
            return Decision(row.number > 3)

    Edited.__qualname__, Edited.__module__ = (
        CustomFilter.__qualname__,
        CustomFilter.__module__,
    )  # as a cell that was run again
    filtered(tmp_path / "out", [CustomFilter()])
    with pytest.raises(RunDirError) as refused:
        filtered(tmp_path / "out", [Edited()])
    said(str(refused.value))


def test_custom_filters(tmp_path: Path) -> None:
    even = CustomFilter(check=lambda row: Decision(np.bool_(row.number % 2 == 0), "odd", np.float32(row.number)))  # type: ignore[arg-type]
    made = filtered(tmp_path / "out", [even, "refusals"])
    adds_up(made, 40)
    assert numbers(lines(made.out / "kept.jsonl")) == list(range(2, 41, 2))
    assert lines(made.out / "kept.jsonl")[0]["refed_filters"]["scores"] == {"mine": 2.0}
    judged = filtered(tmp_path / "judged", [CustomJudge()], PAIRS[:5], NumberJudge())
    assert numbers(lines(judged.out / "kept.jsonl")) == [1, 4, 5]
    assert numbers(lines(judged.out / "undecided.jsonl")) == [2]


def test_reasons_are_counted_in_one_order(tmp_path: Path) -> None:
    reasons = ["z", "b", "a", "b", "z"]
    made = filtered(
        tmp_path / "out", [CustomFilter(check=lambda row: Decision(False, reasons[row.number % 5]))], PAIRS[:11]
    )
    assert list(made.funnel()[0]["reasons"].items()) == [("b", 5), ("z", 4), ("a", 2)]
    adds_up(made, 11)
    even = filtered(
        tmp_path / "out",
        [CustomFilter(check=lambda row: Decision(False, reasons[row.number % 3]))],
        PAIRS[:6],
        force=True,
    )
    assert list(even.funnel()[0]["reasons"]) == ["a", "b", "z"], "equal counts by name, whichever came first"


class UnmarkedJudge:
    name = "unmarked"

    async def judged(self, row: DataRow, item: str) -> Decision: ...  # type: ignore[empty-body]


class Nameless:
    of_instruction = True

    def check(self, row: DataRow) -> Decision: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    "custom",
    [
        lambda _: True,
        CustomFilter,
        UnmarkedJudge(),
        Nameless(),
        CustomFilter(name=""),
    ],
    ids=["function", "class", "unmarked", "nameless", "unnamed"],
)
def test_a_filter_that_cannot_work_is_refused_before_anything(said: Said, tmp_path: Path, custom: Any) -> None:
    with said.by(ConfigError):
        filtered(tmp_path / "out", [custom])
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_custom_filter_has_its_name(said: Said, tmp_path: Path) -> None:
    with said.by(RunStopped):
        filtered(tmp_path / "out", [CustomFilter(check=lambda _: True)])

    def broken(row: DataRow) -> Decision:
        raise KeyError(row.number)

    with pytest.raises(KeyError) as raised:
        filtered(tmp_path / "out", [CustomFilter(check=broken)])
    said(raised.value.__notes__)


LIKE = "like a kept one"


def test_what_was_decided_is_given_back() -> None:
    made = {
        7: Decision(False, LIKE, 0.7, "the text"),
        2: Decision(True, "", 0.0, "", "unchanged"),
        3: Decision(True),
        5: Decision(False, LIKE, float("inf"), "another"),
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
    assert counts == {(False, LIKE, ""): 2, (True, "", "unchanged"): 1, (True, "", ""): 1}
    decisions[7] = Decision(True)
    assert decisions[7] == Decision(True) and decisions.keeps(7)

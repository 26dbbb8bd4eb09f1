"""Custom filters: labels, decisions, and the errors that they raise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refed_dspy.errors import ConfigError, NoAnswer, RunDirError, RunStopped
from refed_dspy.filters.base import Decision, JudgeFilter, Step, labels
from refed_dspy.records import DataRow
from refed_dspy.runs.filter.apply import Decisions
from tests.runs.filter.helpers import PAIRS, CustomFilter, NumberJudge, adds_up, filtered, lines, numbers
from tests.support.said import Said


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

    Edited.__qualname__ = CustomFilter.__qualname__  # as a cell that was run again
    filtered(tmp_path / "out", [CustomFilter()])
    with said.by(RunDirError):
        filtered(tmp_path / "out", [Edited()])


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

"""The report on a training: its tables, its picture, and its facts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.data.pairs import Pair
from refed_dspy.plugins.judge.training.people import GradedAnswer
from refed_dspy.plugins.judge.training.report import HeldOutPair, TrainingReport, reliability_picture, report_on
from refed_dspy.plugins.judge.training.spec import PAIRS, HeldOut
from refed_dspy.plugins.metrics.drawing import save
from refed_dspy.programs.judges import Criterion, Graded, Verdict
from tests.support.said import Said

HELD = HeldOut(frozenset(f"Task {n}." for n in range(20)), ("wit",), ("elk",))
RIGHT, WRONG, TIE = Verdict(1, True, ()), Verdict(-1, True, ()), Verdict(0, False, ())


def judged(number: int, before: Verdict, after: Verdict, **more: Any) -> HeldOutPair:
    """A pair of which people prefer A."""
    pair = Pair(instruction=f"Task {number}.", answer_a="a", answer_b="b", verdict=1, **more)
    return HeldOutPair(pair, before, after, {RIGHT: 0.8, WRONG: 0.3, TIE: 0.5}[after])


def reported(*more: HeldOutPair) -> TrainingReport:
    plain = [judged(n, RIGHT if n % 2 else TIE, RIGHT if n % 4 else WRONG) for n in range(20)]
    return report_on([*more, *plain], [], HELD, 0)


def test_each_set_has_its_accuracy_and_a_paired_gain(said: Said) -> None:
    made = reported(judged(0, WRONG, RIGHT, criterion="wit"), judged(1, RIGHT, RIGHT, system_a="elk"))
    new, criteria, systems, everything = made.sets
    assert (new.name, new.before.pairs, criteria.before.pairs, systems.before.pairs) == (PAIRS, 20, 1, 1)
    assert new.before.accuracy is not None and new.after.accuracy is not None and new.gain is not None
    assert (new.before.accuracy.mean, new.after.accuracy.mean) == (0.75, 0.75) and new.gain.mean == pytest.approx(0)
    assert criteria.gain is not None and (criteria.gain.mean, criteria.gain.low, criteria.gain.high) == (1, -1, 1)
    assert everything.before.pairs == 22
    said([change.name for change in made.criteria])  # most pairs first


def test_a_gain_is_proved_where_its_interval_is_above_zero() -> None:
    good = report_on([judged(n, TIE if n % 3 else RIGHT, RIGHT) for n in range(20)], [], HELD, 0)
    assert good.proved and good.gain is not None and good.gain.mean == pytest.approx(13 / 40)
    assert not reported().proved
    few = report_on([judged(n, WRONG, RIGHT) for n in range(4)], [], HELD, 0)
    assert not few.proved  # four instructions prove nothing


def test_pairs_that_people_left_a_tie_count_in_the_calibration_alone() -> None:
    tie = judged(1, RIGHT, RIGHT)
    tied = replace(tie, pair=tie.pair.model_copy(update={"verdict": 0.0}))
    made = report_on([tied], [], HELD, 0)
    assert made.gain is None and not made.proved and made.sets[0].cells()[2:5] == ("–", "–", "–")
    assert made.calibration_before.brier.mean == 0.25 and made.calibration_after.brier.mean == pytest.approx(0.09)


def test_grades_are_compared_with_the_mean_of_peoples() -> None:
    graded = [
        (
            GradedAnswer(f"Task {n}.", "t", Criterion("wit" if n % 2 else "depth", "d"), "", (1 + n % 5, 1 + n % 5)),
            Graded("d", 3, ""),
            Graded("d", 1 + n % 5, "", expected=1.5 + n % 5),
        )
        for n in range(20)
    ]
    made = report_on([judged(1, RIGHT, RIGHT)], graded, HELD, 0)
    wit, depth, everything = sorted(made.grades, key=lambda each: each.answers)
    assert everything.answers == 20
    assert "depth" in {wit.name, depth.name}
    assert everything.error_before.mean == pytest.approx(1.2) and everything.error_after.mean == pytest.approx(0.5)
    assert everything.before.pearson is None and everything.after.pearson == pytest.approx(1)


def test_tables_fit_a_terminal_and_facts_are_json(said: Said) -> None:
    names = [judged(n, TIE, RIGHT, criterion=f"a rather long name of the criterion {n}") for n in range(30)]
    made = reported(*names)
    lines = made.lines()
    said(lines)
    assert max(map(len, lines)) <= 120
    facts = json.loads(json.dumps(made.facts()))
    assert facts["proved"] is made.proved and len(facts["criteria"]) == 31


def test_the_picture_has_a_marker_for_each_bin(tmp_path: Path) -> None:
    made = reported()
    figure = reliability_picture(made)
    lines = figure.axes[0].lines
    markers = [line for line in lines if line.get_marker() not in (None, "None", "")]
    assert len(markers) == len(made.calibration_before.bins) + len(made.calibration_after.bins) >= 4
    save(figure, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")

"""How long work still takes: the pace of the last half of what came, and no word before there is enough."""

from __future__ import annotations

import pytest

from refed_dspy.ledger.summary import seconds_left, seconds_left_by_calls, span, time_left
from tests.support.said import Said


def test_what_comes_once_is_no_part_of_the_pace() -> None:
    moments = [100.0 + 0.1 * n for n in range(200)]  # 100 s until the first sample, then ten a second
    assert seconds_left(moments, moments[-1], 1_000, in_flight=8) == pytest.approx(100)


def test_a_pace_that_grows_is_read_from_the_last_half() -> None:
    slow = [float(n) for n in range(100)]
    moments = [*slow, *(99 + 0.1 * n for n in range(1, 101))]
    assert seconds_left(moments, moments[-1], 50, in_flight=8) == pytest.approx(5)


@pytest.mark.parametrize(("came", "in_flight"), [(0, 0), (1, 1), (19, 1), (63, 32)])
def test_nothing_is_told_of_too_little(came: int, in_flight: int) -> None:
    assert seconds_left([0.5 * n for n in range(came)], came, 100, in_flight) is None


def test_the_first_samples_are_judged_by_calls() -> None:
    assert seconds_left_by_calls(10, 5, 64, in_flight=1) == 118
    assert seconds_left_by_calls(10, 4, 64, 1) is seconds_left_by_calls(10, 9, 64, in_flight=32) is None
    assert seconds_left_by_calls(10, 70, 64, 1) is None, "more than were expected"


def test_a_pause_makes_it_longer() -> None:
    moments = [float(n) for n in range(40)]
    assert seconds_left(moments, 39, 10, 4) == 10 and seconds_left(moments, 59, 10, 4) == 20


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "5 s"), (12, "10 s"), (57, "55 s"), (58, "1 min"), (200, "3 min"), (23 * 60, "25 min"),
        (89 * 60, "90 min"), (100 * 60, "1.7 h"), (20.4 * 3600, "20 h"),
    ],
)  # fmt: skip
def test_time_is_rounded(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_the_end_is_near(said: Said) -> None:
    said(time_left(0.2))
    said(time_left(61))

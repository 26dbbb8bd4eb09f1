from __future__ import annotations

import time
from collections.abc import Iterable

import pytest

from refed_dspy.plugins.cluster.coordinator import LastWord
from refed_dspy.plugins.cluster.crew import LONGEST_LOOK, OPENING, SILENT, SilentWorkers
from tests.support.clocks import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def looked_at(silent: SilentWorkers, clock: Clock, words: Iterable[float], holders: str = "ab") -> list[str]:
    """What is found in looks half a second apart; b says such `words`, a none."""
    found: list[str] = []
    for at in words:
        clock.now += 0.5
        found = silent.look(set(holders), {"b": LastWord(0, at, {})})
    return found


LOOKS = int(2 * SILENT)


def test_who_says_nothing_for_long_is_silent(clock: Clock) -> None:
    silent = SilentWorkers()
    assert looked_at(silent, clock, range(LOOKS)) == [], "b said another word each time"
    assert looked_at(silent, clock, [7.0] * LOOKS) == []
    assert looked_at(silent, clock, [7.0] * 2) == ["b"]
    assert min(silent.quiet.values()) >= SILENT


def test_before_the_first_word_about_a_shard_models_may_be_loading(clock: Clock) -> None:
    silent = SilentWorkers()
    looks = int(2 * OPENING)
    assert looked_at(silent, clock, range(looks)) == []
    assert silent.slow() == ["a"]
    assert looked_at(silent, clock, range(2)) == ["a"]


def test_a_word_or_another_lease_begins_the_time_anew(clock: Clock) -> None:
    silent = SilentWorkers()
    looked_at(silent, clock, [1.0] * LOOKS)
    assert looked_at(silent, clock, [2.0] * 2, holders="b") == []
    assert looked_at(silent, clock, [2.0] * 2) == [], "a has begun another lease"


def test_where_nobody_looked_nobody_was_silent(clock: Clock) -> None:
    silent = SilentWorkers()
    looked_at(silent, clock, [1.0])
    clock.now += 3600
    assert looked_at(silent, clock, [1.0]) == []
    assert silent.quiet["b"] == LONGEST_LOOK

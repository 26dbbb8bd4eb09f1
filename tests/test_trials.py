"""What a compile's ledger tells of its candidates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.rows import Key, reserved
from refed_dspy.engine.trials import Trial, scored, trials, tried


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger.create(tmp_path) as made:
        yield made


def known(ledger: Ledger) -> dict[str, Trial]:
    return {trial.digest: trial for trial in trials(ledger)}


def test_an_empty_ledger_has_none(ledger: Ledger) -> None:
    assert trials(ledger) == []


def test_candidates_come_in_the_order_in_which_they_were_first_seen(ledger: Ledger) -> None:
    for seq, name in enumerate(["zeta", "alpha", "mid"]):
        ledger.commit(tried(name, seq, {"stage": {"text": f"naïve {name} 😀"}}))
    ledger.commit(tried("alpha", 7, {"stage": {"text": "another"}}))  # seen again, after a restart
    found = trials(ledger)
    assert [(trial.digest, trial.seq) for trial in found] == [("zeta", 0), ("alpha", 1), ("mid", 2)]
    assert found[1].state == {"stage": {"text": "naïve alpha 😀"}}, "the first one stays"
    assert all(trial.mean("validation") is None and trial.cost == 0 for trial in found)


def test_scores_are_kept_by_subset_and_averaged(ledger: Ledger) -> None:
    ledger.commit(tried("one", 0, {}))
    for example, subset, score in [("a", "validation", 1.0), ("b", "validation", 0.5), ("c", "test", 0.0)]:
        ledger.commit(scored("one", example, subset, score, {"wins": score, "coverage": 1.0}, 10))
    trial = known(ledger)["one"]
    assert trial.scores == {"validation": {"a": 1.0, "b": 0.5}, "test": {"c": 0.0}}
    assert trial.parts["validation"]["b"] == {"wins": 0.5, "coverage": 1.0}
    assert (trial.mean("validation"), trial.mean("test"), trial.mean("train")) == (0.75, 0.0, None)


def test_scored_again_it_keeps_what_had_been_spent(ledger: Ledger) -> None:
    """The replay of a restart scores everything again: one score stays, and the time and the money of the first."""
    ledger.commit(tried("one", 0, {}))
    ledger.commit(scored("one", "a", "validation", 0.25, {}, 100))
    ledger.commit(scored("one", "a", "validation", 0.75, {"wins": 1.0}, 900))
    trial = known(ledger)["one"]
    assert trial.scores == {"validation": {"a": 0.75}} and trial.spent == 100
    assert trial.parts["validation"]["a"] == {"wins": 1.0}


def test_spent_is_the_highest_and_cost_its_own_calls(ledger: Ledger) -> None:
    for seq, name in enumerate(["one", "two"]):
        ledger.commit(tried(name, seq, {}))
    for name, example, cost in [("one", "a", 500), ("one", "b", 300), ("two", "a", 800)]:
        ledger.commit(scored(name, example, "train", 1.0, {}, cost))
    for number, (role, name, cost) in enumerate(
        [("teacher", "one", 7), ("judge", "one", 5), ("teacher", "two", 11)], 1
    ):
        ledger.commit(reserved(number, Key(role, name, 0, "", "", f"k{number}"), "m", "e", cost))
    ledger.commit(reserved(4, Key("teacher", "one", 0, "", "", "k4"), "m", "e", None))  # of an unknown price
    found = known(ledger)
    assert (found["one"].spent, found["two"].spent) == (500, 800)
    assert (found["one"].cost, found["two"].cost) == (12, 11)


def test_what_belongs_to_no_candidate_is_no_trial(ledger: Ledger) -> None:
    ledger.commit(scored("", "a", "other", 1.0, {}, 0))
    ledger.commit(reserved(1, Key("reflection", "", 0, "", "", "k"), "m", "e", 9))
    assert trials(ledger) == []


def test_another_process_can_read_them_while_they_are_written(ledger: Ledger, tmp_path: Path) -> None:
    ledger.commit(tried("one", 0, {"a": 1}))
    ledger.commit(scored("one", "a", "test", 0.5, {}, 1))
    with Ledger.read(tmp_path) as reader:
        assert trials(reader) == trials(ledger)

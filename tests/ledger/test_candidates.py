"""What a compile's ledger tells of its candidates."""

from __future__ import annotations

import pytest

from refed_dspy.errors import RunDirError
from refed_dspy.ledger.candidates import (
    Candidate,
    baseline_and_best,
    candidate_seen,
    count_abstentions,
    enough,
    evaluation_abstained,
    evaluation_scored,
    load_candidates,
)
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Key, failed, reserved
from refed_dspy.records import Compared


def candidates_by_digest(ledger: Ledger) -> dict[str, Candidate]:
    return {candidate.digest: candidate for candidate in load_candidates(ledger)}


def test_candidates_come_in_the_order_in_which_they_were_first_seen(ledger: Ledger) -> None:
    states = {name: {"stage": {"text": f"naïve {name} 😀"}} for name in ("zeta", "alpha", "mid")}
    for seq, (name, state) in enumerate(states.items()):
        ledger.commit(candidate_seen(name, seq, state))
    ledger.commit(candidate_seen("alpha", 7, {"stage": {"text": "another"}}))  # seen again, after a restart
    candidates = load_candidates(ledger)
    assert [(candidate.digest, candidate.seq) for candidate in candidates] == [("zeta", 0), ("alpha", 1), ("mid", 2)]
    assert candidates[1].state == states["alpha"]
    assert all(candidate.mean("validation") is None and candidate.cost == 0 for candidate in candidates)


def test_scores_are_kept_by_subset_and_averaged(ledger: Ledger) -> None:
    ledger.commit(candidate_seen("one", 0, {}))
    for example, subset, score in [("a", "validation", 1.0), ("b", "validation", 0.5), ("c", "test", 0.0)]:
        ledger.commit(evaluation_scored("one", example, subset, score, {"wins": score, "coverage": 1.0}, 10))
    ledger.commit(evaluation_scored("one", "d", "test", 1.0, {"wins": 1.0}, 10))
    candidate = candidates_by_digest(ledger)["one"]
    assert candidate.scores == {"validation": {"a": 1.0, "b": 0.5}, "test": {"c": 0.0, "d": 1.0}}
    assert candidate.components["validation"]["b"] == {"wins": 0.5, "coverage": 1.0}
    assert (candidate.mean("validation"), candidate.mean("test"), candidate.mean("train")) == (0.75, 0.5, None)
    assert candidate.component_means("test") == {"coverage": 1.0, "wins": 0.5}, "over the examples that have them"
    assert candidate.component_means("train") == {}


def test_where_the_one_that_was_kept_is_lost_the_ledger_is_damaged(ledger: Ledger) -> None:
    ledger.commit(candidate_seen("one", 0, {}))
    ledger.set_meta(outcome={"candidate": "two"})
    with pytest.raises(RunDirError):
        load_candidates(ledger)


def test_the_verdicts_behind_a_score_are_kept_beside_its_components(ledger: Ledger) -> None:
    ledger.commit(candidate_seen("one", 0, {}))
    compared = Compared(0.6, [(1.0, 0.25), (0.5, -0.1)])
    ledger.commit(evaluation_scored("one", "a", "test", 0.5, {"wins": 0.75, "length_cost": 0.125}, 0, compared))
    ledger.commit(evaluation_scored("one", "b", "test", 0.25, {"wins": 0.5, "compared": 0.3}, 0))  # a part by its name
    candidate = candidates_by_digest(ledger)["one"]
    assert candidate.compared == {"test": {"a": compared}}
    assert candidate.component_means("test") == {"compared": 0.3, "length_cost": 0.125, "wins": 0.625}
    assert candidate.undiscounted("test") == {"a": 0.625, "b": 0.25} and candidate.undiscounted("train") == {}


def test_scored_again_it_keeps_what_had_been_spent(ledger: Ledger) -> None:
    """The replay of a restart scores everything again: one score stays, and the time and the money of the first."""
    ledger.commit(candidate_seen("one", 0, {}))
    ledger.commit(evaluation_scored("one", "a", "validation", 0.25, {}, 100))
    ledger.commit(evaluation_scored("one", "a", "validation", 0.75, {"wins": 1.0}, 900))
    candidate = candidates_by_digest(ledger)["one"]
    assert candidate.scores == {"validation": {"a": 0.75}} and candidate.spent == 100
    assert candidate.components["validation"]["a"] == {"wins": 1.0}


def test_spent_is_the_highest_and_cost_its_own_calls(ledger: Ledger) -> None:
    for seq, name in enumerate(["one", "two"]):
        ledger.commit(candidate_seen(name, seq, {}))
    for name, example, cost in [("one", "a", 500), ("one", "b", 300), ("two", "a", 800)]:
        ledger.commit(evaluation_scored(name, example, "train", 1.0, {}, cost))
    for number, (role, name, cost) in enumerate(
        [("teacher", "one", 7), ("judge", "one", 5), ("teacher", "two", 11)], 1
    ):
        ledger.commit(reserved(number, Key(role, name, 0, f"k{number}"), "m", "e", cost))
    ledger.commit(reserved(4, Key("teacher", "one", 0, "k4"), "m", "e", None))  # of an unknown price
    candidates = candidates_by_digest(ledger)
    assert (candidates["one"].spent, candidates["two"].spent) == (500, 800)
    assert (candidates["one"].cost, candidates["two"].cost) == (12, 11)


def test_what_belongs_to_no_candidate_is_no_trial(ledger: Ledger) -> None:
    ledger.commit(evaluation_scored("", "a", "other", 1.0, {}, 0))
    ledger.commit(reserved(1, Key("reflection", "", 0, "k"), "m", "e", 9))
    assert load_candidates(ledger) == []


def test_the_first_candidate_and_the_best_on_the_validation_set(ledger: Ledger) -> None:
    assert baseline_and_best(load_candidates(ledger)) == (None, None)
    for seq, (name, score) in enumerate([("one", 0.25), ("two", 0.75), ("three", 0.5)]):
        ledger.commit(candidate_seen(name, seq, {}))
        assert baseline_and_best(load_candidates(ledger)[seq:]) == (None, None), "not before it is scored"
        ledger.commit(evaluation_scored(name, "a", "validation", score, {}, 0))
    assert baseline_and_best(load_candidates(ledger)) == (0.25, 0.75)


@pytest.mark.parametrize(("of", "least"), [(0, 1), (1, 1), (5, 4), (10, 8), (12, 10)])
def test_four_fifths_of_a_set_are_enough(of: int, least: int) -> None:
    assert enough(least, of) and not enough(least - 1, of)


def test_an_abstention_counts_once_and_only_until_it_is_scored(ledger: Ledger) -> None:
    for candidate, example in [("one", "a"), ("one", "b"), ("one", "a"), ("two", "a"), ("", "a")]:
        ledger.commit(evaluation_abstained(candidate, example, "train", "the judge abstained"))
    assert count_abstentions(ledger) == 4
    ledger.commit(evaluation_scored("one", "a", "train", 0.5, {}, 0))
    ledger.commit(evaluation_scored("one", "c", "train", 0.5, {}, 0))
    assert count_abstentions(ledger) == 3
    ledger.commit(evaluation_abstained("one", "a", "train", "no model answered, this time"))
    assert count_abstentions(ledger) == 3, "its score stays"
    ledger.commit(failed(Key("teacher", "one", 0, "k"), "cut", "cut at 9", True, []))
    assert count_abstentions(ledger) == 3, "other failures are none"
    ledger.commit(candidate_seen("one", 0, {}))
    ledger.begin([], work="compile")
    assert load_candidates(ledger) == [] and count_abstentions(ledger) == 0, "other work inherits nothing"
    assert ledger.db.execute("SELECT count(*) FROM evaluations").fetchone() == (0,)

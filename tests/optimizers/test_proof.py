"""The proof: paired by example, clustered by reference, and the champion on what it did not see either."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import numpy as np
import pytest

from refed_dspy.ledger.candidates import Candidate
from refed_dspy.measures.embedder import Vectors
from refed_dspy.measures.intervals import Interval, share_interval
from refed_dspy.optimizers.examples import Split, cluster_of
from refed_dspy.optimizers.proof import Gain, ProgramScore, Proof, find_topics, gain_over, program_score, topics_of
from refed_dspy.records import Compared
from tests.support.said import Said


def candidate(scores: Mapping[str, float], components: Mapping[str, Mapping[str, float]] | None = None) -> Candidate:
    by_example = {name: {} for name in scores} if components is None else components
    return Candidate("d", 0, {}, 0.0, {"test": scores, "validation": {"v": 0.9}}, {"test": by_example}, 0, 0)


def one_cluster_each(scores: Mapping[str, float]) -> dict[str, str]:
    return {name: name for name in scores}


OLD = {f"e{n}": 0.1 * (n % 3) for n in range(8)}
NEW = {name: score + 0.3 + 0.02 * (n % 4) for n, (name, score) in enumerate(OLD.items())}


def interval(mean: float, low: float, high: float, clusters: int = 8) -> Interval:
    return Interval(mean, low, high, clusters, clusters)


def gained(mean: float, low: float, high: float, clusters: int = 8, level: Interval | None = None) -> Gain:
    return Gain(interval(mean, low, high, clusters), level)


def a_score(mean: float = 0.5, **components: float) -> ProgramScore:
    return ProgramScore(interval(mean, mean - 0.1, mean + 0.1), components, 0.002)


# --- paired


def test_the_gain_is_the_mean_difference_of_each_pair() -> None:
    gain = gain_over(candidate(NEW), candidate(OLD), one_cluster_each(OLD))
    assert gain is not None and gain.held_out == 8
    assert gain.raw.mean == pytest.approx(0.33) and (gain.raw.n, gain.raw.clusters) == (8, 8)
    assert 0.3 <= gain.raw.low < 0.33 < gain.raw.high <= 0.36, "the spread of the scores themselves is no part of it"
    assert gain.least is not None and 0.02 < gain.least < 0.05, "1.6 times the spread of the differences"


def test_a_cluster_counts_once_however_many_examples_it_has() -> None:
    """Nine examples of one instruction gained 1, one example of another lost 1: that is even. What only one of both was
    scored on is left out."""
    new = {**{f"a{n}": 1.0 for n in range(9)}, "b0": 0.0, "c0": 1.0}
    old = {**{f"a{n}": 0.0 for n in range(9)}, "b0": 1.0, "d0": 1.0}
    gain = gain_over(candidate(new), candidate(old), {name: name[0] for name in {**new, **old}})
    assert gain is not None and gain.raw.mean == pytest.approx(0) and (gain.raw.n, gain.raw.clusters) == (10, 2)


def test_the_champion_s_seen_references_are_left_out() -> None:
    unseen = frozenset(["e1", "e2"])
    gain = gain_over(candidate(NEW), candidate(OLD), one_cluster_each(OLD), unseen=unseen)
    assert gain is not None and gain.raw.clusters == 2 and gain.raw.mean == pytest.approx((0.32 + 0.34) / 2)
    assert gain_over(candidate(NEW), candidate(OLD), one_cluster_each(OLD), unseen=frozenset()) is None


def test_references_of_one_topic_count_once(said: Said) -> None:
    topics = {name: f"topic {int(name[1]) // 3}" for name in OLD}
    gain = gain_over(candidate(NEW), candidate(OLD), one_cluster_each(OLD), topics)
    assert gain is not None and (gain.held_out, gain.raw.clusters) == (8, 3)
    first, second, third = 0.3 + 0.02, (0.36 + 0.3 + 0.32) / 3, 0.3 + 0.05
    assert gain.raw.mean == pytest.approx((first + second + third) / 3)
    proof = Proof(a_score(), a_score(), gain)
    said([proof.lines()[-1], *proof.doubts()])
    said(replace(proof, topics=False).assumed())


# --- one program


def test_a_program_is_measured_by_cluster_with_the_means_of_its_components() -> None:
    scores = {"a1": 1.0, "a2": 0.5, "b1": 0.25}
    components = {"a1": {"wins": 1.0, "grades": 0.5}, "a2": {"wins": 0.0}, "b1": {"wins": 0.5, "grades": 1.0}}
    score = program_score(candidate(scores, components), {"a1": "a", "a2": "a", "b1": "b"}, 5.0, seed=3)
    assert score is not None
    assert score.score == share_interval([1.0, 0.5, 0.25], ["a", "a", "b"], seed=3) and score.score.mean == 0.5
    beyond = program_score(candidate({"a1": -2.0, "b1": 3.0}), {"a1": "a", "b1": "b"}, None, seed=3)
    assert beyond is not None and (beyond.score.low, beyond.score.high) == (-2.0, 3.0), "a metric of one's own"
    assert dict(score.components) == {"wins": 0.5, "grades": 0.75} and score.unit_cost == 5.0


# --- proved or not


@pytest.mark.parametrize(
    ("low", "clusters", "proved"),
    [(0.01, 8, True), (0.01, 5, True), (0.01, 4, False), (0.0, 8, False), (-0.1, 8, False)],
)
def test_a_gain_is_proved_above_zero_on_five_references(low: float, clusters: int, proved: bool) -> None:
    assert Proof(a_score(), a_score(), gained(0.2, low, 0.4, clusters)).proved is proved


def test_a_champion_is_what_must_be_beaten() -> None:
    sure, unsure = gained(0.2, 0.1, 0.3), gained(0.0, -0.1, 0.1)
    assert not Proof(a_score(), a_score(), sure, champion=a_score(), over_champion=unsure).proved
    assert Proof(a_score(), a_score(), unsure, champion=a_score(), over_champion=sure).proved
    assert not Proof(a_score(), a_score(), sure, champion=a_score(), over_champion=None).proved, "it saw all of them"


def test_a_program_that_was_scored_on_too_little_proves_nothing() -> None:
    whole = Proof(a_score(), a_score(), gained(0.2, 0.1, 0.3), whole=True)
    assert whole.proved and not (part := replace(whole, whole=False)).proved
    assert not replace(part, champion=a_score(), over_champion=whole.gain).proved
    assert part.facts()["proved"] is False


@pytest.mark.parametrize(
    ("raw", "level", "rests"),
    [
        (interval(0.2, 0.1, 0.3), None, False),
        (interval(0.2, 0.1, 0.3), interval(0.15, 0.05, 0.3), False),
        (interval(0.2, 0.1, 0.3), interval(0.02, -0.1, 0.2), True),
        (interval(0.2, 0.1, 0.3), interval(0.2, -math.inf, math.inf), True),
        (interval(0.0, -0.1, 0.1), interval(0.15, 0.05, 0.3), None),
    ],
)
def test_a_gain_that_is_none_at_equal_length_is_proved_by_a_word_alone(
    raw: Interval, level: Interval | None, rests: bool | None
) -> None:
    """What is no gain to begin with is none at equal length either."""
    for against in (None, a_score()):
        gain = Gain(raw, level)
        facts: dict[str, Any] = {"gain": gain, "champion": against, "over_champion": against and gain}
        plain, accepted = (Proof(a_score(), a_score(), **facts, accept_longer=word) for word in (False, True))
        assert plain.rests_on_length is accepted.rests_on_length is bool(rests)
        assert plain.proved is (rests is False) and accepted.proved is (rests is not None)
        assert ("accept_longer=True" in "".join(plain.doubts() + accepted.doubts())) is bool(rests)
        assert plain.facts()["rests_on_length"] is bool(rests)


def test_the_gain_at_equal_length_is_of_the_raw_scores() -> None:
    """Each reference's score is 0.3, of 0.4 before a discount of its wins, and half of its answers are longer."""
    scores, components = {f"e{n}": 0.3 for n in range(8)}, {f"e{n}": {"length_cost": 0.1} for n in range(8)}
    verdicts = Compared(weight=0.5, verdicts=[(1.0, 0.3), (1.0, -0.3)])
    new = replace(candidate(scores, components), compared={"test": dict.fromkeys(scores, verdicts)})
    gain = gain_over(new, candidate(dict.fromkeys(scores, 0.1)), one_cluster_each(scores))
    assert gain is not None and (level := gain.equal_length) is not None
    assert gain.raw.mean == pytest.approx(0.3) and level.mean == pytest.approx(0.3) and level.n == 8
    measured = program_score(new, one_cluster_each(scores), None, seed=0)
    assert measured is not None and measured.score.mean == pytest.approx(0.4)
    alone = gain_over(new, candidate({"e0": 0.1}), {"e0": "e0"})
    assert alone is not None and alone.equal_length is not None and math.isinf(alone.equal_length.high)


# --- as lines and facts


def test_the_table_has_a_row_for_each_program_and_a_line_for_each_gain(said: Said) -> None:
    proof = Proof(
        a_score(0.4, wins=0.5, grades=0.25, coverage=1.0, length_ratio=1.0),
        a_score(0.7, wins=0.75, coverage=0.9, length_ratio=1.25),
        gained(0.3, 0.2, 0.4, 16, interval(0.3, -math.inf, math.inf)),
        ProgramScore(interval(0.5, 0.4, 0.6), {"wins": 0.6}, None),
        replace(gained(0.2, 0.1, 0.3, 9, interval(0.15, 0.05, 0.25)), held_out=12, least=0.084),
    )
    said(proof.lines())
    said(Proof(a_score(), a_score(), gained(0.0, 0.0, 0.0)).lines())


def test_a_negative_gain_is_called_a_loss(said: Said) -> None:
    worse = Proof(a_score(0.5), a_score(0.45), gained(-0.05, -0.12, 0.02, 8))
    lost = replace(worse, champion=a_score(0.5), over_champion=gained(-0.05, -0.12, 0.02, 8))
    for proof in (worse, lost, replace(worse, gain=gained(-0.001, -0.01, 0.01))):
        said([proof.lines()[-1], *proof.doubts()])


def test_facts_are_json_that_says_the_same() -> None:
    proof = Proof(a_score(0.4, wins=0.5), a_score(0.7, wins=0.7), gained(0.3, 0.2, 0.4))
    facts: dict[str, Any] = json.loads(json.dumps(proof.facts(), allow_nan=False))
    assert facts["proved"] is True and facts["gain"] == {"mean": 0.3, "low": 0.2, "high": 0.4, "n": 8, "clusters": 8}
    assert facts["compiled"]["parts"] == {"wins": 0.7} and facts["champion"] is None


def test_no_interval_leaves_what_is_possible(said: Said) -> None:
    """Student's from two references may: -0.02 (-5.16 to 5.11)."""
    new, old = candidate({"a": 0.9, "b": 0.1}), candidate({"a": 0.1, "b": 0.94})
    gain = gain_over(new, old, {"a": "a", "b": "b"})
    assert gain is not None and (gain.raw.low, gain.raw.high) == (-1.0, 1.0)
    said(gain.line("uncompiled", "references"))


def test_where_nothing_was_changed_there_is_nothing_to_prove(said: Said) -> None:
    same = Proof(a_score(), a_score(), gained(0.0, 0.0, 0.0), same=True)
    said([*same.lines(), *same.doubts()])
    assert not same.proved
    over = replace(same, champion=a_score(0.4), over_champion=gained(0.1, 0.05, 0.2))
    assert over.proved and over.doubts() == []
    said(over.lines()[-1])


ELSEWHERE = Candidate("d", 0, {}, 0.0, {"validation": {"e0": 1.0}}, {"validation": {"e0": {}}}, 0, 0)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (candidate({}), candidate({})),
        (candidate({"a": 1.0}), candidate({"b": 1.0})),
        (ELSEWHERE, candidate(OLD)),
    ],
    ids=["nothing", "others", "of another set"],
)
def test_nothing_shared_gives_no_gain(new: Candidate, old: Candidate) -> None:
    assert gain_over(new, old, {"a": "a", "b": "b", **one_cluster_each(OLD)}) is None
    assert program_score(ELSEWHERE, one_cluster_each(OLD), None, seed=0) is None


# --- topics of held-out references


def directions(*angles: float) -> Vectors:
    return np.array([[np.cos(np.radians(each)), np.sin(np.radians(each))] for each in angles], dtype=np.float32)


def test_what_points_the_same_way_is_one_topic() -> None:
    assert topics_of(directions(0, 20, 180, 200), list("abcd"), 0.15) == ["a", "a", "c", "c"]
    assert topics_of(directions(0, 120, 240), list("abc"), 0.15) == ["a", "b", "c"]


def test_a_chain_of_neighbours_is_not_one_topic() -> None:
    topics = topics_of(directions(0, 60, 120, 180, 240, 300), list("abcdef"), 0.15)
    assert 1 < len(set(topics)) < 6


def test_one_in_the_very_middle_is_nobodys_relative() -> None:
    vectors = np.vstack([directions(0, 10), np.zeros((1, 2), dtype=np.float32)])
    assert topics_of(vectors, list("abc"), 0.15) == ["a", "a", "c"]


def examples(*instructions: str) -> tuple[dspy.Example, ...]:
    return tuple(dspy.Example(instruction=each).with_inputs("instruction") for each in instructions)


BREAD = ("Explain how to keep a sourdough starter alive.", "My sourdough loaf comes out dense. What should I change?")
OTHERS = ("Prove that the square root of 2 is irrational.", "Write a cover letter for a junior data analyst.",
          "When should I prune apple trees?", "Plan three days in Lisbon with two children.")  # fmt: skip


@pytest.mark.live
def test_two_on_bread_are_one_topic() -> None:
    split = Split(examples(*OTHERS), (), examples(*BREAD, *OTHERS[:3]))
    topics = find_topics(split)
    assert topics is not None and len(topics) == 5
    first, second, *others = (topics[cluster_of(example)] for example in split.test)
    assert first == second and len({first, *others}) == 4


def test_without_the_embedding_model_or_instructions_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_topics(Split((), (), examples(*BREAD))) is None
    numbers = tuple(dspy.Example(x=n).with_inputs("x") for n in range(3))
    assert find_topics(Split((), (), numbers)) is None

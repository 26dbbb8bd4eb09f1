"""The gain at equal length: by hand, against judges that count words, and for gains that are true."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from benchmarks.promotion import GAIN, RATIOS, Comparison, counts_words, scores, swayed
from refed_dspy.measures.equal_length import equal_length_gain
from refed_dspy.measures.intervals import Interval, gain_interval, is_gain, mean_interval
from refed_dspy.records import Compared

Verdicts = Sequence[Sequence[tuple[float, float]]]
"""Of each reference: (win, log of the length ratio) of each answer."""


def controlled(new: Verdicts, old: Verdicts | None = None, weight: float = 1.0, seed: int = 0) -> Interval:
    """The gain at equal length where the score is the weighted wins; the old program ties unless it is given."""
    old = old or [[(0.5, 0.0)] * len(answers) for answers in new]
    names = [f"r{number}" for number in range(len(new))]
    means = [[np.mean([win for win, _ in answers]) for answers in side] for side in (new, old)]
    gains = {name: weight * float(a - b) for name, a, b in zip(names, *means, strict=True)}
    of_new, of_old = (
        {name: Compared(weight, answers) for name, answers in zip(names, side, strict=True)} for side in (new, old)
    )
    return equal_length_gain(gains, of_new, of_old, {name: name for name in names}, seed=seed)


def drawn(seed: int, ratio: float, judge: Callable[[float], float], references: int = 8) -> Verdicts:
    rng = random.Random(seed)
    return [
        [(judge(longer), longer) for longer in (rng.gauss(math.log(ratio), 0.25) for _ in range(4))]
        for _ in range(references)
    ]


def by_words(longer: float) -> float:
    return float(longer > 0)


# --- by hand


def test_a_gain_at_equal_lengths_is_the_raw_gain() -> None:
    wins = [(1.0, 0.5), (1.0, 1.0), (0.5, 1.0), (0.0, 1.0), (1.0, 1.0)]
    made = controlled([[(win, 0.0) for win in pair] for pair in wins], weight=0.6)
    raw = mean_interval([0.6 * (sum(pair) / 2 - 0.5) for pair in wins])
    assert (made.mean, made.low, made.high) == pytest.approx((raw.mean, raw.low, raw.high))


def test_what_the_longer_answers_won_is_taken_out_and_what_wins_at_any_length_stays() -> None:
    """In each reference the answer that is longer by half wins, and the one that is shorter by half loses; a third is
    longer, too, and wins: by the sign of the difference, length is all there is."""
    made = controlled([[(1.0, 0.5), (0.0, -0.5), (1.0, 0.5)]] * 6)
    assert made.mean == pytest.approx(0) and not is_gain(made)
    made = controlled([[(1.0, 0.5), (1.0, -0.1), (1.0, 0.7)]] * 6)
    assert made.mean == pytest.approx(0.5) and is_gain(made)


@pytest.mark.parametrize("judge", [by_words, lambda longer: 0.5 + max(-0.5, min(0.5, longer))], ids=["words", "share"])
@pytest.mark.parametrize("much_shorter", [False, True])
def test_a_liking_for_length_is_taken_out_whether_it_goes_by_more_or_by_how_much_more(
    judge: Callable[[float], float], much_shorter: bool
) -> None:
    """Answers 1.3 times as long; or most by a little, and one of four much shorter."""
    few = {0: -1.6, 1: 0.05, 2: 0.1, 3: 0.15}
    for seed in range(2):
        new = drawn(seed, 1.3, judge, references=16)
        if much_shorter:
            longer = [[few[n] * random.Random(seed + i).uniform(0.9, 1.1) for n in few] for i in range(16)]
            new = [[(judge(each), each) for each in answers] for answers in longer]
        assert not is_gain(controlled(new))


def test_a_program_that_writes_as_long_as_the_champion_is_not_charged_for_it() -> None:
    """Both are longer than the uncompiled program by as much, on a judge that likes that."""
    wins = [0.0, 0.5, 1.0]
    champion = [[(max(0.0, win - 0.25), 0.2 + 0.3 * win) for win in wins] for _ in range(8)]
    compiled = [[(win, 0.2 + 0.3 * win) for win in wins] for _ in range(8)]
    assert controlled(compiled, champion).mean == pytest.approx(1 / 6)


def test_who_is_only_longer_than_the_champion_gains_nothing_over_it() -> None:
    compiled, champion = drawn(1, 1.5, by_words), drawn(2, 1.0, by_words)
    wins = ([float(np.mean([win for win, _ in answers])) for answers in side] for side in (compiled, champion))
    raw = [a - b for a, b in zip(*wins, strict=True)]
    assert is_gain(gain_interval(raw)) and not is_gain(controlled(compiled, champion))


@pytest.mark.parametrize("shorter", [0, 1, 2, 3])
def test_answers_that_are_always_longer_cannot_be_told_from_better_ones(shorter: int) -> None:
    """Always, or but for those of two references."""
    new = [[(1.0, -0.1 if number < shorter else 0.2), (1.0, 0.4)] for number in range(8)]
    made = controlled(new)
    assert math.isinf(made.low) is math.isinf(made.high) is (shorter < 3)
    assert made.mean == pytest.approx(0.5) and (made.n, made.clusters) == (8, 8)
    assert is_gain(controlled([[(1.0, -0.3), (0.5, -0.6)], [(1.0, -0.2), (1.0, -0.9)]] * 4)), "always shorter"


def test_references_without_a_verdict_and_one_reference_alone() -> None:
    gains, clusters = {"a": 0.2, "b": 0.1}, {"a": "a", "b": "b"}
    old = {name: Compared(0.6, [(0.5, 0.0)]) for name in gains}
    made = equal_length_gain(gains, {name: Compared(0.6, []) for name in gains}, old, clusters)
    assert made.mean == pytest.approx(0.15) and math.isinf(made.low)
    assert math.isinf(equal_length_gain({"a": 0.2}, {}, {}, clusters).low)
    many = {f"a{number}": 1.0 for number in range(9)} | {"b": 0.0}
    made = equal_length_gain(many, {}, {}, {name: name[0] for name in many})
    assert made.mean == pytest.approx(0.5) and made.clusters == 2, "examples of a cluster count once"


def test_the_order_of_references_does_not_matter_and_the_seed_does() -> None:
    verdicts = drawn(3, 1.1, lambda longer: 0.5 + 0.5 * math.tanh(2 * longer))
    new = {f"r{number}": Compared(0.6, answers) for number, answers in enumerate(verdicts)}
    gains, clusters = {name: random.Random(name).random() for name in new}, {name: name for name in new}
    first = equal_length_gain(gains, new, {}, clusters, seed=1)
    assert equal_length_gain(dict(reversed(gains.items())), new, {}, clusters, seed=1) == first
    assert equal_length_gain(gains, new, {}, clusters, seed=2) != first


# --- judges that like length, and gains that are true


@pytest.mark.parametrize(("ratio", "references"), [(RATIOS[-1], 8), (1.34, 16)])
def test_a_judge_that_counts_words_promotes_nothing(ratio: float, references: int) -> None:
    assert sum(Comparison(counts_words, ratio, references).promotions(7, 10)) <= 1


def test_a_judge_that_is_swayed_promotes_no_more_than_chance_does() -> None:
    assert sum(Comparison(swayed, 1.34).promotions(1, 20)) <= 2


@pytest.mark.parametrize(("ratio", "references", "least"), [(1.0, 8, 5), (1.0, 16, 9), (1.34, 16, 7)])
def test_a_true_gain_is_found(ratio: float, references: int, least: int) -> None:
    """`make bench` measures how often (benchmarks/promotion.py)."""
    assert sum(Comparison(scores(GAIN), ratio, references).promotions(0, 10)) >= least


def test_lengths_that_hardly_differ_and_odd_wins_do_no_harm() -> None:
    rng = random.Random(5)
    new = [[(rng.choice([0.0, 0.5, 1.0]), rng.gauss(0, 1e-9)) for _ in range(4)] for _ in range(8)]
    assert math.isfinite(controlled(new).low) and math.isfinite(controlled([[(1.0, 1e6), (0.0, -1e6)]] * 8).low)

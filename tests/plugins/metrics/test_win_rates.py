"""Win rates: AlpacaEval's arithmetic against published figures, length control against a plain fit and simulation."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize

from benchmarks.alpaca import DATA, figures_agree, same
from refed_dspy.measures.intervals import mean_interval
from refed_dspy.plugins.metrics.win_rates import (
    LC_NOTE,
    LEAST_CLUSTERS,
    LengthControlled,
    length_controlled,
    preferences,
    win_rate,
)
from tests.support.said import Said

Floats = NDArray[np.float64]


def simulated(
    n: int, beta: float, theta: float, *, mean: float = 0.5, ties: float = 0.0, seed: int = 1
) -> tuple[list[float], list[float]]:
    """Wins and length differences in characters, drawn from the model itself."""
    rng = np.random.default_rng(seed)
    differences = rng.normal(mean, 1, n)
    chance = 1 / (1 + np.exp(-(beta * np.tanh(differences / differences.std()) + theta)))
    wins = np.where(rng.random(n) < ties, 0.5, rng.random(n) < chance)
    return wins.tolist(), (700 * differences).tolist()


def estimate(wins: Sequence[float], differences: Sequence[float], **more: Any) -> float:
    return rate_of(length_controlled(wins, differences, **more))


def rate_of(lc: LengthControlled) -> float:
    assert lc.interval is not None
    return lc.interval.mean


def plainly(wins: Floats, columns: Floats, weights: Floats) -> Floats:
    """The fit by SciPy's own minimizer, with the same prior: slopes come with sd 2, the intercept (last) with 5."""
    sd = np.array([2.0] * (columns.shape[1] - 1) + [5.0])

    def loss(beta: Floats) -> float:
        logit = columns @ beta
        return float(np.sum(weights * (np.logaddexp(0, logit) - wins * logit)) + np.sum((beta / sd) ** 2) / 2)

    return np.asarray(minimize(loss, np.zeros(columns.shape[1]), tol=1e-10).x)


# --- AlpacaEval's arithmetic


@pytest.mark.skipif(not DATA.is_file(), reason="the published preferences are not here")
def test_published_win_rates_and_standard_errors_are_reproduced(said: Said, capsys: pytest.CaptureFixture[str]) -> None:
    assert same(63.3315829, 63.33158) and not same(63.3316, 63.3317) and not same(1.42250, 1.42252), "six digits"
    models = json.loads(DATA.read_text(encoding="utf-8"))
    assert len(models) == 2
    for model in models.values():
        assert len(model["rows"]) == 805
        found = preferences([row["preference"] for row in model["rows"]])
        assert found.win_rate == pytest.approx(model["win_rate"], abs=5e-7)
        assert found.standard_error == pytest.approx(model["standard_error"], abs=5e-7)
        assert figures_agree(model)
        assert not figures_agree(model | {"win_rate": model["win_rate"] + 1e-4}), "the benchmark sees a difference"
    said(capsys.readouterr().out)


def test_preferences_by_hand() -> None:
    found = preferences([1.0, 2.0, 0, 1.25])
    assert found.n == 4 and found.win_rate == pytest.approx(100 * (0 + 1 + 0.5 + 0.25) / 4)
    values = [0, 1, 0.5, 0.25]
    variance = sum((v - 0.4375) ** 2 for v in values) / 3
    assert found.standard_error == pytest.approx(100 * math.sqrt(variance / 4))
    assert math.isnan(preferences([2]).standard_error) and preferences([2]).win_rate == 100


@pytest.mark.parametrize("bad", [[], [0.5], [2.01], [-1], [math.nan], [1.5, math.inf], [[1.5]]])
def test_other_preferences_are_refused(said: Said, bad: Any) -> None:
    with said.by(ValueError):
        preferences(bad)


# --- the plain win rate


def test_the_win_rate_is_the_mean_interval_in_percent() -> None:
    wins, clusters = [1, 0.5, 0, 1, 1, 0.25, 1, 0, 1, 1], [0, 0, 1, 1, 2, 2, 3, 4, 5, 6]
    ours, theirs = win_rate(wins, clusters, seed=3), mean_interval(wins, clusters, seed=3)
    assert [ours.mean, ours.low, ours.high] == pytest.approx([100 * v for v in (theirs.mean, theirs.low, theirs.high)])
    assert (ours.n, ours.clusters) == (10, 7)


def test_the_win_rate_never_leaves_its_range() -> None:
    three = win_rate([1, 0, 1], ["a", "a", "a"])
    assert (three.low, three.high) == (0, 100) and three.mean == pytest.approx(200 / 3)
    few = win_rate([1, 1, 0])
    assert (few.low, few.high) == (0, 100)


# --- length control


def test_a_lead_by_length_alone_is_taken_away_and_one_by_quality_stays() -> None:
    wins, differences = simulated(600, 3.0, 0.0, mean=0.8)
    assert win_rate(wins).mean > 70
    assert estimate(wins, differences) == pytest.approx(50, abs=6)
    wins, differences = simulated(600, 0.0, 1.0, mean=0.8)
    lc = length_controlled(wins, differences)
    assert rate_of(lc) == pytest.approx(win_rate(wins).mean, abs=2) and rate_of(lc) == pytest.approx(73.1, abs=5)
    assert lc.beta == pytest.approx(0, abs=0.4) and lc.note == ""


@pytest.mark.slow
def test_the_true_rate_is_inside_9_of_10_intervals() -> None:
    inside = 0
    for seed in range(60):
        wins, differences = simulated(40, 1.5, 0.4, seed=seed)
        interval = length_controlled(wins, differences).interval
        assert interval is not None
        inside += interval.low <= 100 / (1 + math.exp(-0.4)) <= interval.high
    assert 53 <= inside <= 60


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_that_of_a_plain_minimizer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(12, 300))
    wins, differences = simulated(n, float(rng.normal(0, 3)), float(rng.normal(0, 2)), ties=0.3, seed=seed)
    clusters = rng.integers(0, max(11, n // 3), n)
    weights = 1 / np.bincount(clusters)[clusters]
    x = np.asarray(differences)
    sd = math.sqrt(np.average((x - np.average(x, weights=weights)) ** 2, weights=weights))
    columns = np.column_stack([np.tanh(x / sd), np.ones(n)])
    beta, theta = plainly(np.array(wins), columns, weights)
    lc = length_controlled(wins, differences, clusters.tolist())
    assert rate_of(lc) == pytest.approx(100 / (1 + math.exp(-theta)), abs=1e-3)
    assert lc.beta == pytest.approx(beta, abs=1e-4)


@pytest.mark.slow
def test_the_interval_is_that_of_refitting_every_resample() -> None:
    rng = np.random.default_rng(4)
    owner = np.repeat(np.arange(60), 3)
    gamma = np.repeat(rng.normal(0, 1.5, 60), 3)
    # What a reference adds to all its three comparisons makes clusters matter.
    x = rng.normal(0.3, 1, 180)
    wins = np.array(rng.random(180) < 1 / (1 + np.exp(-(x + gamma + 0.5))), dtype=np.float64)
    lc = length_controlled(wins.tolist(), x.tolist(), owner.tolist())
    columns = np.column_stack([np.tanh(x / x.std()), np.ones(180)])
    level = columns.copy()
    level[:, 0] = 0
    draws = []
    for _ in range(200):
        counts = np.bincount(rng.integers(0, 60, 60), minlength=60)[owner].astype(float)
        p = 1 / (1 + np.exp(-level @ plainly(wins, columns, counts / 3)))
        draws.append(np.average(p, weights=counts))
    low, high = 100 * np.quantile(draws, [0.025, 0.975])
    assert lc.interval is not None and (lc.interval.n, lc.interval.clusters) == (180, 60)
    assert [lc.interval.low, lc.interval.high] == pytest.approx([low, high], abs=0.2 * (high - low))
    assert lc.interval.high - lc.interval.low == pytest.approx(high - low, rel=0.2)


@pytest.mark.parametrize("seed", range(2))
def test_with_the_sides_exchanged_it_is_100_less(seed: int) -> None:
    wins, differences = simulated(150, 1.5, 0.7, ties=0.2, seed=seed)
    clusters = [i // 3 for i in range(150)]
    lost, shorter = [1 - w for w in wins], [-d for d in differences]
    assert win_rate(lost, clusters).mean == pytest.approx(100 - win_rate(wins, clusters).mean)
    forward = length_controlled(wins, differences, clusters)
    exchanged = length_controlled(lost, shorter, clusters)
    assert forward.interval is not None and exchanged.interval is not None
    assert forward.beta == pytest.approx(exchanged.beta, abs=1e-6)
    assert exchanged.interval.mean == pytest.approx(100 - forward.interval.mean, abs=1e-5)
    assert exchanged.interval.low == pytest.approx(100 - forward.interval.high, abs=0.5), "but for the draws"
    assert exchanged.interval.high == pytest.approx(100 - forward.interval.low, abs=0.5)


def test_the_order_of_rows_and_the_unit_of_length_do_not_matter() -> None:
    wins, differences = simulated(120, 1.5, 0.7, ties=0.2)
    clusters = [f"c{i % 40}" for i in range(120)]
    rows = list(zip(wins, differences, clusters, strict=True))
    first = length_controlled(wins, differences, clusters).interval
    random.Random(5).shuffle(rows)
    shuffled = length_controlled(*zip(*((w, d / 4, c) for w, d, c in rows), strict=True)).interval
    assert first is not None and shuffled is not None
    assert [shuffled.mean, shuffled.low, shuffled.high] == pytest.approx([first.mean, first.low, first.high], abs=1e-5)
    assert length_controlled(wins, differences, clusters) == length_controlled(wins, differences, clusters)
    assert length_controlled(wins, differences, clusters, seed=1).interval != first


def test_a_row_three_times_in_its_cluster_counts_once() -> None:
    wins, differences = simulated(40, 1.0, 0.5)
    thrice = [v for v in wins for _ in range(3)], [v for v in differences for _ in range(3)]
    once = length_controlled(wins, differences).interval
    clustered = length_controlled(*thrice, [i // 3 for i in range(120)]).interval
    apart = length_controlled(*thrice).interval
    assert once is not None and clustered is not None and apart is not None
    assert [clustered.mean, clustered.low, clustered.high] == pytest.approx([once.mean, once.low, once.high], abs=1e-5)
    assert apart.high - apart.low < 0.75 * (once.high - once.low)
    # A reference with a hundred rows counts as one.
    loud = estimate(wins + [0.0] * 100, differences + [50.0] * 100, clusters=[*range(40), *[99] * 100])
    assert loud == pytest.approx(once.mean, abs=3)


# --- where there is little to go by


@pytest.mark.parametrize(("n", "losses"), [(10, 0), (10, 1), (30, 0), (100, 1)])
def test_where_nearly_all_is_won_it_is_near_the_win_rate(said: Said, n: int, losses: int) -> None:
    wins = [0.0] * losses + [1.0] * (n - losses)
    _, differences = simulated(n, 0, 0, seed=n)
    lc = length_controlled(wins, differences)
    assert lc.interval is not None and rate_of(lc) == pytest.approx(win_rate(wins).mean, abs=8 if losses else 1e-9)
    assert 0 <= lc.interval.low <= lc.interval.mean <= lc.interval.high <= 100
    said(lc.note)


def test_where_length_decides_without_exception_it_is_finite() -> None:
    for n in (10, 50, 400):
        differences = [float(i - n // 2) or 0.5 for i in range(n)]
        lc = length_controlled([float(d > 0) for d in differences], differences)
        assert rate_of(lc) == pytest.approx(50, abs=7) and lc.beta is not None and 2 < lc.beta < 40


def test_where_there_is_nothing_to_control_for_it_is_told(said: Said) -> None:
    wins, (drawn, differences) = [1.0, 0.0, 1.0, 0.5] * 5, simulated(50, 1.0, 0.5)
    for difference in (0.0, 7.1, -1e300):
        lc = length_controlled(wins, [difference] * 20)
        assert lc.interval == win_rate(wins) and lc.beta is None
        said(lc.note)
    lc = length_controlled([1.0, 0.0] * 50, list(range(100)), [i % (LEAST_CLUSTERS - 1) for i in range(100)])
    assert lc.interval is None and lc.beta is None
    said(lc.note)
    assert length_controlled([1.0, 0.0] * 5, list(range(10))).interval is not None
    assert length_controlled(drawn, differences).note == ""
    for sign in (1, -1):  # one side is always longer
        lc = length_controlled(drawn, [sign * (abs(d) + 1) for d in differences])
        assert lc.interval is not None
        said(lc.note)


def test_wild_lengths_stay_finite() -> None:
    rng = np.random.default_rng(0)
    for seed in range(8):
        wins, _ = simulated(30, 0, float(rng.normal(0, 3)), seed=seed)
        differences = (rng.standard_cauchy(30) * 10.0 ** rng.integers(-200, 200)).tolist()
        lc = length_controlled(wins, differences)
        assert lc.interval is not None
        assert 0 <= lc.interval.low <= lc.interval.high <= 100 and 0 <= lc.interval.mean <= 100


@pytest.mark.parametrize(
    ("wins", "differences", "more"),
    [
        ([], [], {}),
        ([1.1], [0], {}),
        ([-0.1], [0], {}),
        ([math.nan], [0], {}),
        ([1, 0], [0], {}),
        ([1, 0], [0, math.inf], {}),
        ([1, 0], [0, 1], {"clusters": ["a"]}),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused(said: Said, wins: Any, differences: Any, more: dict[str, Any]) -> None:
    with said.by(ValueError):
        length_controlled(wins, differences, **more)


@pytest.mark.slow
def test_two_thousand_rows_take_less_than_a_second() -> None:
    wins, differences = simulated(2000, 1, 0.3)
    length_controlled(wins[:100], differences[:100])  # imports
    taken = []
    for _ in range(2):
        before = time.process_time()
        length_controlled(wins, differences)
        taken.append(time.process_time() - before)
    assert min(taken) < 1


def test_the_note_warns_of_published_figures(said: Said) -> None:
    said(LC_NOTE)

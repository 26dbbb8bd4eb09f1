"""A plan that makes up beforehand for what filters will drop: fewer rounds of calls, where each takes hours."""

from __future__ import annotations

import random

import pytest

from refed_dspy.engine.plan import Plan, PlanSettings, Propose, Respond, Study, Unit


def waves(
    size: int, keeps: float, gives: int = 10, *, ahead: bool = True, seed: int = 0
) -> tuple[Plan, list[int], int]:
    """The plan at its end, the responses of each wave, and all waves: whatever is handed out at once ends at once."""
    plan = Plan(PlanSettings(size, 2_000, ("a", "b"), 10, None, seed, ahead=ahead))
    rng, made, rounds, ids = random.Random(seed), list[int](), 0, iter(range(10**9))
    while True:
        wave: list[Unit] = []
        while (unit := plan.next_unit()) is not None:
            wave.append(unit)
        if not wave:
            return plan, made, rounds
        rounds += 1
        made.append(sum(isinstance(unit, Respond) for unit in wave))
        for unit in wave:
            match unit:
                case Study():
                    plan.studied(unit)
                case Propose():
                    plan.proposed(unit, [(next(ids), "text") for _ in range(gives)])
                case Respond():
                    plan.responded(unit, kept=rng.random() < keeps)


@pytest.mark.parametrize(("keeps", "fewer"), [(0.9, 1.0), (0.5, 0.75), (0.15, 0.6)])
def test_a_run_that_drops_much_takes_few_rounds_and_keeps_hardly_more_than_asked(keeps: float, fewer: float) -> None:
    plan, made, rounds = waves(1_000, keeps)
    exact, _, patient = waves(1_000, keeps, ahead=False)
    assert exact.kept == 1_000
    assert 1_000 <= plan.kept <= 1_000 + 2
    assert rounds <= fewer * patient
    assert sum(made) < 1.15 * 1_000 / keeps  # what is handed out too much is paid for


def test_overshoot_is_rare_and_small() -> None:
    over = [waves(300, 0.5, seed=seed)[0].kept - 300 for seed in range(30)]
    assert min(over) == 0 and sum(extra > 0 for extra in over) <= 2 and max(over) <= 4


def test_short_lists_open_more_references_at_once() -> None:
    _, _, rounds = waves(1_000, 1.0, gives=3)
    _, _, patient = waves(1_000, 1.0, gives=3, ahead=False)
    assert rounds < patient


def test_where_nothing_is_dropped_nothing_changes() -> None:
    assert waves(777, 1.0)[1:] == waves(777, 1.0, ahead=False)[1:]


def test_all_dropped_so_far_is_no_reason_to_ask_for_everything_at_once() -> None:
    plan = Plan(PlanSettings(60, 300, ("a", "b"), 10, None, 0, ahead=True))
    ids, handed = iter(range(10**9)), list[int]()
    for _ in range(8):
        wave: list[Unit] = []
        while (unit := plan.next_unit()) is not None:
            wave.append(unit)
        handed.append(sum(isinstance(unit, Respond) for unit in wave))
        for unit in wave:
            match unit:
                case Study():
                    plan.studied(unit)
                case Propose():
                    plan.proposed(unit, [(next(ids), "text") for _ in range(10)])
                case Respond():
                    plan.responded(unit, kept=False)
    assert handed[:3] == [0, 0, 60] and max(handed) <= 600

"""A plan that makes up beforehand for what filters will drop: fewer rounds of calls, where each takes hours."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from refed_dspy.runs.plan import ENOUGH_RESPONSES, FEW_MISSING, Plan, PlanSettings, Propose, Respond, Study, Unit


class Waves:
    """A plan of which whatever is handed out at once, a wave, ends at once."""

    def __init__(self, settings: PlanSettings, keeps: Callable[[], bool], gives: int = 10) -> None:
        self.plan = Plan(settings)
        self.keeps, self.gives = keeps, gives
        self.studies = 0
        self._ids = iter(range(10**9))

    def go(self) -> int | None:
        """The responses of the next wave; None where nothing is handed out any more."""
        wave: list[Unit] = list(iter(self.plan.next_unit, None))
        for unit in wave:
            match unit:
                case Study():
                    self.studies += 1
                    self.plan.studied(unit)
                case Propose():
                    self.plan.proposed(unit, [(next(self._ids), "text") for _ in range(self.gives)])
                case Respond():
                    self.plan.responded(unit, kept=self.keeps())
        return sum(isinstance(unit, Respond) for unit in wave) if wave else None


def waves(
    size: int, keeps: float, gives: int = 10, *, ahead: bool = True, seed: int = 0
) -> tuple[Plan, list[int], int]:
    """The plan at its end, the responses of each wave, and how many waves there were."""
    rng = random.Random(seed)
    settings = PlanSettings(size, 2_000, ("a", "b"), 10, 20, seed, ahead=ahead)
    simulated = Waves(settings, lambda: rng.random() < keeps, gives)
    made = list(iter(simulated.go, None))
    return simulated.plan, made, len(made)


@pytest.mark.parametrize(("keeps", "fewer"), [(0.9, 1.0), (0.5, 0.8), (0.15, 0.65)])
def test_a_run_that_drops_much_takes_few_rounds_and_keeps_hardly_more_than_asked(keeps: float, fewer: float) -> None:
    plan, made, rounds = waves(400, keeps)
    exact, _, patient = waves(400, keeps, ahead=False)
    assert exact.kept == 400
    assert 400 <= plan.kept <= 400 + 2
    assert rounds <= fewer * patient
    assert sum(made) < 1.15 * 400 / keeps  # what is handed out too much is paid for


@pytest.mark.slow
def test_overshoot_is_rare_and_small() -> None:
    over = [waves(300, 0.5, seed=seed)[0].kept - 300 for seed in range(30)]
    assert min(over) == 0 and sum(extra > 0 for extra in over) <= 2 and max(over) <= 4


def test_short_lists_open_more_references_at_once() -> None:
    assert waves(300, 1.0, gives=3)[2] < waves(300, 1.0, gives=3, ahead=False)[2]


def test_where_nothing_is_dropped_nothing_changes() -> None:
    assert waves(277, 1.0)[1:] == waves(277, 1.0, ahead=False)[1:]


def test_all_dropped_so_far_is_no_reason_to_ask_for_everything_at_once() -> None:
    nothing = Waves(PlanSettings(60, 300, ("a", "b"), 10, 20, 0, ahead=True), lambda: False)
    handed = [nothing.go() or 0 for _ in range(8)]
    assert handed[:3] == [0, 0, 60] and max(handed) <= 600


def test_short_lists_are_believed_after_some_calls_and_open_no_more_than_would_do_at_one_each() -> None:
    empty = Waves(PlanSettings(60, 300, ("a", "b"), 10, 20, 0, ahead=True), lambda: True, gives=0)
    studies = []
    for _ in range(6):
        before = empty.studies
        empty.go()
        studies.append(empty.studies - before)
    assert studies[:5] == [6, 0, 6, 0, 60], "ten calls are too few for an estimate; then each is assumed to give one"


def handed(plan: Plan, ids: Iterator[int]) -> list[Respond]:
    """All responses that are handed out now, where everything that they need ends at once."""
    responses: list[Respond] = []
    while (unit := plan.next_unit()) is not None:
        match unit:
            case Study():
                plan.studied(unit)
            case Propose():
                plan.proposed(unit, [(next(ids), "text") for _ in range(10)])
            case Respond():
                responses.append(unit)
    return responses


def begun(size: int) -> tuple[Plan, list[Respond], Iterator[int]]:
    """A plan whose first wave of responses, `size` of them, is under way."""
    plan, ids = Plan(PlanSettings(size, 2_000, ("a", "b"), 10, 20, 0, ahead=True)), iter(range(10**9))
    wave = handed(plan, ids)
    assert len(wave) == size
    return plan, wave, ids


def test_the_share_kept_is_not_estimated_from_few_responses() -> None:
    plan, wave, ids = begun(100)
    for unit in wave[: ENOUGH_RESPONSES - 1]:
        plan.responded(unit, kept=False)
    assert len(handed(plan, ids)) == ENOUGH_RESPONSES - 1, "one for each that was dropped"
    plan.responded(wave[ENOUGH_RESPONSES - 1], kept=False)
    assert len(handed(plan, ids)) > 10


def test_few_that_are_missing_are_made_up_for_exactly() -> None:
    plan, wave, ids = begun(100)
    for unit in wave:
        plan.responded(unit, kept=False)
    keeping = iter(handed(plan, ids))
    for _ in range(100 - FEW_MISSING + 1):
        plan.responded(next(keeping), kept=True)
    for unit in keeping:
        plan.responded(unit, kept=False)
    assert len(handed(plan, ids)) == FEW_MISSING - 1


def test_an_estimate_from_few_responses_is_not_relied_on_for_many() -> None:
    """Of fifty half were kept: of the next thousands it may be two thirds."""
    plan, wave, ids = begun(1_000)
    for number, unit in enumerate(wave[:ENOUGH_RESPONSES]):
        plan.responded(unit, kept=number % 2 == 0)
    handed(plan, ids)
    assert 1.3 * 975 < plan.responding < 975 / 0.66


def test_no_more_is_handed_out_than_the_cap_allows() -> None:
    plan, wave, ids = begun(1_000)
    for number, unit in enumerate(wave[:200]):
        plan.responded(unit, kept=number % 2 == 0)
    plan.look_ahead(0)
    assert plan.next_unit() is None and not plan.complete
    plan.look_ahead(5)
    assert 5 <= len(handed(plan, ids)) <= 15
    plan.look_ahead(None)
    assert len(handed(plan, ids)) > 100

"""One unit of a reference goes ahead, so that the others find its prefix cached."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from refed_dspy.runs.plan import Plan, PlanSettings, Propose, Respond, Study
from refed_dspy.runs.worker import SynthesisWorker, run_plan


def lead_settings(size: int, lead: bool = True) -> PlanSettings:
    return PlanSettings(size, 40, ("a", "b"), 10, 20, 0, lead=lead)


class CachingWorker(SynthesisWorker):
    """Takes a moment for each unit, and has a prefix cached once a unit with it has ended, as a provider does."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.grace = fails, 0.0
        self.cached: set[object] = set()
        self.uncached: Counter[object] = Counter()
        self.numbers = iter(range(10**6))

    async def _ask(self, prefix: object) -> None:
        self.uncached[prefix] += prefix not in self.cached
        for _ in range(3):
            await asyncio.sleep(0)
        self.cached.add(prefix)

    async def study(self, unit: Study) -> None:
        await self._ask(unit)

    async def propose(self, unit: Propose) -> list[tuple[int, str]]:
        await self._ask(("propose", unit.reference, unit.round))
        return [(next(self.numbers), "text") for _ in range(10)]

    async def respond(self, unit: Respond) -> bool:
        await self._ask(("respond", unit.reference, unit.round))
        return not (self.fails and unit.instruction_id % 2)

    def affordable(self) -> int | None:
        return None

    def stop(self) -> None: ...


def simulated_run(size: int, lead: bool, slots: int = 40, fails: bool = False) -> CachingWorker:
    made = CachingWorker(fails)
    plan = Plan(lead_settings(size, lead))
    asyncio.run(run_plan(plan, made, slots))
    assert plan.kept == size
    return made


@pytest.mark.parametrize("size", [1, 20, 205])
@pytest.mark.parametrize("fails", [False, True])
def test_where_one_unit_leads_no_prefix_is_computed_twice(size: int, fails: bool) -> None:
    """Also in a reference's next round, for which it was cold again, and when the leader was not kept."""
    assert set(simulated_run(size, lead=True, fails=fails).uncached.values()) <= {1}
    assert size < 20 or max(simulated_run(size, lead=False, fails=fails).uncached.values()) > 5


def test_with_one_slot_a_leader_changes_nothing() -> None:
    assert simulated_run(205, lead=True, slots=1).uncached == simulated_run(205, lead=False, slots=1).uncached


def test_a_leader_costs_no_further_calls() -> None:
    def calls(lead: bool) -> int:
        return sum(1 for prefix in simulated_run(300, lead=lead).uncached if not isinstance(prefix, tuple))

    assert calls(True) <= calls(False) + 10  # studies: references are opened while leaders run


def test_units_wait_only_for_the_leader_of_the_same_reference() -> None:
    plan = Plan(lead_settings(40))
    units = []
    while (unit := plan.next_unit()) is not None:
        units.append(unit)
    for study in units:
        plan.studied(study)  # type: ignore[arg-type]
    proposals = []
    while (unit := plan.next_unit()) is not None:
        proposals.append(unit)
    assert Counter(p.reference for p in proposals).most_common(1)[0][1] == 1 and len(proposals) == 2
    for number, propose in enumerate(proposals):
        assert isinstance(propose, Propose)
        plan.proposed(propose, [(100 * number + n, "text") for n in range(10)])
    handed = []
    while (unit := plan.next_unit()) is not None:
        handed.append(unit)
    responses = [unit for unit in handed if isinstance(unit, Respond)]
    assert len({unit.reference for unit in responses}) == len(responses) == 2
    plan.responded(responses[0], kept=False)
    more = [unit for unit in iter(plan.next_unit, None) if isinstance(unit, Respond)]
    assert len(more) == 9 and {unit.reference for unit in more} == {responses[0].reference}

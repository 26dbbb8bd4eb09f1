"""The plan alone: sizes, calls, rounds, retirement, continuing from a ledger, units that go ahead, drops."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from refed_dspy.runs.plan import (
    ENOUGH_RESPONSES,
    FEW_MISSING,
    Plan,
    PlannedReference,
    PlanSettings,
    Propose,
    Respond,
    Study,
    Unit,
)
from refed_dspy.runs.worker import SynthesisWorker, run_plan

FEATURES = ("subject_areas", "relevant_skills")


def settings(size: int, references: int = 40, per_reference: int | None = 20, seed: int = 0) -> PlanSettings:
    return PlanSettings(size, references, FEATURES, 10, per_reference, seed)


class SimulatedWorker:
    """Settles the units of a plan: `gives` new instructions for a proposal, `keeps` a response or not."""

    def __init__(self, plan: Plan, slots: int = 40, seed: int = 0) -> None:
        self.plan, self.slots = plan, slots
        self.rng = random.Random(seed)
        self.calls: Counter[str] = Counter()
        self.samples_of: Counter[int] = Counter()
        self.proposals: list[tuple[int, str, int, int]] = []
        self.used: Counter[tuple[int, int]] = Counter()
        self.open: dict[int, tuple[int, str]] = {}
        self.next_id = 0
        self.gives: Callable[[Propose], int] = lambda unit: 10
        self.keeps: Callable[[Respond], bool] = lambda unit: True
        self.studies: Callable[[Study], bool] = lambda unit: True

    def run(self, units: int | None = None) -> None:
        """Run to the end, or for so many settled units; what is in flight then is lost, as in a kill."""
        running: list[Unit] = []
        while units is None or units > 0:
            while len(running) < self.slots and (unit := self.plan.next_unit()) is not None:
                running.append(unit)
            if not running:
                return
            assert self.plan.kept + self.plan.responding <= self.plan.settings.size, "overshoot"
            self.settle(running.pop(self.rng.randrange(len(running))))
            units = None if units is None else units - 1

    def settle(self, unit: Unit) -> None:
        match unit:
            case Study():
                self.calls["study"] += 1
                self.plan.studied(unit, failed=not self.studies(unit))
            case Propose():
                self.calls["propose"] += 1
                new = [(self.next_id + i, "text") for i in range(self.gives(unit))]
                self.next_id += len(new)
                self.open |= {i: (unit.reference, text) for i, text in new}
                self.proposals.append((unit.reference, unit.feature, unit.round, len(new)))
                self.plan.proposed(unit, new)
            case Respond():
                self.calls["respond"] += 2
                kept = self.keeps(unit)
                del self.open[unit.instruction_id]
                self.samples_of[unit.reference] += kept
                self.used[unit.reference, unit.round] += kept
                self.plan.responded(unit, kept)

    def restored(self, size: int | None = None) -> Plan:
        """A new plan continuing from this worker's state."""
        old = self.plan.settings
        plan = Plan(PlanSettings(size or old.size, old.references, FEATURES, 10, old.per_reference, old.seed))
        plan.restore(
            sum(self.samples_of.values()),
            sorted(self.proposals, key=lambda p: p[2]),
            [(r, n, count) for (r, n), count in self.used.items()],
            [(ref, i, text) for i, (ref, text) in sorted(self.open.items())],
        )
        return plan


@pytest.mark.parametrize("size", [1, 7, 10, 11, 20, 21, 100, 801])
@pytest.mark.parametrize("slots", [1, 40])
def test_makes_exactly_the_size_with_few_calls(size: int, slots: int) -> None:
    worker = SimulatedWorker(Plan(settings(size)), slots)
    worker.run()
    assert worker.plan.kept == size
    proposals = -(-size // 10)
    rounds = -(-size // 800)
    assert worker.calls["propose"] == proposals
    assert worker.calls["study"] <= 2 * min(40, -(-proposals // 2)) * rounds
    assert worker.calls["respond"] == 2 * size
    assert size != 100 or sum(worker.calls.values()) == 220


def test_deepest_stage_first() -> None:
    plan = Plan(settings(100))
    worker = SimulatedWorker(plan, slots=1)
    worker.run(units=3)  # two studies and one proposal
    assert isinstance(plan.next_unit(), Respond)


def test_per_reference_spreads_evenly() -> None:
    worker = SimulatedWorker(Plan(settings(100, per_reference=4)))
    worker.run()
    assert worker.plan.kept == 100
    assert len(worker.samples_of) == 25
    assert set(worker.samples_of.values()) == {4}


@pytest.mark.parametrize("references", [1, 8, 32, 1000])
@pytest.mark.parametrize("size", [1, 20, 100, 500])
def test_an_even_share_uses_every_reference_and_takes_the_calls_that_are_told(size: int, references: int) -> None:
    worker = SimulatedWorker(Plan(settings(size, references, None)))
    told = worker.plan.to_come()
    worker.run()
    used = min(size, references)
    assert worker.plan.kept == size and len(worker.samples_of) == used == told.used == told.new
    assert worker.calls == {"study": 2 * used, "propose": told.synthesis, "respond": 2 * size}
    assert size > 20 * references or told.synthesis == max(used, -(-size // 10)), "as few as can be"
    least, most = min(worker.samples_of.values()), max(worker.samples_of.values())
    assert most - least <= (1 if size <= 10 * references else 10)


@pytest.mark.parametrize("seed", range(8))
def test_each_has_the_same_share_after_kills_and_in_a_larger_run(seed: int) -> None:
    rng = random.Random(seed)
    size, references = rng.choice([20, 100, 160]), rng.choice([8, 32])
    whole = SimulatedWorker(Plan(settings(size, references, None, seed)), seed=seed)
    whole.run()
    worker = SimulatedWorker(Plan(settings(size // 2, references, None, seed)), slots=rng.choice([1, 7, 40]), seed=seed)
    for larger in (size // 2, size, size):
        worker.run(units=rng.randrange(1, 2 * size))
        worker.plan = worker.restored(larger)
    told = worker.plan.to_come()
    asked = worker.calls["propose"]
    worker.run()
    assert worker.samples_of == whole.samples_of
    assert worker.calls["propose"] - asked <= told.synthesis


@pytest.mark.parametrize(("keeps", "least", "most"), [(0.9, 2, 4), (0.5, 1, 6)])
def test_what_is_dropped_is_made_up_for_evenly(keeps: float, least: int, most: int) -> None:
    worker = SimulatedWorker(Plan(settings(100, 32, None)))
    worker.keeps = lambda unit: worker.rng.random() < keeps
    worker.studies = lambda unit: unit.reference != 5
    worker.run()
    assert worker.plan.kept == 100 and len(worker.samples_of) == 31
    assert least <= min(worker.samples_of.values()) and max(worker.samples_of.values()) <= most


def test_spare_instructions_are_used_before_new_ones_are_asked_for() -> None:
    worker = SimulatedWorker(Plan(settings(100, references=10, per_reference=5)))
    worker.run()
    assert worker.plan.kept == 100
    assert worker.calls["propose"] == 10, "ten references gave ten instructions each: a second round needs no call"


def test_rounds_reuse_feedback_and_go_through_all_references() -> None:
    worker = SimulatedWorker(Plan(settings(200, references=3)))
    worker.run()
    assert worker.plan.kept == 200
    assert worker.calls["study"] == 6
    assert max(worker.samples_of.values()) - min(worker.samples_of.values()) <= 20


def test_a_reference_that_gives_nothing_new_in_three_rounds_retires() -> None:
    worker = SimulatedWorker(Plan(settings(100, references=2)))
    worker.gives = lambda unit: 10 if unit.round == 0 else 0
    worker.run()
    assert worker.plan.kept == 40 and not worker.plan.complete
    assert Counter(p[2] for p in worker.proposals) == {0: 4, 1: 4, 2: 4, 3: 4}


@pytest.mark.parametrize(
    ("studied", "kept"), [(lambda unit: unit.reference != 2 or unit.kind == "features", 60), (lambda _: False, 0)]
)
def test_a_reference_without_feedback_leaves_the_run(studied: Callable[[Study], bool], kept: int) -> None:
    worker = SimulatedWorker(Plan(settings(60, references=4)))
    worker.studies = studied
    worker.run()
    assert worker.plan.kept == kept and 2 not in worker.samples_of and worker.plan.complete is (kept == 60)


def test_same_seed_same_plan() -> None:
    def order(seed: int) -> list[tuple[int, str, int, int]]:
        worker = SimulatedWorker(Plan(settings(400, seed=seed)), slots=1)
        worker.run()
        return worker.proposals

    assert order(1) == order(1) != order(2)


@pytest.mark.parametrize("seed", range(24))
def test_restored_plans_end_exactly_and_lose_nothing(seed: int) -> None:
    rng = random.Random(seed)
    size, refs = rng.choice([30, 100, 333]), rng.choice([1, 3, 40])
    worker = SimulatedWorker(
        Plan(settings(size, refs, rng.choice([None, 20, 3, 15]), seed)), slots=rng.choice([1, 7, 40]), seed=seed
    )
    worker.gives = lambda unit: worker.rng.randrange(11)
    worker.keeps = lambda unit: worker.rng.random() < 0.8
    for _ in range(5):
        worker.run(units=rng.randrange(1, 2 * size))
        worker.plan = worker.restored()
    worker.run()
    assert worker.plan.kept == size == sum(worker.samples_of.values())


# --- what the open references can still do and give, against the same looked up from scratch after each unit


def open_ones(plan: Plan) -> list[PlannedReference]:
    return sorted((source for source in plan._sources if source.is_open), key=lambda source: source.place)


@pytest.mark.parametrize("lead", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_sums_and_firsts_are_those_of_a_walk_over_all(lead: bool, ahead: bool) -> None:
    rng = random.Random(7)
    plan = Plan(PlanSettings(400, 30, ("a", "b"), 10, None, 0, lead, ahead))
    worker = SimulatedWorker(plan, slots=12)
    worker.gives = lambda _: rng.choice([0, 3, 10])
    worker.keeps = lambda _: rng.random() < 0.7
    worker.studies = lambda _: rng.random() < 0.9
    looked = 0
    for _ in range(300):
        worker.run(1)
        each, sources, open_ = plan._each(), open_ones(plan), plan._open
        asked = [(s, len(s.ready) + each * s.proposing) for s in sources]
        assert open_.asked == sum(min(open_.room(s), count) for s, count in asked)
        assert open_.planned == sum(min(open_.room(s), count + each * len(s.to_propose)) for s, count in asked)
        assert open_.to_study.get() is next((s for s in sources if s.to_study), None)
        ready = (s for s in sources if s.ready and not s.missing_feedback and open_.room(s))
        assert open_.to_respond.get() is next((s for s in ready if not (lead and s.responding and not s.warm)), None)
        propose = (s for s in sources if s.to_propose and "features" not in s.missing_feedback)
        assert open_.to_propose.get() is next((s for s in propose if not (lead and s.proposing)), None)
        looked += len(sources)
    assert looked > 300, "no reference was open"


# --- one unit of a reference goes ahead, so that the others find its prefix cached


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


# --- a plan that makes up beforehand for what filters will drop: fewer rounds of calls


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
    assert waves(77, 1.0)[1:] == waves(77, 1.0, ahead=False)[1:]


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

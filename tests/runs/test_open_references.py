"""What the open references can still do and give, against the same looked up from scratch after each unit."""

from __future__ import annotations

import random

import pytest

from refed_dspy.runs.plan import Plan, PlannedReference, PlanSettings
from tests.runs.test_plan import SimulatedWorker


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
    for _ in range(600):
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
    assert looked > 600, "no reference was open"

"""A run simulated to its end: its plan without a teacher, from what the ledger recorded so far."""

from __future__ import annotations

import random
from collections.abc import Mapping

from refed_dspy.runs.history import (
    IMPROVEMENT,
    RESPONSE,
    STUDY,
    SYNTHESIS,
    EarlierRounds,
    RunHistory,
    StageQuestion,
    reference_characters,
)
from refed_dspy.runs.plan import Plan, PlanSettings, Propose, Respond, Study

PRIOR_WEIGHT, PRIOR_SHARE = 20.0, 0.02
"""The prior for a stage's failures: as if twenty questions had been asked and two in a hundred had failed."""
MADE_UP = (-1, "")
"""Number and text of an instruction that a simulation made up: no ledger has an answer about it."""


class Simulation:
    """The plan run to its end once: the draws of `rng` stand for the teacher and the filters.

    The shares that fail and that are dropped are drawn once, each from its posterior, and so are the yields of
    synthesis calls, with replacement: how much simulations differ shows how little is known of these yet.
    """

    def __init__(self, history: RunHistory, settings: PlanSettings, rng: random.Random) -> None:
        self._history, self._settings, self._rng = history, settings, rng
        stages = (*STUDY.values(), SYNTHESIS, RESPONSE, IMPROVEMENT)
        self._failing = {stage: self._failure_share(stage) for stage in stages}
        self._dropping = rng.betavariate(history.dropped, history.kept + 1) if history.dropped else 0.0
        seen = [new for *_, new in history.proposals]
        self._yields = rng.choices(seen, k=len(seen)) or [settings.instructions_per_feature]
        self._earlier = EarlierRounds(history.proposals, history.instruction_characters)
        self._coming: list[StageQuestion] = []

    def _failure_share(self, stage: str) -> float:
        bad, good = self._history.failed.get(stage, 0), self._history.done.get(stage, 0)
        return self._rng.betavariate(bad + PRIOR_WEIGHT * PRIOR_SHARE, good + PRIOR_WEIGHT * (1 - PRIOR_SHARE))

    def run(self) -> list[StageQuestion]:
        """Give every unit of the plan an outcome. Returns the questions that it takes."""
        history, plan = self._history, Plan(self._settings)
        plan.restore(history.kept, history.proposals, history.used, history.open_instructions)
        while (unit := plan.next_unit()) is not None:
            match unit:
                case Study():
                    plan.studied(unit, failed=not self._studied(unit))
                case Propose():
                    plan.proposed(unit, self._proposed(unit))
                case Respond():
                    plan.responded(unit, self._kept(unit))
        return self._coming

    def _studied(self, unit: Study) -> bool:
        if unit.kind == "response":
            self._ask_extra(self._history.extra_per_reference, unit.reference)
        return self._answered(STUDY[unit.kind], unit.reference, self._history.references[unit.reference].id)

    def _proposed(self, unit: Propose) -> list[tuple[int, str]]:
        shown = self._earlier.shown(unit.reference, unit.round)
        new = self._rng.choice(self._yields) if self._answered(SYNTHESIS, unit.reference, "", shown) else 0
        self._earlier.add(unit.reference, unit.round, new)
        return [MADE_UP] * new

    def _kept(self, unit: Respond) -> bool:
        item = str(unit.instruction_id)
        for stage in (RESPONSE, IMPROVEMENT):
            if not self._answered(stage, unit.reference, item):
                return False
        self._ask_extra(self._history.extra_per_sample, unit.reference)
        return self._rng.random() >= self._dropping

    def _answered(self, stage: str, reference: int, item: str, shown: float = 0.0) -> bool:
        """Whether the stage has an answer about `item`: if it was not recorded, the question is asked. `shown`:
        characters of earlier instructions in its prompt. A stage that the program does not have is skipped."""
        history = self._history
        if (history.weights.stages and stage not in history.weights.stages) or (stage, item) in history.answered:
            return True
        self._ask(stage, reference, reference_characters(stage, history.references[reference]) + shown)
        return self._rng.random() >= self._failing[stage]

    def _ask_extra(self, averages: Mapping[str, float], reference: int) -> None:
        """Ask so many questions of each stage, on average."""
        for stage, average in averages.items():
            for _ in range(int(average) + (self._rng.random() < average % 1)):
                self._ask(stage, reference, 0.0)

    def _ask(self, stage: str, reference: int, characters: float) -> None:
        answerer = self._history.weights.draw(stage, self._rng)
        self._coming.append(StageQuestion(stage, reference, characters, answerer=answerer))

"""What a run is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import dspy

from refed_dspy.allowance import Limits
from refed_dspy.books import CALLS_A_SAMPLE
from refed_dspy.data.references import References
from refed_dspy.engine.plan import PlanSettings
from refed_dspy.filters.decision import JudgeFilter
from refed_dspy.filters.screening import Screening
from refed_dspy.paying import Manner
from refed_dspy.programs.reference_level import Proposal
from refed_dspy.programs.saved import digest, program_digests
from refed_dspy.records import Reference, Sample
from refed_dspy.staff import Staff, stages_of
from refed_dspy.teachers import Teacher

STUDIES = ("instruction_feedback", "response_feedback")
"""The stages that collect feedback on a reference."""


class Stages(Protocol):
    """What a program must offer to be run at scale: the stages of Reference-Level Feedback."""

    features: Mapping[str, str]
    instructions_per_feature: int

    async def collect_features(self, reference: Reference) -> dict[str, str]: ...

    async def collect_response_feedback(self, reference: Reference) -> Any:
        """What `respond` gets as `response_feedback`."""
        ...

    async def propose(
        self, reference: Reference, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal: ...

    async def respond(
        self, reference: Reference, response_feedback: Any, instruction: str, item: str = ""
    ) -> Sample: ...


@dataclass(frozen=True)
class Parts:
    """The parts of one run."""

    program: dspy.Module
    references: References
    teacher: Teacher
    """The one that stands for all where one must."""
    seed: int
    per_reference: int | None
    max_failure_share: float
    limits: Limits
    reuse: Path | None
    track: bool | None = None
    judge: Teacher | None = None
    """Who judges, where a filter or the program asks for it."""
    screening: Screening = field(default_factory=lambda: Screening(()))
    judge_program: str | None = None
    """Where the judge's prompts came from."""
    work: str = "run"
    """What its folder is for (`Ledger.holds`)."""
    stage_teachers: Staff | None = None
    """Who is asked, where that is not `teacher` alone."""

    @property
    def staff(self) -> Staff:
        return self.stage_teachers or Staff.of(self.teacher)

    @property
    def models(self) -> dict[str, Teacher]:
        """Role → model."""
        return self.staff.roles | ({"judge": self.judge} if self.judge is not None else {})

    @property
    def in_batches(self) -> bool:
        """Whether anyone is asked through a Batch API."""
        return any(one.batched for one in self.models.values())

    @property
    def slots(self) -> int:
        """Units of work at once: what the staff takes, or more where the judge's batches take more. Whoever is asked
        interactively is asked no more at once for that."""
        judge = self.judge.concurrency if self.judge is not None and self.judge.batched else 0
        return max(self.staff.slots, judge)

    @property
    def manner(self) -> Manner:
        return Manner(self.seed, self.max_failure_share)

    @property
    def depth(self) -> dict[str, int]:
        """Stage → how deep it is; a judge's stages, which are not in it, are deeper than all."""
        return {stage: depth for depth, stage in enumerate(getattr(self.program, "stage_names", ()))}

    @property
    def calls_a_sample(self) -> float:
        """About how many calls a kept sample takes."""
        judged = sum(2 for step in self.screening.steps if isinstance(step.filter, JudgeFilter))
        return float(getattr(self.program, "calls_a_sample", CALLS_A_SAMPLE)) + judged

    @property
    def stages(self) -> Stages:
        return cast(Stages, self.program)

    def identity(self) -> dict[str, Any]:
        """What may not change between starts, in the words that a refusal uses."""
        identity = {
            "references": digest([reference.id for reference in self.references]),
            "kind": type(self.program).__name__,
            "program": program_digests(self.program),
            "instructions_per_feature": self.stages.instructions_per_feature,
            "features": list(self.stages.features),
            "teacher": self.staff.identity(),
            "seed": self.seed,
        }
        if self.judge is not None:
            identity["judge"] = self.judge.identity
        if self.screening.steps:
            identity["filters"] = self.screening.identity()
        return identity

    def plan_settings(self, size: int) -> PlanSettings:
        return PlanSettings(
            size=size,
            references=len(self.references),
            features=tuple(self.stages.features),
            instructions_per_feature=self.stages.instructions_per_feature,
            per_reference=self.per_reference,
            seed=self.seed,
            lead=self._lead(),
            ahead=self.in_batches,
        )

    def _lead(self) -> bool:
        """Whether one unit of a reference is to go ahead of the others (`PlanSettings.lead`): never where anyone whom
        such a unit asks is in batches, since the others would wait for a batch."""
        names = stages_of(self.program)
        if any(one.batched for one in (*self._asked(STUDIES, names), self.judge) if one is not None):
            return False
        lengths = [len(reference.instruction) + len(reference.response) for reference in self.references]
        mean = sum(lengths) / len(lengths)
        return any(one.warm_pays(mean) for one in self._asked(("feedback",), names))

    def _asked(self, but: tuple[str, ...], names: Sequence[str]) -> list[Teacher]:
        """Who is asked in the program's stages but those whose names end with one of these."""
        pools = [self.staff.pool(name) for name in names if not name.endswith(but)]
        return [share.teacher for pool in pools for share in pool]

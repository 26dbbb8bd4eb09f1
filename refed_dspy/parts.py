"""What a run is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypedDict, cast

import dspy

from refed_dspy.data.references import References
from refed_dspy.engine.plan import PlanSettings
from refed_dspy.programs.reference_level import Proposal
from refed_dspy.programs.saved import digest, program_digests
from refed_dspy.records import Reference, Sample
from refed_dspy.teachers import Teacher


class Stages(Protocol):
    """What a program must offer to be run at scale: the stages of Reference-Level Feedback."""

    features: Mapping[str, str]
    instructions_per_feature: int

    async def collect_features(self, reference: Reference) -> dict[str, str]: ...

    async def collect_response_feedback(self, reference: Reference) -> str: ...

    async def propose(
        self, reference: Reference, feature: str, description: str, taken: Sequence[str] = (), repetition: int = 0
    ) -> Proposal: ...

    async def respond(
        self, reference: Reference, response_feedback: str, instruction: str, item: str = ""
    ) -> Sample: ...


class Limits(TypedDict):
    """The caps of a run, over all its starts; None: no bound."""

    max_cost: float | None
    max_calls: int | None
    max_minutes: float | None


@dataclass(frozen=True)
class Parts:
    """The parts of one run."""

    program: dspy.Module
    references: References
    teacher: Teacher
    seed: int
    per_reference: int | None
    max_failure_share: float
    limits: Limits
    reuse: Path | None
    track: bool | None = None

    @property
    def stages(self) -> Stages:
        return cast(Stages, self.program)

    def identity(self) -> dict[str, Any]:
        """What may not change between starts, in the words that a refusal uses."""
        return {
            "references": digest([reference.id for reference in self.references]),
            "kind": type(self.program).__name__,
            "program": program_digests(self.program),
            "instructions_per_feature": self.stages.instructions_per_feature,
            "features": list(self.stages.features),
            "teacher": self.teacher.identity,
            "seed": self.seed,
        }

    def plan_settings(self, size: int) -> PlanSettings:
        return PlanSettings(
            size=size,
            references=len(self.references),
            features=tuple(self.stages.features),
            instructions_per_feature=self.stages.instructions_per_feature,
            per_reference=self.per_reference,
            seed=self.seed,
        )

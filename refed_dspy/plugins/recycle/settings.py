"""Settings of a recycling."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from refed_dspy.config.base import Capped
from refed_dspy.config.jobs import DataConfig
from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.config.teacher import TeacherConfig


class RecycleConfig(DataConfig, Capped):
    """Reflection-Tuning over a data set (paper notes, section 4)."""

    teacher: TeacherConfig | None = None
    """The model that reflects."""
    size: int | None = Field(default=None, ge=1)
    """How many rows to recycle, drawn with the seed. Unset: all."""
    instruction_criteria: dict[str, str] | None = None
    """Name → meaning of each criterion for reflecting on an instruction. Unset: the paper's five."""
    response_criteria: dict[str, str] | None = None
    """The same for responses. Unset: the paper's four."""
    accept_changed: bool = False
    """Accept a saved program even if its prompts were edited after it was saved."""
    scorer: ScorerConfig | None = None
    """The model that computes IFD and r-IFD; unset, they are not measured."""
    selective: bool = False
    """Keep a new instruction only if it is harder (IFD), a new response only if it fits better (r-IFD)."""
    unimproved: Literal["keep", "drop"] = "drop"
    """What selective mode does with rows whose response did not improve. `drop`: as the authors' code does."""
    embeddings: bool | None = None
    """Measure coherence and semantic diversity with the small embedding model. Unset: if its weights are present."""
    sample: int = Field(default=500, ge=10)
    """Rows to draw for slow measurements."""
    max_failure_share: float = Field(default=0.5, gt=0, le=1)
    """Stop when this share of a stage's last 50 calls failed (of at least 20), or when its first 20 calls all
    failed."""

    @field_validator("selective")
    @classmethod
    def _needs_a_scorer(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("scorer") is None:
            raise ValueError("needs scorer: {model: …}, to compute IFD and r-IFD")
        return value

    @field_validator("unimproved")
    @classmethod
    def _of_selective(cls, value: str, info: ValidationInfo) -> str:
        if not info.data.get("selective"):
            raise ValueError("only selective mode leaves rows unimproved; set selective, too, or remove it")
        return value

"""The settings of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from refed_dspy.config.base import Capped, FromReferences
from refed_dspy.config.filters import FilterConfig, GuardSettings
from refed_dspy.config.teacher import TeacherConfig, TeachersConfig, WithJudge


class RunConfig(Capped, WithJudge, FromReferences):
    """One run: from which references, how many samples, by which program and teacher."""

    size: int = Field(default=100, ge=1)
    """Samples to keep."""
    run_dir: Path | None = None
    """Folder that holds the run."""
    teacher: TeachersConfig | None = None
    """The teacher, or a pool of them, of every stage that `teachers` does not name."""
    teachers: dict[str, TeachersConfig] = Field(default_factory=dict)
    """Stage → its teacher or pool. `feedback` stands for every stage that collects feedback."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the order of references and, where a teacher takes one, of each call."""
    per_reference: int | None = Field(default=None, ge=1)
    """At most this many samples of one reference before the next one is used. Unset: as many as it gives."""
    features: dict[str, str] | None = None
    """Name → what feedback on an instruction looks for. Unset: the paper's two."""
    instructions_per_feature: int = Field(default=10, ge=1, le=100)
    """How many instructions one call of synthesis asks for."""
    guidance: dict[str, str] = Field(default_factory=dict)
    """Stage → a sentence of yours that is added to its prompt."""
    program: str | None = None
    """A program's JSON file, an MLflow address (`runs:/…`, `models:/…`), or `embedded`: the package's own for its
    embedded model."""
    reuse: Path | None = None
    """Another run's folder: its answers to identical questions are reused at no cost."""
    method: Literal["reference-level", "sample-level", "instruction-only"] = "reference-level"
    """Which feedback guides the responses: on the reference (the paper's method), on each response, or none."""
    filters: list[FilterConfig] = Field(default_factory=list)
    """The filters that a sample must pass to be kept; `size` counts kept samples."""
    guards: GuardSettings | Literal[False] = GuardSettings()
    """Two filters before all others: what they drop, or `false` for none. A response that one drops is asked for once
    more."""
    judge: TeacherConfig | None = None
    """The model that judges, for filters that need one. Unset: the teacher's model at temperature 0, with a warning."""
    track: bool | None = None
    """Whether the run is logged to MLflow. Unset: where MLFLOW_TRACKING_URI is set, or an earlier start was logged."""
    max_failure_share: float = Field(default=0.5, gt=0, le=1)
    """The run stops where this share of a stage's last 50 calls failed (of 20 at least), or where its first 20 calls
    all failed."""

    @field_validator("guards", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return value if value is False else GuardSettings.model_validate({} if value is True else value)

    @field_validator("filters")
    @classmethod
    def _fit_a_run(cls, value: list[FilterConfig]) -> list[FilterConfig]:
        ours = [config for config in value if isinstance(config, FilterConfig)]
        if name := next((config.name for config in ours if config.settings.keep is not None), None):
            raise ValueError(f"{name}: keep is for a data set that is there; a run keeps `size` samples")
        if name := next((config.name for config in ours if getattr(config.settings, "references", None)), None):
            raise ValueError(f"{name}: references is for a data set that is there; a run's rows have theirs")
        return value

    @field_validator("features")
    @classmethod
    def _not_empty(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and not value:
            raise ValueError("name at least one feature")
        return value

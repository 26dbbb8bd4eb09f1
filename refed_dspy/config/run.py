"""The settings of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from refed_dspy.config.base import Capped, FromReferences, Settings
from refed_dspy.config.filters import FilterConfig, Filters, GuardSettings
from refed_dspy.config.teacher import TeacherConfig, TeachersConfig, WithJudge


class FromProgram(Settings):
    """Which program the work starts from, and what is set of it."""

    program: str | None = None
    """A saved program's file, an MLflow address (`runs:/…`, `models:/…`), `embedded` (the package's program for its
    embedded model), or one of your own: `module:Name`, or with its compiled prompts `module:Name@FILE`."""
    method: Literal["reference-level", "sample-level", "instruction-only"] = "reference-level"
    """Which feedback guides the responses: feedback on the reference (the paper's method), on each response, or
    none."""
    features: dict[str, str] | None = None
    """Name → what feedback on an instruction looks for. Unset: the paper's two."""
    instructions_per_feature: int = Field(default=10, ge=1, le=100)
    """How many instructions one synthesis call requests."""
    guidance: dict[str, str] = Field(default_factory=dict)
    """Stage → a sentence to add to its prompt."""
    criteria: bool = False
    """Also turn each reference into criteria that answers of its kind must meet, for the filter `criteria`: two calls a
    reference. A program's file that has these stages keeps them."""

    @field_validator("features")
    @classmethod
    def _not_empty(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and not value:
            raise ValueError("needs at least one feature")
        return value


class RunConfig(Capped, WithJudge, FromProgram, FromReferences):
    """One run: from which references, how many samples, by which program and teacher."""

    size: int = Field(default=100, ge=1)
    """Samples to keep."""
    run_dir: Path | None = None
    """The run's folder. Unset: one in `refed-runs/`, named after everything that shapes the run, so that the same
    settings continue it."""
    teacher: TeachersConfig | None = None
    """The teacher, or pool of teachers, for every stage that `teachers` does not list."""
    teachers: dict[str, TeachersConfig] = Field(default_factory=dict)
    """Stage → its teacher or pool. `feedback` stands for all feedback stages."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed for the order of references and, if the teacher takes one, for each call."""
    per_reference: int | None = Field(default=None, ge=1)
    """Maximum number of samples from one reference before the next one is used: with 20, a run costs least. Unset: an
    even share, so that all references are used."""
    reuse: Path | None = None
    """Folder of another run whose answers to identical questions are reused at no cost: after a recompile, only what
    follows from the changed prompts is paid for."""
    filters: Filters = Field(default_factory=list)
    """The filters a sample must pass to be kept, in order; `size` counts kept samples. The ledger keeps the dropped
    ones, with filter, reason and score."""
    guards: GuardSettings | Literal[False] = GuardSettings()
    """Two filters that run before all others: against texts that repeat their reference or talk about their prompt, and
    against instructions that cannot be understood alone; `false` for none. A dropped response is requested once
    more."""
    judge: TeacherConfig | None = None
    """The judge, for filters that need one. Unset: the teacher's model at temperature 0, with a warning."""
    track: bool | None = None
    """Log the run to MLflow. Unset: if MLFLOW_TRACKING_URI is set or an earlier start was logged."""
    traced: float = Field(default=0.01, ge=0, le=1)
    """The share of rows that are traced in MLflow while `mlflow.dspy.autolog()` is on. Rows that failed always are."""
    cluster: str | None = None
    """Work on a Ray cluster: `auto` for the one that this machine belongs to, its `HOST:PORT`, or `local:N` for N
    workers on this machine. Needs the extra `cluster`."""
    shards: int | None = Field(default=None, ge=1, le=999)
    """Into how many shards of references a run on a cluster is split, once and for all. Unset: 64, or fewer where there
    are few references."""
    max_failure_share: float = Field(default=0.5, gt=0, le=1)
    """Stop when this share of a stage's last 50 calls failed (of at least 20), or when its first 20 calls all
    failed."""

    @field_validator("guards", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        return value if value is False else GuardSettings.model_validate({} if value is True else value)

    @field_validator("filters")
    @classmethod
    def _fit_a_run(cls, value: list[FilterConfig]) -> list[FilterConfig]:
        ours = [config for config in value if isinstance(config, FilterConfig)]
        if name := next((config.name for config in ours if config.settings.keep is not None), None):
            raise ValueError(
                f"{name}: keep is only for filtering an existing data set; remove it: a run keeps `size` samples"
            )
        if name := next((config.name for config in ours if getattr(config.settings, "references", None)), None):
            raise ValueError(
                f"{name}: references is only for filtering an existing data set; remove it: a run knows its references"
            )
        return value

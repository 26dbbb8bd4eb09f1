"""Settings of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from refed_dspy.config.base import Capped, FromReferences
from refed_dspy.config.teacher import TeacherConfig, WithJudge

COMPARED = ("seed-only", "instruction-only", "sample-level", "reference-level")
"""The programs of the paper's first table."""


class CompareConfig(Capped, WithJudge, FromReferences):
    """Programs compared on the same references, instructions and first responses, by one judge."""

    programs: dict[str, str] = Field(default_factory=lambda: {name: name for name in COMPARED})
    """Name → seed-only, instruction-only, sample-level, reference-level, a program's file or MLflow address, or one of
    your own: `module:Name` or `module:Name@FILE`."""
    against: str = Field(default="instruction-only", validate_default=True)
    """The program to compare all others with."""
    size: int = Field(default=100, ge=1)
    """How many instructions every program answers."""
    instructions_per_feature: int = Field(default=10, ge=1, le=100)
    """How many instructions one synthesis call requests."""
    per_reference: int | None = Field(default=5, ge=1)
    """Maximum number of instructions per reference: those of one reference are alike, so confidence intervals need many
    references."""
    features: dict[str, str] | None = None
    """Name → what feedback on an instruction looks for. Unset: the paper's two."""
    teacher: TeacherConfig | None = None
    """The teacher of all programs."""
    grades: bool = True
    """Also grade every program's rows by a rubric: the only measure that includes the seed set."""
    subsets: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """Sizes of the filters' subsets. Unset: an eighth, a quarter, a half and all of the rows."""
    embeddings: bool | None = None
    """Measure semantic diversity with the small embedding model. Unset: if its weights are present."""
    out: Path | None = None
    """Folder for the table, rows, pairs and pictures."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed for random draws and orders."""
    max_failure_share: float = Field(default=0.5, gt=0, le=1)
    """Stop when this share of a stage's last 50 calls failed (of at least 20), or when its first 20 calls all
    failed."""
    reuse: Path | None = None
    """Folder of another comparison or run whose answers to identical questions are reused at no cost."""
    track: bool | None = None
    """Log the comparison to MLflow. Unset: if MLFLOW_TRACKING_URI is set or an earlier start was logged."""

    @field_validator("programs")
    @classmethod
    def _at_least_two(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) < 2:
            raise ValueError("needs at least two programs")
        if bad := next((name for name in value if not name.strip() or len(name) > 60), None):
            raise ValueError(f"{bad[:20]!r} is not a valid name; use 1 to 60 characters")
        return value

    @field_validator("against")
    @classmethod
    def _check_against(cls, value: str, info: ValidationInfo) -> str:
        programs = info.data.get("programs", {value: ""})  # without: they are at fault, which was told
        if value not in programs:
            raise ValueError(f"must be one of the programs: {', '.join(programs)}")
        if programs[value] == "seed-only":
            raise ValueError("the seed set answers no new instructions; choose another program")
        return value

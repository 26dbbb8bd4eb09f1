"""The settings of a compile, and of the metric that it optimizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from refed_dspy.config.base import Capped, FromReferences, Settings
from refed_dspy.config.keys import secret_name
from refed_dspy.config.teacher import TeacherConfig, WithJudge
from refed_dspy.errors import one_line

_REFLECTION = "name the model as reflection: others would pass the caps unseen"
_TEACHER = "name the model as teacher: no cap would see others"
_RESERVED_OPTIONS = {
    "metric": "the compile's own; weights go into metric:",
    "reflection_lm": _REFLECTION,
    "prompt_model": _REFLECTION,
    "task_model": _TEACHER,
    "teacher_settings": _TEACHER,
    "log_dir": "it would keep pickles; a compile goes on from its own folder",
    "num_threads": "set threads",
}
"""Options of DSPy's optimizers that a compile sets itself → what to do instead."""


class MetricConfig(Settings):
    """What a program is tuned for: the weights of the metric's components, and its rules
    (optimizers/reference_metric.py)."""

    wins: float = Field(default=0.6, ge=0, le=1)
    """Weight of the judge's preference over the uncompiled program's answers."""
    grades: float = Field(default=0.3, ge=0, le=1)
    """Weight of the instructions' grades."""
    diversity: float = Field(default=0.1, ge=0, le=1)
    """Weight of how different the instructions are from one another."""
    criteria: dict[str, str] | None = None
    """Name → meaning of each criterion that instructions are graded by. Unset: this package's four."""
    accept: float = Field(default=0.5, ge=0, le=1)
    """A rollout with at least this score may become a demonstration."""

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if not self.wins + self.grades:
            raise ValueError("wins and grades cannot both have no weight: diversity alone says nothing of quality")
        return self


class CompileConfig(Capped, WithJudge, FromReferences):
    """One compile: of which program, on which examples, by which optimizer and judge, under which caps."""

    pairs: str | None = None
    """A file of pairs with people's verdicts. If set, the judge is tuned instead of a program."""
    held_out_criteria: list[str] = Field(default_factory=list)
    """Criteria of `pairs` that are used in the test set only."""
    optimizer: str = "gepa"
    """bootstrap, gepa, mipro, simba, or the dotted name of any other."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings of the optimizer; they override this package's choices for it."""
    evaluations: int = Field(default=200, ge=1)
    """About how many times a candidate is scored on an example, over the whole compile."""
    teacher: TeacherConfig | None = None
    """The model that runs the program."""
    reflection: TeacherConfig | None = None
    """The model that rewrites prompts. Unset: the judge's."""
    metric: MetricConfig = Field(default_factory=MetricConfig)
    """The metric: its weights and rules."""
    train: int = Field(default=24, ge=1)
    """At most this many references to learn from. With too few references, each of the three sets gets a proportional
    share."""
    validation: int = Field(default=12, ge=1)
    """At most this many references to choose candidates by."""
    test: int = Field(default=16, ge=1)
    """At most this many references to test the champion on."""
    features: dict[str, str] | None = None
    """Name → what feedback on an instruction looks for. Unset: the program's features."""
    instructions_per_feature: int = Field(default=2, ge=1, le=100)
    """How many instructions a candidate writes during the compile. The compiled program keeps its number."""
    guidance: dict[str, str] = Field(default_factory=dict)
    """Stage → a sentence of yours that is added to its prompt."""
    program: str | None = None
    """A program's file, its MLflow address, or `embedded`, to start from."""
    accept_longer: bool = False
    """Whether a gain may be proved that rests on length: one that is not there, or cannot be told, at equal length."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the split and the optimizer."""
    threads: int = Field(default=4, ge=1, le=256)
    """Examples that are evaluated at once; each makes several calls at once."""
    out: Path | None = None
    """Folder of the compile."""
    name: str = Field(default="refed", pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.\-]{0,99}$")
    """The registered model's name."""
    track: bool | None = None
    """Whether the compile is logged to MLflow. Unset: yes."""

    @field_validator("options")
    @classmethod
    def _check_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        if name := secret_name(value):
            raise ValueError(f"{one_line(name, 40)} may hold a key: options are written down")
        if reserved := sorted(set(_RESERVED_OPTIONS).intersection(value)):
            raise ValueError(f"{reserved[0]}: {_RESERVED_OPTIONS[reserved[0]]}")
        return value

"""The settings of a compile, and of the metric it is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from refed_dspy.config.base import PairColumns, Settings
from refed_dspy.config.teacher import TeacherConfig, _secret_name
from refed_dspy.errors import one_line

_OWNED_OPTIONS = {
    "metric": "the compile's own; weights go into metric:",
    **dict.fromkeys(
        ("reflection_lm", "prompt_model"), "name the model as reflection: others would pass the caps unseen"
    ),
    **dict.fromkeys(("task_model", "teacher_settings"), "name the model as teacher: no cap would see others"),
    "log_dir": "it would keep pickles; a compile goes on from its own folder",
    "num_threads": "set threads",
}


class MetricConfig(Settings):
    """What a program is tuned towards: the weights of the metric's parts, and its rules (optimizers/metric.py)."""

    wins: float = Field(default=0.6, ge=0, le=1)
    """Weight of a judge's preference over the uncompiled program's answers."""
    grades: float = Field(default=0.3, ge=0, le=1)
    """Weight of the instructions' grades."""
    diversity: float = Field(default=0.1, ge=0, le=1)
    """Weight of how far apart the instructions are."""
    length_tolerance: float = Field(default=1.5, ge=1)
    """An answer so many times as long as the uncompiled program's wins in full; longer ones win less."""
    criteria: dict[str, str] | None = None
    """Name → what it means, of what instructions are graded by; unset, the four of this package."""
    accept: float = Field(default=0.5, ge=0, le=1)
    """From this score on a rollout may become a demonstration."""

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if not self.wins + self.grades:
            raise ValueError("wins and grades cannot both have no weight: diversity alone says nothing of quality")
        return self


class CompileConfig(Settings):
    """One compile: of which program, on which examples, by which optimizer and judge, under which caps."""

    references: str | None = None
    """A file, a Hub data set, or `builtin`; unset, that."""
    columns: PairColumns = Field(default_factory=dict)
    """Where a table's columns have other names: {instruction: question, response: answer}."""
    pairs: str | None = None
    """A file of pairs with people's verdicts: then it is the judge that is tuned."""
    held_out_criteria: list[str] = Field(default_factory=list)
    """Criteria of `pairs` that only the test sees."""
    optimizer: str = "gepa"
    """bootstrap, gepa, mipro, simba, or the dotted name of any other."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The optimizer's own settings; they win over what is set for it."""
    evaluations: int = Field(default=200, ge=1)
    """About how often a candidate is scored on an example."""
    teacher: TeacherConfig | None = None
    """Which model runs the program."""
    judge: TeacherConfig | None = None
    """Unset: the teacher's model at temperature 0, and a warning."""
    judge_program: str | None = None
    """A compiled judge: its program's file or MLflow address."""
    reflection: TeacherConfig | None = None
    """Which model rewrites prompts; unset, the judge's."""
    metric: MetricConfig = Field(default_factory=MetricConfig)
    """What is good: weights and rules."""
    train: int = Field(default=24, ge=1)
    """At most so many references to learn from; of fewer, each of the three sets gets its share."""
    validation: int = Field(default=12, ge=1)
    """The same to choose candidates by."""
    test: int = Field(default=16, ge=1)
    """At most so many references each; of fewer, each set gets its share."""
    features: dict[str, str] | None = None
    """Name → what feedback on an instruction looks for; unset, the program's own."""
    instructions_per_feature: int = Field(default=2, ge=1, le=100)
    """How many a candidate writes while it is compiled. The compiled program asks for as many as it did before."""
    guidance: dict[str, str] = Field(default_factory=dict)
    """Stage → a sentence of yours that is added to its prompt."""
    program: str | None = None
    """A program's file or MLflow address to start from."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the split and the optimizer."""
    threads: int = Field(default=4, ge=1, le=256)
    """Examples that are worked on at once; each makes several calls at once."""
    out: Path | None = None
    """Folder of the compile."""
    name: str = Field(default="refed", pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.\-]{0,99}$")
    """The registered model's name."""
    track: bool | None = None
    """Whether MLflow is told; unset, REFED_TRACK says, and else it is."""
    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """Dollars, over teacher, judge and reflection together, and over all starts."""
    max_calls: int | None = Field(default=None, ge=1)
    """The same in calls."""
    max_minutes: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """Caps over teacher, judge and reflection together, and over all starts."""

    @field_validator("options")
    @classmethod
    def _are_the_optimizers_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        if name := _secret_name(value):
            raise ValueError(f"{one_line(name, 40)} may hold a key: options are written down")
        if owned := sorted(set(_OWNED_OPTIONS).intersection(value)):
            raise ValueError(f"{owned[0]}: {_OWNED_OPTIONS[owned[0]]}")
        return value

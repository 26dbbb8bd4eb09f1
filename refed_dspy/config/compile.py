"""The settings of a compile, and of the metric that it optimizes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from refed_dspy.config.base import Capped, FromReferences, Settings
from refed_dspy.config.keys import secret_name
from refed_dspy.config.named import METRICS, is_named
from refed_dspy.config.teacher import TeacherConfig, WithJudge
from refed_dspy.errors import one_line

_REFLECTION = "set `reflection` instead: the caps would miss other models"
_TEACHER = "set `teacher` instead: the caps would miss other models"
RESERVED = {
    "metric": "set by the compile; put weights under `metric`",
    "reflection_lm": _REFLECTION,
    "prompt_model": _REFLECTION,
    "task_model": _TEACHER,
    "teacher_settings": _TEACHER,
    "log_dir": "remove it: a compile continues from its own folder, without pickles",
    "num_threads": "set `threads` instead",
}
"""Options of DSPy's optimizers that a compile sets itself → what to do instead."""


class MetricConfig(Settings):
    """What a program is tuned for: the weights of the metric's components and its rules
    (optimizers/beats_baseline.py), or a function of the caller's own. A name alone means that function."""

    function: str | None = None
    """A metric of your own in place of the package's: `module:Name`. Of the keys below it takes `accept` alone."""
    wins: float = Field(default=0.6, ge=0, le=1)
    """Weight of the judge's preference over the uncompiled program's answers."""
    grades: float = Field(default=0.3, ge=0, le=1)
    """Weight of the instructions' grades."""
    diversity: float = Field(default=0.1, ge=0, le=1)
    """Weight of how different the instructions are from one another."""
    criteria: dict[str, str] | None = None
    """Name → meaning of each criterion for grading instructions. Unset: the package's four."""
    accept: float = Field(default=0.5, ge=0, le=1)
    """A rollout with at least this score may become a demonstration."""

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_name(cls, value: Any) -> Any:
        return {"function": value} if isinstance(value, str) else value

    @field_validator("function")
    @classmethod
    def _is_named(cls, value: str | None) -> str | None:
        if value is not None and not is_named(value, METRICS):
            raise ValueError("is no function's name; use module:Name")  # not repeated: it may be a key
        return value

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.function is not None and (others := sorted(self.model_fields_set - {"function", "accept"})):
            raise ValueError(f"{others[0]}: a metric of your own has no such part; remove it")
        if not self.wins + self.grades:
            raise ValueError("wins and grades cannot both be 0: diversity alone says nothing about quality")
        if not self.wins and self.criteria == {}:
            raise ValueError("wins cannot be 0 without criteria to grade by; set wins, or name criteria")
        return self


class CompileConfig(Capped, WithJudge, FromReferences):
    """One compile: of which program, on which examples, by which optimizer and judge, under which caps."""

    pairs: str | None = None
    """In place of references, a file of answer pairs with human verdicts: the judge is tuned instead of a program."""
    held_out_criteria: list[str] = Field(default_factory=list)
    """Criteria of `pairs` to use only in the test set."""
    optimizer: str = "gepa"
    """bootstrap, gepa, mipro, simba, the name of any other optimizer of DSPy's, or the dotted name of one of your own.
    Several, as a list or with commas between, share one baseline, the caps and one proof."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Settings for the optimizer; they override the package's choices. Of several: name → settings for it."""
    evaluations: int = Field(default=200, ge=1)
    """Approximate number of times a candidate is scored on an example; of several optimizers, the most that one
    gets."""
    teacher: TeacherConfig | None = None
    """The model that runs the program."""
    reflection: TeacherConfig | None = None
    """The model that rewrites prompts. Unset: the judge's."""
    proof_judge: TeacherConfig | None = None
    """A second judge, which only the proof asks: a gain is proved where both find it."""
    metric: MetricConfig = Field(default_factory=MetricConfig)
    """The metric: its weights and rules; or one of your own, `module:Name`."""
    train: int = Field(default=24, ge=1)
    """Maximum number of references to learn from. If there are too few references, the three sets share them in
    proportion."""
    validation: int = Field(default=12, ge=1)
    """Maximum number of references for choosing candidates."""
    test: int = Field(default=16, ge=1)
    """Maximum number of references for testing the best candidate."""
    features: dict[str, str] | None = None
    """Name → what feedback on an instruction looks for. Unset: the program's own features."""
    instructions_per_feature: int = Field(default=2, ge=1, le=100)
    """How many instructions a candidate writes per call during the compile. The compiled program keeps its own
    number."""
    guidance: dict[str, str] = Field(default_factory=dict)
    """Stage → a sentence to add to its prompt."""
    program: str | None = None
    """The program to start from: a file, an MLflow address, `embedded`, or one of your own: `module:Name`, or with its
    compiled prompts `module:Name@FILE`."""
    prove: bool = True
    """Prove the gain on the test references. False: score nothing on them; needed where they are too few for a
    proof."""
    accept_longer: bool = False
    """Accept a gain that rests on longer answers: one that disappears, or cannot be measured, at equal length."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed for the split and the optimizer."""
    threads: int = Field(default=4, ge=1, le=256)
    """Examples evaluated at once; each makes several calls at once."""
    out: Path | None = None
    """The compile's folder."""
    reuse: Path | None = None
    """Folder of another compile or run whose answers to identical questions are reused at no cost."""
    name: str = Field(default="refed", pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.\-]{0,99}$")
    """The registered model's name."""
    track: bool | None = None
    """Log the compile to MLflow. Unset: yes."""

    @field_validator("optimizer", mode="before")
    @classmethod
    def _may_be_several(cls, value: Any) -> Any:
        listed = isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)
        return ", ".join(value) if listed else value

    @field_validator("options")
    @classmethod
    def _check_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        if name := secret_name(value):
            raise ValueError(f"{one_line(name, 40)} looks like an API key: options are stored in plain text; remove it")
        refuse_reserved(value)
        return value


def refuse_reserved(options: Mapping[str, Any]) -> None:
    """Raises ValueError for one of RESERVED."""
    if reserved := sorted(set(RESERVED).intersection(options)):
        raise ValueError(f"{reserved[0]}: {RESERVED[reserved[0]]}")

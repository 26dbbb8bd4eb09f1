"""Settings of the work around runs: comparing programs, filtering, recycling and measuring data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from refed_dspy.config.base import Capped, PairColumns, RowColumns, Settings
from refed_dspy.config.filters import FilterConfig
from refed_dspy.config.teacher import TeacherConfig

COMPARED = ("seed-only", "instruction-only", "sample-level", "reference-level")
"""The programs of the paper's first table."""


class ScorerConfig(Settings):
    """Which model says how likely a text is: one on this machine, or an endpoint that returns prompt
    log-probabilities (vLLM)."""

    model: str
    """A folder or Hub name for transformers; with api_base, the endpoint's name of it."""
    api_base: str | None = None
    """Address of the endpoint, up to and including `/v1`; unset, the model runs on this machine."""
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Z_][A-Z0-9_]*$")
    """Name of the environment variable that holds the key."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Calls in flight at once."""


class DataConfig(Settings):
    """Any instruction data set: a file, a Hub name, or a run's folder."""

    data: str | None = None
    """A file, a Hub data set's name, or a run's folder."""
    columns: RowColumns = Field(default_factory=dict)
    """Where its columns have other names: {instruction: question, response: answer, plain: first_answer}."""
    out: Path | None = None
    """Folder for what comes of it."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of draws and orders."""


class FilterRunConfig(DataConfig, Capped):
    """Filters over a data set that is there."""

    filters: list[FilterConfig] = Field(default_factory=list)
    """In the order of filtering: each looks at what the one before it kept."""
    judge: TeacherConfig | None = None
    """Which model judges, for `judge` and `rubric`."""
    judge_program: str | None = None
    """A compiled judge: its program's file or MLflow address."""


class RecycleConfig(DataConfig, Capped):
    """Reflection-Tuning over a data set (paper notes, section 4)."""

    teacher: TeacherConfig | None = None
    """Which model reflects."""
    size: int | None = Field(default=None, ge=1)
    """So many rows, drawn by the seed; unset, all."""
    instruction_criteria: dict[str, str] | None = None
    """Name → what it means, of what instructions are reflected on by; unset, the paper's five."""
    response_criteria: dict[str, str] | None = None
    """The same for responses; unset, the paper's four."""
    selective: bool = False
    """Keep the new instruction only where it is harder (IFD), the new response only where it fits better (r-IFD)."""
    scorer: ScorerConfig | None = None
    """The model that IFD and r-IFD are computed with; without one they are not measured."""
    embeddings: bool | None = None
    """Coherence and semantic diversity by the small embedding model; unset, where its weights are there."""
    sample: int = Field(default=500, ge=10)
    """Rows drawn for the figures that cost time."""
    max_failure_share: float = Field(default=0.5, gt=0, le=1)
    """A stage that fails in this share of its last 50 calls (20 at least) stops the work."""

    @model_validator(mode="after")
    def _can_select(self) -> Self:
        if self.selective and self.scorer is None:
            raise ValueError("selective: needs a scorer, {model: …}, the model that IFD and r-IFD are computed with")
        return self


class StatsConfig(DataConfig, Capped):
    """What a data set looks like in numbers."""

    scorer: ScorerConfig | None = None
    """The model that perplexity, IFD and r-IFD are computed with; without one they are not measured."""
    judge: TeacherConfig | None = None
    """Given, and the data set has plain responses: the win rate of the improved ones over them."""
    sample: int = Field(default=500, ge=10)
    """Rows drawn for what costs time or money: self-ROUGE-L, perplexity, verdicts."""
    embeddings: bool | None = None
    """Coherence and semantic diversity by the small embedding model; unset, where its weights are there."""


class CompareConfig(Capped):
    """Programs side by side: on the same references, instructions and first responses, by one judge."""

    references: str | None = None
    """A file, a Hub data set, or `builtin`; unset, that."""
    columns: PairColumns = Field(default_factory=dict)
    """Where a table's columns have other names: {instruction: question, response: answer}."""
    programs: dict[str, str] = Field(default_factory=lambda: {name: name for name in COMPARED})
    """Name → seed-only, instruction-only, sample-level, reference-level, or a program's file or MLflow address."""
    against: str = "instruction-only"
    """The program whose responses all others are compared with."""
    size: int = Field(default=100, ge=1)
    """Instructions that all programs answer."""
    instructions_per_feature: int = Field(default=10, ge=1, le=100)
    """So many instructions one call of synthesis asks for."""
    per_reference: int | None = Field(default=5, ge=1)
    """At most so many of one reference: what is written from one is alike, so intervals need many references."""
    features: dict[str, str] | None = None
    """Name → what feedback on an instruction looks for; unset, the paper's two."""
    teacher: TeacherConfig | None = None
    """Which model writes, for all programs."""
    judge: TeacherConfig | None = None
    """Which model judges. Unset: the teacher's at temperature 0, and a warning."""
    judge_program: str | None = None
    """A compiled judge: its program's file or MLflow address."""
    grades: bool = True
    """Grade every program's rows by a rubric, too: the one figure that the seed set can be compared by."""
    subsets: list[Annotated[int, Field(ge=1)]] | None = Field(default=None, min_length=1)
    """Sizes of the filters' subsets; unset, an eighth, a quarter, a half and all of the rows."""
    embeddings: bool | None = None
    """Semantic diversity by the small embedding model; unset, where its weights are there."""
    out: Path | None = None
    """Folder for table, rows and pictures."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of draws and orders."""
    max_failure_share: float = Field(default=0.5, gt=0, le=1)
    """A stage that fails in this share of its last 50 calls (20 at least) stops the work."""
    reuse: Path | None = None
    """Another comparison's folder, or a run's: its answers to the very same questions are taken over at no cost."""
    track: bool | None = None
    """Whether MLflow is told; unset, REFED_TRACK says, and else it is."""

    @field_validator("programs")
    @classmethod
    def _are_some(cls, value: dict[str, str]) -> dict[str, str]:
        if len(value) < 2:
            raise ValueError("name at least two")
        if bad := next((name for name in value if not name.strip() or len(name) > 60), None):
            raise ValueError(f"{bad[:20]!r} is no name: use 1 to 60 characters")
        return value

    @model_validator(mode="after")
    def _knows_its_baseline(self) -> Self:
        if self.against not in self.programs:
            raise ValueError(f"against: name one of the programs: {', '.join(self.programs)}")
        if self.programs[self.against] == "seed-only":
            raise ValueError("against: the seed set answers none of the new instructions; name another program")
        return self

"""Settings of comparisons, filterings, recyclings, statistics and answers: all work but runs and compiles."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from refed_dspy.config.base import Capped, FromReferences, PromptColumns, RowColumns, Settings
from refed_dspy.config.filters import FilterConfig
from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.config.teacher import TeacherConfig, WithJudge

COMPARED = ("seed-only", "instruction-only", "sample-level", "reference-level")
"""The programs of the paper's first table."""
AnswerFormat = Literal["jsonl", "alpaca_eval", "arena_hard", "ifeval"]
_FILE_NAME = re.compile(r"[\w+-][\w.+-]{0,99}", re.ASCII)


class DataConfig(Settings):
    """Any instruction data set: a file, a Hub name, or a run's folder."""

    data: str | None = None
    """A file, a Hub data set's name, or a run's folder."""
    columns: RowColumns = Field(default_factory=dict)
    """Column names that differ from the usual ones: {instruction: question, response: answer, plain: first_answer}."""
    out: Path | None = None
    """Folder for the results."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed for random draws and orders."""


class FilterRunConfig(DataConfig, Capped, WithJudge):
    """Filters over an existing data set."""

    filters: list[FilterConfig] = Field(default_factory=list)
    """The filters, in order: each sees the rows that the one before it kept."""
    judge: TeacherConfig | None = None
    """The judge, for `judge` and `rubric`."""
    cluster: str | None = None
    """Have the judge asked by the workers of a Ray cluster: `auto` for the one that this machine belongs to, its
    `HOST:PORT`, or `local:N` for N workers on this machine. Needs the extra `cluster`."""


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


class StatsConfig(DataConfig, Capped):
    """Statistics of a data set."""

    scorer: ScorerConfig | None = None
    """The model that computes perplexity, IFD and r-IFD; unset, they are not measured."""
    judge: TeacherConfig | None = None
    """The judge that compares improved with plain responses, for their win rate. Unset, or without plain responses: no
    win rate."""
    sample: int = Field(default=500, ge=10)
    """Rows to draw for slow or paid measurements: self-ROUGE-L, perplexity, verdicts."""
    embeddings: bool | None = None
    """Measure coherence and semantic diversity with the small embedding model. Unset: if its weights are present."""
    cluster: str | None = None
    """Have the embedding model and the scorer on a Ray cluster: `auto`, its `HOST:PORT`, or `local:N` for N copies on
    this machine. All else is done here."""


class AnswersConfig(Capped):
    """A model's answers to a file of prompts, for a benchmark say."""

    prompts: str | None = None
    """The prompts: a JSONL, JSON, CSV or Parquet file, or a Hub data set's name."""
    columns: PromptColumns = Field(default_factory=dict)
    """Column names that differ from the usual ones: {instruction: question, system: system_prompt}."""
    teacher: TeacherConfig | None = None
    """The model that answers (`--model`). Its `temperature` and `max_tokens` hold for the answers."""
    system: str | None = None
    """The system prompt of prompts that have none of their own. Unset: none."""
    format: AnswerFormat = "jsonl"
    """The file that is written beside `answers.jsonl`: what a benchmark's own code reads."""
    generator: str | None = None
    """The model's name in that file. Unset: the last part of its name."""
    out: Path | None = None
    """Folder for the answers."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of the calls, where a model takes one."""
    max_failure_share: float = Field(default=0.5, gt=0, le=1)
    """Stop when this share of a stage's last 50 calls failed (of at least 20), or when its first 20 calls all
    failed."""

    @field_validator("generator")
    @classmethod
    def _names_a_file(cls, value: str | None) -> str | None:
        if value is not None and not _FILE_NAME.fullmatch(value):
            raise ValueError("takes up to 100 letters, digits and . _ - +, since files are named after it")
        return value


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

"""Settings of answers to prompts, and of official benchmarks that are run with a judge of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from refed_dspy.config.base import Capped, PromptColumns, Settings
from refed_dspy.config.teacher import TeacherConfig

AnswerFormat = Literal["jsonl", "alpaca_eval", "arena_hard", "ifeval"]
_FILE_NAME = re.compile(r"[\w+-][\w.+-]{0,99}", re.ASCII)


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


class CheckedConfig(Settings):
    """What all of them take."""

    data: str | None = None
    """What the model was trained on: a file, a Hub data set's name, or a run's folder. The result says which of its
    rows overlap with the benchmark's prompts."""
    out: Path | None = None
    """Folder for the results."""
    environment: Path | None = None
    """An environment (its folder, or its Python) that has what the benchmark's code needs: `alpaca-eval`, PyTorch for
    Arena-Hard, or `lm-eval[ifeval]`. Unset: one is made, once for each user."""
    track: bool | None = None
    """Log the evaluation to MLflow. Unset: if MLFLOW_TRACKING_URI is set or an earlier start was logged."""


class EvaluationConfig(CheckedConfig, Capped):
    """What those take that a judge decides."""

    judge: TeacherConfig | None = None
    """The judge: any OpenAI-compatible endpoint. Only models that the same judge has judged can be compared."""


class AlpacaEvalConfig(EvaluationConfig):
    """AlpacaEval 2 by its official code."""

    outputs: str | None = None
    """The model's answers: AlpacaEval's `model_outputs.json`, or a folder of `refed evaluate answers`."""
    baseline: str | None = None
    """The answers that they are compared with: those of another model to the same prompts, in the same form."""
    gamed: Path | None = None
    """AlpacaEval's `df_gamed.csv`, in the cache of the Hub's client: with it the length-controlled win rate is the
    official one. Unset: a fit of our own, which compares with others of its kind alone."""


class ArenaHardConfig(EvaluationConfig):
    """Arena-Hard by the code of its repository."""

    clone: Path | None = None
    """The folder of a clone of lmarena/arena-hard-auto. Nothing is written into it."""
    answers: list[Path] = Field(default_factory=list)
    """Files of `refed evaluate answers --format arena_hard`. Each is an arm, named after its file."""
    benchmark: str = "arena-hard-v2.0"
    """The benchmark: a folder in the clone's `data`."""
    category: str | None = None
    """The category of its questions. Unset: `hard_prompt` of arena-hard-v2.0, the only one of arena-hard-v0.1."""
    questions: int | None = Field(default=None, ge=1)
    """How many of the category's questions are judged, from the first. Unset: all."""
    style_control: bool = True
    """Whether scores at equal style are computed as well. They need the style metadata of every answer."""


class IFEvalConfig(CheckedConfig):
    """IFEval by its official checker, as lm-eval has it."""

    prompts: Path | None = None
    """The benchmark's `input_data.jsonl`."""
    answers: list[Path] = Field(default_factory=list)
    """Files of responses, or folders of `refed evaluate answers --format ifeval`. Each is an arm, named after its file
    or folder."""

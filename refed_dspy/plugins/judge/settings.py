"""The settings of a judge's training on people's verdicts."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from refed_dspy.config.base import Capped
from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.config.teacher import TeacherConfig


class JudgeTrainingConfig(Capped):
    """One training of a judge: on which verdicts, what is held out, and what is fitted."""

    pairs: str | None = None
    """Pairs of answers with people's verdicts, and their grades if there are any: a file, or a folder of pages."""
    criteria: list[str] | None = None
    """Only the pairs judged by these; `overall quality` names those without a criterion. Unset: all."""
    judge: TeacherConfig | None = None
    """The judge to train."""
    program: str | None = None
    """A compiled judge to start from: its file or MLflow address. Unset: the package's prompts."""
    accept_changed: bool = False
    """Accept a saved judge even if its prompts were edited after it was saved."""
    optimizer: str | None = None
    """First compile the judge's prompts on the training pairs: bootstrap, gepa, mipro, simba, or the dotted name of any
    other DSPy optimizer. Unset: the prompts stay as they are."""
    evaluations: int = Field(default=100, ge=1)
    """Approximate number of times that compile scores a candidate on a pair."""
    held_out: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the instructions, criteria and systems to hold out."""
    held_out_criteria: list[str] = Field(default_factory=list)
    """Criteria to hold out. Unset: drawn with the seed, where there are at least three."""
    held_out_systems: list[str] = Field(default_factory=list)
    """Systems whose answers to hold out. Unset: drawn with the seed, where there are at least four."""
    grades: bool = True
    """Also train on people's grades of single answers, where there are any; it takes a call an answer."""
    scorer: ScorerConfig | None = None
    """A model that computes the perplexity of answers, as one more figure. Whoever uses the judge then needs it, too,
    as `judge_scorer`."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed for what is held out."""
    out: Path | None = None
    """The training's folder."""
    reuse: Path | None = None
    """Folder of other work of the same judge, an agreement say, whose answers are used at no cost."""

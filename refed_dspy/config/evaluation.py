"""Settings of official benchmarks that are run with a judge of ours."""

from __future__ import annotations

from pathlib import Path

from refed_dspy.config.base import Capped
from refed_dspy.config.teacher import TeacherConfig


class EvaluationConfig(Capped):
    """What all of them take."""

    judge: TeacherConfig | None = None
    """The judge: any OpenAI-compatible endpoint. Only models that the same judge has judged can be compared."""
    data: str | None = None
    """What the model was trained on: a file, a Hub data set's name, or a run's folder. The result says which of its
    rows overlap with the benchmark's prompts."""
    out: Path | None = None
    """Folder for the results."""
    track: bool | None = None
    """Log the evaluation to MLflow. Unset: if MLFLOW_TRACKING_URI is set or an earlier start was logged."""


class AlpacaEvalConfig(EvaluationConfig):
    """AlpacaEval 2 by its official code."""

    outputs: str | None = None
    """The model's answers: AlpacaEval's `model_outputs.json`, or the folder of `refed answers --format alpaca_eval`."""
    baseline: str | None = None
    """The answers that they are compared with: those of another model to the same prompts, in the same form."""
    environment: Path | None = None
    """An environment (its folder, or its Python) that has `alpaca-eval`. Unset: one is made, once for each user."""
    gamed: Path | None = None
    """AlpacaEval's `df_gamed.csv`, from its data set on the Hub: with it the length-controlled win rate is the official
    one. Unset: a fit of our own, which compares with others of its kind alone."""

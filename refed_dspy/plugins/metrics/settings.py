"""Settings of a data set's statistics."""

from __future__ import annotations

from pydantic import Field

from refed_dspy.config.base import Capped
from refed_dspy.config.jobs import DataConfig
from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.config.teacher import TeacherConfig


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

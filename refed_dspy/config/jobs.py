"""Settings of work on a data set, and of a filtering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from refed_dspy.config.base import Capped, RowColumns, Settings
from refed_dspy.config.filters import FilterConfig, Filters
from refed_dspy.config.teacher import TeacherConfig, WithJudge


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

    filters: Filters = Field(default_factory=list)
    """The filters, in order: each sees the rows that the one before it kept."""
    judge: TeacherConfig | None = None
    """The judge, for `judge` and `rubric`."""

    @field_validator("filters")
    @classmethod
    def _fit_data(cls, value: list[Any]) -> list[Any]:
        if any(isinstance(config, FilterConfig) and config.name == "criteria" for config in value):
            raise ValueError("criteria needs a run with criteria: true; a data set has none, so remove it here")
        return value

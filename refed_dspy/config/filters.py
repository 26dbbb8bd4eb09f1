"""Settings of the filters: each its own, in a list whose order is the order of filtering."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from refed_dspy.config.base import Settings

Of = Literal["instruction", "response", "both"]


class Keeping(Settings):
    keep: int | None = Field(default=None, ge=1)
    """Of the rows that pass, keep so many: the best by score where a judge gives one, else the first in order."""


class Judging(Keeping):
    criterion: str | None = Field(default=None, min_length=1)
    """One of this package's by name (content_quality, clear, …), or any with a description; unset, overall quality."""
    description: str = ""
    """What the criterion means."""

    @model_validator(mode="after")
    def _names_what_it_describes(self) -> Self:
        if self.description and self.criterion is None:
            raise ValueError("a description needs a criterion: its name")
        return self


class JudgeSettings(Judging):
    """The improved response must beat the plain one, in both orders."""

    margin: float = Field(default=0, ge=0, lt=2)
    """The preference, from -2 to 2, must be above this."""


class RubricSettings(Judging):
    """A judge's grade, 1 to 5, by one criterion."""

    of: Literal["instruction", "response"] = "response"
    """Which text is graded."""
    at_least: int = Field(default=4, ge=1, le=5)
    """The lowest grade that is kept."""


class RougeSettings(Keeping):
    """The highest ROUGE-L F of the instruction against those kept must be below the threshold (Self-Instruct: 0.7)."""

    threshold: float = Field(default=0.7, gt=0, le=1)
    """From this F on an instruction is dropped."""


class RandomSettings(Keeping):
    """The control: rows drawn by the seed."""

    share: float | None = Field(default=None, gt=0, le=1)
    """Of all rows, in place of `keep`."""

    @model_validator(mode="after")
    def _draws_some(self) -> Self:
        if (self.keep is None) == (self.share is None):
            raise ValueError("needs keep (a number of rows) or share (of all), one of the two")
        return self


class NearDuplicateSettings(Keeping):
    """MinHash over shingles, confirmed by their exact Jaccard similarity."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """From this Jaccard similarity on a row is dropped."""
    of: Of = "instruction"
    """Which text is compared."""


class LengthSettings(Keeping):
    """Bounds in words or characters."""

    min_words: int | None = Field(default=None, ge=1)
    """Shorter texts are dropped."""
    max_words: int | None = Field(default=None, ge=1)
    """Longer texts are dropped."""
    min_characters: int | None = Field(default=None, ge=1)
    """The same in characters."""
    max_characters: int | None = Field(default=None, ge=1)
    """The same in characters."""
    of: Literal["instruction", "response"] = "response"
    """Which text is counted."""

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        pairs = ((self.min_words, self.max_words), (self.min_characters, self.max_characters))
        if all(bound is None for pair in pairs for bound in pair):
            raise ValueError("needs min_words, max_words, min_characters or max_characters")
        if any(low is not None and high is not None and low > high for low, high in pairs):
            raise ValueError("its lower bound is above its upper one")
        return self


class RefusalSettings(Keeping):
    """Responses that decline, and placeholders."""

    extra: list[str] = Field(default_factory=list)
    """Further phrases that only a refusal begins with."""


class LanguageSettings(Keeping):
    """The language that a text is in."""

    allowed: list[str] = Field(default_factory=lambda: ["en"], min_length=1)
    """Codes of ISO 639-1."""
    of: Of = "both"
    """Which text is looked at."""


class OverlapSettings(Keeping):
    """No n words in a row may stand in a benchmark's prompts."""

    against: Path
    """The benchmark's file."""
    n: int = Field(default=13, ge=3, le=50)
    """So many words in a row."""
    of: Literal["instruction", "both"] = "instruction"
    """Which text is looked at."""
    columns: list[str] | None = None
    """The file's columns to look at; unset, those that look like a prompt."""


class FilterConfig(Settings):
    """One filter: its name, and its settings under it. A name alone stands for its defaults."""

    judge: JudgeSettings | None = None
    rubric: RubricSettings | None = None
    rouge: RougeSettings | None = None
    random: RandomSettings | None = None
    near_duplicates: NearDuplicateSettings | None = None
    length: LengthSettings | None = None
    refusals: RefusalSettings | None = None
    language: LanguageSettings | None = None
    overlap: OverlapSettings | None = None

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, dict):
            if len(value) != 1:
                raise ValueError("is one filter: write each as an entry of its own")
            return {name: {} if settings is None else settings for name, settings in value.items()}
        return value

    @property
    def name(self) -> str:
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def settings(self) -> Any:
        """Those of the one filter: an object of its settings class."""
        return getattr(self, self.name)

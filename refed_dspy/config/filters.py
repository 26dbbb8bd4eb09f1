"""Settings of the filters. A list of them is applied in its order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import Field, ModelWrapValidatorHandler, PlainSerializer, field_serializer, model_validator

from refed_dspy.config.base import Settings, settings_in
from refed_dspy.config.named import FILTERS, is_named
from refed_dspy.errors import one_line
from refed_dspy.text import nearest

Of = Literal["instruction", "response", "both"]


class Keeping(Settings):
    """What every filter has."""

    keep: int | None = Field(default=None, ge=1)
    """How many of the passing rows to keep: the best if a judge scores them, otherwise the first."""


class Judging(Keeping):
    """What every filter has that asks a judge."""

    criterion: str | None = Field(default=None, min_length=1)
    """One of the package's criteria by name (content_quality, clear, …), or your own with a description. Unset: overall
    quality."""
    description: str = ""
    """What the criterion means."""

    @model_validator(mode="after")
    def _names_what_it_describes(self) -> Self:
        if self.description and self.criterion is None:
            raise ValueError("description needs a criterion; add its name")
        return self


class JudgeSettings(Judging):
    """The improved response must beat the plain one, in both orders."""

    margin: float = Field(default=0, ge=0, lt=2)
    """The judge's preference, from -2 to 2, must exceed this."""


class RubricSettings(Judging):
    """A judge grades one text from 1 to 5 on one criterion."""

    of: Literal["instruction", "response"] = "response"
    """Which text to grade."""
    at_least: int = Field(default=4, ge=1, le=5)
    """The lowest grade to keep."""


class CriteriaSettings(Keeping):
    """A judge says which criteria of its reference a response meets: in a run with `criteria: true`."""

    threshold: float = Field(default=0.6, ge=0, le=1)
    """The lowest share of the criteria's weight to keep."""


class RougeSettings(Keeping):
    """Drops an instruction whose highest ROUGE-L F against the kept ones reaches the threshold (Self-Instruct: 0.7)."""

    threshold: float = Field(default=0.7, gt=0, le=1)
    """Drop instructions with this F or more."""


class RandomSettings(Keeping):
    """A control: keeps rows at random, drawn with the seed."""

    share: float | None = Field(default=None, gt=0, le=1)
    """The share of all rows to keep, instead of `keep`."""

    @model_validator(mode="after")
    def _draws_some(self) -> Self:
        if (self.keep is None) == (self.share is None):
            raise ValueError("needs either keep (a number of rows) or share (of all rows)")
        return self


class NearDuplicateSettings(Keeping):
    """Drops near-duplicates: MinHash over shingles, confirmed by exact Jaccard similarity. Texts that differ in one
    word are still duplicates, unless that word is a number or a name."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Drop rows with this Jaccard similarity or more."""
    of: Of = "instruction"
    """Which text to compare."""


class LengthSettings(Keeping):
    """Drops texts that are too short or too long, in words or characters."""

    min_words: int | None = Field(default=None, ge=1)
    """Drop texts with fewer words."""
    max_words: int | None = Field(default=None, ge=1)
    """Drop texts with more words."""
    min_characters: int | None = Field(default=None, ge=1)
    """Drop texts with fewer characters."""
    max_characters: int | None = Field(default=None, ge=1)
    """Drop texts with more characters."""
    of: Literal["instruction", "response"] = "response"
    """Which text to measure."""

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        pairs = ((self.min_words, self.max_words), (self.min_characters, self.max_characters))
        if all(bound is None for pair in pairs for bound in pair):
            raise ValueError("needs min_words, max_words, min_characters or max_characters")
        if any(low is not None and high is not None and low > high for low, high in pairs):
            raise ValueError("the lower bound is above the upper one")
        return self


class RefusalSettings(Keeping):
    """Drops responses that decline, in English and thirteen other languages, and placeholders."""

    extra: list[str] = Field(default_factory=list)
    """Further phrases that only refusals begin with."""


class LanguageSettings(Keeping):
    """Drops texts that are hardly in an allowed language."""

    allowed: list[str] = Field(default_factory=lambda: ["en"], min_length=1)
    """ISO 639-1 codes."""
    of: Of = "both"
    """Which text to check."""


class OverlapSettings(Keeping):
    """Drops rows that share n consecutive words with a benchmark's prompts."""

    against: Path
    """The benchmark's file."""
    n: int = Field(default=13, ge=3, le=50)
    """How many consecutive words count as overlap."""
    of: Literal["instruction", "both"] = "instruction"
    """Which text to check."""
    columns: list[str] | None = None
    """The file's columns that contain prompts. Unset: those whose names suggest it."""

    @field_serializer("against", when_used="json")
    def _found_from_anywhere(self, value: Path) -> str:
        return str(value.absolute())  # a resume may have another working directory


class CommandSettings(Keeping):
    """Runs a check of your own for each row, given as JSON on its standard input: exit code 0 keeps it, 1 drops it. A
    list alone is `run`: `command: [./check, --strict]`."""

    run: list[str] = Field(min_length=1)
    """The program and its arguments. No shell reads them."""
    seconds: float = Field(default=10, gt=0, le=86_400)
    """How long one check may take. Then it is killed, and the row counts as failed."""
    at_once: int = Field(default=4, ge=1, le=256)
    """How many checks may run at once."""

    @model_validator(mode="before")
    @classmethod
    def _may_be_the_list_alone(cls, value: Any) -> Any:
        run = value.get("run") if isinstance(value, dict) else value
        if isinstance(run, str) or (isinstance(run, list) and run[:1] == [""]):
            raise ValueError("must be a list that begins with a program, [./check, --strict]: no shell reads it")
        return {"run": value} if isinstance(value, list) else value


class _OfBothGuards(Settings):
    copies: bool = True
    """Drop a text that repeats its reference's."""
    prompt_talk: bool = True
    """Drop a text that talks about the prompt it was written for."""


class _OfInstructions(_OfBothGuards):
    missing_text: bool = True
    """Drop an instruction that needs a text it does not include."""


class _OfResponses(_OfBothGuards):
    unchanged: Literal["keep", "drop"] = "keep"
    """What to do with an improved response that equals the plain one: it is counted either way."""


class GuardSettings(_OfInstructions, _OfResponses):
    """What a run's guards drop; each guard is a filter that runs before the run's own."""

    def filters(self) -> list[FilterConfig]:
        """The guards as filters, of instructions and of responses."""
        of_instructions = self.model_dump(include={*_OfInstructions.model_fields})
        of_responses = self.model_dump(include={*_OfResponses.model_fields})
        return [
            FilterConfig.model_validate(guard)
            for guard in ({"instruction_guard": of_instructions}, {"response_guard": of_responses})
        ]


class _AgainstReferences(Keeping):
    references: str | None = None
    """What the rows were made from, if the data does not contain it: a file, a Hub data set, or `builtin`. A row whose
    `reference` column names one is compared with that one, other rows with all of them."""


class InstructionGuardSettings(_OfInstructions, _AgainstReferences):
    """Drops instructions that repeat their reference, talk about their prompt, or need a text they do not include."""


class ResponseGuardSettings(_OfResponses, _AgainstReferences):
    """Drops responses that copy their reference or talk about their prompt."""


@dataclass(frozen=True)
class NamedFilter:
    """A filter of the caller's own, by name (`config.named`), and what it is made with."""

    name: str
    settings: dict[str, Any]


class FilterConfig(Settings):
    """One filter: its name, and its settings under it. A name alone means the default settings. In a list of these, a
    custom filter, given in Python, stays as it is, and one given by name becomes a NamedFilter."""

    judge: JudgeSettings | None = None
    rubric: RubricSettings | None = None
    criteria: CriteriaSettings | None = None
    rouge: RougeSettings | None = None
    random: RandomSettings | None = None
    near_duplicates: NearDuplicateSettings | None = None
    length: LengthSettings | None = None
    refusals: RefusalSettings | None = None
    language: LanguageSettings | None = None
    overlap: OverlapSettings | None = None
    instruction_guard: InstructionGuardSettings | None = None
    response_guard: ResponseGuardSettings | None = None
    command: CommandSettings | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _may_be_a_name_or_custom(cls, value: Any, check: ModelWrapValidatorHandler[Self]) -> Any:
        if hasattr(value, "check") or hasattr(value, "judged"):  # a custom filter: filters/build.py checks it
            return value
        if isinstance(value, NamedFilter):
            return value
        if callable(value) and not isinstance(value, type):
            raise ValueError("is a function; pass an object with name, of_instruction, check(row) and remember(row)")
        if isinstance(value, str):
            value = {value: {}}
        if isinstance(value, dict):
            if len(value) != 1:
                raise ValueError("must be one filter; write each filter as its own entry")
            [(name, settings)] = value.items()
            if example := cls._braced(str(name), settings):
                raise ValueError(f"a filter's settings need their names: '{example}'")
            if name not in cls.model_fields and is_named(name, FILTERS):
                return NamedFilter(name, dict(settings or {}))
            if name not in cls.model_fields:
                near, known = nearest(str(name), cls.model_fields), ", ".join(cls.model_fields)
                hint = f"did you mean {near}?" if near else f"use {known}, or one of your own, module:Class"
                raise ValueError(f"no filter {one_line(name, 40)!r}; {hint}")
            return check({name: {} if settings is None else settings for name, settings in value.items()})
        return check(value)

    @classmethod
    def _braced(cls, name: str, settings: Any) -> str:
        """How to write a filter that was given as `name:value` or `name: value`; empty where it was not."""
        name, _, value = name.partition(":")
        kind = settings_in(cls.model_fields[name].annotation) if name in cls.model_fields else None
        alone = isinstance(settings, dict) or kind is CommandSettings or not settings
        if kind is None or (not value.strip() and alone):
            return ""
        return f"{name}: {{{next(key for key in kind.model_fields if key != 'keep')}: …}}"

    @property
    def name(self) -> str:
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)

    @property
    def settings(self) -> Any:
        """The filter's settings: an object of its settings class."""
        return getattr(self, self.name)


def _recorded(filters: list[Any]) -> list[dict[str, Any]]:
    """Each filter as a file would name it; of a custom one, which no file can hold, its class."""
    return [
        {each.name: each.settings.model_dump(mode="json", exclude_none=True)}
        if isinstance(each, FilterConfig)
        else {each.name: each.settings}
        if isinstance(each, NamedFilter)
        else {"class": f"{type(each).__module__}.{type(each).__qualname__}"}
        for each in filters
    ]


Filters: TypeAlias = Annotated[list[FilterConfig], PlainSerializer(_recorded, when_used="json")]
"""Filters in their order, perhaps with some of the caller's own among them."""

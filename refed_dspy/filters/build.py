"""Filters from their settings."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pkgutil import resolve_name
from typing import Any

from refed_dspy.config.filters import FilterConfig, NamedFilter
from refed_dspy.config.named import FILTERS, code_of, made, resolve
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.files import read_bytes
from refed_dspy.filters.base import Filter, JudgeFilter, Step
from refed_dspy.filters.judge import ImprovedWins, MeetsCriteria, Rubric
from refed_dspy.filters.length import ByChance
from refed_dspy.programs.judges import (
    INSTRUCTION_CRITERIA,
    OVERALL,
    RESPONSE_CRITERIA,
    Criterion,
    PairwiseJudge,
    RubricJudge,
)
from refed_dspy.programs.saved import program_digests

_BY_SETTINGS = {
    "rouge": "refed_dspy.filters.rouge:RougeFilter",
    "near_duplicates": "refed_dspy.filters.near_duplicates:NearDuplicates",
    "length": "refed_dspy.filters.length:Length",
    "refusals": "refed_dspy.filters.refusals:Refusals",
    "language": "refed_dspy.filters.language:Language",
    "overlap": "refed_dspy.filters.overlap:Overlap",
    "instruction_guard": "refed_dspy.filters.guards:InstructionGuard",
    "response_guard": "refed_dspy.filters.guards:ResponseGuard",
    "command": "refed_dspy.filters.command:CommandCheck",
}
"""The filters whose parameters are their settings: imported when used, since numpy comes with some."""


def build(
    configs: Sequence[FilterConfig | NamedFilter | Filter], seed: int, judge: PairwiseJudge | None = None
) -> list[Step]:
    """The filters of `configs`, in their order, before any row was checked. Custom filters stay as they are.

    `judge`: a compiled pairwise judge, or a trained one, which may grade responses, too.

    Raises:
        InputError: a setting that the filter cannot use; a file that cannot be read; a compiled judge that no filter
            asks.
    """
    if judge is not None and not any(isinstance(item, FilterConfig) and _asks(item, judge) for item in configs):
        raise ConfigError("judge_program: no filter uses it; add judge to the filters or remove it")
    return [_step(item, seed, judge) for item in configs]


def _step(config: FilterConfig | NamedFilter | Filter, seed: int, judge: PairwiseJudge | None) -> Step:
    if isinstance(config, NamedFilter):
        return _named(config)
    if not isinstance(config, FilterConfig):
        _check_custom(config)
        return Step(config, {"class": f"{type(config).__module__}.{type(config).__qualname__}", **_code(config)})
    return Step(_built(config, seed, judge), _identity(config, seed, judge), config.settings.keep)


def _built(config: FilterConfig, seed: int, judge: PairwiseJudge | None) -> Filter:
    settings = config.settings
    match config.name:
        case "judge":
            return ImprovedWins(PairwiseJudge() if judge is None else judge, criterion_of(settings), settings.margin)
        case "rubric":
            grader = judge.rubric if judge is not None and _asks(config, judge) else None
            return Rubric(grader or RubricJudge(), criterion_of(settings), settings.of, settings.at_least)
        case "criteria":
            return MeetsCriteria(settings.threshold)
        case "random":
            return ByChance(1.0 if settings.share is None else settings.share, seed)
        case name:
            kind: type[Filter] = resolve_name(_BY_SETTINGS[name])
            return kind(**settings.model_dump(exclude={"keep"}))


def _asks(config: FilterConfig, judge: PairwiseJudge) -> bool:
    """Whether this filter asks `judge`, or its rubric, which was trained on grades of responses."""
    return config.name == "judge" or (
        config.name == "rubric" and config.settings.of == "response" and judge.rubric is not None
    )


def _named(config: NamedFilter) -> Step:
    """The caller's own filter of this name: an object, or a class that is made one with its settings."""
    own = resolve(config.name, FILTERS, "filters:")
    if callable(own):
        own = made(own, f"filters: {config.name}", **config.settings)
    elif config.settings:
        raise ConfigError(f"filters: {config.name} is an object, which takes no settings; remove them")
    _check_custom(own)
    return Step(own, {"named": config.name, "settings": config.settings, **_code(own)})


def _code(own: Any) -> dict[str, str]:
    code = code_of(type(own))
    return {"code": code} if code else {}


def _check_custom(filter_: Any) -> None:
    """Raises ConfigError where a custom filter lacks an attribute that a run or a data set will ask for."""
    class_name = filter_.__name__ if isinstance(filter_, type) else type(filter_).__name__
    if isinstance(filter_, type):
        raise ConfigError(f"filters: {class_name} is a class; pass an instance, {class_name}(…)")
    if hasattr(filter_, "judged") and not isinstance(filter_, JudgeFilter):
        raise ConfigError(f"filters: {class_name} asks a judge; derive it from refed_dspy.filters.base.JudgeFilter")
    needed = ("name",) if isinstance(filter_, JudgeFilter) else ("name", "of_instruction", "check", "remember")
    if lacking := [name for name in needed if not hasattr(filter_, name)]:
        raise ConfigError(f"filters: {class_name} lacks {', '.join(lacking)}; see refed_dspy.filters.base")
    if not isinstance(filter_.name, str) or not filter_.name.strip():
        raise ConfigError(f"filters: the name of {class_name} must be text")


def _identity(config: FilterConfig, seed: int, judge: PairwiseJudge | None) -> dict[str, Any]:
    """What distinguishes this filter from another, in JSON types."""
    settings: dict[str, Any] = config.settings.model_dump(mode="json", exclude_none=True)
    if config.name == "overlap":  # the file may change
        return {**settings, "content": sha256(read_bytes(config.settings.against)).hexdigest()[:16]}
    if judge is not None and _asks(config, judge):
        return {**settings, "prompts": program_digests(judge)}
    return {**settings, "seed": seed} if config.name == "random" else settings


_OF_OTHERS = {"like_the_reference_in_complexity", "unlike_its_siblings"}
"""These compare with a reference or with sibling samples, which no filter shows to a judge."""


def criterion_of(settings: Any) -> Criterion:
    """The criterion that `criterion` and `description` name. Raises ConfigError for an unknown one."""
    name = settings.criterion
    every = {**INSTRUCTION_CRITERIA, **RESPONSE_CRITERIA}
    available = {key: criterion for key, criterion in every.items() if key not in _OF_OTHERS}
    if name is None:
        return OVERALL
    if settings.description:
        return Criterion(name, settings.description)
    if name not in available:
        raise ConfigError(
            f"filters: criterion {one_line(name, 40)!r} needs a description; without one, use one of: "
            + ", ".join(available)
        )
    return available[name]

"""Filters from their settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from refed_dspy.config.filters import FilterConfig
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.filters.base import Filter, JudgeFilter, Step
from refed_dspy.filters.judge import ImprovedWins, Rubric
from refed_dspy.filters.random_draw import ByChance
from refed_dspy.programs.judges import INSTRUCTION_CRITERIA, OVERALL, RESPONSE_CRITERIA, Criterion, PairwiseJudge
from refed_dspy.programs.judges import RubricJudge as Grader
from refed_dspy.programs.saved import program_digests


def build(configs: Sequence[FilterConfig | Filter], seed: int, judge: PairwiseJudge | None = None) -> list[Step]:
    """The filters of `configs`, in their order, with nothing seen yet; a caller's own stay as they are.

    `judge`: a compiled pairwise judge.

    Raises:
        InputError: a setting that the filter cannot use; a file that cannot be read; a compiled judge that none asks.
    """
    if judge is not None and not any(isinstance(one, FilterConfig) and one.name == "judge" for one in configs):
        raise ConfigError("judge_program: no filter asks it; add judge to the filters, or leave it out")
    return [_step(one, seed, judge) for one in configs]


def _step(one: FilterConfig | Filter, seed: int, judge: PairwiseJudge | None) -> Step:
    if not isinstance(one, FilterConfig):
        _check_own(one)
        return Step(one, {"class": f"{type(one).__module__}.{type(one).__qualname__}"})
    return Step(_BUILDERS[one.name](one.settings, seed, judge), _facts(one, seed, judge), one.settings.keep)


def _check_own(one: Any) -> None:
    """Raises ConfigError where a caller's own filter lacks what it will be asked for."""
    called = one.__name__ if isinstance(one, type) else type(one).__name__
    if isinstance(one, type):
        raise ConfigError(f"filters: {called} is a class; give one of its objects, {called}(…)")
    if hasattr(one, "judged") and not isinstance(one, JudgeFilter):
        raise ConfigError(f"filters: {called} asks a judge, so make it a JudgeFilter (refed_dspy.filters.decision)")
    needed = ("name",) if isinstance(one, JudgeFilter) else ("name", "of_instruction", "check", "remember")
    if lacking := [name for name in needed if not hasattr(one, name)]:
        raise ConfigError(f"filters: {called} lacks {', '.join(lacking)}; see refed_dspy.filters.decision")
    if not isinstance(one.name, str) or not one.name.strip():
        raise ConfigError(f"filters: the name of {called} must be a text")


def _facts(config: FilterConfig, seed: int, judge: PairwiseJudge | None) -> dict[str, Any]:
    """What tells two filters apart, in JSON types."""
    facts: dict[str, Any] = config.settings.model_dump(mode="json", exclude_none=True)
    if config.name == "overlap":  # the file may change, and a resume may stand elsewhere
        path = config.settings.against.absolute()
        return {**facts, "against": str(path), "content": sha256(path.read_bytes()).hexdigest()[:16]}
    if config.name == "judge" and judge is not None:
        return {**facts, "prompts": program_digests(judge)}
    return {**facts, "seed": seed} if config.name == "random" else facts


def _judge(settings: Any, _: int, judge: PairwiseJudge | None) -> Filter:
    return ImprovedWins(PairwiseJudge() if judge is None else judge, criterion_of(settings), settings.margin)


def _rubric(settings: Any, *_: Any) -> Filter:
    return Rubric(Grader(), criterion_of(settings), settings.of, settings.at_least)


_OF_OTHERS = {"like_the_reference_in_complexity", "unlike_its_siblings"}
"""They compare with a reference or with siblings, which no filter shows to a judge."""


def criterion_of(settings: Any) -> Criterion:
    """The criterion that `criterion` and `description` name. Raises ConfigError for one that nobody knows."""
    name = settings.criterion
    known = {key: said for key, said in {**INSTRUCTION_CRITERIA, **RESPONSE_CRITERIA}.items() if key not in _OF_OTHERS}
    if name is None:
        return OVERALL
    if settings.description:
        return Criterion(name, settings.description)
    if name not in known:
        raise ConfigError(
            f"filters: criterion {one_line(name, 40)!r} needs a description; without one, it is one of: "
            + ", ".join(known)
        )
    return known[name]


def _rouge(settings: Any, *_: Any) -> Filter:
    from refed_dspy.filters.rouge import RougeFilter

    return RougeFilter(settings.threshold)


def _near_duplicates(settings: Any, *_: Any) -> Filter:
    from refed_dspy.filters.near_duplicates import NearDuplicates

    return NearDuplicates(settings.threshold, of=settings.of)


def _length(settings: Any, *_: Any) -> Filter:
    from refed_dspy.filters.length import Length

    bounds = ("min_words", "max_words", "min_characters", "max_characters")
    return Length(**{name: getattr(settings, name) for name in bounds}, of=settings.of)


def _refusals(settings: Any, *_: Any) -> Filter:
    from refed_dspy.filters.refusals import Refusals

    return Refusals(settings.extra)


def _language(settings: Any, *_: Any) -> Filter:
    from refed_dspy.filters.language import Language

    return Language(settings.allowed, of=settings.of)


def _overlap(settings: Any, *_: Any) -> Filter:
    from refed_dspy.filters.overlap import Overlap

    return Overlap(settings.against, n=settings.n, columns=settings.columns, of=settings.of)


_BUILDERS: Mapping[str, Callable[[Any, int, PairwiseJudge | None], Filter]] = {
    "judge": _judge,
    "rubric": _rubric,
    "rouge": _rouge,
    "random": lambda settings, seed, _: ByChance(1.0 if settings.share is None else settings.share, seed),
    "near_duplicates": _near_duplicates,
    "length": _length,
    "refusals": _refusals,
    "language": _language,
    "overlap": _overlap,
}

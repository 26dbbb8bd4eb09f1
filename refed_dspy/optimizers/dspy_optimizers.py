"""Optimizers by name: DSPy's own, set up for programs whose one evaluation is dozens of calls.

All are sized by one number, how often a candidate may be scored (`evaluations`), so that they can be compared at equal
effort. Options of the optimizer's own win over what is set here.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import dspy

from refed_dspy.errors import ConfigError, one_line

Examples: TypeAlias = Sequence[dspy.Example]
AUTO = ("light", "medium", "heavy")
MANY = 1_000_000
"""Errors that an optimizer may meet: which of them end a compile is decided elsewhere (optimizers/recording.py)."""


@dataclass(frozen=True)
class OptimizerInputs:
    """What an optimizer works with."""

    metric: Callable[..., Any]
    teacher: dspy.LM
    reflection: dspy.LM
    evaluations: int
    threads: int
    seed: int
    stopping: Callable[[], bool]
    """Whether no further call is allowed."""
    train: int
    validation: int
    """How many examples each set holds."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer ready to go. `expected` is about how many evaluations it will ask for."""

    name: str
    tune: Callable[[dspy.Module, Examples, Examples], dspy.Module]
    """Student, train, validation → the tuned program."""
    expected: int


def choose(name: str, options: Mapping[str, Any], means: OptimizerInputs) -> Optimizer:
    """The optimizer called `name`, set up with `means`.

    Raises:
        ConfigError: no such optimizer, or options that it does not take.
    """
    makers = {"bootstrap": _bootstrap, "gepa": _gepa, "mipro": _mipro, "simba": _simba}
    try:
        if name in makers:
            return makers[name](dict(options), means)
        if "." in name:
            return _by_dotted_name(name, dict(options), means)
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {name}: {one_line(error)}") from None
    raise ConfigError(
        f"optimizer: {one_line(name, 40)!r} is none of {', '.join(makers)}; others go by their dotted name, "
        "dspy.teleprompt.COPRO say"
    )


def _bootstrap(options: dict[str, Any], means: OptimizerInputs) -> Optimizer:
    settings = {"max_bootstrapped_demos": 4, "max_labeled_demos": 0, "max_errors": MANY, **options}
    optimizer = dspy.BootstrapFewShot(metric=means.metric, **settings)

    def tune(student: dspy.Module, examples: Examples, _: Examples) -> dspy.Module:
        return optimizer.compile(student, trainset=list(examples))

    return Optimizer("bootstrap", tune, min(means.train, 2 * settings["max_bootstrapped_demos"]) + means.validation)


def _gepa(options: dict[str, Any], means: OptimizerInputs) -> Optimizer:
    own = dict(options.pop("gepa_kwargs", None) or {})
    if options.get("auto", "light") not in AUTO:
        raise ValueError(f"auto: must be one of {', '.join(AUTO)}")
    stoppers = [lambda _state: means.stopping(), *_listed(own.pop("stop_callbacks", None))]
    budget = {"auto", "max_full_evals", "max_metric_calls"} & set(options)
    settings = {
        **({} if budget else {"max_metric_calls": means.evaluations}),
        "reflection_lm": means.reflection,
        "num_threads": means.threads,
        "seed": means.seed,
        "warn_on_score_mismatch": False,
        "failure_score": 0.0,
        **options,
        "gepa_kwargs": {**own, "stop_callbacks": stoppers},
    }
    optimizer = dspy.GEPA(metric=means.metric, **settings)

    def tune(student: dspy.Module, examples: Examples, held: Examples) -> dspy.Module:
        return optimizer.compile(student, trainset=list(examples), valset=list(held))

    return Optimizer("gepa", tune, settings.get("max_metric_calls") or means.evaluations)


def _mipro(options: dict[str, Any], means: OptimizerInputs) -> Optimizer:
    candidates = options.pop("num_candidates", 6)
    demos = options.pop("max_bootstrapped_demos", 2)
    left = means.evaluations - means.validation - means.train  # bootstrapping's repeats of an example cost nothing
    at_compile = {k: options.pop(k) for k in list(options) if k in _parameters(dspy.MIPROv2.compile)}
    if options.get("auto") is None:
        sized = {"num_trials": max(1, left // max(1, means.validation)), "minibatch": False}
        at_compile = {**sized, **at_compile}
    settings = {
        "auto": None,
        "num_candidates": candidates,
        "max_bootstrapped_demos": demos,
        "max_labeled_demos": 0,
        "prompt_model": means.reflection,
        "task_model": means.teacher,
        "num_threads": means.threads,
        "seed": means.seed + 1,  # 0 would be none to it
        "max_errors": MANY,
        **options,
    }
    if settings["auto"] is not None:
        settings["num_candidates"] = None
    optimizer = dspy.MIPROv2(metric=means.metric, **settings)

    def tune(student: dspy.Module, examples: Examples, held: Examples) -> dspy.Module:
        return optimizer.compile(student, trainset=list(examples), valset=list(held), **at_compile)

    return Optimizer("mipro", tune, means.evaluations)


def _simba(options: dict[str, Any], means: OptimizerInputs) -> Optimizer:
    size, candidates = min(means.train, options.pop("bsize", 8)), options.pop("num_candidates", 4)
    each_step = 2 * size * candidates
    left = means.evaluations - (candidates + 1) * means.train - means.validation
    settings = {
        "bsize": size,
        "num_candidates": candidates,
        "max_steps": max(1, left // each_step),
        "max_demos": 3,
        "prompt_model": means.reflection,
        "num_threads": means.threads,
        **options,
    }
    optimizer = dspy.SIMBA(metric=means.metric, **settings)

    def tune(student: dspy.Module, examples: Examples, _: Examples) -> dspy.Module:
        return optimizer.compile(student, trainset=list(examples), seed=means.seed)

    expected = settings["max_steps"] * each_step + (candidates + 1) * means.train + means.validation
    return Optimizer("simba", tune, expected)


def _by_dotted_name(name: str, options: dict[str, Any], means: OptimizerInputs) -> Optimizer:
    """Any class with DSPy's shape: made with `metric=`, then `compile(student, trainset=…)`."""
    module, _, attribute = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"optimizer {name}: cannot be imported: {one_line(error)}") from None
    if not callable(kind) or not hasattr(kind, "compile"):
        raise ConfigError(f"optimizer {name}: has no compile(student, trainset=…)")
    offered = {"num_threads": means.threads, "seed": means.seed, "prompt_model": means.reflection, "max_errors": MANY}
    offered["evaluations"] = means.evaluations
    takes, at_compile = _parameters(kind.__init__), _parameters(kind.compile)
    later = {k: options.pop(k) for k in list(options) if k not in takes and k in at_compile}
    optimizer = kind(metric=means.metric, **{**{k: v for k, v in offered.items() if k in takes}, **options})

    def tune(student: dspy.Module, examples: Examples, held: Examples) -> dspy.Module:
        sets: dict[str, Any] = {"trainset": list(examples)}
        if "valset" in at_compile:
            sets["valset"] = list(held)
        if "eval_kwargs" in at_compile:
            sets["eval_kwargs"] = {"num_threads": means.threads, "display_progress": False}
        return optimizer.compile(student, **{**sets, **later})

    return Optimizer(name, tune, means.evaluations)


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "student", "trainset", "metric"}


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]

"""Optimizers by name: DSPy's, set up for programs whose evaluation takes dozens of calls.

All are sized by one number, how often a candidate may be scored (`evaluations`), so that they can be compared at equal
effort. The optimizer's options take precedence over what is set here.
"""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeAlias

import dspy

from refed_dspy.config.compile import RESERVED
from refed_dspy.config.named import OPTIMIZERS, is_named, resolve
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.optimizers.metrics import name_of
from refed_dspy.text import install_command, nearest

Examples: TypeAlias = Sequence[dspy.Example]
AUTO = ("light", "medium", "heavy")
DOES = {
    "bootstrap": "collecting demonstrations",
    "gepa": "rewriting prompts from feedback",
    "mipro": "proposing prompts and searching among them",
    "simba": "rewriting prompts and adding demonstrations",
    "variants": "scoring programs that differ as much as prompts can",
}
"""What an optimizer does, for people."""
NO_ERROR_LIMIT = 1_000_000
"""So many errors never occur: which error ends a compile is decided elsewhere (optimizers/recorder.py)."""

SHORT: Mapping[str, Any] = {
    "bootstrap": dspy.BootstrapFewShot,
    "gepa": dspy.GEPA,
    "mipro": dspy.MIPROv2,
    "simba": dspy.SIMBA,
}
"""Short name → the optimizer that this package sizes itself."""
_SEARCH_BY_OPTUNA = (dspy.MIPROv2, dspy.BootstrapFewShotWithOptuna)


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
    """An optimizer, set up: `kind` is DSPy's. `expected` is about how many evaluations it will ask for."""

    name: str
    kind: Any
    expected: int
    at_compile: Mapping[str, Any] = field(default_factory=dict)
    """What its `compile` gets besides the student and the sets."""

    def tune(self, student: dspy.Module, train: Examples, validation: Examples) -> dspy.Module:
        """The tuned program. Where the optimizer takes no validation set, it gets none."""
        if isinstance(self.kind, dspy.BetterTogether):  # it looks for a model in each predictor
            student = student.deepcopy()
            student.set_lm(dspy.settings.lm)
        sets = {"trainset": list(train)}
        if "valset" in _parameters(self.kind.compile):
            sets["valset"] = list(validation)
        tuned: dspy.Module = self.kind.compile(student, **{**sets, **self.at_compile})
        return tuned


def choose(named: Any, options: Mapping[str, Any], inputs: OptimizerInputs) -> Optimizer:
    """The optimizer that `named` means, set up with `inputs`: a name (`kind_of`), a class, or an object of one, whose
    own sizes stay; its metric and models are those of `inputs`.

    Raises:
        ConfigError: no such optimizer, one that tunes no prompts, options that it does not take, or a package that it
            needs is missing.
    """
    kind, name = kind_of(named), name_of_optimizer(named)
    _refuse_others(kind, name)
    try:
        if not isinstance(named, str | type):
            if options:
                raise ValueError("options are those of a name or a class; set them where you made it")
            return _made_by_caller(named, name, inputs)
        _refuse_own_models(options)
        make = _MAKERS.get(kind)
        return make(dict(options), inputs) if make else _by_class(kind, name, dict(options), inputs)
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {name}: {one_line(error)}") from None


def kind_of(named: Any) -> Any:
    """The class of an optimizer: by a short name of SHORT, by the name of one that DSPy exports, in any letters, alone
    or after `dspy.`, or by any dotted name; of an object its own. Raises ConfigError."""
    if not isinstance(named, str):
        return named if isinstance(named, type) else type(named)
    plain = named.strip().lower().removeprefix("dspy.").removeprefix("teleprompt.")
    kind: Any = SHORT.get(plain) or _exported().get(plain)
    if kind is not None:
        return kind
    if is_named(named, OPTIMIZERS):
        return resolve(named, OPTIMIZERS, "optimizer")
    if near := nearest(plain, [*SHORT, *_exported()]):
        raise ConfigError(f"optimizer: {one_line(named, 40)!r} is none; did you mean {near}?")
    known = ", ".join([*SHORT, *sorted({each.__name__ for each in _exported().values()} - _NOT_OFFERED)])
    raise ConfigError(f"optimizer: {one_line(named, 40)!r} is none of {known}; of one of your own give the dotted name")


def name_of_optimizer(named: Any) -> str:
    """How an optimizer is called in messages, and told from others: one name, however it was given."""
    kind: Any = kind_of(named)
    if short := next((name for name, each in SHORT.items() if each is kind), ""):
        return short
    own = getattr(kind, "__name__", "")
    if getattr(kind, "__module__", "").startswith("refed_dspy."):
        return own.lower()
    if _exported().get(own.lower()) is kind:
        return f"dspy.{own}"
    return named if isinstance(named, str) else f"{kind.__module__}:{kind.__qualname__}"


@cache
def _exported() -> dict[str, Any]:
    """Name in small letters → each optimizer that DSPy exports."""
    exported = {name.lower(): getattr(dspy, name) for name in dir(dspy)}
    return {name: each for name, each in exported.items() if isinstance(each, type) and hasattr(each, "compile")}


_NO_TUNING = {
    "AvatarOptimizer": "tunes agents of its own kind alone",
    "BootstrapFinetune": "trains weights, and a compile tunes prompts; train on exports",
    "Ensemble": "joins programs, and tunes none",
    "KNNFewShot": "chooses demonstrations anew at each call, so there is no tuned program to keep",
}
"""Optimizers of DSPy's that cannot be used here → why."""


_NOT_OFFERED = {*_NO_TUNING, *(kind.__name__ for kind in SHORT.values())}
"""Names that a message need not offer."""


def _refuse_others(kind: Any, name: str) -> None:
    """Raises ConfigError where an optimizer cannot do what a compile is for, or could not go on after paid work, for
    want of a package."""
    if not callable(getattr(kind, "compile", None)):
        raise ConfigError(f"optimizer {name}: has no compile(student, trainset=…)")
    if why := next((_NO_TUNING[each.__name__] for each in kind.__mro__ if each.__name__ in _NO_TUNING), ""):
        raise ConfigError(f"optimizer {name}: {why}")
    if issubclass(kind, _SEARCH_BY_OPTUNA) and find_spec("optuna") is None:
        raise ConfigError(f"optimizer {name} needs Optuna: run {install_command('mipro')}")


def _bootstrap(options: dict[str, Any], inputs: OptimizerInputs) -> Optimizer:
    settings = {"max_bootstrapped_demos": 4, "max_labeled_demos": 0, "max_errors": NO_ERROR_LIMIT, **options}
    expected = min(inputs.train, 2 * settings["max_bootstrapped_demos"]) + inputs.validation
    return Optimizer("bootstrap", dspy.BootstrapFewShot(metric=inputs.metric, **settings), expected)


def _gepa(options: dict[str, Any], inputs: OptimizerInputs) -> Optimizer:
    gepa_kwargs = _stopping(options.pop("gepa_kwargs", None), inputs)
    if options.get("auto", "light") not in AUTO:
        raise ValueError(f"auto: must be one of {', '.join(AUTO)}")
    budget = {"auto", "max_full_evals", "max_metric_calls"} & set(options)
    settings = {
        **({} if budget else {"max_metric_calls": inputs.evaluations}),
        "reflection_lm": inputs.reflection,
        "num_threads": inputs.threads,
        "seed": inputs.seed,
        "warn_on_score_mismatch": False,
        "failure_score": 0.0,
        **options,
        "gepa_kwargs": gepa_kwargs,
    }
    calls = settings.get("max_metric_calls")
    _refuse_few(calls, settings.get("reflection_minibatch_size"), inputs)
    expected = calls or inputs.evaluations
    return Optimizer("gepa", dspy.GEPA(metric=inputs.metric, **settings), expected)


def _refuse_few(calls: int | None, batch: int | None, inputs: OptimizerInputs) -> None:
    """Raises ValueError where GEPA could try no candidate."""
    if calls is not None and calls <= inputs.validation:
        enough = 2 * inputs.validation + 2 * (batch or 3)
        raise ValueError(
            f"{calls} evaluations are used up by the {inputs.validation} validation examples before any candidate is "
            f"tried; set evaluations to {enough} or more, or lower validation"
        )


def _mipro(options: dict[str, Any], inputs: OptimizerInputs) -> Optimizer:
    # Repeats of an example while bootstrapping cost nothing.
    left = inputs.evaluations - inputs.validation - inputs.train
    at_compile = _taken_at_compile(dspy.MIPROv2, options)
    if options.get("auto") is None:
        sized = {"num_trials": max(1, left // max(1, inputs.validation)), "minibatch": False}
        at_compile = {**sized, **at_compile}
    settings = {
        "auto": None,
        "num_candidates": 6,
        "max_bootstrapped_demos": 2,
        "max_labeled_demos": 0,
        "prompt_model": inputs.reflection,
        "task_model": inputs.teacher,
        "num_threads": inputs.threads,
        "seed": inputs.seed + 1,  # it takes 0 for no seed
        "max_errors": NO_ERROR_LIMIT,
        **options,
    }
    if settings["auto"] is not None:
        settings["num_candidates"] = None
    expected = max(inputs.evaluations, inputs.train + 2 * inputs.validation)
    return Optimizer("mipro", dspy.MIPROv2(metric=inputs.metric, **settings), expected, at_compile)


def _simba(options: dict[str, Any], inputs: OptimizerInputs) -> Optimizer:
    size, candidates = options.pop("bsize", min(inputs.train, 8)), options.pop("num_candidates", 4)
    each_step = 2 * size * candidates
    left = inputs.evaluations - (candidates + 1) * inputs.train - inputs.validation
    settings = {
        "bsize": size,
        "num_candidates": candidates,
        "max_steps": max(1, left // each_step),
        "max_demos": 3,
        "prompt_model": inputs.reflection,
        "num_threads": inputs.threads,
        **options,
    }
    expected = settings["max_steps"] * each_step + (candidates + 1) * inputs.train + inputs.validation
    return Optimizer("simba", dspy.SIMBA(metric=inputs.metric, **settings), expected, {"seed": inputs.seed})


def _by_class(kind: Any, name: str, options: dict[str, Any], inputs: OptimizerInputs) -> Optimizer:
    """Any class with DSPy's shape, sized for the evaluations: made with `metric=`, then `compile(student,
    trainset=…)`."""
    rounds = max(2, min(16, inputs.evaluations // max(1, inputs.validation) - 4))
    offered = {
        **_models_and_bounds(inputs),
        "evaluations": inputs.evaluations,
        "metric": inputs.metric,
        "num_candidate_programs": rounds,
        "num_candidates": rounds,
        "breadth": max(2, min(10, rounds // 2)),
        "depth": 2,
        "max_labeled_demos": 0,
        "strategy": "p",
        "max_demos": 3,
    }
    if kind is dspy.BetterTogether:
        search = dspy.BootstrapFewShotWithRandomSearch(
            inputs.metric, num_candidate_programs=rounds, max_labeled_demos=0
        )
        options = {"p": search, **options}
        options = {key: _with_ours(each, inputs) if hasattr(each, "compile") else each for key, each in options.items()}
    later = _taken_at_compile(kind, options)
    later = {**{key: offered[key] for key in _parameters(kind.compile) & {"strategy", "max_demos"}}, **later}
    if "eval_kwargs" in _parameters(kind.compile):
        later.setdefault("eval_kwargs", {"num_threads": inputs.threads, "display_progress": False})
    takes = _accepted(kind)
    with redirect_stdout(io.StringIO()):  # some print their sizes, even where they are only asked how long they take
        optimizer = kind(**{**{key: value for key, value in offered.items() if key in takes}, **options})
    return Optimizer(name, optimizer, inputs.evaluations, later)


def _made_by_caller(optimizer: Any, name: str, inputs: OptimizerInputs) -> Optimizer:
    """The caller's own object, with our metric and models."""
    later: dict[str, Any] = {"strategy": "p"} if isinstance(optimizer, dspy.BetterTogether) else {}
    if isinstance(optimizer, dspy.BootstrapFewShotWithOptuna):
        later = {"max_demos": 3}
    expected = getattr(optimizer, "max_metric_calls", None) or inputs.evaluations
    return Optimizer(name, _with_ours(optimizer, inputs), expected, later)


def _with_ours(optimizer: Any, inputs: OptimizerInputs) -> Any:
    """A copy of an optimizer that asks through the ledger alone, and scores by our metric."""
    made = copy.copy(optimizer)
    for attribute in ("teacher_settings", "log_dir"):
        if getattr(made, attribute, None):
            raise ValueError(f"{attribute}: {RESERVED[attribute]}")
    ours = {**_models_and_bounds(inputs), "metric": inputs.metric, "metric_fn": inputs.metric}
    del ours["seed"]  # one of its sizes
    for attribute, value in ours.items():
        if attribute in vars(made):
            setattr(made, attribute, value)
    _refuse_own_models({name: value for name, value in vars(made).items() if name not in ours})
    if isinstance(made, dspy.GEPA):
        _refuse_few(made.max_metric_calls, made.reflection_minibatch_size, inputs)
        made.gepa_kwargs = _stopping(made.gepa_kwargs, inputs)
    if isinstance(made, dspy.BetterTogether):
        made.optimizers = {key: _with_ours(each, inputs) for key, each in made.optimizers.items()}
    return made


def _refuse_own_models(parts: Mapping[str, Any]) -> None:
    """Raises ValueError for a part of an optimizer that would ask a model past the ledger."""
    for name, part in parts.items():
        held = [each.lm for each in part.predictors()] if isinstance(part, dspy.Module) else [part]
        if any(isinstance(each, dspy.BaseLM) or hasattr(each, "prompt_model") for each in held):
            raise ValueError(f"{name}: holds a language model of its own, which the caps would miss")


def own_attribute(optimizer: Any, *attributes: str) -> Any:
    """The first of these that an optimizer object was made with, or a part of it; None where it has none, or is a name
    or a class."""
    if isinstance(optimizer, str | type):
        return None
    parts = optimizer.optimizers.values() if isinstance(optimizer, dspy.BetterTogether) else ()
    found = (getattr(each, name, None) for each in (optimizer, *parts) for name in attributes)
    return next((value for value in found if value is not None), None)


def held_by(optimizer: Any) -> dict[str, Any]:
    """What tells an optimizer object from others of its class: its attributes, but models, metrics and private ones,
    by values or names; of one inside it the same."""
    left_out = {"metric", "metric_fn"}
    return {
        name: described(value)
        for name, value in sorted(vars(optimizer).items())
        if not name.startswith("_") and name not in left_out and not isinstance(value, dspy.BaseLM)
    }


def described(value: Any) -> Any:
    """An option or attribute of an optimizer, equal on every start: functions and objects become their names, an
    optimizer what it is `held_by`."""
    if isinstance(value, Mapping):
        return {str(key): described(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [described(inner) for inner in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    return {name_of(value): held_by(value)} if hasattr(value, "compile") else name_of(value)


def _models_and_bounds(inputs: OptimizerInputs) -> dict[str, Any]:
    """What optimizers call the models that they ask, and what bounds them."""
    return {
        "prompt_model": inputs.reflection,
        "reflection_lm": inputs.reflection,
        "task_model": inputs.teacher,
        "num_threads": inputs.threads,
        "seed": inputs.seed,
        "max_errors": NO_ERROR_LIMIT,
    }


def _stopping(gepa_kwargs: Mapping[str, Any] | None, inputs: OptimizerInputs) -> dict[str, Any]:
    """`gepa_kwargs`, with which GEPA stops where no call is allowed any more."""
    given = dict(gepa_kwargs or {})
    stops = [lambda _state: inputs.stopping(), *_listed(given.pop("stop_callbacks", None))]
    return {**given, "stop_callbacks": stops}


def _taken_at_compile(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Take out of `options` those that only the optimizer's `compile` accepts."""
    names = _parameters(kind.compile) - _parameters(kind.__init__)
    return {name: options.pop(name) for name in list(options) if name in names}


def _accepted(kind: Any) -> set[str]:
    """What a class is made with, and what its bases are where it passes on the rest."""
    names: set[str] = set()
    for each in kind.__mro__:
        parameters = inspect.signature(each.__init__).parameters.values() if "__init__" in vars(each) else ()
        names |= {one.name for one in parameters}
        if parameters and all(one.kind is not inspect.Parameter.VAR_KEYWORD for one in parameters):
            break
    return names


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "student", "trainset", "metric"}


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


_MAKERS = {dspy.BootstrapFewShot: _bootstrap, dspy.GEPA: _gepa, dspy.MIPROv2: _mipro, dspy.SIMBA: _simba}

"""Optimizers by name: DSPy's, set up for programs whose evaluation takes dozens of calls.

All are sized by one number, how often a candidate may be scored (`evaluations`), so that they can be compared at equal
effort. The optimizer's options take precedence over what is set here.
"""

from __future__ import annotations

import inspect
import io
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO, TypeAlias, cast

import dspy

from refed_dspy.config.named import OPTIMIZERS, is_named, resolve
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.text import install_command

Examples: TypeAlias = Sequence[dspy.Example]
AUTO = ("light", "medium", "heavy")
DOES = {
    "bootstrap": "collecting demonstrations",
    "gepa": "rewriting prompts from feedback",
    "mipro": "proposing prompts and searching among them",
    "simba": "rewriting prompts and adding demonstrations",
}
"""What an optimizer does, for people."""
NO_ERROR_LIMIT = 1_000_000
"""So many errors never occur: which error ends a compile is decided elsewhere (optimizers/recorder.py)."""

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
        sets = {"trainset": list(train)}
        if "valset" in _parameters(self.kind.compile):
            sets["valset"] = list(validation)
        tuned: dspy.Module = self.kind.compile(student, **{**sets, **self.at_compile})
        return tuned


def choose(name: str, options: Mapping[str, Any], inputs: OptimizerInputs) -> Optimizer:
    """The optimizer called `name`, set up with `inputs`.

    Raises:
        ConfigError: no such optimizer, options that it does not take, or a package that it needs is missing.
    """
    makers = {"bootstrap": _bootstrap, "gepa": _gepa, "mipro": _mipro, "simba": _simba}
    try:
        if name in makers:
            return _runnable(makers[name](dict(options), inputs))
        if is_named(name, OPTIMIZERS):
            return _runnable(_by_dotted_name(name, dict(options), inputs))
    except (ArithmeticError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"optimizer {name}: {one_line(error)}") from None
    raise ConfigError(
        f"optimizer: {one_line(name, 40)!r} is not one of {', '.join(makers)}; give any other by its dotted name, "
        "such as dspy.teleprompt.COPRO"
    )


def _runnable(optimizer: Optimizer) -> Optimizer:
    """`optimizer`. Raises ConfigError where it could not go on after paid work: it trains weights, or imports Optuna,
    which is not installed."""
    if isinstance(optimizer.kind, dspy.BootstrapFinetune):
        raise ConfigError(f"optimizer {optimizer.name}: trains weights, and a compile tunes prompts; train on exports")
    if isinstance(optimizer.kind, _SEARCH_BY_OPTUNA) and find_spec("optuna") is None:
        raise ConfigError(f"optimizer {optimizer.name} needs Optuna: run {install_command('mipro')}")
    return optimizer


def _bootstrap(options: dict[str, Any], inputs: OptimizerInputs) -> Optimizer:
    settings = {"max_bootstrapped_demos": 4, "max_labeled_demos": 0, "max_errors": NO_ERROR_LIMIT, **options}
    expected = min(inputs.train, 2 * settings["max_bootstrapped_demos"]) + inputs.validation
    return Optimizer("bootstrap", dspy.BootstrapFewShot(metric=inputs.metric, **settings), expected)


def _gepa(options: dict[str, Any], inputs: OptimizerInputs) -> Optimizer:
    gepa_kwargs = dict(options.pop("gepa_kwargs", None) or {})
    if options.get("auto", "light") not in AUTO:
        raise ValueError(f"auto: must be one of {', '.join(AUTO)}")
    stop_callbacks = [lambda _state: inputs.stopping(), *_listed(gepa_kwargs.pop("stop_callbacks", None))]
    budget = {"auto", "max_full_evals", "max_metric_calls"} & set(options)
    settings = {
        **({} if budget else {"max_metric_calls": inputs.evaluations}),
        "reflection_lm": inputs.reflection,
        "num_threads": inputs.threads,
        "seed": inputs.seed,
        "warn_on_score_mismatch": False,
        "failure_score": 0.0,
        **options,
        "gepa_kwargs": {**gepa_kwargs, "stop_callbacks": stop_callbacks},
    }
    calls, batch = settings.get("max_metric_calls"), settings.get("reflection_minibatch_size") or 3
    if calls is not None and calls <= inputs.validation:
        raise ValueError(
            f"{calls} evaluations are used up by the {inputs.validation} validation examples before any candidate is "
            f"tried; set evaluations to {2 * inputs.validation + 2 * batch} or more, or lower validation"
        )
    expected = calls or inputs.evaluations
    return Optimizer("gepa", dspy.GEPA(metric=inputs.metric, **settings), expected)


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


def _by_dotted_name(name: str, options: dict[str, Any], inputs: OptimizerInputs) -> Optimizer:
    """Any class with DSPy's shape: made with `metric=`, then `compile(student, trainset=…)`."""
    kind = resolve(name, OPTIMIZERS, "optimizer")
    if not callable(kind) or not hasattr(kind, "compile"):
        raise ConfigError(f"optimizer {name}: has no compile(student, trainset=…)")
    offered = {
        "num_threads": inputs.threads,
        "seed": inputs.seed,
        "prompt_model": inputs.reflection,
        "max_errors": NO_ERROR_LIMIT,
        "evaluations": inputs.evaluations,
    }
    takes, later = _parameters(kind.__init__), _taken_at_compile(kind, options)
    if "eval_kwargs" in _parameters(kind.compile):
        later.setdefault("eval_kwargs", {"num_threads": inputs.threads, "display_progress": False})
    with redirect_stdout(io.StringIO()):  # some print their sizes, even where they are only asked how long they take
        optimizer = kind(metric=inputs.metric, **{**{k: v for k, v in offered.items() if k in takes}, **options})
    return Optimizer(name, optimizer, inputs.evaluations, later)


def _taken_at_compile(kind: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Take out of `options` those that only the optimizer's `compile` accepts."""
    names = _parameters(kind.compile) - _parameters(kind.__init__)
    return {name: options.pop(name) for name in list(options) if name in names}


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "student", "trainset", "metric"}


def _listed(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


# --- what they print

LOG = "optimizer.log"
"""What DSPy's optimizers print and log goes to this file in the compile's folder: the display beside it says enough."""
_LOGGERS = ("dspy", "optuna")
_PRINTING = {"dspy", "gepa", "optuna", "tqdm"}
"""Packages whose output is theirs to keep: that of a metric or a program of the caller's own stays where it was."""

_LEFT = 0.5
"""Seconds for threads that an interrupted optimizer leaves: they end as soon as they ask, and DSPy logs each error."""


class _Sorted:
    """A stream of which what the optimizers' packages write goes to a file, which is made when they first do; without
    a `stream` whatever is written."""

    def __init__(self, path: Path, stream: TextIO | None = None) -> None:
        self._path, self._stream = path, stream

    def write(self, text: str) -> int:
        writer = sys._getframe(1).f_globals.get("__name__", "").partition(".")[0]
        if self._stream is not None and writer not in _PRINTING:
            return self._stream.write(text)
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors="replace") as file:
            file.write(text)  # on a full disk the compile has better to say
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printed_to_file(folder: Path) -> Iterator[None]:
    """In the block, what DSPy's optimizers print, log or draw as bars goes to LOG in `folder`.

    Not where DSPy's logger is set to DEBUG: then somebody wants to see it; nor in a second compile at the same time.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    if loggers[0].isEnabledFor(logging.DEBUG) or isinstance(sys.stderr, _Sorted):
        yield
        return
    file, there = folder / LOG, set(threading.enumerate())
    out, err, logs = (cast(TextIO, _Sorted(file, stream)) for stream in (sys.stdout, sys.stderr, None))
    before = [(logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [logging.StreamHandler(logs)], False
    try:
        with redirect_stdout(out), redirect_stderr(err):
            yield
    except BaseException:
        _let_end(set(threading.enumerate()) - there)
        raise
    finally:
        for logger, (handlers, passed_on) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, passed_on


def _let_end(threads: Iterable[threading.Thread]) -> None:
    until = time.monotonic() + _LEFT
    for thread in threads:
        if not thread.daemon:
            thread.join(max(0.0, until - time.monotonic()))

"""A caller's own objects that settings name: by `package.module:Name`, by `package.module.Name`, or by the name of
another package's entry point."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.records import digest

FILTERS, FORMATS = "refed_dspy.filters", "refed_dspy.formats"
METRICS = "refed_dspy.metrics"
OPTIMIZERS, PROGRAMS = "refed_dspy.optimizers", "refed_dspy.programs"
"""The groups of entry points."""
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*([.:][^\W\d]\w*)(\.[^\W\d]\w*)*")


def is_named(name: Any, group: str) -> bool:
    """Whether `name` can name something of a caller's own, there or not."""
    return isinstance(name, str) and (_DOTTED.fullmatch(name) is not None or bool(entry_points(group=group, name=name)))


def resolve(name: str, group: str, what: str) -> Any:
    """What `name` names, imported now, also from the working directory. Raises ConfigError, with `what` in front."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)  # at the end: it hides no installed module
    where = f"{what} {one_line(name, 80)}: cannot be imported"
    try:
        for entry in entry_points(group=group, name=name):
            return entry.load()
        return resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{where}: {one_line(error, 160)}") from None
    except (Exception, SystemExit) as error:  # the module's own code
        raise ConfigError(f"{where}: {raised(error)}") from error


def made(maker: Callable[..., Any], where: str, **settings: Any) -> Any:
    """What a caller's own class or function makes of `settings`. Raises ConfigError, with `where` in front."""
    try:
        return maker(**settings)
    except Exception as error:
        raise ConfigError(f"{where}: {raised(error)}") from error


def raised(error: BaseException) -> str:
    """What a caller's own code raised, on one line."""
    return f"{type(error).__name__}: {one_line(error, 160)}"


_KNOWN = ("refed_dspy.", "dspy.", "builtins")
"""Modules whose code a version tells."""


def code_of(thing: Any) -> str:
    """A digest of the code of a caller's own function, or of the methods of their own class and of its own bases:
    comments and form do not count. Empty where there is none, or its source is not at hand."""
    kinds = thing.__mro__ if isinstance(thing, type) else [thing]
    own = [kind for kind in kinds if not f"{kind.__module__}.".startswith(_KNOWN)]
    parts = [part for kind in own for part in (vars(kind).values() if isinstance(kind, type) else [kind])]
    sources = [source for part in parts if (source := _source(part))]
    return digest(sources) if sources else ""


def _source(part: Any) -> str:
    """The code of a function, as a tree in words; empty for anything else."""
    function = inspect.unwrap(getattr(part, "__func__", getattr(part, "fget", part)) or part)
    if not inspect.isfunction(function):
        return ""
    try:
        return ast.dump(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, SyntaxError):
        return ""

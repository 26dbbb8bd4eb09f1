"""What a setting names of a caller's own: `package.module:Name`, `package.module.Name`, or an entry point of another
package, by its name there."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from refed_dspy.errors import ConfigError, one_line

FILTERS, FORMATS = "refed_dspy.filters", "refed_dspy.formats"
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

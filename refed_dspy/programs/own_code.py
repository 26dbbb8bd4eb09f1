"""Which code is a caller's own, and what is said of an error in it."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import Any

import dspy

from refed_dspy.config.keys import know_environment, without_keys
from refed_dspy.errors import CheckFailed, CodeFailed, one_line

_NOT_OWN = {"dspy", "refed_dspy"}
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))
_PACKAGE = str(Path(__file__).parents[1])


def is_own(code: object) -> bool:
    """Whether the caller wrote the class of `code`."""
    return code is not None and type(code).__module__.partition(".")[0] not in _NOT_OWN


def has_own_code(program: Any) -> bool:
    """Whether anything in `program` is no predictor and not this package's: DSPy's modules call tools and rewards."""
    modules = [module for _, module in program.named_sub_modules()] if isinstance(program, dspy.Module) else []
    return is_own(program) or any(
        is_own(module) or (type(module).__module__.startswith("dspy.") and type(module) is not dspy.Predict)
        for module in modules
    )


def code_failed(stage: str, item: str, error: BaseException) -> CodeFailed:
    """The failure of the row `item` by an error of the caller's code."""
    know_environment()
    if isinstance(error, CheckFailed):
        return CodeFailed(stage, item, str(error))
    words = f"{type(error).__name__}: {one_line(without_keys(str(error)), 160)}".rstrip(": ")
    return CodeFailed(stage, item, f"{words} ({place_of(error)})")


def place_of(error: BaseException, whole: bool = False) -> str:
    """FILE:LINE of the last step in the caller's own files, or else of the last one. `whole`: with the file's path."""
    steps = traceback.extract_tb(error.__traceback__)
    own = [step for step in steps if not step.filename.startswith((*_LIBRARIES, _PACKAGE))]
    if not (last := (own or steps)[-1:]):
        return "an unknown place"
    return f"{last[0].filename if whole else Path(last[0].filename).name}:{last[0].lineno}"

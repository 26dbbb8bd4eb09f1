"""The keywords of the functions that take a class of settings: their types for editors, their defaults for notebooks.

A TypedDict beside each function names its keywords for type checkers and editors (PEP 692). Notebooks and `help()` look
at a function's signature when it runs, so `with_keywords` puts them there, with the defaults that the class has.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, signature
from typing import Any, TypeVar

from refed_dspy.config.base import Settings

F = TypeVar("F", bound=Callable[..., Any])


def with_keywords(kind: type[Settings], keywords: type) -> Callable[[F], F]:
    """Show the `keywords` (a TypedDict) in the signature of a function that takes them as `**settings`, each with its
    default in `kind`. Raises KeyError where `kind` lacks one."""
    added = [
        Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=kind.model_fields[name].get_default(call_default_factory=True),
            annotation=getattr(annotation, "__forward_arg__", annotation),
        )
        for name, annotation in keywords.__annotations__.items()
    ]

    def decorated(function: F) -> F:
        plain = signature(function)
        own = [each for each in plain.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        function.__signature__ = plain.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return function

    return decorated

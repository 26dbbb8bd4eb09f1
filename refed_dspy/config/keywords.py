"""The arguments of the public functions: checked when one is called; shown, with their types and defaults, to editors
and notebooks.

A TypedDict beside each function that has a class of settings names its keywords for type checkers and editors (PEP
692). Notebooks and `help()` look at a function's signature when it runs, so `with_keywords` puts them there, with the
defaults that the class has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from inspect import Parameter, iscoroutinefunction, signature
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, cast, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from refed_dspy.config.base import Settings, first_fault, unknown_key
from refed_dspy.errors import ConfigError, one_line

F = TypeVar("F", bound=Callable[..., Any])
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
"""A seed of random draws, as the settings have it."""
_SAME = (("references", "examples", "pairs", "source"), ("out", "run_dir"), ("teacher", "judge"))
"""Names that one function has for what another calls differently: who types the one is told of the other."""


def checked(function: F) -> F:
    """`function`, which refuses arguments that are not of the types in its signature, before it does anything.

    Raises ConfigError that names the argument. Arguments that are annotated `Any` are the function's own to check.
    """
    parameters = signature(function).parameters
    refuse = _refusing(function, [name for name, each in parameters.items() if each.kind is not Parameter.VAR_KEYWORD])
    return _before(function, refuse)


def with_keywords(kind: type[Settings], keywords: type) -> Callable[[F], F]:
    """`checked`, for a function that takes `keywords` (a TypedDict) as `**settings`: they are shown in its signature,
    each with its default in `kind`, and others are refused. Raises KeyError where `kind` lacks one."""
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
        known = [each.name for each in [*own, *added]]
        refuse = _refusing(function, [each.name for each in own])

        def check(arguments: Mapping[str, Any]) -> None:
            if unknown := next((name for name in arguments if name not in known), None):
                raise ConfigError(f"{one_line(unknown, 40)}: {_hint(unknown, known)}")
            refuse(arguments)

        whole = _before(function, check)
        whole.__signature__ = plain.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return whole

    return decorated


def _hint(unknown: str, known: Iterable[str]) -> str:
    """What to write in place of a keyword that a function does not have."""
    same = next((names for names in _SAME if unknown in names), ())
    here = [name for name in same if name in known]
    return f"is called {here[0]} here" if here else unknown_key(unknown, known)


def _before(function: F, check: Callable[[Mapping[str, Any]], None]) -> F:
    """`function`, which has `check` look at its arguments by name first."""
    plain = signature(function)
    rest = next((each.name for each in plain.parameters.values() if each.kind is Parameter.VAR_KEYWORD), "")

    def look(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        try:
            named = plain.bind_partial(*arguments, **keywords).arguments
        except TypeError:  # the call itself says so, with the function's name
            return
        settings = named.pop(rest, {})
        check({**named, **settings})

    @wraps(function)
    def called(*arguments: Any, **keywords: Any) -> Any:
        look(arguments, keywords)
        return function(*arguments, **keywords)

    @wraps(function)
    async def awaited(*arguments: Any, **keywords: Any) -> Any:
        look(arguments, keywords)
        return await function(*arguments, **keywords)

    return cast(F, awaited if iscoroutinefunction(function) else called)


def _refusing(function: Callable[..., Any], names: Iterable[str]) -> Callable[[Mapping[str, Any]], None]:
    """Raises ConfigError for an argument among `names` that is not of its type."""

    @cache
    def types() -> Mapping[str, TypeAdapter[Any]]:
        hints = get_type_hints(function, include_extras=True)  # now: modules that import one another are whole
        strict = ConfigDict(strict=True, arbitrary_types_allowed=True)
        return {name: TypeAdapter(hints[name], config=strict) for name in names if hints[name] is not Any}

    def refuse(arguments: Mapping[str, Any]) -> None:
        for name, value in arguments.items():
            if name in types():
                _check(types()[name], name, value)

    return refuse


def _check(type_: TypeAdapter[Any], name: str, value: Any) -> None:
    if isinstance(value, os.PathLike):  # a result, say, which stands for its folder
        value = Path()
    if hasattr(value, "__index__") and not isinstance(value, bool):  # a number of NumPy's
        value = int(value)
    if value == "" and isinstance(value, str):
        raise ConfigError(f"{name}: is empty; is a shell variable unset?")
    try:
        type_.validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{name}: got a {type(value).__name__}; {first_fault(error)[1]}") from None

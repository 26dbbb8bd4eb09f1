"""The arguments of the public functions: checked when one is called; shown, with their types and defaults, to editors
and notebooks.

A function that has a class of settings takes them as `**settings`. Type checkers and editors know their names from
`refed_dspy/keywords.pyi`, which is made from the classes (`make docs`). Notebooks and `help()` look at a function's
signature and docstring when it runs, so `with_keywords` puts them there, with the class's defaults and sentences.
"""

from __future__ import annotations

import inspect
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, wraps
from inspect import Parameter, iscoroutinefunction, signature
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, TypeAlias, TypeVar, cast, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from refed_dspy.config.base import Settings, first_fault, unknown_key
from refed_dspy.errors import ConfigError, one_line

F = TypeVar("F", bound=Callable[..., Any])
Seed: TypeAlias = Annotated[int, Field(ge=0, lt=2**31)]
"""A seed of random draws, as the settings have it."""
TAKES = "__refed_settings__"
"""What a function with settings has beside its signature: their class, and the names of those that it takes."""
_SAME = (("references", "examples", "pairs", "source"), ("out", "run_dir"), ("teacher", "judge"))
"""Names that one function has for what another calls differently: who types the one is told of the other."""


def checked(function: F) -> F:
    """`function`, which refuses arguments that are not of the types in its signature, before it does anything.

    Raises ConfigError that names the argument. Arguments that are annotated `Any` are the function's own to check.
    """
    parameters = signature(function).parameters
    refuse = _refusing(function, [name for name, each in parameters.items() if each.kind is not Parameter.VAR_KEYWORD])
    return _before(function, refuse)


def with_keywords(kind: type[Settings], *changed: str) -> Callable[[F], F]:
    """`checked`, for a function that takes settings of `kind` as `**settings`: all that it has no argument of its own
    for, or those that are `changed`, where None means as it was. They are shown in its signature and told of at the end
    of its docstring; others are refused."""

    def decorated(function: F) -> F:
        plain = signature(function)
        own = [each for each in plain.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
        mine = {each.name for each in own}
        names = changed or [name for name in _annotations(kind) if name not in mine]
        known = [*(each.name for each in own), *names]
        refuse = _refusing(function, list(mine))

        def check(arguments: Mapping[str, Any]) -> None:
            if unknown := next((name for name in arguments if name not in known), None):
                raise ConfigError(f"{one_line(unknown, 40)}: {_hint(unknown, known)}")
            refuse(arguments)

        whole: Any = _before(function, check)
        whole.__signature__ = plain.replace(parameters=[*own, *_shown(kind, names, bool(changed))])
        whole.__annotations__ = {n: type_ for n, type_ in function.__annotations__.items() if n in {*mine, "return"}}
        setattr(whole, TAKES, (kind, names))
        whole.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{_told(kind, names)}"
        return cast(F, whole)

    return decorated


def _shown(kind: type[Settings], names: Iterable[str], as_it_was: bool) -> Iterator[Parameter]:
    """The settings as parameters, as the class annotates them."""
    annotations = _annotations(kind)
    for name in names:
        default = None if as_it_was else kind.model_fields[name].get_default(call_default_factory=True)
        yield Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotations[name])


def _annotations(kind: type[Settings]) -> dict[str, str]:
    """Setting → its type as the class has it, those that the class shares with others last."""
    found: dict[str, str] = {}
    for base in kind.__mro__:
        theirs = inspect.get_annotations(base).items()
        found |= {name: text for name, text in theirs if name in kind.model_fields and name not in found}
    return found


def _told(kind: type[Settings], names: Iterable[str]) -> str:
    """What is said of the settings, for `help()`."""
    sentences = {name: " ".join((kind.model_fields[name].description or "").split()) for name in names}
    return f"Settings (`{kind.__name__}`):\n" + "\n".join(
        textwrap.fill(f"{name}: {sentence}", 116, initial_indent=" " * 4, subsequent_indent=" " * 8)
        for name, sentence in sentences.items()
    )


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
        annotated = function.__annotations__
        own = SimpleNamespace(__annotations__={name: annotated[name] for name in names if name in annotated})
        # Now: modules that import one another are whole.
        hints = get_type_hints(own, inspect.unwrap(function).__globals__, include_extras=True)
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

"""What all settings classes share: their base class, the checks on column names, references, and the caps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.text import nearest, record_repr

PLACES = {
    "references",
    "data",
    "pairs",
    "prompts",
    "outputs",
    "baseline",
    "gamed",
    "environment",
    "clone",
    "program",
    "judge_program",
    "run_dir",
    "out",
    "reuse",
    "against",
    "gguf",
}
"""Settings that name a file, a folder, a data set or a model: none of them is an empty text."""
KEY_NAME = "api_key_env"
"""The setting that names the variable with a key."""
PAIR = ("instruction", "response", "input", "system")
"""The fields of a pair that `columns` may name."""
ASKED = ("instruction", "input", "system")
"""The same of a prompt."""
_MESSAGES = {
    "dict_type": "input should be `name: value` lines",
    "list_type": "input should be a list: [one, another]",
}
"""Pydantic's type of error → a message that speaks of YAML."""
Turns: TypeAlias = Literal["leave_out", "first", "last"]
"""What becomes of a conversation of several exchanges: it is left out, or one of its exchanges is taken."""


class Settings(BaseModel):
    """Base of all settings: frozen; an unknown key is an error that suggests the nearest known one."""

    # Pydantic's own messages show the input. It may be an API key put in the wrong place, so it must not be shown.
    # The sentence below a setting is its description, in `help()` and wherever else settings are told of.
    model_config = ConfigDict(
        extra="forbid", frozen=True, hide_input_in_errors=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _knows_every_key(cls, value: Any) -> Any:
        # Before pydantic's own checks, whose errors would not say what was meant.
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise ValueError("input should be `key: value` settings")
        if (unknown := next((key for key in value if key not in cls.model_fields), None)) is not None:
            error = PydanticCustomError("unknown_key", "{hint}", {"hint": _unknown_setting(str(unknown), cls)})
            details = InitErrorDetails(type=error, loc=(str(unknown),), input=None)
            raise ValidationError.from_exception_data(cls.__name__, [details])
        if (empty := next((key for key in PLACES if value.get(key) == ""), None)) is not None:
            error = PydanticCustomError("empty", "is empty; is a shell variable unset?")
            details = InitErrorDetails(type=error, loc=(empty,), input=None)
            raise ValidationError.from_exception_data(cls.__name__, [details])
        return value

    if not TYPE_CHECKING:  # editors and type checkers see the settings' own names

        def __init__(self, **settings: Any) -> None:
            try:
                super().__init__(**settings)
            except ValidationError as error:
                steps, message = first_fault(error)
                raise ConfigError(f"{one_line(place_of(steps), 80) or type(self).__name__}: {message}") from None

        __init__.__pydantic_base_init__ = True  # pydantic's mark: it validates what is nested without calling this

    def __repr__(self) -> str:
        given = {name: value for name, value in self if name in self.model_fields_set}
        return record_repr(type(self).__name__, given)


def first_fault(error: ValidationError) -> tuple[tuple[int | str, ...], str]:
    """Where the first fault stands, and what it is. Never the value: it may be an API key put in the wrong place."""
    fault = error.errors(include_url=False, include_input=False)[0]
    message = _MESSAGES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    return fault["loc"], message[0].lower() + message[1:]


def place_of(steps: Iterable[str | int]) -> str:
    """Where a fault is, for people, who count from 1: `filters 2: rouge.threshold`."""
    place = ""
    for step in steps:
        joint = "" if not place else ": " if place[-1].isdigit() else "."
        place += f" {step + 1}" if isinstance(step, int) else joint + step
    return place


def unknown_key(key: str, known: Iterable[str]) -> str:
    near = nearest(key, known)
    return "unknown key; " + (f"did you mean {near}?" if near else f"known keys: {', '.join(known)}")


def _unknown_setting(key: str, kind: type[Settings]) -> str:
    """The same of a setting, which may belong inside another one: a teacher's is often written beside it."""
    fields = kind.model_fields
    inner = {name: settings_in(fields[name].annotation) for name in sorted(fields, key=lambda name: name != "teacher")}
    if name := next((name for name, inside in inner.items() if inside and key in inside.model_fields), ""):
        return f"unknown key; did you mean {key}, under {name}?"
    if not nearest(key, fields):
        for name, inside in inner.items():
            if inside is not None and (near := nearest(key, inside.model_fields)):
                why = " It names the variable that holds the key, which is no setting" if near == KEY_NAME else ""
                return f"unknown key; did you mean {near}, under {name}?{why}"
    return unknown_key(key, kind.model_fields)


def settings_in(annotation: Any) -> type[Settings] | None:
    """The class of settings that a field holds, if it holds one, or may."""
    if isinstance(annotation, type):
        return annotation if issubclass(annotation, Settings) else None
    members = () if get_origin(annotation) in {dict, list} else get_args(annotation)
    return next(filter(None, map(settings_in, members)), None)


def _check_columns(fields: Sequence[str], columns: dict[str, str]) -> dict[str, str]:
    """`columns`, checked. Raises ValueError for a key that is none of `fields`: it would be ignored silently."""
    if (unknown := next((name for name in columns if name not in fields), None)) is not None:
        raise ValueError(f"{one_line(unknown, 40)}: {unknown_key(unknown, fields)}")
    return columns


PairColumns: TypeAlias = Annotated[dict[str, str], AfterValidator(partial(_check_columns, PAIR))]
"""The names of a table's columns where they differ: {instruction: question, response: answer}."""
RowColumns: TypeAlias = Annotated[dict[str, str], AfterValidator(partial(_check_columns, (*PAIR, "plain")))]
"""The same with `plain`: the response before it was improved."""
PromptColumns: TypeAlias = Annotated[dict[str, str], AfterValidator(partial(_check_columns, ASKED))]
"""The same of prompts: {instruction: question, system: system_prompt}."""


class FromReferences(Settings):
    """Which references the work starts from."""

    references: str | None = None
    """A file, a Hub data set, or one of the package's own sets: `builtin` or, for small models, `builtin-short`. Unset:
    `builtin`."""
    columns: PairColumns = Field(default_factory=dict)
    """Column names that differ from the usual ones: {instruction: question, response: answer}."""
    turns: Turns = "leave_out"
    """How to treat conversations of several exchanges: `leave_out` (and count them), learn from the `first` exchange,
    or from the `last` with the earlier ones as context."""


class Capped(Settings):
    """Caps over all models and all starts. They are stored in the folder and apply until they are set again."""

    max_cost: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """Dollars the work may cost, over all models and starts. The cap applies until it is set again; `.inf` lifts it."""
    max_calls: int | None = Field(default=None, ge=1)
    """Calls the work may make, over all models and starts, whatever their outcome."""
    max_minutes: float | None = Field(default=None, gt=0, allow_inf_nan=True)
    """Minutes the work may take, over all starts."""

    @field_validator("max_calls", mode="wrap")
    @classmethod
    def _may_be_lifted(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        return value if value == math.inf else check(value)  # as the other two caps

    @field_validator("max_cost", "max_minutes")
    @classmethod
    def _in_reach(cls, value: float | None) -> float | None:
        if value is not None and 1e9 < value < math.inf:
            raise ValueError("must be at most 1,000,000,000; `.inf` lifts the cap")
        return value

"""Reading settings: from a file, the environment and keywords; a wrong one is a ConfigError of one line.

A keyword (or a flag) wins over an environment variable, which wins over the file. `REFED_SIZE=20` sets `size`;
two underscores step inside: `REFED_TEACHER__TEMPERATURE=0.7`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from refed_dspy.config.base import PLACES, Capped, Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.jobs import CompareConfig, FilterRunConfig, RecycleConfig, StatsConfig
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import NO_ENDPOINT, TeacherConfig
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.files import parse_yaml, read_bytes

ENV_PREFIX = "REFED_"
NOT_SETTINGS = {"REFED_CACHE"}
"""Variables of that prefix that are read elsewhere."""
_KINDS = (RunConfig, CompileConfig, CompareConfig, FilterRunConfig, RecycleConfig, StatsConfig)
_ALL_KEYS = {key for kind in _KINDS for key in kind.model_fields}
_ROLES = ("teacher", "judge", "reflection")
"""Settings that are one model each; a name stands for its settings."""
_OF_ENDPOINTS = {"api_base", "api_version", "api_key_env"}
"""Settings of a teacher that mean nothing without an endpoint."""
_NEVER_EMPTY = {*PLACES, *Capped.model_fields}
"""Settings whose default may cost more than what was meant: nothing after the colon is no way to ask for it."""
_WHOLE = ""
"""The key, where origins are told, of settings that are at odds as a whole."""

S = TypeVar("S", bound=Settings)


def load_config(
    kind: type[S], file: Path | None = None, environ: Mapping[str, str] | None = None, **keywords: Any
) -> S:
    """The settings of `kind`: `keywords` (None: not set) over the environment over `file`.

    Raises:
        ConfigError: one line that names the key, where it was set, and the nearest valid one.
    """
    settings: dict[str, Any] = {} if file is None else _mapping(file, _read_yaml(file))
    origin = dict.fromkeys(settings, str(file))  # key → where it was set, for messages
    given = _given(keywords)
    variables = _from_environment(os.environ if environ is None else environ, kind, given)
    for key, value in variables.items():
        _set_from_environment(settings, origin, key, value)
    settings |= given
    origin |= {key: key for key in given}
    if (empty := next((key for key in settings if settings[key] is None and key in _NEVER_EMPTY), None)) is not None:
        raise ConfigError(f"{origin[empty]}: {empty}: is empty")
    single = {role: value for role in _ROLES if isinstance(value := variables.get(role), dict)}
    for role in _ROLES:
        if role in kind.model_fields and isinstance(name := settings.get(role), str):
            settings[role] = _by_name(role, name, single.get(role, {}))
        if isinstance(settings.get(role), dict):
            settings[role] = _without_address(settings[role], single.get(role, {}))
    if kind is not CompileConfig and single.get("judge") and not {"model", "gguf"} & set(settings["judge"]):
        del settings["judge"]  # variables that refine a compile's judge do not name one by themselves
    if "teachers" in kind.model_fields:
        _expand_teachers(settings)
    return _validated(kind, settings, origin)


def teachers_in(name_or_file: str) -> list[TeacherConfig]:
    """Each teacher that a name, a teacher file or the settings of any work name, once, and the judge; with what
    variables say. Raises ConfigError."""
    roles: dict[str, Any] = {"teacher": name_or_file}
    if name_or_file.endswith((".yaml", ".yml", ".json")):
        content = _read_yaml(Path(name_or_file))
        if isinstance(content, dict) and "teacher" in content:
            roles = {role: content.get(role) for role in ("teacher", "teachers", "judge")}
    settings = load_config(RunConfig, **roles)
    pools = [settings.teacher, *settings.teachers.values(), settings.judge]
    named = [one for pool in pools for one in (pool if isinstance(pool, list) else [pool]) if one is not None]
    return [one for place, one in enumerate(named) if one not in named[:place]]


def check_config(kind: type[S], keywords: Mapping[str, Any]) -> S:
    """The settings of `kind` from Python's keywords; None means not set. Raises ConfigError.

    Here a text is no number: only a file or a variable may mean one by it (`max_cost: 1e3` is a text to YAML).
    """
    settings = _given(keywords)
    for key, value in settings.items():
        if isinstance(value, str | bool) and (name := _number(kind, key)):
            raise ConfigError(f"{key}: input should be a valid {name}")
    return _validated(kind, settings, {key: key for key in settings})


def _number(kind: type[Settings], key: str) -> str:
    """ "integer" or "number", where that is what `key` takes; else ""."""
    annotation = kind.model_fields[key].annotation if key in kind.model_fields else None
    types = {annotation, *get_args(annotation)}
    return "integer" if int in types else "number" if float in types else ""


def _given(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in keywords.items() if value is not None}


def _set_from_environment(settings: dict[str, Any], origin: dict[str, str], key: str, value: Any) -> None:
    """Put the `value` that variables set for `key` over the file's."""
    old, variable = settings.get(key), f"variable {ENV_PREFIX}{key.upper()}"
    if key == "teacher" and isinstance(old, list) and isinstance(value, dict):
        raise ConfigError(f"{variable}__{min(value).upper()}: the file's teacher is a list; set it there")
    if isinstance(old, dict) and isinstance(value, dict):
        settings[key] = {**old, **value}
        origin |= {f"{key}.{inner}": f"{variable}__{inner.upper()}" for inner in value}
    else:
        settings[key], origin[key] = value, variable


def _expand_teachers(settings: dict[str, Any]) -> None:
    """Replace the names in a pool, and in `teachers`, by the settings that they stand for."""
    if isinstance(pool := settings.get("teacher"), list):
        settings["teacher"] = _expanded(pool)
    if isinstance(stages := settings.get("teachers"), dict):
        settings["teachers"] = {str(stage): _expanded(value) for stage, value in stages.items()}


def _expanded(value: Any) -> Any:
    """A teacher's settings, or a list of them. Names and files are looked up; a list inside a list is flattened."""
    if isinstance(value, str):
        return _settings_of(value)
    if not isinstance(value, list):
        return value
    expanded = [_expanded(item) for item in value]
    return [teacher for item in expanded for teacher in (item if isinstance(item, list) else [item])]


def _by_name(role: str, name: str, from_variables: Mapping[str, Any]) -> Any:
    """The settings that `name` stands for, with those that single variables set (`REFED_TEACHER__MAX_TOKENS`)."""
    settings = _settings_of(name)
    if isinstance(settings, list):
        if from_variables:
            variable = f"variable {ENV_PREFIX}{role.upper()}__{min(from_variables).upper()}"
            raise ConfigError(f"{variable}: {one_line(name, 200)} is a list of teachers; set it there")
        return settings
    # A model named by flag or keyword wins over the environment; the keys of a teacher file do not.
    fixed = set() if Path(name).is_file() else set(settings)
    return {**settings, **{key: value for key, value in from_variables.items() if key not in fixed}}


def _without_address(settings: dict[str, Any], from_variables: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher's settings; of one that has no endpoint without the address and the key that variables set, which stay
    set for others."""
    if settings.get("gguf") is None and settings.get("model") not in NO_ENDPOINT:
        return settings
    return {key: value for key, value in settings.items() if key not in _OF_ENDPOINTS or key not in from_variables}


def _settings_of(name: str) -> dict[str, Any] | list[dict[str, Any]]:
    """What `--teacher` takes: a YAML file of settings, or of a list of them; or just a model by name."""
    if name.endswith((".yaml", ".yml", ".json")) or Path(name).is_file():
        content = _read_yaml(Path(name))
        if not isinstance(content, list) or not content:
            return _checked_teacher(name, _mapping(name, content))
        if not all(isinstance(teacher, dict) for teacher in content):
            raise ConfigError(f"{name}: a list of teachers holds `key: value` settings, a dash before each teacher")
        return [_checked_teacher(name, teacher) for teacher in content]
    if name.endswith(".gguf"):
        return {"gguf": name}
    return {"model": name}


def _checked_teacher(file: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings`, after a check that names the `file` in its errors."""
    _validated(TeacherConfig, settings, dict.fromkeys([_WHOLE, *settings], file))
    return settings


def _mapping(file: str | Path, content: Any) -> dict[str, Any]:
    """The settings of a file that holds one mapping. Raises ConfigError for any other."""
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must hold `key: value` lines, one setting each")
    return {str(key): value for key, value in content.items()}


def _read_yaml(file: Path) -> Any:
    """What a YAML file holds. Raises ConfigError where it is none, or cannot be read."""
    try:
        return parse_yaml(read_bytes(file).decode())
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {one_line(error)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: not YAML: {one_line(getattr(error, 'problem', None) or 'broken')}") from None
    except ValueError as error:  # an impossible date
        raise ConfigError(f"{file}: not YAML: {one_line(error)}; put it in quotes") from None


def _from_environment(environ: Mapping[str, str], kind: type[Settings], given: Collection[str] = ()) -> dict[str, Any]:
    """The settings that variables hold, except keys that only another kind of settings has. A variable is not empty,
    unless what it sets is `given` elsewhere."""
    settings: dict[str, Any] = {}
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in NOT_SETTINGS:
            *outer, last = name.removeprefix(ENV_PREFIX).lower().split("__")
            first = (outer or [last])[0]
            if first not in kind.model_fields and first in _ALL_KEYS:
                continue
            if not environ[name].strip() and ".".join([*outer, last]) not in given:
                raise ConfigError(f"variable {name}: is empty; set it, or unset it")
            level = settings
            for key in outer:
                level = level.setdefault(key, {})
                if not isinstance(level, dict):
                    raise ConfigError(f"variable {name}: {key} is set as a whole by another variable; keep one of them")
            try:
                level[last] = parse_yaml(environ[name])
            except (yaml.YAMLError, ValueError):
                raise ConfigError(f"variable {name}: not a YAML value; quote it") from None
    return settings


def _validated(kind: type[S], settings: Mapping[str, Any], origin: Mapping[str, str]) -> S:
    """`settings` as an object of `kind`. Raises ConfigError that says where (`origin`) the first fault stands."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        # Only the first fault, and never the value: it may be an API key put in the wrong place.
        fault = error.errors(include_url=False, include_input=False)[0]
    path = [str(step) for step in fault["loc"]]
    name = one_line(".".join(path), 80) or "teacher"  # only a teacher's settings are at odds as a whole
    where = origin.get(".".join(path[:2])) or origin.get(path[0] if path else _WHOLE)
    start = name if where in {None, name} else f"{where}: {name}"
    message = _MESSAGES.get(fault["type"], fault["msg"].removeprefix("Value error, "))
    raise ConfigError(f"{start}: {message[0].lower() + message[1:]}")


_MESSAGES = {
    "dict_type": "input should be `name: value` lines",
    "list_type": "input should be a list: [one, another]",
}
"""Pydantic's type of error → a message that speaks of YAML."""

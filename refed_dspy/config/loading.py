"""Reading settings: from a file, the environment and keywords; a wrong one is a ConfigError of one line.

A keyword (or a flag) wins over an environment variable, which wins over the file. `REFED_SIZE=20` sets `size`;
two underscores step inside: `REFED_TEACHER__TEMPERATURE=0.7`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.filters import FilterConfig
from refed_dspy.config.jobs import CompareConfig, FilterRunConfig, RecycleConfig, StatsConfig
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import ONE_TEACHER, POOL, TeacherConfig
from refed_dspy.errors import ConfigError, one_line

ENV_PREFIX = "REFED_"
NOT_SETTINGS = {"REFED_CACHE"}
"""Variables of that prefix that are read elsewhere."""
_KINDS: tuple[type[Settings], ...] = (
    RunConfig,
    CompileConfig,
    CompareConfig,
    FilterRunConfig,
    RecycleConfig,
    StatsConfig,
)
_ALL_KEYS = {key for kind in _KINDS for key in kind.model_fields}

S = TypeVar("S", bound=Settings)


def load_config(file: Path | None = None, environ: Mapping[str, str] | None = None, **keywords: Any) -> RunConfig:
    """The run's settings: `keywords` (None: not set) over the environment over `file`.

    Raises:
        ConfigError: one line that names the key, where it was set, and the nearest valid one.
    """
    return _load(RunConfig, file, environ, keywords)


def load_compile_config(
    file: Path | None = None, environ: Mapping[str, str] | None = None, **keywords: Any
) -> CompileConfig:
    """A compile's settings, read as `load_config` reads a run's. Raises ConfigError."""
    return _load(CompileConfig, file, environ, keywords)


def load_job_config(
    kind: type[S], file: Path | None = None, environ: Mapping[str, str] | None = None, **keywords: Any
) -> S:
    """The settings of a comparison, a filtering, a recycling or statistics, read as a run's. Raises ConfigError."""
    return _load(kind, file, environ, keywords)


def _load(kind: type[S], file: Path | None, environ: Mapping[str, str] | None, keywords: Mapping[str, Any]) -> S:
    settings: dict[str, Any] = {}
    origin: dict[str, str] = {}  # key → where it was set, for messages
    if file is not None:
        settings = _config_settings(file, _read_yaml(file))
        origin = {key: str(file) for key in settings}
    for key, value in _from_environment(os.environ if environ is None else environ, kind).items():
        _set_from_environment(settings, origin, key, value)
    roles = [role for role in ("teacher", "judge", "reflection") if role in kind.model_fields]
    from_variables = {role: _model_variables(role, settings.get(role), origin) for role in roles}
    for key, value in keywords.items():
        if value is not None:
            settings[key], origin[key] = value, key
    for role in roles:
        if isinstance(name := settings.get(role), str):
            settings[role] = _by_name(role, name, from_variables[role])
    if kind is not CompileConfig and from_variables.get("judge") and not {"model", "gguf"} & set(settings["judge"]):
        del settings["judge"]  # variables that refine a compile's judge do not name one by themselves
    if "teachers" in kind.model_fields:
        _expand_teachers(settings)
    return _validated(kind, settings, origin)


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
    """The settings that `name` stands for, with those that single variables set."""
    settings = _settings_of(name)
    if isinstance(settings, list):
        if from_variables:
            variable = f"variable {ENV_PREFIX}{role.upper()}__{min(from_variables).upper()}"
            raise ConfigError(f"{variable}: {one_line(name, 200)} is a list of teachers; set it there")
        return settings
    # A model named by flag or keyword wins over the environment; the keys of a teacher file do not.
    fixed = set() if Path(name).is_file() else set(settings)
    return {**settings, **{key: value for key, value in from_variables.items() if key not in fixed}}


def _model_variables(role: str, model: Any, origin: Mapping[str, str]) -> dict[str, Any]:
    """The settings of a model that single variables set (`REFED_TEACHER__MAX_TOKENS`)."""
    if not isinstance(model, dict):
        return {}
    whole = origin.get(role, "").startswith("variable")
    return {key: value for key, value in model.items() if whole or f"{role}.{key}" in origin}


def teacher_setting(name: str) -> dict[str, Any]:
    """The settings of one teacher: those of a YAML file, or just a model by name."""
    settings = _settings_of(name)
    if isinstance(settings, list):
        raise ConfigError(f"{one_line(name, 200)}: holds a list of teachers, a pool, and one is needed here")
    return settings


def _settings_of(name: str) -> dict[str, Any] | list[dict[str, Any]]:
    """What `--teacher` takes: a YAML file of settings, or of a list of them; or just a model by name."""
    if name.endswith((".yaml", ".yml", ".json")) or Path(name).is_file():
        settings: dict[str, Any] | list[dict[str, Any]] = _read_yaml(Path(name))
        for teacher in settings if isinstance(settings, list) else [settings]:
            if not isinstance(teacher, dict):
                raise ConfigError(f"{name}: a list of teachers holds `key: value` settings, a dash before each teacher")
            _validated(TeacherConfig, teacher, dict.fromkeys(teacher, name))
        return settings
    if name.endswith(".gguf"):
        return {"gguf": name}
    return {"model": name}


def _config_settings(file: Path, settings: Any) -> dict[str, Any]:
    """`settings` of a config file. Raises ConfigError for a list: that is a teacher file."""
    if isinstance(settings, list):
        raise ConfigError(f"{file}: must hold `key: value` lines, one setting each")
    return dict(settings)


def _read_yaml(file: Path) -> Any:
    """A file's settings; a list of them for a file that describes several teachers."""
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
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
    if isinstance(settings, list) and settings:
        return [_with_text_keys(item) if isinstance(item, dict) else item for item in settings]
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: must hold `key: value` lines, one setting each")
    return _with_text_keys(settings)


def _with_text_keys(settings: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in settings.items()}


def _from_environment(environ: Mapping[str, str], kind: type[Settings]) -> dict[str, Any]:
    """The settings that variables hold, except keys that only another kind of settings has."""
    settings: dict[str, Any] = {}
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in NOT_SETTINGS:
            *outer, last = name.removeprefix(ENV_PREFIX).lower().split("__")
            first = (outer or [last])[0]
            if first not in kind.model_fields and first in _ALL_KEYS:
                continue
            level = settings
            for key in outer:
                level = level.setdefault(key, {})
                if not isinstance(level, dict):
                    raise ConfigError(f"variable {name}: {key} is set as a whole by another variable; keep one of them")
            try:
                level[last] = yaml.safe_load(environ[name])
            except (yaml.YAMLError, ValueError):
                raise ConfigError(f"variable {name}: not a YAML value; quote it") from None
    return settings


def check_settings(**keywords: Any) -> None:
    """Raises ConfigError for a run's setting of a wrong type or out of range. None means not set."""
    settings = {name: value for name, value in keywords.items() if value is not None}
    _validated(RunConfig, settings, {name: name for name in settings}, strict=True)


def check_compile(keywords: Mapping[str, Any]) -> CompileConfig:
    """A compile's settings from keywords. Raises ConfigError."""
    return _validated(CompileConfig, keywords, {name: name for name in keywords})


def check_job(kind: type[S], keywords: Mapping[str, Any]) -> S:
    """The settings of a comparison, a filtering, … from keywords; None means not set. Raises ConfigError."""
    settings = {name: value for name, value in keywords.items() if value is not None}
    return _validated(kind, settings, {name: name for name in settings})


def check_filters(filters: Sequence[Any], *, of_a_run: bool = True) -> list[Any]:
    """Filters as names, settings or custom objects: returned as FilterConfigs, custom objects as they are.

    `of_a_run`: `keep` is refused, since a run keeps `size` samples.

    Raises:
        ConfigError: a filter that does not exist, or a wrong setting of one.
    """
    custom = [hasattr(filter_, "check") or hasattr(filter_, "judged") for filter_ in filters]
    named = [filter_ for filter_, is_custom in zip(filters, custom, strict=True) if not is_custom]
    plain = [value.model_dump(exclude_none=True) if isinstance(value, FilterConfig) else value for value in named]
    settings, origin = {"filters": plain}, {"filters": "filters"}
    checked = iter(
        _validated(RunConfig, settings, origin).filters
        if of_a_run
        else _validated(FilterRunConfig, settings, origin).filters
    )
    return [filter_ if is_custom else next(checked) for filter_, is_custom in zip(filters, custom, strict=True)]


def _validated(kind: type[S], settings: Mapping[str, Any], origin: Mapping[str, str], strict: bool | None = None) -> S:
    """`settings` as an object of `kind`. Raises ConfigError that says where (`origin`) the first fault stands."""
    try:
        return kind.model_validate(settings, strict=strict)
    except ValidationError as error:
        # Only the first fault, and never the value: it may be an API key put in the wrong place.
        faults = error.errors(include_url=False, include_input=False)
    fault = next((other for other in faults if _is_misspelling(other, faults[0])), faults[0])
    tags = {"PriceConfig", "str", ONE_TEACHER, POOL}  # Pydantic's names of a union's members: not keys
    path = [str(step) for step in fault["loc"] if step not in tags]
    name = one_line(".".join(path), 80) or ("teacher" if kind is TeacherConfig else "settings")
    message = fault["msg"].removeprefix("Value error, ")
    first = path[0] if path else message.partition(":")[0]
    if not path and first in kind.model_fields:  # settings that do not fit together: the message begins with one
        name, message = first, message.removeprefix(f"{first}: ")
    where = origin.get(".".join(path[:2])) or origin.get(first)
    if where is None and (path or kind is TeacherConfig):
        where = next(iter(origin.values()), "settings")
    start = name if where in {None, name} else f"{where}: {name}"
    if fault["type"] == "extra_forbidden":
        raise ConfigError(f"{start}: unknown key; {_nearest_key(kind, path)}")
    message = _MESSAGES.get(fault["type"], message)
    if fault["type"] == "model_type" and path[-1:] == [first] and isinstance(settings.get(first), list):
        message = "takes one; a list (a pool) is for the teachers of a run"
    if path[-1:] == ["price"]:
        message = "takes {prompt: …, completion: …} in dollars a million tokens, or the PROVIDER/NAME of a priced model"
    raise ConfigError(f"{start}: {message[0].lower() + message[1:]}")


def _is_misspelling(fault: Mapping[str, Any], missing: Mapping[str, Any]) -> bool:
    """Whether `fault` is an unknown key next to the `missing` one: it is what was meant."""
    same_place: bool = fault["loc"][:-1] == missing["loc"][:-1]
    return same_place and (fault["type"], missing["type"]) == ("extra_forbidden", "missing")


_MESSAGES = {
    "model_type": "input should be `key: value` settings",
    "model_attributes_type": "input should be `key: value` settings",
    "dict_type": "input should be `name: value` lines",
    "list_type": "input should be a list: [one, another]",
}
"""Pydantic's type of error → a message that speaks of YAML."""


def _nearest_key(kind: type[Settings], path: Sequence[str]) -> str:
    """What the unknown key at `path` was probably meant to be; else all keys that are valid there."""
    keys = _settings_at(kind, path[:-1]).model_fields
    near = difflib.get_close_matches(path[-1], keys, n=3, cutoff=0.5)
    near.sort(key=lambda key: sorted(key) != sorted(path[-1]))  # two letters that changed places come first
    return f"did you mean {near[0]}?" if near else f"known are {', '.join(keys)}"


def _settings_at(kind: type[Settings], path: Sequence[str]) -> type[Settings]:
    """The settings class at `path` inside `kind`."""
    for name in path:
        field = kind.model_fields.get(name)
        if field is not None:
            inner = [class_ for class_ in _classes(field.annotation) if issubclass(class_, Settings)]
            kind = inner[0] if inner else kind
    return kind


def _classes(annotation: Any) -> Iterator[type]:
    """The classes that an annotation is made of."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for argument in get_args(annotation):
        yield from _classes(argument)

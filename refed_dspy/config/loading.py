"""Settings: where each comes from, and what is wrong with it in one line.

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
from refed_dspy.config.compile import CompileConfig, MetricConfig
from refed_dspy.config.filters import FilterConfig
from refed_dspy.config.jobs import CompareConfig, FilterRunConfig, RecycleConfig, StatsConfig
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import EMBEDDED, ONE, POOL, SECRET, PriceConfig, TeacherConfig
from refed_dspy.errors import ConfigError, one_line

ENV_PREFIX = "REFED_"
NOT_SETTINGS = {"REFED_CACHE"}


S = TypeVar("S", bound=Settings)


def load_config(file: Path | None = None, environ: Mapping[str, str] | None = None, **given: Any) -> RunConfig:
    """The run's settings: `given` (None means not given) over the environment over `file`.

    Raises:
        ConfigError: one line that names the key, where it stands, and the nearest right one.
    """
    return _loaded(RunConfig, file, environ, given)


def load_compile_config(
    file: Path | None = None, environ: Mapping[str, str] | None = None, **given: Any
) -> CompileConfig:
    """The compile's settings, found as `load_config` finds a run's. Raises ConfigError."""
    return _loaded(CompileConfig, file, environ, given)


def load_job_config(
    kind: type[S], file: Path | None = None, environ: Mapping[str, str] | None = None, **given: Any
) -> S:
    """The settings of a comparison, a filtering, a recycling or statistics, found as a run's. Raises ConfigError."""
    return _loaded(kind, file, environ, given)


def _loaded(kind: type[S], file: Path | None, environ: Mapping[str, str] | None, given: Mapping[str, Any]) -> S:
    layers: dict[str, Any] = {}
    origin: dict[str, str] = {}
    if file is not None:
        layers = _one_level(file, _read_yaml(file))
        origin = {key: str(file) for key in layers}
    for key, value in _from_environment(os.environ if environ is None else environ, kind).items():
        _refine(layers, origin, key, value)
    models = [role for role in ("teacher", "judge", "reflection") if role in kind.model_fields]
    inner = {role: _inner_environment(role, layers.get(role), origin) for role in models}
    for key, value in given.items():
        if value is not None:
            layers[key], origin[key] = value, key
    for role in models:
        if isinstance(name := layers.get(role), str):
            layers[role] = _by_name(role, name, inner[role])
    if kind is not CompileConfig and inner.get("judge") and not {"model", "gguf"} & set(layers["judge"]):
        del layers["judge"]  # variables that refine a compile's judge name none by themselves
    if "teachers" in kind.model_fields:
        _open_names(layers)
    return _validated(kind, layers, origin)


def _refine(layers: dict[str, Any], origin: dict[str, str], key: str, value: Any) -> None:
    """Put what variables say of `key` over what the file says."""
    old, variable = layers.get(key), f"variable {ENV_PREFIX}{key.upper()}"
    if key == "teacher" and isinstance(old, list) and isinstance(value, dict):
        raise ConfigError(f"{variable}__{min(value).upper()}: the file's teacher is a list; set it there")
    if isinstance(old, dict) and isinstance(value, dict):
        layers[key] = {**old, **value}
        origin |= {f"{key}.{inner}": f"{variable}__{inner.upper()}" for inner in value}
    else:
        layers[key], origin[key] = value, variable


def _open_names(layers: dict[str, Any]) -> None:
    """Put the settings that names stand for in the places of pools and of stages' teachers."""
    if isinstance(pool := layers.get("teacher"), list):
        layers["teacher"] = _opened(pool)
    if isinstance(stages := layers.get("teachers"), dict):
        layers["teachers"] = {str(stage): _opened(given) for stage, given in stages.items()}


def _opened(given: Any) -> Any:
    """A teacher's settings, or a list of them: names and files are looked up, a list in a list is part of it."""
    if isinstance(given, str):
        return _settings_behind(given)
    if not isinstance(given, list):
        return given
    parts = [_opened(part) for part in given]
    return [one for part in parts for one in (part if isinstance(part, list) else [part])]


def _by_name(role: str, name: str, inner: Mapping[str, Any]) -> Any:
    """The settings that `name` stands for, with what single variables say (`inner`)."""
    settings = _settings_behind(name)
    if isinstance(settings, list):
        if inner:
            variable = f"variable {ENV_PREFIX}{role.upper()}__{min(inner).upper()}"
            raise ConfigError(f"{variable}: {one_line(name, 200)} is a list of teachers; set it there")
        return settings
    # A model's name given by flag or keyword wins over the environment; a teacher file's keys do not.
    named = set() if Path(name).is_file() else set(settings)
    return {**settings, **{k: v for k, v in inner.items() if k not in named}}


_KINDS: tuple[type[Settings], ...] = (
    *(RunConfig, CompileConfig, CompareConfig, FilterRunConfig, RecycleConfig, StatsConfig),
)
_ALL_KEYS = {key for kind in _KINDS for key in kind.model_fields}


def _inner_environment(role: str, model: Any, origin: Mapping[str, str]) -> dict[str, Any]:
    """A model's settings that single variables gave (`REFED_TEACHER__MAX_TOKENS`)."""
    if not isinstance(model, dict):
        return {}
    whole = origin.get(role, "").startswith("variable")
    return {k: v for k, v in model.items() if whole or f"{role}.{k}" in origin}


def teacher_setting(name: str) -> dict[str, Any]:
    """The settings of one teacher: those of a YAML file, or just a model by name."""
    settings = _settings_behind(name)
    if isinstance(settings, list):
        raise ConfigError(f"{one_line(name, 200)}: holds a list of teachers, a pool, and one is needed here")
    return settings


def _settings_behind(name: str) -> dict[str, Any] | list[dict[str, Any]]:
    """The settings behind `--teacher`: those of a YAML file, which may hold a list, or just a model by name."""
    if name.endswith((".yaml", ".yml", ".json")) or Path(name).is_file():
        settings: dict[str, Any] | list[dict[str, Any]] = _read_yaml(Path(name))
        for one in settings if isinstance(settings, list) else [settings]:
            if not isinstance(one, dict):
                raise ConfigError(f"{name}: a list of teachers holds `key: value` settings, a dash before each teacher")
            _validated(TeacherConfig, one, dict.fromkeys(one, name))
        return settings
    if name.endswith(".gguf"):
        return {"gguf": name}
    return {"model": name}


def _one_level(file: Path, settings: Any) -> dict[str, Any]:
    """`settings` of a config. Raises ConfigError for a list: that is a teacher file."""
    if isinstance(settings, list):
        raise ConfigError(f"{file}: must hold `key: value` lines, one setting each")
    return dict(settings)


def _read_yaml(file: Path) -> Any:
    """A file's settings; a list of such in a file that describes several teachers."""
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
    except ValueError as error:  # YAML's dates
        raise ConfigError(f"{file}: not YAML: {one_line(error)}; put it in quotes") from None
    if isinstance(settings, list) and settings:
        return [_named_by_text(one) if isinstance(one, dict) else one for one in settings]
    if not isinstance(settings, dict):
        raise ConfigError(f"{file}: must hold `key: value` lines, one setting each")
    return _named_by_text(settings)


def _named_by_text(settings: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(key): value for key, value in settings.items()}


def _from_environment(environ: Mapping[str, str], kind: type[Settings]) -> dict[str, Any]:
    """The variables' settings, but for those that only the other kind of config has."""
    settings: dict[str, Any] = {}
    for name in sorted(environ):
        if name.startswith(ENV_PREFIX) and name not in NOT_SETTINGS:
            *outer, last = name.removeprefix(ENV_PREFIX).lower().split("__")
            first = (outer or [last])[0]
            if first not in kind.model_fields and first in _ALL_KEYS:
                continue
            place = settings
            for key in outer:
                place = place.setdefault(key, {})
                if not isinstance(place, dict):
                    raise ConfigError(f"variable {name}: {key} is set as a whole by another variable; keep one of them")
            try:
                place[last] = yaml.safe_load(environ[name])
            except (yaml.YAMLError, ValueError):
                raise ConfigError(f"variable {name}: not a YAML value; quote it") from None
    return settings


def check_settings(**given: Any) -> None:
    """Raises ConfigError for a run's setting of another type or out of range. None means not given."""
    present = {name: value for name, value in given.items() if value is not None}
    _validated(RunConfig, present, {name: name for name in present}, strict=True)


def check_compile(given: Mapping[str, Any]) -> CompileConfig:
    """A compile's settings given as keywords. Raises ConfigError."""
    return _validated(CompileConfig, given, {name: name for name in given})


def check_job(kind: type[S], given: Mapping[str, Any]) -> S:
    """Settings of a comparison, a filtering, … given as keywords; None means not given. Raises ConfigError."""
    present = {name: value for name, value in given.items() if value is not None}
    return _validated(kind, present, {name: name for name in present})


def check_filters(given: Sequence[Any], *, of_a_run: bool = True) -> list[Any]:
    """Filters given as names, settings or objects of one's own: as FilterConfigs, and those objects as they are.

    `of_a_run`: `keep` is refused, since a run keeps `size` samples.

    Raises:
        ConfigError: a filter that there is not, or a setting of one that cannot be.
    """
    own = [hasattr(one, "check") or hasattr(one, "judged") for one in given]
    named = [one for one, is_own in zip(given, own, strict=True) if not is_own]
    plain = [one.model_dump(exclude_none=True) if isinstance(one, FilterConfig) else one for one in named]
    settings, origin = {"filters": plain}, {"filters": "filters"}
    checked = iter(
        _validated(RunConfig, settings, origin).filters
        if of_a_run
        else _validated(FilterRunConfig, settings, origin).filters
    )
    return [one if is_own else next(checked) for one, is_own in zip(given, own, strict=True)]


def _validated(kind: type[S], settings: Mapping[str, Any], origin: Mapping[str, str], strict: bool | None = None) -> S:
    try:
        return kind.model_validate(settings, strict=strict)
    except ValidationError as error:
        # Only the first fault, and never the value: it may be a key put in the wrong place.
        faults = error.errors(include_url=False, include_input=False)
        fault = next((one for one in faults if _misspells(one, faults[0])), faults[0])
    words = {"PriceConfig", "str", ONE, POOL}  # the unions' own
    path = [str(part) for part in fault["loc"] if part not in words]
    name = one_line(".".join(path), 80) or ("teacher" if kind is TeacherConfig else "settings")
    message = fault["msg"].removeprefix("Value error, ")
    first = path[0] if path else message.partition(":")[0]
    if not path and first in kind.model_fields:  # settings that do not fit together: the message names one first
        name, message = first, message.removeprefix(f"{first}: ")
    where = origin.get(".".join(path[:2])) or origin.get(first)
    if where is None and (path or kind is TeacherConfig):
        where = next(iter(origin.values()), "settings")
    start = name if where in {None, name} else f"{where}: {name}"
    if fault["type"] == "extra_forbidden":
        known = _settings_at(kind, path[:-1])
        near = difflib.get_close_matches(path[-1], known.model_fields, n=3, cutoff=0.5)
        near.sort(key=lambda one: sorted(one) != sorted(path[-1]))  # two letters that changed places come first
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known.model_fields)}"
        raise ConfigError(f"{start}: unknown key; {hint}")
    message = _IN_WORDS.get(fault["type"], message)
    if fault["type"] == "model_type" and path[-1:] == [first] and isinstance(settings.get(first), list):
        message = "takes one; a list (a pool) is for the teachers of a run"
    if path[-1:] == ["price"]:
        message = "takes {prompt: …, completion: …} in dollars a million tokens, or the PROVIDER/NAME of a priced model"
    raise ConfigError(f"{start}: {message[0].lower() + message[1:]}")


def _misspells(one: Mapping[str, Any], missing: Mapping[str, Any]) -> bool:
    """Whether `one` is an unknown key where another is missing: it is what was meant."""
    same_place: bool = one["loc"][:-1] == missing["loc"][:-1]
    return same_place and (one["type"], missing["type"]) == ("extra_forbidden", "missing")


_IN_WORDS = {
    "model_type": "input should be `key: value` settings",
    "model_attributes_type": "input should be `key: value` settings",
    "dict_type": "input should be `name: value` lines",
    "list_type": "input should be a list: [one, another]",
}
"""Pydantic's words for a wrong type, in a person's."""


def _settings_at(kind: type[Settings], path: Sequence[str]) -> type[Settings]:
    """Which settings stand at `path` inside `kind`: they know what an unknown key there was meant to be."""
    for name in path:
        field = kind.model_fields.get(name)
        if field is not None:
            inner = [kind_ for kind_ in _kinds(field.annotation) if issubclass(kind_, Settings)]
            kind = inner[0] if inner else kind
    return kind


def _kinds(annotation: Any) -> Iterator[type]:
    """The classes that an annotation is made of."""
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _kinds(part)


__all__ = [
    "EMBEDDED",
    "SECRET",
    "CompareConfig",
    "CompileConfig",
    "FilterConfig",
    "FilterRunConfig",
    "MetricConfig",
    "PriceConfig",
    "RecycleConfig",
    "RunConfig",
    "Settings",
    "StatsConfig",
    "TeacherConfig",
    "check_compile",
    "check_settings",
    "load_compile_config",
    "load_config",
    "teacher_setting",
]

"""Settings in the environment: `REFED_SIZE=20` sets `size`; two underscores step inside:
`REFED_TEACHER__TEMPERATURE=0.7`."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import yaml

from refed_dspy.config.base import KEY_NAME, Settings, settings_in
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.keys import is_secret_name
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError, PluginMissing, one_line
from refed_dspy.files import parse_yaml
from refed_dspy.registry import SETTINGS, plugged_in, registered
from refed_dspy.text import nearest

log = logging.getLogger("refed_dspy.config")
PREFIX = "REFED_"
ROLES = ("teacher", "judge", "reflection")
"""Settings that are one model each; a name stands for its settings."""
_ELSEWHERE = "REFED_CACHE"
"""A variable of that prefix that is read elsewhere."""


@cache
def _all_keys() -> frozenset[str]:
    """The keys of all kinds of settings, the plug-ins' among them."""
    kinds: list[type[Settings]] = [RunConfig, CompileConfig, FilterRunConfig]
    for name in registered(SETTINGS):
        with suppress(PluginMissing):
            kinds.append(plugged_in(SETTINGS, name))
    return frozenset(key for kind in kinds for key in kind.model_fields)


@dataclass
class Variables:
    """What the environment sets. `refinements`: role → settings of its model that variables set one by one. `unknown`:
    variables that are no setting → the name of the setting that may be meant, or an empty text."""

    settings: dict[str, Any] = field(default_factory=dict)
    refinements: dict[str, dict[str, Any]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    def warn(self, settings: Mapping[str, Any]) -> None:
        """Log each variable that is no setting, unless `settings` name it as the one that holds a key."""
        named = {*_key_names(settings), *_key_names(self.refinements)}
        for name, near in self.unknown.items():
            is_key = is_secret_name(name) and "__" not in name  # for other settings than these
            if name not in named and not is_key:
                hint = f"; did you mean {near}?" if near else ""
                log.warning("variable %s is not a setting and is ignored%s", one_line(name, 80), hint)


def variable(*path: str) -> str:
    """The name of the variable that sets a key, or one inside it."""
    return PREFIX + "__".join(path).upper()


def read_variables(environ: Mapping[str, str], kind: type[Settings], given: Collection[str] = ()) -> Variables:
    """What variables set for `kind`; keys that only another kind of settings has are passed over.

    Raises:
        ConfigError: a variable is empty, though what it sets is not `given` elsewhere; or is not YAML; or contradicts
            another.
    """
    read = Variables()
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name == _ELSEWHERE:
            continue
        path = name.removeprefix(PREFIX).lower().split("__")
        if path[0] not in kind.model_fields and path[0] in _all_keys():
            continue
        if (near := _meant(kind, path)) is not None:
            read.unknown[name] = near
            continue
        if not environ[name].strip() and ".".join(path) not in given:
            raise ConfigError(f"variable {name}: is empty; set it or unset it")
        _put(read.refinements if path[0] in ROLES and path[1:] else read.settings, name, path, environ[name])
    return read


def _put(settings: dict[str, Any], name: str, path: list[str], text: str) -> None:
    for key in path[:-1]:
        settings = settings.setdefault(key, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"variable {name}: {key} is also set by another variable; keep only one")
    try:
        settings[path[-1]] = parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"variable {name}: not valid YAML; put the value in quotes") from None


def _meant(kind: type[Settings], path: list[str], outer: tuple[str, ...] = ()) -> str | None:
    """None where `path` leads to a setting of `kind`; else the variable of the nearest one, or an empty text."""
    first, *rest = path
    if first not in kind.model_fields:
        near = nearest(first, kind.model_fields)
        return variable(*outer, near, *rest) if near else ""
    inside = settings_in(kind.model_fields[first].annotation)
    return _meant(inside, rest, (*outer, first)) if inside and rest else None


def _key_names(settings: Any) -> Iterator[str]:
    """Every text under `api_key_env`, at any depth."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if key == KEY_NAME:
                yield str(value)
            else:
                yield from _key_names(value)
    elif isinstance(settings, list):
        for item in settings:
            yield from _key_names(item)

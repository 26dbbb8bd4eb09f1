"""Reading settings: from a file, the environment and keywords; a wrong one is a ConfigError of one line.

A keyword (or a flag) wins over an environment variable, which wins over the file.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import ValidationError

from refed_dspy.concurrency import current_environ
from refed_dspy.config.base import PLACES, Capped, Settings, first_fault, place_of
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.environment import ROLES, Variables, read_variables, variable
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import NO_ENDPOINT, TeacherConfig
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.files import parse_yaml, read_bytes

log = logging.getLogger("refed_dspy.config")
_NEVER_EMPTY = {*PLACES, *Capped.model_fields}
"""Settings whose default may cost more than what was meant: nothing after the colon is no way to ask for it."""
_WHICH = ("model", "gguf")
"""Settings that say which model it is."""
_WHERE = ("api_base", "api_key_env", "api_version")
"""Settings that say where a model is: they mean nothing where it has no endpoint."""
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
    variables = read_variables(current_environ() if environ is None else environ, kind, given)
    for key, value in variables.settings.items():
        _set_from_environment(settings, origin, key, value)
    settings |= given
    origin |= {key: key for key in given}
    if (empty := next((key for key in settings if settings[key] is None and key in _NEVER_EMPTY), None)) is not None:
        raise ConfigError(f"{origin[empty]}: {empty}: is empty")
    for role in ROLES:
        if role in kind.model_fields:
            _set_model(kind, settings, role, variables, role in given)
    if isinstance(stages := settings.get("teachers"), dict):
        settings["teachers"] = {str(stage): _expanded(value) for stage, value in stages.items()}
    variables.warn(settings)
    return _validated(kind, settings, origin)


def model_settings(word: str, role: str, environ: Mapping[str, str] | None = None) -> Any:
    """The settings of a model's name or a teacher file, as variables refine a model of `role` (`REFED_JUDGE__…`; none
    do for an empty role): a TeacherConfig, or a list of them. Raises ConfigError."""
    prefix = variable(role, "")
    variables = current_environ() if environ is None else environ
    refining = {name: value for name, value in variables.items() if role and name.startswith(prefix)}
    kind: type[Settings] = CompileConfig if role == "reflection" else RunConfig
    keyword: dict[str, Any] = {role or "teacher": word}
    return getattr(load_config(kind, environ=refining, **keyword), role or "teacher")


def warn_of_unused(role: str, remembered: Sequence[TeacherConfig]) -> None:
    """Log each variable that refines a model of `role` and would change the `remembered` settings of all: they stay as
    they are. Raises ConfigError: such a variable is empty, or not YAML."""
    refining = {name: value for name, value in current_environ().items() if name.startswith(variable(role, ""))}
    for key, value in read_variables(refining, RunConfig).refinements.get(role, {}).items():
        if not any(_has(config, key, value) for config in remembered):
            what = "%s is not used: the run keeps its %s as it was; to change it, name the %s again"
            log.warning(f"variable {what}", variable(role, key), role, role)


def _has(config: TeacherConfig, key: str, value: Any) -> bool:
    """Whether `value` for `key` would change nothing; an address where there is no endpoint changes nothing."""
    try:
        same = TeacherConfig.model_validate({**config.model_dump(), key: value}) == config
    except ValidationError:
        same = False
    return same or (config.without_endpoint and key in _WHERE)


def teachers_in(name_or_file: str) -> list[TeacherConfig]:
    """Each teacher that a name, a teacher file or the settings of any work name, once, and the judge; with what
    variables say. One at several addresses is one for each. Raises ConfigError."""
    roles: dict[str, Any] = {"teacher": name_or_file}
    if name_or_file.endswith((".yaml", ".yml", ".json")):
        content = _read_yaml(Path(name_or_file))
        if isinstance(content, dict) and "teacher" in content:
            roles = {role: content.get(role) for role in ("teacher", "teachers", "judge")}
    settings = load_config(RunConfig, **roles)
    pools = [settings.teacher, *settings.teachers.values(), settings.judge]
    members = [one for pool in pools for one in (pool if isinstance(pool, list) else [pool]) if one is not None]
    named = [one for member in members for one in member.at_each_address()]
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
    old, where = settings.get(key), f"variable {variable(key)}"
    if isinstance(old, dict) and isinstance(value, dict):
        settings[key] = {**old, **value}
        origin |= {f"{key}.{inner}": f"variable {variable(key, inner)}" for inner in value}
    else:
        settings[key], origin[key] = value, where


def _set_model(
    kind: type[Settings], settings: dict[str, Any], role: str, variables: Variables, by_keyword: bool
) -> None:
    """Replace what `settings` say of a model by its settings, which variables refine (`REFED_TEACHER__MAX_TOKENS`). A
    model that a keyword names wins over the variables; the keys of a teacher file do not.

    Raises ConfigError: a teacher file, or a variable, is wrong.
    """
    given, refinement = settings.get(role), variables.refinements.get(role, {})
    plain = _expanded(given)
    if which := [key for key in _WHICH if key in refinement]:
        name = variable(role, which[0])
        if by_keyword and isinstance(given, str) and not Path(given).is_file():
            refinement = {key: value for key, value in refinement.items() if key not in _WHICH}
        elif role in variables.settings:
            raise ConfigError(f"variable {name}: {role} is also set by another variable; keep only one")
        elif isinstance(plain, list):
            listed = one_line(given, 200) if isinstance(given, str) else f"the {role}"
            raise ConfigError(f"variable {name}: {listed} is a list of teachers; change it in that file")
    elif plain is None:  # refined, and not named: there is none
        if refinement and kind is CompileConfig and role != "teacher":
            log.warning("variable %s is not used: no %s is set", variable(role, min(refinement)), role)
        return
    if not refinement or not isinstance(plain, dict | list | None):
        settings.update({role: plain})
        return
    settings[role] = refined = _refined(plain or {}, role, refinement)
    if _fits(kind, {role: refined}):
        return
    settings[role] = plain
    if plain is None or _fits(kind, {role: plain}):
        origin = {f"{role}.{key}": f"variable {variable(role, key)}" for key in refinement}
        whole = ", ".join(sorted(variable(role, key) for key in refinement))
        _validated(kind, {role: refined}, {**origin, role: f"variable {whole}"})


def _refined(plain: Any, role: str, refinement: Mapping[str, Any]) -> Any:
    """The settings of a model with those of `refinement`; of each one in a list, with those it has not itself. An
    address that stays exported is passed over where a model has none."""
    if isinstance(plain, list):
        return [_refined(one, role, {k: v for k, v in refinement.items() if k not in one}) for one in plain]
    refined = {**plain, **refinement}
    if any(key in refinement for key in _WHICH):
        refined = {key: value for key, value in refined.items() if key not in _WHICH or key in refinement}
    if refined.get("gguf") or refined.get("model") in NO_ENDPOINT:
        refined = {key: value for key, value in refined.items() if key not in _WHERE or key not in refinement}
    return refined


def _fits(kind: type[Settings], settings: Mapping[str, Any]) -> bool:
    try:
        kind.model_validate(settings)
    except ValidationError:
        return False
    return True


def _expanded(value: Any) -> Any:
    """A teacher's settings, or a list of them. Names and files are looked up; a list inside a list is flattened."""
    if isinstance(value, str):
        return _settings_of(value)
    if not isinstance(value, list):
        return value
    expanded = [_expanded(item) for item in value]
    return [teacher for item in expanded for teacher in (item if isinstance(item, list) else [item])]


def _settings_of(name: str) -> dict[str, Any] | list[dict[str, Any]]:
    """What `--teacher` takes: a YAML file of settings, or of a list of them; or just a model by name."""
    if name.endswith((".yaml", ".yml", ".json")) or Path(name).is_file():
        content = _read_yaml(Path(name))
        if not isinstance(content, list) or not content:
            return _checked_teacher(name, _mapping(name, content))
        if not all(isinstance(teacher, dict) for teacher in content):
            raise ConfigError(f"{name}: a list of teachers needs a dash before each teacher and `key: value` settings")
        return [_checked_teacher(name, teacher) for teacher in content]
    if name.endswith(".gguf"):
        return {"gguf": name}
    if name.startswith((".", "/", "~")):
        raise ConfigError(f"{name}: no such file")
    return {"model": name}


def _checked_teacher(file: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings`, after a check that names the `file` in its errors."""
    _validated(TeacherConfig, settings, dict.fromkeys([_WHOLE, *settings], file))
    return settings


def _mapping(file: str | Path, content: Any) -> dict[str, Any]:
    """The settings of a file that holds one mapping. Raises ConfigError for any other."""
    if not isinstance(content, dict):
        raise ConfigError(f"{file}: must contain `key: value` lines, one setting each")
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


def _validated(kind: type[S], settings: Mapping[str, Any], origin: Mapping[str, str]) -> S:
    """`settings` as an object of `kind`. Raises ConfigError that says where (`origin`) the first fault stands."""
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        steps, message = first_fault(error)
    path = [step for step in steps if isinstance(step, str)]
    where = origin.get(".".join(path[:2])) or origin.get(path[0] if path else _WHOLE)
    name = one_line(place_of(steps), 80) or "teacher"  # only a teacher's settings are at odds as a whole
    start = name if where in {None, name} or name.startswith(f"{where} ") else f"{where}: {name}"
    raised = ConfigError(f"{start}: {message}")
    raised.where, raised.reason = start, message
    raise raised

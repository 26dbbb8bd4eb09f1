"""What endpoints do not accept, as `refed teacher check` found it, kept for later runs in a file in the user's cache
folder."""

from __future__ import annotations

import logging
from pathlib import Path

from filelock import FileLock
from pydantic import TypeAdapter, ValidationError

from refed_dspy.config.keys import without_keys
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import one_line
from refed_dspy.files import as_export_error, write_json
from refed_dspy.teachers.dialect import Dialect
from refed_dspy.weights import cache_dir

log = logging.getLogger("refed_dspy.teachers")
_DIALECTS = TypeAdapter(dict[str, Dialect])
"""Model, address and API version, as one text → what they take."""


def learned_file() -> Path:
    """The file. It may not exist."""
    return cache_dir() / "teachers.json"


def recall(config: TeacherConfig, endpoint: str) -> Dialect | None:
    """What the model at `endpoint` takes; None where no check found anything that it refuses."""
    return _read().get(_key(config, endpoint))


def remember(config: TeacherConfig, endpoint: str, dialect: Dialect | None) -> None:
    """Replace what is remembered of the model at `endpoint`. None: nothing is refused. Raises ExportError."""
    path, key = learned_file(), _key(config, endpoint)
    if dialect is None and not path.exists():
        return
    with as_export_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            others = {name: known for name, known in _read().items() if name != key}
            write_json(path, _DIALECTS.dump_python(others if dialect is None else {**others, key: dialect}))


def _read() -> dict[str, Dialect]:
    path = learned_file()
    try:
        return _DIALECTS.validate_json(path.read_bytes(), strict=True)
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "damaged"
        log.warning("%s is ignored (%s); refed teacher check rewrites it", one_line(path, 200), one_line(reason or ""))
        return {}


def _key(config: TeacherConfig, endpoint: str) -> str:
    version = f" ({config.api_version})" if config.api_version else ""
    return without_keys(f"{config.model} at {endpoint}{version}")

"""Reading the files that people name, whatever they hold (endless ones, YAML that grows without bound), and writing
files whole or not at all, and never over the input."""

from __future__ import annotations

import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import yaml

from refed_dspy.errors import ExportError, InputError, one_line

_OF_LEDGER = re.compile(r"ledger\.sqlite(-\w+)?|\.lock|\.checked", re.IGNORECASE)
_MOST_CHARACTERS = 20_000_000
"""Characters that YAML may have once its aliases are written out."""


def path_of(value: str | os.PathLike[str], name: str) -> Path:
    """`value`, for instance a result, which stands for its folder, as a path. Raises InputError where it is an empty
    text, which would be the working folder."""
    if value == "":
        raise InputError(f"{name}: is empty; is a shell variable unset?")
    return Path(value)


def as_path(source: Any) -> Any:
    """`source`; a path where it is a result, which stands for its folder."""
    return Path(source) if isinstance(source, os.PathLike) else source


def read_bytes(path: Path) -> bytes:
    """What is in a file. Raises OSError; so do a pipe and a device, which might never end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(f"{path} is a pipe or a device, not a file")
    return path.read_bytes()


def parse_yaml(text: str) -> Any:
    """What YAML `text` holds. Raises yaml.YAMLError, also for nesting and for aliases without end; ValueError for an
    impossible date."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if _written_out(node, {}) > _MOST_CHARACTERS:
            raise yaml.MarkedYAMLError(problem="its aliases expand to too much text")
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="nested endlessly") from None
    finally:
        loader.dispose()


def _written_out(node: Any, known: dict[int, int]) -> int:
    """The characters of `node` with its aliases written out. `known`: the same of nodes that were counted."""
    if not isinstance(node, yaml.CollectionNode):
        return 1 if node is None else 1 + len(node.value)
    if id(node) not in known:
        known[id(node)] = _MOST_CHARACTERS + 1  # for an alias of itself, inside of it
        inner = [part for item in node.value for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_written_out(part, known) for part in inner)
    return known[id(node)]


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path`, which it replaces when the block ends without an error. Raises OSError; so do a
    pipe and a device, which would be gone, and the file of a ledger, which nothing but the ledger writes."""
    if path.exists() and not path.is_file():
        raise OSError("it is a pipe, a device or a folder")
    if is_of_ledger(path):
        raise OSError("it belongs to a ledger, which holds paid answers")
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".refed-")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp lets only its user read it
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """`rows` as JSON lines, whole or not at all; returns how many. Raises ExportError where they cannot be written."""
    count = 0
    with as_export_error(path), whole_file(path) as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007 — the last one is how many
            file.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "replace") + b"\n")
    return count


def write_text(path: Path, lines: Iterable[str]) -> None:
    """`lines`, whole or not at all. Raises ExportError where they cannot be written."""
    with as_export_error(path), whole_file(path) as file:
        file.write("".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON, whole or not at all. Raises ExportError where it cannot be written."""
    write_text(path, [json.dumps(value, ensure_ascii=False, indent=1)])


def check_outputs(folder: Path, names: Iterable[str], mark: str, *inputs: Any) -> None:
    """Raises ExportError if `folder`, or a file of these `names` in it, is one of the `inputs`, by itself or by a link;
    or if one of them is there without the `mark`, which the work that writes them leaves beside them: somebody else's
    file would be overwritten."""
    outputs = [folder / name for name in names]
    for data in inputs:
        if isinstance(data, str | Path) and any(_is_same(Path(data), path) for path in [folder, *outputs]):
            raise ExportError(f"{data}: is where the results would go; choose another folder with out")
    if not (folder / mark).exists() and (theirs := [path for path in outputs if path.exists()]):
        raise ExportError(f"{theirs[0]}: exists, and was not written by this command; choose another folder")


def check_output(path: Path, *inputs: Path) -> None:
    """Raises ExportError if `path`, a file to write, belongs to a ledger or is one of the `inputs`."""
    if is_of_ledger(path):
        raise ExportError(f"{one_line(path, 200)}: belongs to a ledger, which holds paid answers; choose another file")
    if any(_is_same(path, other) for other in inputs):
        raise ExportError(f"{one_line(path, 200)}: is what is read here; choose another file")


def is_of_ledger(path: Path) -> bool:
    """Whether `path` has the name of a ledger, or of what SQLite and this package keep beside one."""
    return _OF_LEDGER.fullmatch(path.name) is not None


def _is_same(one: Path, other: Path) -> bool:
    """Whether both are one file or folder, there or not, by whatever links."""
    try:
        return one.resolve() == other.resolve() or one.samefile(other)
    except (OSError, ValueError, RuntimeError):  # not there; a name that no file can have; links in a circle
        return False


@contextmanager
def as_export_error(path: Path) -> Iterator[None]:
    """Raises ExportError in place of an OSError: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{one_line(path, 200)}: cannot be written: {one_line(error.strerror or error)}") from None

"""The folder that `refed share` makes, written whole or not at all, and its manifest `refed-share.json`, which lists
each file with size and SHA-256, and the environment variables that held the run's API keys."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from refed_dspy.errors import FORCE, OUT, ExportError, InputError, one_line
from refed_dspy.files import as_export_error, read_bytes, write_json

FILE = "refed-share.json"
_FORMAT = 1
_CHUNK = 2**20


@dataclass(frozen=True)
class SharedFile:
    """`path` is relative to the folder, with slashes; `bytes` is its size; `blob` its git object id, or empty."""

    path: str
    bytes: int
    sha256: str
    blob: str = ""


@dataclass(frozen=True)
class Manifest:
    """What was recorded when the folder was made. `key_variables`: digests of names (`name_digest`)."""

    files: Sequence[SharedFile]
    key_variables: frozenset[str]


def name_digest(variable: str) -> str:
    """Stands for a variable's name in a published file: the name may reveal a company."""
    return hashlib.sha256(variable.encode("utf-8", "replace")).hexdigest()


def hash_file(folder: Path, path: str) -> SharedFile:
    """The file's size and digests as it is now. Raises OSError."""
    digest = hashlib.sha256()
    with (folder / path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            blob.update(chunk)
        return SharedFile(path, file.tell(), digest.hexdigest(), blob.hexdigest())


def write_manifest(folder: Path, version: str, key_variables: Iterable[str] = ()) -> list[SharedFile]:
    """List all files in `folder`, and `key_variables` (names) by their digests. Returns the files, the manifest
    included. Raises ExportError, OSError."""
    files = [hash_file(folder, path) for path in sorted(files_in(folder))]
    entries = {file.path: {"bytes": file.bytes, "sha256": file.sha256} for file in files}
    digests = sorted(map(name_digest, key_variables))
    write_json(folder / FILE, {"format": _FORMAT, "refed_dspy": version, "key_variables": digests, "files": entries})
    return [*files, hash_file(folder, FILE)]


def files_in(folder: Path) -> set[str]:
    """The relative paths, with slashes, of everything in `folder` that is no folder. Links are listed, not followed."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


def read_manifest(folder: Path) -> Manifest:
    """What was recorded when the folder was made, files in order.

    Raises InputError: no folder, not one that `refed share` made, or a manifest that is damaged or names a path outside
    the folder.
    """
    shown = one_line(folder, 200)
    if not folder.is_dir():
        raise InputError(f"{shown}: no such folder; make it with: refed share DIR --out FOLDER")
    try:
        manifest = json.loads(read_bytes(folder / FILE).decode())
    except FileNotFoundError:
        raise InputError(
            f"{shown}: not made by refed share (no {FILE}); make it with: refed share DIR --out FOLDER"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{shown}: its {FILE} cannot be read; make the folder again with " + FORCE) from None
    try:
        if manifest["format"] != _FORMAT:
            raise InputError(f"{shown}: made by another version of refed share; make it again with " + FORCE)
        files = [_listed_file(path, entry) for path, entry in manifest["files"].items()]
        return Manifest(files, frozenset(map(str, manifest.get("key_variables", ()))))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{shown}: its {FILE} is damaged; make the folder again with " + FORCE) from None


def _listed_file(path: str, entry: Any) -> SharedFile:
    """Raises ValueError for a path that leads out of the folder."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or not pure.parts or ".." in pure.parts or "\\" in path or str(pure) != path:
        raise ValueError(path)
    return SharedFile(path, int(entry["bytes"]), str(entry["sha256"]))


def unlisted(folder: Path, listed: Iterable[SharedFile]) -> Sequence[str]:
    """Paths in `folder` that are neither in `listed` nor the manifest, sorted."""
    return sorted(files_in(folder) - {file.path for file in listed} - {FILE})


@contextmanager
def whole_folder(target: Path, force: bool) -> Iterator[Path]:
    """A temporary folder beside `target` that replaces it when the block ends without an error.

    Raises ExportError: `target` exists, and either `force` is not set or no earlier call made it; it cannot be written;
    or something else appeared in its place meanwhile: then its old content is in NAME.before, which the error names.
    """
    _check_replaceable(target, force)
    with as_export_error(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".refed-") as workspace:
            made = Path(workspace) / "made"
            made.mkdir()
            yield made
            _check_replaceable(target, force)
            _replace(target, made)


def _replace(target: Path, made: Path) -> None:
    """Move `made` to `target`, whose old content stands aside until that is done."""
    if not target.exists():
        made.rename(target)
        return
    names = (f"{target.name}.before{number or ''}" for number in count())
    before = next(path for path in map(target.with_name, names) if not path.exists())
    target.rename(before)
    try:
        made.rename(target)
    except OSError:
        raise ExportError(
            f"{one_line(target, 200)}: something else was created there meanwhile and was kept; the previous content "
            f"is in {one_line(before, 200)}; check both, then share again"
        ) from None
    shutil.rmtree(before)


def _check_replaceable(target: Path, force: bool) -> None:
    """Raises ExportError unless `target` is free, empty, or made by this command with `force` set: nothing else is ever
    removed."""
    shown = one_line(target, 200)
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{shown}: is a file; choose another folder with " + OUT)
    if next(target.iterdir(), None) is None:
        return
    if not (target / FILE).is_file():
        raise ExportError(f"{shown}: exists and was not made by refed share; choose another folder with " + OUT)
    if not force:
        ways = OUT + " or replace it with " + FORCE
        raise ExportError(f"{shown}: already exists; choose another folder with " + ways)
    if others := unlisted(target, read_manifest(target).files):
        raise ExportError(
            f"{shown}: contains {one_line(others[0], 100)}, which refed share did not write; move it away first"
        )

"""What `refed share` wrote into a folder: each file with its size and SHA-256, in `refed-share.json` beside them, and
which variables of the environment held the keys of the run."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path, PurePosixPath
from typing import Any

from refed_dspy.errors import ExportError, InputError, one_line
from refed_dspy.files import write_json

FILE = "refed-share.json"
_FORMAT = 1
_PART = 2**20


@dataclass(frozen=True)
class SharedFile:
    """`path` is relative to the folder, with slashes; `bytes` its size; `blob` its name in git, where it was read."""

    path: str
    bytes: int
    sha256: str
    blob: str = ""


@dataclass(frozen=True)
class Manifest:
    """What was noted when the folder was made. `key_variables`: digests of names (`name_digest`)."""

    files: Sequence[SharedFile]
    key_variables: frozenset[str]


def name_digest(variable: str) -> str:
    """Stands for a variable's name where everyone can read: the name may be that of a company."""
    return hashlib.sha256(variable.encode("utf-8", "replace")).hexdigest()


def looked_at(folder: Path, path: str) -> SharedFile:
    """The file as it is now. Raises OSError."""
    digest = hashlib.sha256()
    with (folder / path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        while part := file.read(_PART):
            digest.update(part)
            blob.update(part)
        return SharedFile(path, file.tell(), digest.hexdigest(), blob.hexdigest())


def write_manifest(folder: Path, version: str, key_variables: Iterable[str] = ()) -> list[SharedFile]:
    """Note all files that lie in `folder`, and `key_variables` (names) by their digests. Returns the files, the
    manifest too. Raises ExportError, OSError."""
    there = [looked_at(folder, path) for path in sorted(files_in(folder))]
    noted = {one.path: {"bytes": one.bytes, "sha256": one.sha256} for one in there}
    digests = sorted(map(name_digest, key_variables))
    write_json(folder / FILE, {"format": _FORMAT, "refed_dspy": version, "key_variables": digests, "files": noted})
    return [*there, looked_at(folder, FILE)]


def files_in(folder: Path) -> set[str]:
    """Whatever lies in `folder` and is no folder, by its path with slashes. Links are told, not followed."""
    found = set()
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if Path(parent, name).is_symlink()]
        found |= {Path(parent, name).relative_to(folder).as_posix() for name in [*names, *links]}
    return found


def read_manifest(folder: Path) -> Manifest:
    """What was noted when the folder was made, files in their order.

    Raises InputError: no folder, none that `refed share` made, or a manifest that is damaged or names what lies
    elsewhere.
    """
    shown = one_line(folder, 200)
    if not folder.is_dir():
        raise InputError(f"{shown}: no such folder; make it with: refed share DIR --out FOLDER")
    try:
        told = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{shown}: not made by refed share (no {FILE}); make it with: refed share DIR --out FOLDER"
        ) from None
    except (OSError, ValueError, RecursionError):
        raise InputError(f"{shown}: its {FILE} cannot be read; make the folder again with --force") from None
    try:
        if told["format"] != _FORMAT:
            raise InputError(f"{shown}: made by another version of refed share; make it again with --force")
        files = [_noted(path, one) for path, one in told["files"].items()]
        return Manifest(files, frozenset(map(str, told.get("key_variables", ()))))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise InputError(f"{shown}: its {FILE} is damaged; make the folder again with --force") from None


def _noted(path: str, one: Any) -> SharedFile:
    """Raises ValueError for a path that leads out of the folder."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or not parts.parts or ".." in parts.parts or "\\" in path or str(parts) != path:
        raise ValueError(path)
    return SharedFile(path, int(one["bytes"]), str(one["sha256"]))


def unlisted(folder: Path, noted: Iterable[SharedFile]) -> Sequence[str]:
    """What lies in `folder` and is neither noted nor the manifest, in order."""
    return sorted(files_in(folder) - {one.path for one in noted} - {FILE})


@contextmanager
def whole_folder(target: Path, force: bool) -> Iterator[Path]:
    """A folder beside `target` that takes its place when the block ends well.

    Raises ExportError: `target` is there, and either `force` is not set or it is not what an earlier call made; it
    cannot be written; or something else took its place meanwhile: then what was there stands beside it, and is named.
    """
    _check_replaceable(target, force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".refed-") as beside:
            made, old = Path(beside) / "made", Path(beside) / "old"
            made.mkdir()
            yield made
            _check_replaceable(target, force)
            try:
                if target.exists():
                    target.rename(old)
                made.rename(target)
            except BaseException:
                if old.exists() and made.exists():
                    _put_back(old, target)
                raise
    except OSError as error:
        raise ExportError(f"{one_line(target, 200)}: cannot be written: {one_line(error.strerror or error)}") from None


def _put_back(old: Path, target: Path) -> None:
    """`old`, which would go with the folder it is in, to where it was. Raises ExportError: it had to go beside it."""
    try:
        old.rename(target)
    except OSError:
        names = (f"{target.name}.before{number or ''}" for number in count())
        aside = next(path for path in map(target.with_name, names) if not path.exists())
        old.rename(aside)
        raise ExportError(
            f"{one_line(target, 200)}: something else came to be there meanwhile, and stays; what it held before is in "
            f"{one_line(aside, 200)}; look at both, then share again"
        ) from None


def _check_replaceable(target: Path, force: bool) -> None:
    """Only what this command made is ever removed."""
    shown = one_line(target, 200)
    if not target.exists():
        return
    if not target.is_dir():
        raise ExportError(f"{shown}: is a file; name another folder with --out")
    there = next(target.iterdir(), None)
    if there is None:
        return
    if not (target / FILE).is_file():
        raise ExportError(f"{shown}: exists, and refed share did not make it; name another folder with --out")
    if not force:
        raise ExportError(f"{shown}: exists; name another folder with --out, or replace it with --force")
    if more := unlisted(target, read_manifest(target).files):
        raise ExportError(
            f"{shown}: holds {one_line(more[0], 100)}, which refed share did not write; move it away first"
        )

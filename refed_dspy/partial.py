"""A file that is put together part by part, over more than one run of the program if need be."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

_CHUNK = 1 << 20


class Partial:
    """`path` while it grows: its bytes in PATH.part, and in PATH.part.json which parts those are.

    A part counts once its bytes are on the disk; one that was cut short is written again. One process at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = path.with_name(f"{path.name}.part")
        self._list = path.with_name(f"{path.name}.part.json")
        self._parts: list[tuple[str, int]] = []
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        self._file = self._bytes.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes of the parts that count."""
        return sum(length for _, length in self._parts)

    def resume(self, names: list[str]) -> int:
        """How many of the parts called `names` are here already, in that order. Everything else is dropped."""
        self._parts = _matching(self._listed(), names)
        if self.size > os.fstat(self._file.fileno()).st_size:
            self._parts = []
        self._file.truncate(self.size)
        with self._bytes.open("rb") as file:
            while chunk := file.read(_CHUNK):
                self._hash.update(chunk)
        return len(self._parts)

    def append(self, name: str, chunks: Iterable[bytes]) -> None:
        """Add one part. It counts when this returns."""
        start = self.size
        length = 0
        grown = self._hash.copy()
        self._file.truncate(start)
        for chunk in chunks:
            self._file.write(chunk)
            grown.update(chunk)
            length += len(chunk)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._parts.append((name, length))
        self._hash = grown
        fresh = self._list.with_suffix(".tmp")
        fresh.write_text(json.dumps(self._parts), "utf-8")
        fresh.replace(self._list)

    def sha256(self) -> str:
        """Of the parts that count, in hexadecimal."""
        return self._hash.hexdigest()

    def finish(self) -> None:
        """Give the file its name."""
        self._file.close()
        self._bytes.replace(self.path)
        self._list.unlink(missing_ok=True)

    def discard(self) -> None:
        """Forget every part."""
        self._file.close()
        for file in (self._list, self._bytes):
            file.unlink(missing_ok=True)

    def _listed(self) -> list[tuple[str, int]]:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return [(str(name), int(length)) for name, length in json.loads(self._list.read_text("utf-8"))]
        return []


def _matching(parts: list[tuple[str, int]], names: list[str]) -> list[tuple[str, int]]:
    """`parts` as far as they are the first of `names`, in order."""
    same = [part for part, name in zip(parts, names, strict=False) if part[0] == name]
    return same if [name for name, _ in same] == names[: len(same)] else []

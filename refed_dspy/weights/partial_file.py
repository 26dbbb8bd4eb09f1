"""A file that grows by pieces over several starts, and is whole or absent under its own name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path


class PartialFile:
    """`path` while it grows: its bytes in PATH.part, the list of its pieces (name, length) in PATH.part.json.

    A piece counts once its bytes are on the disk; one that was cut short is written again. One process at a time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes = path.with_name(f"{path.name}.part")
        self._list = path.with_name(f"{path.name}.part.json")
        self._pieces: list[tuple[str, int]] = []
        self._file = self._bytes.open("ab")
        self.close = self._file.close

    @property
    def size(self) -> int:
        """Bytes of the pieces that count."""
        return sum(length for _, length in self._pieces)

    def resume(self, names: list[str]) -> int:
        """How many of the pieces `names` are on the disk already, in that order. Everything else is dropped."""
        self._pieces = _matching(self._listed(), names)
        if self.size > os.fstat(self._file.fileno()).st_size:
            self._pieces = []
        self._file.truncate(self.size)
        return len(self._pieces)

    def append(self, name: str, chunks: Iterable[bytes]) -> None:
        """Add one piece. It counts when this returns."""
        self._file.truncate(self.size)
        length = sum(map(self._file.write, chunks))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._pieces.append((name, length))
        new_list = self._list.with_suffix(".tmp")
        new_list.write_text(json.dumps(self._pieces), "utf-8")
        new_list.replace(self._list)

    def sha256(self) -> str:
        """Of the pieces that count, in hexadecimal. Reads the whole file."""
        with self._bytes.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def finish(self) -> None:
        """Give the file its name."""
        self._file.close()
        self._bytes.replace(self.path)
        self._list.unlink(missing_ok=True)

    def discard(self) -> None:
        """Delete every piece."""
        self._file.close()
        for file in (self._list, self._bytes):
            file.unlink(missing_ok=True)

    def _listed(self) -> list[tuple[str, int]]:
        """The pieces in PATH.part.json; none where it cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            return [(str(name), int(length)) for name, length in json.loads(self._list.read_text("utf-8"))]
        return []


def _matching(pieces: list[tuple[str, int]], names: list[str]) -> list[tuple[str, int]]:
    """`pieces` as far as they are the first of `names`, in order."""
    same = [piece for piece, name in zip(pieces, names, strict=False) if piece[0] == name]
    return same if [name for name, _ in same] == names[: len(same)] else []

"""The registry of instructions' digests: of equal instructions in two shards, the first claim decides whose it is."""

from __future__ import annotations

from collections.abc import Sequence

from refed_dspy.plugins.cluster.coordinator_file import CoordinatorFile

WIDTH = 16
"""Bytes of a digest."""


class Registry:
    """Whose each digest is. In memory, about 110 MB a million, and in the coordinator's file. A digest's owner is a
    shard and not a worker, so that a claim made again has the same answer, whoever makes it."""

    def __init__(self, file: CoordinatorFile) -> None:
        self._file = file
        self._owners: dict[bytes, int] = {}
        for shard, digests in file.db.execute("SELECT shard, digests FROM claims"):
            for at in range(0, len(digests), WIDTH):
                self._owners[digests[at : at + WIDTH]] = shard

    def claim(self, shard: int, digests: Sequence[bytes]) -> list[bytes]:
        """Those of `digests` that belong to another shard; all others belong to `shard` from now on. Raises RunStopped
        where that cannot be written, ValueError for what is no digest."""
        asked = dict.fromkeys(digests)
        if wrong := [digest for digest in asked if len(digest) != WIDTH]:
            raise ValueError(f"{wrong[0]!r} is no digest of {WIDTH} bytes")
        new = [digest for digest in asked if digest not in self._owners]
        if new:
            with self._file.writing() as db:
                db.execute("INSERT INTO claims VALUES (?, ?)", (shard, b"".join(new)))
            self._owners.update(dict.fromkeys(new, shard))
        return [digest for digest in asked if self._owners[digest] != shard]

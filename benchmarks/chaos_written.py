"""Exports and shared folders that are replaced while the command is disturbed: the old one is whole, or the new one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet

from benchmarks.chaos_jobs import Job
from benchmarks.chaos_starts import Ended
from benchmarks.chaos_weather import Event, while_writing

Files = dict[str, bytes]
Start = Callable[[str, Event | None, Callable[[], int], float], Ended]
"""Starts a command with an event, which counts by that function, called so often."""
OFTEN = 0.002
CHECKS = 3
"""How many promises `Written.broken` looks at."""


@dataclass(frozen=True)
class Written:
    """What `words` writes at `home`/`name`: a file, or a folder if `old` is a command that makes another one there."""

    home: Path
    name: str
    words: str
    old: str = ""

    def broken(self, rng: random.Random, start: Start) -> Iterator[str]:
        """Write an old one, replace it while the command is disturbed and then in peace: what is wrong with it."""
        path = self.home / self.name
        if self.old:
            start(self.old, None, self._changed(), OFTEN)
        else:
            path.write_bytes(b'{"old": "row"}\n')
        old, seen = contents(path), list[Files]()
        for _ in range(2):
            start(self.words, while_writing(rng), self._changed(), OFTEN)
            seen.append(contents(path) or contents(path.with_name(f"{self.name}.before")))
        ended = start(self.words, None, self._changed(), OFTEN)
        new = contents(path)
        if ended.code and new not in (old, *seen):
            yield f"{self.words}: exit code {ended.code}, and another {self.name} is there"
        if any(files not in (old, new) for files in seen):
            yield f"{self.words}: neither the old {self.name} nor the new one was there"
        if not ended.code and not self._readable(path):
            yield f"{self.words}: {self.name} cannot be read"

    def _changed(self) -> Callable[[], int]:
        """What is 1 once something was written here since this call, 0 before: a temporary file beside, or this one."""
        before = self._seen()
        return lambda: int(self._seen() != before)

    def _seen(self) -> set[tuple[str, int]]:
        found = {(str(path), 0) for path in self.home.glob(".refed-*")}
        path = self.home / self.name
        return found | ({(str(path), path.stat().st_mtime_ns)} if path.is_file() else set())

    def _readable(self, path: Path) -> bool:
        tables = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        try:
            return all(_rows(table) > 0 for table in tables)
        except (ValueError, OSError):  # pyarrow's errors are of these kinds
            return False


def written(home: Path, job: Job, rng: random.Random) -> Written | None:
    """Something that can be made of the rows of `job`, whose work is in `home`/out, if anything can."""
    if not job.formats:
        return None
    if job.shared and rng.random() < 0.5:
        words = "share out --out shared --force --name"
        return Written(home, "shared", f"{words} new", f"{words} old")
    form = rng.choice(job.formats)
    return Written(home, f"samples.{form}", f"export out --format {form} --out samples.{form} --force")


def contents(path: Path) -> Files:
    """The bytes of all files in a folder, or of the one at `path`; nothing where nothing is."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def _rows(path: Path) -> int:
    """The rows in an exported file. Raises ValueError and OSError where it cannot be read."""
    if path.suffix == ".parquet":
        return int(pyarrow.parquet.read_table(path).num_rows)
    return sum(bool(json.loads(line)) for line in path.read_text().splitlines())

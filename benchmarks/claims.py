"""Claims of a coordinator whose registry holds a million instructions, and how long its file takes to open.

`python -m benchmarks.claims [DIGESTS]`. A claim is of ten digests, as a synthesis call gives: all new; the same again;
or one of the ten another shard's. CPU and wall time a claim, without what an actor adds (0.4 ms of CPU): a core shall
take 1,500 with it. The file is opened as closed in order, and as a kill leaves it.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import psutil

from refed_dspy.plugins.cluster.coordinator import Coordinator, CoordinatorFile

DIGESTS, SHARDS, EACH, CLAIMS = 1_000_000, 64, 10, 5_000
MOST_MS, MOST_SECONDS, MOST_MB = 0.15, 2.0, 200


def opened(path: Path) -> Coordinator:
    return Coordinator(path, shards=SHARDS, size=DIGESTS, job="benchmark")


def digests(rng: random.Random, count: int = EACH) -> list[bytes]:
    return [rng.randbytes(16) for _ in range(count)]


def fill(path: Path, rng: random.Random, count: int) -> list[bytes]:
    """Claims of so many digests, as so many calls would have left them. Returns shard 0's first ones."""
    opened(path).close()
    file = CoordinatorFile(path, SHARDS)
    first = digests(rng)
    with closing(file), file.writing() as db:
        db.execute("INSERT INTO claims VALUES (0, ?)", (b"".join(first),))
        claims = ((at % SHARDS, b"".join(digests(rng))) for at in range(1, count // EACH))
        db.executemany("INSERT INTO claims VALUES (?, ?)", claims)
    print(f"{count:,} digests, {path.stat().st_size / 1e6:.0f} MB")
    return first


def timed(name: str, coordinator: Coordinator, claims: Sequence[Sequence[bytes]], refused: int) -> float:
    """Milliseconds of CPU a claim by the last shard, where so many digests are refused in all."""
    cpu, wall = time.process_time(), time.perf_counter()
    theirs = sum(len(coordinator.claim(SHARDS - 1, asked)) for asked in claims)
    cpu = 1e3 * (time.process_time() - cpu) / len(claims)
    wall = 1e3 * (time.perf_counter() - wall) / len(claims)
    assert theirs == refused, f"{theirs} were refused, not {refused}"
    a_second = f"{1e3 / cpu:,.0f} a CPU second"
    print(f"{name}: {cpu:.3f} ms of CPU a claim (must be <= {MOST_MS}), {a_second}, {wall:.3f} ms by the clock")
    return cpu


def open_and_close(name: str, path: Path) -> bool:
    """Whether it took no longer, and no more memory, than it may."""
    memory, begun, cpu = psutil.Process().memory_info().rss, time.perf_counter(), time.process_time()
    with closing(opened(path)):
        taken, cpu = time.perf_counter() - begun, time.process_time() - cpu
        memory = (psutil.Process().memory_info().rss - memory) // 1_000_000
    print(f"{name}: {taken:.2f} s (must be <= {MOST_SECONDS}), CPU {cpu:.2f} s, {memory} MB (must be <= {MOST_MB})")
    return taken <= MOST_SECONDS and memory <= MOST_MB


def main() -> None:
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path, killed = Path(folder) / "coordinator.sqlite", Path(folder) / "killed.sqlite"
        first = fill(path, rng, int(sys.argv[1]) if len(sys.argv) > 1 else DIGESTS)
        good = open_and_close("opened", path)
        new = [digests(rng) for _ in range(CLAIMS)]
        twins = [[rng.choice(first), *digests(rng, EACH - 1)] for _ in range(CLAIMS)]
        with closing(opened(path)) as coordinator:
            slowest = max(
                timed("all new", coordinator, new, 0),
                timed("again", coordinator, new, 0),
                timed("one of ten another's", coordinator, twins, CLAIMS),
            )
            for suffix in ("", "-wal"):
                shutil.copy(f"{path}{suffix}", f"{killed}{suffix}")
        good &= open_and_close("opened after a kill", killed)
    sys.exit(0 if good and slowest <= MOST_MS else 1)


if __name__ == "__main__":
    main()

"""A run's ledger of any size in minutes: a real run of a thousand samples, copied within its file.

`python -m benchmarks.large make DIR SAMPLES` makes it (about 4 KB a sample; a million take two minutes).
`python -m benchmarks.large measure DIR` opens it, reads its state, starts a resume, exports, loads, shares, filters,
measures and reports it, each in a process of its own: wall and CPU seconds, and the largest resident memory.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import refed_dspy
from benchmarks.runs import teacher_config
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.format import checksum
from refed_dspy.ledger.statements import noted, text_digest
from refed_dspy.records import digest

BASE, SAMPLES_EACH = 1_000, 16
"""Samples of the real run; and of each reference, if all were used: some are left for a resume."""
_TEXT = "Topic {0} is about many things, and this sentence says so. " * 8
_COPY = """
INSERT INTO instructions
  SELECT id + :instructions, place.new, feature, round, new_digest(text || :copy), text || :copy, used, sample,
    checksum(text || :copy, feature), sample_sum
  FROM base.instructions JOIN place ON place.old = reference;
INSERT INTO samples SELECT seq + :samples, instruction + :instructions, created FROM base.samples;
INSERT INTO proposals SELECT place.new, feature, round, kept, duplicates, surplus
  FROM base.proposals JOIN place ON place.old = reference;
INSERT INTO answers SELECT new_key(key, :copy), stage, new_item(item), repetition, output, raw, endpoint, created, sum
  FROM base.answers;
INSERT INTO calls SELECT id + :calls, new_key(key, :copy), stage, new_item(item), model, endpoint, outcome, seconds,
  prompt_tokens, cached_tokens, completion_tokens, reserved, cost, created, reasoning_tokens FROM base.calls;
INSERT INTO decisions SELECT instruction + :instructions, filter, position, kept, score, reason, detail, created
  FROM base.decisions;
"""


def references(folder: Path, samples: int) -> Path:
    """A file of as many references as so many samples take."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "references.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(max(40, -(-samples // SAMPLES_EACH))):
            pair = {"instruction": f"Explain topic {i} to a student.", "response": _TEXT.format(i)}
            file.write(json.dumps(pair) + "\n")
    return path


def make(folder: Path, samples: int) -> None:
    """A run of `samples` (rounded up to whole thousands) in `folder`, as one that was killed at its end leaves it."""
    with SimulatedTeacher(latency=0.02, sigma=0.5, response_words=12) as server:
        refed_dspy.synthesize(
            None, references(folder, samples), size=BASE, teacher=teacher_config(server, 128), run_dir=folder,
            progress=False,
        )  # fmt: skip
    begun, path = time.perf_counter(), folder / FILE
    base = folder / "base.sqlite"
    with closing(sqlite3.connect(path)) as db, closing(sqlite3.connect(base)) as copy:
        db.backup(copy)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous=OFF")
        db.execute("ATTACH ? AS base", (str(base),))
        _copies(db, -(-samples // BASE) - 1)
        size = db.execute("SELECT count(*) FROM samples").fetchone()[0]
        db.execute(*noted("size", size))
        db.execute(*noted("last_end", {"state": "killed", "reason": "", "at": time.time()}))
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    base.unlink()
    print(f"{size:,} samples, {path.stat().st_size / 1e9:.2f} GB, {time.perf_counter() - begun:.0f} s")


def _copies(db: sqlite3.Connection, copies: int) -> None:
    """Add the base's rows so many times, each time about other references."""
    opened = [position for (position,) in db.execute("SELECT DISTINCT reference FROM instructions ORDER BY 1")]
    ids = dict(db.execute("SELECT position, id FROM refs"))
    free = iter(sorted(set(ids) - set(opened)))
    steps = {name: _largest(db, column, name) for name, column in _NUMBERED.items()}
    items: dict[str, str] = {}

    def new_item(item: str) -> str:
        if item.isdigit():
            return str(int(item) + steps["instructions"] * number)
        reference, slash, feature = item.partition("/")
        return items[reference] + slash + feature

    db.create_function("new_item", 1, new_item)
    db.create_function("new_key", 2, lambda key, copy: digest([key, copy]))
    db.create_function("new_digest", 1, text_digest)
    db.create_function("checksum", 2, checksum)
    db.execute("CREATE TEMP TABLE place (old INTEGER PRIMARY KEY, new INTEGER)")
    db.execute("BEGIN")
    for number in range(1, copies + 1):
        places = [(old, next(free)) for old in opened]
        items.update((ids[old], ids[new]) for old, new in places)
        db.execute("DELETE FROM place")
        db.executemany("INSERT INTO place VALUES (?, ?)", places)
        values = {name: step * number for name, step in steps.items()} | {"copy": f" ({number})"}
        for statement in filter(str.strip, _COPY.split(";")):
            db.execute(statement, values)
    db.execute("COMMIT")


_NUMBERED = {"instructions": "id", "samples": "seq", "calls": "id"}


def _largest(db: sqlite3.Connection, column: str, table: str) -> int:
    return int(db.execute(f"SELECT max({column}) FROM {table}").fetchone()[0])


_DATASET = "import sys, refed_dspy; print(len(refed_dspy.read_run(sys.argv[1]).to_dataset()))"

_STATS = "import sys, refed_dspy; print(refed_dspy.measure(sys.argv[1], embeddings=False))"


def measure(folder: Path) -> None:
    """Each command on the run in `folder`, in a process of its own. The resume makes forty samples more."""
    refed = [sys.executable, "-m", "refed_dspy.cli"]
    run, out = str(folder), folder / "out"
    out.mkdir(exist_ok=True)
    with SimulatedTeacher(latency=0.02, sigma=0.5, response_words=12) as server:
        teacher = out / "teacher.yaml"
        teacher.write_text(f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: 128\n")
        with closing(sqlite3.connect(folder / FILE)) as db:
            (kept,) = db.execute("SELECT max(seq) FROM samples").fetchone()
        more = ["--size", str(kept + 40), "--teacher", str(teacher)]
        _timed("status, whole file checked", [*refed, "status", run])
        _timed("status", [*refed, "status", run])
        _timed("resume, forty samples more", [*refed, "resume", run, *more])
        _timed("export, JSONL", [*refed, "export", run, "--force", "--out", str(out / "rows.jsonl")])
        parquet = ["--format", "parquet", "--out", str(out / "rows.parquet")]
        _timed("export, Parquet", [*refed, "export", run, "--force", *parquet])
        _timed("to_dataset", [sys.executable, "-c", _DATASET, run])
        _timed("share", [*refed, "share", run, "--out", str(out / "shared")])
        filters = ["--filter", "length: {min_words: 5}", "--filter", "random: {share: 0.5}"]
        _timed("filter", [*refed, "filter", str(out / "rows.jsonl"), "--out", str(out / "filtered"), *filters])
        _timed("report", [*refed, "report", run, "--force", "--out", str(out / "report.html")])
        print(f"page: {(out / 'report.html').stat().st_size / 1e6:.1f} MB")
        _timed("stats, no model", [sys.executable, "-c", _STATS, str(out / "rows.jsonl")])
    shutil.rmtree(out)


def _timed(name: str, command: list[str]) -> None:
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, code, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(code)
    seconds = time.perf_counter() - begun
    cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3
    print(f"{name}: {seconds:.1f} s, CPU {cpu:.1f} s, {memory:.0f} MB, exit code {process.returncode}", flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        measure(Path(sys.argv[2]))

"""Damaged ledgers of a run, a compile, a comparison and a filtering, eight commands on each: tracebacks and hangs.

`python -m benchmarks.damage [SEED] [LEDGERS]`; LEDGERS 0: every damage there is.
`python -m benchmarks.damage flips [SEED] [FLIPS]`: a bit of a run's ledger is flipped, half of the times as a disk does
it, so that size and times stay; then it is exported, and the other half of the commands are tried.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from benchmarks.runs import REFERENCES
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.main import app
from refed_dspy.ledger.format import file_state, note_whole

LEDGERS, PATIENCE = 266, 60.0
FILE = "ledger.sqlite"
SIZES = {"optimizer": "bootstrap", "train": 2, "validation": 2, "test": 5, "evaluations": 4}
VALUES = {
    "NULL": "NULL",
    "text": "'some text'",
    "a blob": "x'00ff'",
    "a huge number": "9223372036854775807",
    "a negative number": "-5",
    "a fraction": "1e300",
    "an infinite number": "9e999",
    "no UTF-8": "CAST(x'61ff62' AS TEXT)",
    "JSON of another shape": "'{\"a\": [1]}'",
}
"""What the values of a column are replaced by, as SQL."""
OTHER_JSON = ("5", '"text"', "[]", "[7]", "{}", '{"a": 1}', "null", "true", "no JSON", "1e999", "")
"""What a value of `meta` is replaced by."""


@dataclass(frozen=True)
class Damage:
    """One way in which a ledger's file is spoiled."""

    name: str
    apply: Callable[[Path], None]


# --- damages


def _sql(*statements: str) -> Callable[[Path], None]:
    """The statements, on a file whose constraints are no longer heeded."""

    def apply(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            tables = db.execute("SELECT sql, name FROM sqlite_master WHERE type = 'table'").fetchall()
        _replace(path, [(_loose(sql), name) for sql, name in tables])
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA ignore_check_constraints=ON")
            for statement in statements:
                with suppress(sqlite3.IntegrityError):  # what a row's number cannot become
                    db.execute(statement)
        _replace(path, tables)

    return apply


def _loose(sql: str) -> str:
    return re.sub(r" NOT NULL| ANY|( STRICT$| STRICT,(?= WITHOUT))", "", sql)


def _replace(path: Path, tables: list[tuple[str, str]]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.executemany("UPDATE sqlite_master SET sql = ? WHERE type = 'table' AND name = ?", tables)


def _bytes(seed: int) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        rng, content = random.Random(seed), bytearray(path.read_bytes())
        for _ in range(rng.choice((1, 3, 20, 200))):
            start = rng.randrange(100 if rng.random() < 0.1 else len(content))
            content[start : start + rng.choice((1, 4, 64))] = rng.randbytes(rng.choice((1, 4, 64)))
        path.write_bytes(content)

    return apply


def _cut(share: float) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return apply


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _another_database(path: Path) -> None:
    path.unlink()
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE customers (name TEXT)")


def _columns(db: sqlite3.Connection) -> dict[str, list[str]]:
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type='table' ORDER BY 1")]
    return {table: [row[1] for row in db.execute(f"PRAGMA table_info({table})")] for table in tables}


def _nested(value: Any, depth: int = 3) -> Iterator[Any]:
    """`value` with one value inside of it replaced, in every way."""
    if depth == 0 or not isinstance(value, dict | list):
        return
    other: Any
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        for other in (5, "text", None, [], {}):
            changed = value.copy()
            changed[key] = other
            yield changed
        for other in _nested(inner, depth - 1):
            changed = value.copy()
            changed[key] = other
            yield changed
    if isinstance(value, dict):
        for key in value:
            yield {name: inner for name, inner in value.items() if name != key}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def damages(path: Path) -> dict[str, list[Damage]]:
    """Kind → every damage of it to the ledger at `path`."""
    with closing(sqlite3.connect(path)) as db:
        tables, meta = _columns(db), dict(db.execute("SELECT name, value FROM meta"))
    changes = {name: [*OTHER_JSON, *map(json.dumps, _nested(json.loads(value)))] for name, value in meta.items()}
    return {
        "bytes": [Damage(f"random bytes, seed {seed}", _bytes(seed)) for seed in range(40)],
        "file": [
            *(Damage(f"cut to {share:.0%}", _cut(share)) for share in (0, 0.001, 0.1, 0.5, 0.9)),
            Damage("a folder", _folder),
            Damage("another database", _another_database),
            Damage("a newer format", _sql("PRAGMA user_version=99")),
            Damage("no format", _sql("PRAGMA user_version=0")),
            Damage("no view", _sql("DROP VIEW asked")),
        ],
        "table": [
            Damage(f"{table} {what}", _sql(f"{sql} {table}"))
            for table in tables
            for what, sql in (("dropped", "DROP TABLE"), ("emptied", "DELETE FROM"))
        ],
        "column": [
            Damage(f"{table}.{column}: {what}", _sql(f"UPDATE OR IGNORE {table} SET {column} = {sql}"))
            for table, columns in tables.items()
            for column in columns
            for what, sql in VALUES.items()
        ],
        "meta": [
            Damage(
                f"meta {name}: {new[:200]}",
                _sql(f"UPDATE meta SET value={_quoted(new)} WHERE name={_quoted(name)}"),
            )
            for name, news in changes.items()
            for new in news
        ],
    }


def drawn(kinds: dict[str, list[Damage]], rng: random.Random, count: int) -> list[Damage]:
    """`count` of all damages (`damages`), as many of each kind as there are; 0: every one."""
    for kind in kinds.values():
        rng.shuffle(kind)
    if not count:
        return [damage for kind in kinds.values() for damage in kind]
    chosen: list[Damage] = []
    while len(chosen) < count and any(kinds.values()):
        chosen += [kind.pop() for kind in kinds.values() if kind]
    return chosen[:count]


# --- folders, and the commands on them


def refed(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def made_folders(
    home: Path, server: SimulatedTeacher, names: Sequence[str] = ("run", "compile", "comparison", "filtering")
) -> dict[str, list[list[str]]]:
    """Small folders in `home`, the working folder: name → the eight commands that are tried on a copy of it, `d`."""
    (home / "references.jsonl").write_text("".join(json.dumps(r) + "\n" for r in REFERENCES[:9]))
    price = "price: {prompt: 1, completion: 2}\n"
    endpoint = f"api_base: {server.base_url}\nconcurrency: 4\nretries: 0\n{price}"
    (home / "teacher.yaml").write_text(f"model: sim/sim-model\n{endpoint}")
    (home / "judge.yaml").write_text(f"model: sim/other-model\n{endpoint}")
    (home / "run.yaml").write_text("filters: [refusals, {rubric: {at_least: 3}}]\ninstructions_per_feature: 2\n")
    (home / "compile.yaml").write_text(json.dumps({**SIZES, "instructions_per_feature": 1}))
    (home / "compare.yaml").write_text(
        "programs: {a: seed-only, b: instruction-only, c: reference-level}\nagainst: b\n"
    )
    common = ["--references", "references.jsonl", "--teacher", "teacher.yaml", "--judge", "judge.yaml"]
    make = {
        "run": ["synth", *common, "--config", "run.yaml", "--size", "6", "--run-dir"],
        "compile": ["compile", *common, "--config", "compile.yaml", "--out"],
        "comparison": ["compare", *common, "--config", "compare.yaml", "--size", "4", "--out"],
        "filtering": ["filter", "run", "--filter", "judge", "--judge", "judge.yaml", "--out"],
    }
    for name in names:
        done = refed(*make[name], name)
        assert done.exit_code in {0, 1}, (name, done.output, done.exception)  # 1: the judge keeps nothing
    look = [["status", "d"], ["status", "d", "--json"]]
    of_run = [["report", "d", "--force"], ["share", "d", "--out", "shared", "--force"], ["export", "d", "--force"]]
    commands = {
        "run": [
            ["status", "d"],
            *of_run,
            ["export", "d", "--dropped", "--force"],
            ["filter", "d", "--filter", "refusals", "--out", "filtered"],
            ["resume", "d", "--size", "7"],
        ],
        "compile": [*look, *of_run, ["resume", "d"], [*make["compile"], "d"]],
        "comparison": [*look, *of_run, ["stats", "d"], [*make["comparison"], "d"]],
        "filtering": [*look, *of_run, ["status", "d", "--give-up"], [*make["filtering"], "d"]],
    }
    return {name: commands[name] for name in names}


class Hung(BaseException):
    """A command took longer than anyone waits."""


@contextmanager
def _patience() -> Iterator[None]:
    def give_up(*_: Any) -> None:
        raise Hung

    signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def outcome(words: list[str]) -> str:
    """How a command ended: its exit code; or "hang", or "traceback", with what was raised and where."""
    try:
        with _patience():
            done = refed(*words)
    except Hung:
        return "hang"
    error = done.exception
    if error is not None and not isinstance(error, SystemExit):
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/refed_dspy/" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        return f"traceback: {type(error).__name__} in {where}: {str(error)[:100]!r}"
    if "Traceback" in done.output:
        return f"traceback: printed: {done.output.strip().splitlines()[-1][:100]}"
    lines = done.stderr.splitlines()
    if done.exit_code == 2 and not any(line.startswith("refed: ") for line in lines[-1:]):
        return f"traceback: exit 2 without its line: {done.stderr[-200:]!r}"
    return str(done.exit_code)


def tried(folder: str, commands: list[list[str]], damage: Damage) -> Iterator[tuple[str, str]]:
    """(command, how it ended) of every command on a folder that is damaged so; each gets a copy of its own."""
    for words in commands:
        for leftover in ("d", "shared", "filtered"):
            shutil.rmtree(leftover, ignore_errors=True)
        shutil.copytree(folder, "d")
        damage.apply(Path("d") / FILE)
        yield " ".join(words), outcome(words)


def flip(path: Path, rng: random.Random, *, silently: bool) -> None:
    """Flip one bit of the file; `silently`: as a disk does it, so that the file looks as it was when last checked."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(place := rng.randrange(before.st_size))
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ (1 << rng.randrange(8))]))
    if silently:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        note_whole(path, file_state(path))


FLIPPED = [["status", "d"], ["export", "d", "--dropped", "--force"], ["report", "d", "--force"], ["show", "d"],
           ["share", "d", "--out", "shared", "--force"], ["filter", "d", "--filter", "refusals", "--out", "filtered"],
           ["stats", "d"], ["resume", "d", "--size", "7"]]  # fmt: skip


def flips(seed: int, count: int) -> None:
    """Texts that a flipped bit altered and `refed export` wrote, unsaid; and tracebacks."""
    rng, ends, unsaid, said = random.Random(seed), Counter[str](), 0, 0
    os.environ["REFED_EMBEDDINGS"] = "false"
    with SimulatedTeacher(latency=0, sigma=0) as server, tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        made_folders(Path(home), server, ["run"])
        export = ["export", "d", "--out", "rows.jsonl", "--force", "--reasoning"]
        shutil.copytree("run", "d")
        assert refed(*export).exit_code == 0
        written = Path("rows.jsonl").read_bytes()
        for number in range(count):
            for leftover in ("d", "shared", "filtered"):
                shutil.rmtree(leftover, ignore_errors=True)
            shutil.copytree("run", "d")
            flip(Path("d") / FILE, rng, silently=number % 2 == 0)
            done = outcome(export)
            if done == "0":
                texts, before = (_texts(rows) for rows in (Path("rows.jsonl").read_bytes(), written))
                unsaid += texts != before
                if texts != before:
                    altered = [
                        (a, b)
                        for one, other in zip(texts, before, strict=False)
                        for a, b in zip(one, other, strict=False)
                        if a != b
                    ]
                    print(f"unsaid: {len(texts)} rows: {altered[:2]}"[:400], file=sys.stderr, flush=True)
            said += done != "0"
            for end in (done, outcome(rng.choice(FLIPPED))):
                ends[end.partition(":")[0]] += 1
                if not end.isdigit():
                    print(end, file=sys.stderr, flush=True)
    print(f"{count} flipped bits: {unsaid} exports with another text, unsaid (must be 0); {said} refused; {dict(ends)}")


def _texts(rows: bytes) -> list[list[str]]:
    """The texts of exported rows."""
    return [sorted(map(str, json.loads(line).values())) for line in rows.splitlines()]


def main() -> None:
    if sys.argv[1:2] == ["flips"]:
        flips(*(int(word) for word in (*sys.argv[2:], *("0", "600")[len(sys.argv) - 2 :])))
        return
    seed, count = (int(word) for word in (*sys.argv[1:], *("0", str(LEDGERS))[len(sys.argv) - 1 :]))
    rng, ends, kinds = random.Random(seed), Counter[str](), Counter[str]()
    os.environ["REFED_EMBEDDINGS"] = "false"
    with SimulatedTeacher(latency=0, sigma=0) as server, tempfile.TemporaryDirectory() as home:
        os.chdir(home)
        threading.excepthook = lambda args: kinds.update([f"in a thread: {args.exc_value!r}"[:120]])
        folders = made_folders(Path(home), server)
        ledgers = commands = 0
        slowest = 0.0
        for number, (folder, words) in enumerate(folders.items()):
            share = count and (count + number) // len(folders)
            for damage in drawn(damages(Path(folder) / FILE), rng, share):
                ledgers += 1
                begun = time.monotonic()
                for command, end in tried(folder, words, damage):
                    commands += 1
                    ends[end.partition(":")[0]] += 1
                    slowest = max(slowest, time.monotonic() - begun)
                    begun = time.monotonic()
                    if not end.isdigit():
                        kinds[end] += 1
                        print(f"{folder}, {damage.name}: {command}: {end}", file=sys.stderr, flush=True)
        print(f"{ledgers} damaged ledgers, {commands} commands: {dict(sorted(ends.items()))}; {len(kinds)} kinds")
        print(f"the slowest took {slowest:.1f} s")


if __name__ == "__main__":
    main()

"""The kinds of work that chaos disturbs: the files each needs, its command, and what it must have left."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cluster_runs import Rows
from benchmarks.runs import REFERENCES

Files = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """A command that works in the folder `out` of its home. `files`: what it reads. `size`: about how many requests it
    makes when nothing goes wrong. `wrong` says what is wrong with its rows, "" if nothing; it is told whether the work
    has ended as done."""

    kind: str
    words: str
    files: Files
    size: int
    wrong: Callable[[Path, bool], str]

    def write(self, home: Path) -> None:
        for name, content in self.files.items():
            rows = "".join(json.dumps(row) + "\n" for row in content) if name.endswith(".jsonl") else ""
            (home / name).write_text(rows or json.dumps(content))  # JSON is valid YAML


def drawn(rng: random.Random, teacher: dict[str, Any], caps: dict[str, Any]) -> Job:
    """A job of a random kind and size."""
    maker = rng.choice([_run, _run, _batch, _filter, _compare, _answers, _compile])
    return maker(rng, teacher, caps)


def _run(rng: random.Random, teacher: dict[str, Any], caps: dict[str, Any]) -> Job:
    size = rng.randint(10, 80)
    settings = {"references": "references.jsonl", "size": size, "teacher": teacher, "max_failure_share": 1.0, **caps}
    return Job(
        "run",
        "synth --config settings.yaml --run-dir out",
        {"references.jsonl": REFERENCES[: rng.randint(8, 40)], "settings.yaml": settings},
        2 * size,
        lambda out, done: _run_wrong(out, size if done else None),
    )


def _batch(rng: random.Random, teacher: dict[str, Any], caps: dict[str, Any]) -> Job:
    job = _run(rng, {**teacher, "mode": "batch", "batch": {"quiet": 0.1, "poll": 0.1}}, caps)
    return Job("batch", job.words, job.files, job.size, job.wrong)


def _run_wrong(out: Path, size: int | None) -> str:
    rows = Rows.of(out)
    if rows.distinct != rows.samples or rows.wrong:
        return f"{rows.samples} samples, {rows.distinct} of them distinct, {rows.wrong} with another text"
    return f"done with {rows.samples} of {size} samples" if size is not None and rows.samples != size else ""


def _filter(rng: random.Random, teacher: dict[str, Any], caps: dict[str, Any]) -> Job:
    count = rng.randint(10, 60)
    rows = [{"instruction": f"Explain topic {i}.", "response": f"Topic {i} is this. " * 9, "plain": "Short."}
            for i in range(count)]  # fmt: skip
    settings = {"filters": ["judge"], "columns": {"plain": "plain"}, "judge": teacher, **caps}
    return Job(
        "filter",
        "filter rows.jsonl --config settings.yaml --out out",
        {"rows.jsonl": rows, "settings.yaml": settings},
        2 * count,
        lambda out, done: _rows_wrong(_rows(out / "kept.jsonl") + _rows(out / "dropped.jsonl"), count, done),
    )


def _compare(rng: random.Random, teacher: dict[str, Any], caps: dict[str, Any]) -> Job:
    size = rng.randint(4, 20)
    settings = {"programs": {"a": "seed-only", "b": "instruction-only"}, "against": "b", "size": size,
                "references": "references.jsonl", "teacher": teacher, "judge": {**teacher, "model": "sim/other-model"},
                **caps}  # fmt: skip
    return Job(
        "comparison",
        "compare --config settings.yaml --out out",
        {"references.jsonl": REFERENCES[:10], "settings.yaml": settings},
        5 * size,
        lambda out, done: "" if _rows(out / "rows.jsonl") or not done else "done without rows",
    )


def _answers(rng: random.Random, teacher: dict[str, Any], caps: dict[str, Any]) -> Job:
    count = rng.randint(10, 80)
    settings = {"prompts": "prompts.jsonl", "teacher": teacher, **caps}
    return Job(
        "answers",
        "answers --config settings.yaml --out out",
        {"prompts.jsonl": [{"prompt": f"Explain topic {i}."} for i in range(count)], "settings.yaml": settings},
        count,
        lambda out, done: _rows_wrong(_rows(out / "answers.jsonl"), count, done),
    )


def _compile(rng: random.Random, teacher: dict[str, Any], caps: dict[str, Any]) -> Job:
    settings = {"references": "references.jsonl", "teacher": teacher, "judge": {**teacher, "model": "sim/other-model"},
                "optimizer": rng.choice(["bootstrap", "gepa"]), "evaluations": 8, "train": 3, "validation": 2,
                "test": 2, "features": {"topic": "What it is about."}, "instructions_per_feature": 1,
                **caps}  # fmt: skip
    return Job(
        "compile",
        "compile --config settings.yaml --out out --no-track",
        {"references.jsonl": REFERENCES[:10], "settings.yaml": settings},
        100,
        lambda out, done: "" if (out / "program.json").exists() or not done else "done without a program",
    )


def _rows(path: Path) -> list[str]:
    """The instructions in a file of rows; none where there is no file. A line that is no JSON raises ValueError."""
    if not path.exists():
        return []
    return [row.get("instruction", row.get("prompt")) for row in map(json.loads, path.read_text().splitlines())]


def _rows_wrong(found: list[str], count: int, done: bool) -> str:
    if len(set(found)) != len(found):
        return f"{len(found)} rows, {len(set(found))} of them distinct"
    return f"done with {len(found)} of {count} rows" if done and len(found) != count else ""

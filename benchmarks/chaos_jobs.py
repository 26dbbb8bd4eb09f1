"""The kinds of work that chaos disturbs: the files each needs, its commands, and what they must have left."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.chaos_books import Books
from benchmarks.cluster_runs import Rows
from benchmarks.runs import REFERENCES

Settings = dict[str, Any]
Draw = random.Random
FILE = "settings.yaml"


@dataclass(frozen=True)
class Step:
    """A command that works in the folder `out` of its home. `size`: about how many requests it makes when nothing goes
    wrong. `caps`: those that hold from its first start on. `wrong` says what is wrong with its rows, "" if nothing; it
    is told whether the work has ended as done."""

    words: str
    size: int
    caps: Settings
    wrong: Callable[[Path, bool], str]


@dataclass(frozen=True)
class Job:
    """Work of one kind: the `files` that it reads, and its commands in order. `formats`: those that its rows can be
    exported in; `shared`: whether they can be shared."""

    kind: str
    files: dict[str, Any]
    steps: tuple[Step, ...]
    formats: tuple[str, ...] = ()
    shared: bool = False

    def write(self, home: Path) -> None:
        for name, content in self.files.items():
            rows = "".join(json.dumps(row) + "\n" for row in content) if name.endswith(".jsonl") else ""
            (home / name).write_text(rows or json.dumps(content))  # JSON is valid YAML

    def on(self, cluster: str) -> Job:
        """The same on the cluster with that address."""
        return replace(
            self, steps=tuple(replace(step, words=f"{step.words} --cluster {cluster}") for step in self.steps)
        )


def _run(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    size = rng.randint(10, 80)
    settings = {"references": "references.jsonl", "size": size, "teacher": teacher, "max_failure_share": 1.0, **caps}
    files = {"references.jsonl": REFERENCES[: rng.randint(8, 40)], FILE: settings}
    step = Step(f"synth --config {FILE} --run-dir out", 2 * size, caps, lambda out, done: run_wrong(out, done, size))
    formats = ("jsonl", "parquet", "messages", "sharegpt", "alpaca", "prompt-completion", "preference", "kto")
    return Job("run", files, (step,), formats, shared=True)


def _larger(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    """A run that is resumed with a larger size and larger caps."""
    job = _run(rng, teacher, caps)
    size, more = job.files[FILE]["size"] + rng.randint(1, 60), {name: 3 * cap for name, cap in caps.items()}
    options = "".join(f" --{name.replace('_', '-')} {cap}" for name, cap in more.items())
    step = Step(f"resume out --size {size}{options}", 2 * size, more, lambda out, done: run_wrong(out, done, size))
    return replace(job, kind="larger run", steps=(*job.steps, step))


def _batch(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    return replace(_run(rng, {**teacher, "mode": "batch", "batch": {"quiet": 0.1, "poll": 0.1}}, caps), kind="batch")


def _judged(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    """A run whose rows a judge decides on."""
    job, size = _run(rng, teacher, caps), rng.randint(3, 12)
    graded = {"rubric": {"criterion": "it helps", "at_least": rng.randint(1, 3)}}
    filters = rng.choice([["refusals", "judge"], [graded]])
    settings = {**job.files[FILE], "size": size, "judge": _judge(teacher), "filters": filters}
    step = replace(job.steps[0], size=8 * size, wrong=lambda out, done: run_wrong(out, done, size))
    return replace(job, kind="judged run", files={**job.files, FILE: settings}, steps=(step,))


def _cluster(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    job = _run(rng, teacher, caps)
    size = rng.randint(60, 200)
    settings = {**job.files[FILE], "size": size, "shards": rng.choice([3, 8])}
    step = replace(job.steps[0], size=2 * size, wrong=lambda out, done: _gathered_wrong(out, done, size))
    return replace(job, kind="cluster", files={**job.files, FILE: settings}, steps=(step,))


def _filter(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    count = rng.randint(10, 60)
    rows = [{"instruction": f"Explain topic {i}.", "response": f"Topic {i} is this. " * 9, "plain": "Short."}
            for i in range(count)]  # fmt: skip
    settings = {"filters": ["judge"], "columns": {"plain": "plain"}, "judge": teacher, **caps}
    words = f"filter rows.jsonl --config {FILE} --out out"
    step = Step(words, 2 * count, caps, lambda out, done: rows_wrong(_kept_and_dropped(out), count, done))
    return Job("filter", {"rows.jsonl": rows, FILE: settings}, (step,), ("jsonl",), shared=True)


def _recycle(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    count = rng.randint(5, 40)
    rows = [{"instruction": f"Explain topic {i}.", "output": f"Topic {i} is this. " * 9} for i in range(count)]
    settings = {"teacher": teacher, **caps}

    def wrong(out: Path, done: bool) -> str:
        return rows_wrong(_texts(out / "recycled.jsonl", "original_instruction"), count, done)

    step = Step(f"recycle rows.jsonl --config {FILE} --out out", 2 * count, caps, wrong)
    return Job("recycling", {"rows.jsonl": rows, FILE: settings}, (step,), ("jsonl",), shared=True)


def _compare(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    size = rng.randint(4, 20)
    settings = {"programs": {"a": "seed-only", "b": "instruction-only"}, "against": "b", "size": size,
                "references": "references.jsonl", "teacher": teacher, "judge": _judge(teacher), **caps}  # fmt: skip

    def wrong(out: Path, done: bool) -> str:
        return "" if _texts(out / "rows.jsonl", "instruction") or not done else "done without rows"

    step = Step(f"compare --config {FILE} --out out", 5 * size, caps, wrong)
    return Job("comparison", {"references.jsonl": REFERENCES[:10], FILE: settings}, (step,))


def _answers(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    count = rng.randint(10, 80)
    prompts = [{"prompt": f"Explain topic {i}."} for i in range(count)]
    settings = {"prompts": "prompts.jsonl", "teacher": teacher, **caps}

    def wrong(out: Path, done: bool) -> str:
        return rows_wrong(_texts(out / "answers.jsonl", "instruction"), count, done)

    step = Step(f"evaluate answers --config {FILE} --out out", count, caps, wrong)
    return Job("answers", {"prompts.jsonl": prompts, FILE: settings}, (step,), ("jsonl",))


def _compile(rng: Draw, teacher: Settings, caps: Settings) -> Job:
    settings = {"references": "references.jsonl", "teacher": teacher, "judge": _judge(teacher),
                "optimizer": rng.choice(["bootstrap", "gepa"]), "evaluations": 8, "train": 3, "validation": 2,
                "test": 2, "features": {"topic": "What it is about."}, "instructions_per_feature": 1,
                **caps}  # fmt: skip

    def wrong(out: Path, done: bool) -> str:
        return "" if (out / "program.json").exists() or not done else "done without a program"

    step = Step(f"compile --config {FILE} --out out --no-track", 100, caps, wrong)
    return Job("compile", {"references.jsonl": REFERENCES[:10], FILE: settings}, (step,))


KINDS: dict[str, Callable[[Draw, Settings, Settings], Job]] = {
    "run": _run, "larger run": _larger, "judged run": _judged, "batch": _batch, "filter": _filter,
    "recycling": _recycle, "comparison": _compare, "answers": _answers, "compile": _compile, "cluster": _cluster,
}  # fmt: skip


def _judge(teacher: Settings) -> Settings:
    return {**teacher, "model": "sim/other-model"}


def run_wrong(out: Path, done: bool, size: int) -> str:
    """What is wrong with a run's rows; "" if nothing. `size`: how many there must be when it is done."""
    rows = Rows.of(out)
    if rows.distinct != rows.samples or rows.wrong:
        return f"{rows.samples} samples, {rows.distinct} of them distinct, {rows.wrong} with another text"
    return f"done with {rows.samples} of {size} samples" if done and rows.samples != size else ""


def _gathered_wrong(out: Path, done: bool, size: int) -> str:
    """Of a run on a cluster, whose own ledger is made when a start ends."""
    if not done:
        return ""
    shards, gathered = Books.of(out), Books.of_one(out)
    for name in ("calls", "answers", "charged", "known"):
        if (dealt := getattr(shards, name)) != (all_of_them := getattr(gathered, name)):
            return f"gathered: {name} {all_of_them}, in the shards {dealt}"
    return run_wrong(out, done, size)


def _texts(path: Path, column: str) -> list[str]:
    """That column of a file of rows; nothing where there is no file. Raises ValueError and KeyError for other lines."""
    return [json.loads(line)[column] for line in path.read_text().splitlines()] if path.exists() else []


def _kept_and_dropped(out: Path) -> list[str]:
    return [text for name in ("kept", "dropped") for text in _texts(out / f"{name}.jsonl", "instruction")]


def rows_wrong(found: list[str], count: int, done: bool) -> str:
    """The same of rows of which each has a text of its own; `count`: how many there must be when the work is done."""
    if len(set(found)) != len(found):
        return f"{len(found)} rows, {len(set(found))} of them distinct"
    return f"done with {len(found)} of {count} rows" if done and len(found) != count else ""

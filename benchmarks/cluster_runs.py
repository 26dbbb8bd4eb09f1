"""A run on a cluster as its own process, and what can be counted of it afterwards."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.simulated import SimulatedTeacher

ROOT = Path(__file__).resolve().parent.parent
PRICE = {"prompt": 0.15, "completion": 0.6}
CONCURRENCY = 40


@dataclass
class ClusterRun:
    """The command `refed synth --cluster ADDRESS` in `home`/run, with a simulated teacher.

    `settings`: more of the run's; `teacher`: more of the teacher's. `constants`: module:NAME=value, set before the
    command begins.
    """

    home: Path
    server: SimulatedTeacher
    cluster: str
    size: int
    references: int = 40
    settings: dict[str, Any] = field(default_factory=dict)
    teacher: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return self.home / "run"

    def start(self, *options: str) -> subprocess.Popen[str]:
        """Start it once; its stderr is a pipe."""
        return subprocess.Popen(
            [sys.executable, "-c", self._script(), *self._arguments(), *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that Ctrl-C can be sent to all of its group
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    def complete(self, *options: str, seconds: float = 120) -> tuple[int, str]:
        """Start it and wait for its end: exit code and stderr."""
        return ended(self.start(*options), seconds)

    def requests(self) -> int:
        """Requests that the server has had."""
        return int(self.server.stats()["requests"])

    def has_sent(self, requests: int) -> bool:
        return self.requests() > requests

    def bill(self) -> int:
        """Picodollars that the server would charge for all its answers, whether or not anybody received them."""
        stats = self.server.stats()
        prompt, completion = stats["billed_prompt_tokens"], stats["billed_completion_tokens"]
        return int(round(prompt * PRICE["prompt"] * 1e6) + round(completion * PRICE["completion"] * 1e6))

    def _script(self) -> str:
        lines = [f"import {name.partition(':')[0]}" for name in self.constants]
        lines += [f"{name.replace(':', '.')} = {value!r}" for name, value in self.constants.items()]
        return "\n".join([*lines, "from refed_dspy.cli import main", "main()"])

    def _arguments(self) -> Sequence[str]:
        self.home.mkdir(parents=True, exist_ok=True)
        rows = [
            {"instruction": f"Explain topic {i} to a student.", "response": f"Topic {i} is about many things. " * 20}
            for i in range(self.references)
        ]
        (self.home / "references.jsonl").write_text("\n".join(map(json.dumps, rows)))
        teacher = {"model": "sim/sim-model", "api_base": self.server.base_url, "concurrency": CONCURRENCY,
                   "price": PRICE, "timeout": 30, **self.teacher}  # fmt: skip
        settings = {"references": str(self.home / "references.jsonl"), "size": self.size, "teacher": teacher,
                    **self.settings}  # fmt: skip
        (self.home / "run.yaml").write_text(json.dumps(settings))
        where = ["--cluster", self.cluster] if self.cluster else []
        return ["synth", "--config", str(self.home / "run.yaml"), "--run-dir", str(self.folder), *where]


def ended(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """Wait for the end of `process`: exit code and stderr. Kills it where it does not end in time."""
    try:
        _, told = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, told = process.communicate()
        raise TimeoutError(f"the command did not end in {seconds:g} s: {told}") from None
    return process.returncode, told


@dataclass(frozen=True)
class Rows:
    """What a gathered run has. `wrong`: samples whose text is not the answer that was paid for them."""

    samples: int
    distinct: int
    wrong: int
    answers: int
    charged: int
    """Picodollars."""

    @classmethod
    def of(cls, folder: Path) -> Rows:
        with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
            rows = db.execute(
                "SELECT text, sample, (SELECT group_concat(output, char(10)) FROM answers WHERE item = "
                "CAST(instructions.id AS TEXT)) FROM samples JOIN instructions ON instructions.id = instruction"
            ).fetchall()
            (answers,) = db.execute("SELECT count(*) FROM answers").fetchone()
            (charged,) = db.execute("SELECT coalesce(sum(cost), 0) FROM calls").fetchone()
        wrong = sum(not _is_right(text, json.loads(sample), told or "") for text, sample, told in rows)
        return cls(len(rows), len({text for text, *_ in rows}), wrong, answers, charged)


def _is_right(instruction: str, sample: dict[str, Any], told: str) -> bool:
    """Whether `sample` is about this instruction, and its texts are in the answers that were `told` about it."""
    texts = [sample["response"], sample["improved_response"]]
    return sample["instruction"] == instruction and all(text and text in told for text in texts)


def rows_in_shards(folder: Path) -> int:
    """Samples in the shards' ledgers, whose workers have ended."""
    total = 0
    for path in (folder / "shards").glob("*/ledger.sqlite"):
        with closing(sqlite3.connect(path)) as db:
            total += int(db.execute("SELECT count(*) FROM samples").fetchone()[0])
    return total

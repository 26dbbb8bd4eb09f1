"""The working folder of Arena-Hard's code: copies of it and of what it reads, and its commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from refed_dspy.files import as_export_error, read_bytes, write_lines
from refed_dspy.plugins.evaluate.arena_hard.arms import Arm
from refed_dspy.plugins.evaluate.arena_hard.clone import Clone, answers_file, question_file
from refed_dspy.plugins.evaluate.program import Program
from refed_dspy.plugins.evaluate.proxy import JudgeProxy

NAME = "arena-hard"
LOG, TABLE_LOG = "arena-hard.log", "arena-hard-table.log"
"""What the code prints while it judges, and while it makes a table."""
_SETTINGS, _ENDPOINTS, _SEEDED = "settings.yaml", "endpoints.yaml", "seeded.py"
_JUDGE = "judge"
"""The judge's name to the code: the name of a folder, and what it sends as the model's."""
_SORTED = "sorted"
"""The same to what makes the tables: it reads judgments in the order in which a folder lists files and threads wrote
lines, and its bootstraps draw by that order. These are in one file, by arm and question."""
_VERDICTS = frozenset(sign.join(sides) for sides, sign in product(("AB", "BA"), (">", ">>", "=", "<", "<<")))
"""The verdicts that the code has a number for. Any other one that its patterns find would end it."""


@dataclass(frozen=True)
class Workspace:
    """The folder `working` in `folder`, made anew at each start: where it has a judgment without an answer, the code
    does not ask again. The ledger has what was paid for."""

    folder: Path
    clone: Clone
    python: Path
    """An interpreter that has what the code imports."""
    baseline: Arm
    arms: Sequence[Arm]
    concurrency: int

    @property
    def working(self) -> Path:
        return self.folder / "working"

    def judging(self, proxy: JudgeProxy) -> Program:
        """The code that asks the judge, ready to be run. Raises ExportError where the folder cannot be written."""
        with as_export_error(self.working):
            shutil.rmtree(self.working, ignore_errors=True)
            self._write_code()
            self._write_data()
        arguments = ["gen_judgment.py", "--setting-file", _SETTINGS, "--endpoint-file", _ENDPOINTS]
        judge = {"OPENAI_BASE_URL": proxy.address, "OPENAI_API_KEY": proxy.token}
        return Program(NAME, self.python, arguments, self.working, self.folder / LOG, judge)

    def table(self, *control: str) -> Program:
        """The code that makes a table of `sort_judgments`, with these features `control`led for."""
        clone = self.clone
        arguments = [_SEEDED, "--benchmark", clone.benchmark, "--judge-names", _SORTED, "--category", clone.category]
        features = ["--control-features", *control] if control else []
        return Program(NAME, self.python, [*arguments, *features], self.working, self.folder / TABLE_LOG)

    def judged(self, arm: Arm) -> list[Mapping[str, Any]]:
        """The judgments of an arm that the code has written, in the order of the questions. A game is None where the
        judge gave no answer, and its score where no verdict was found in it."""
        rows = {str(row["uid"]): row for row in _rows(self._judgments(_JUDGE, arm.name))}
        return [rows[uid] for uid in arm.answers if uid in rows]

    def sort_judgments(self) -> dict[str, int]:
        """Write what tables are made of. Returns how many questions of each arm have two verdicts: the code leaves out
        the others."""
        rows = [_for_table(row) for arm in self.arms for row in self.judged(arm)]
        path = self._judgments(_SORTED, "all")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, rows)
        decided = [row["model"] for row in rows if all(game["score"] for game in row["games"])]
        return {arm.name: decided.count(arm.name) for arm in self.arms}

    def clear(self) -> None:
        """Remove the working folder."""
        shutil.rmtree(self.working, ignore_errors=True)

    def _write_code(self) -> None:
        (self.working / "utils").mkdir(parents=True)
        for path in self.clone.code:
            shutil.copyfile(self.clone.folder / path, self.working / path)
        shutil.copyfile(Path(__file__).with_name(_SEEDED), self.working / _SEEDED)
        named = {"judge_model": _JUDGE, "bench_name": self.clone.benchmark, "reference": None}
        self._write_yaml(_SETTINGS, {**self.clone.settings, **named, "model_list": [arm.name for arm in self.arms]})
        # No endpoints: the code gets address and key of the proxy as variables.
        judge = {"model": _JUDGE, "endpoints": None, "api_type": "openai", "parallel": self.concurrency}
        self._write_yaml(_ENDPOINTS, {_JUDGE: judge})

    def _write_yaml(self, name: str, value: Mapping[str, Any]) -> None:
        (self.working / name).write_text(yaml.safe_dump(dict(value), sort_keys=False), encoding="utf-8")

    def _write_data(self) -> None:
        questions = self.working / question_file(self.clone.benchmark)
        questions.parent.mkdir(parents=True)
        write_lines(questions, self.clone.questions)
        for arm in [self.baseline, *self.arms]:
            path = self.working / answers_file(self.clone.benchmark, arm.name)
            path.parent.mkdir(exist_ok=True)
            write_lines(path, arm.answers.values())

    def _judgments(self, judge: str, arm: str) -> Path:
        return self.working / "data" / self.clone.benchmark / "model_judgment" / judge / f"{arm}.jsonl"


def _for_table(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a judgment a table is made of."""
    scores = [game["score"] if game and game["score"] in _VERDICTS else None for game in row["games"]]
    return {**{name: row[name] for name in ("uid", "model", "category")}, "games": [{"score": each} for each in scores]}


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file of the code's; none where there is no file, or of a line that was not written whole."""
    for line in read_bytes(path).splitlines() if path.is_file() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue

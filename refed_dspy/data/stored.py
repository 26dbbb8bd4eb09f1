"""What work left in its folder beside the ledger: the rows of a filtering or a recycling, answers, other JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refed_dspy.errors import RunDirError, one_line
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import FUNNEL

SOURCE, DROPPED = "source.json", "dropped.jsonl"
EVALUATION, TABLE = "evaluation.json", "evaluation.txt"
"""The figures of an evaluation, and the same for people."""
PICTURE = "win-rates.png"
NOTES = (SOURCE, DROPPED, FUNNEL, "undecided.jsonl")
"""What else belongs to a filtering or a recycling."""
ROWS = {"filtering": "kept.jsonl", "recycling": "recycled.jsonl", "answers": "answers.jsonl"}
"""The file of the rows that such work kept, or made."""


def work_in(folder: Path) -> str:
    """The kind of work in `folder`, as `Ledger.holds` names it. Raises RunDirError: none there, or a damaged one."""
    if (folder / FUNNEL).is_file():  # there is a ledger only where a judge was asked
        return "filtering"
    with Ledger.read(folder) as ledger:
        return ledger.holds() or "run"


def rows_in(folder: Path, work: str) -> Iterator[dict[str, Any]]:
    """The rows that such work kept. Raises RunDirError: none there yet, or damaged."""
    if not (file := folder / ROWS[work]).is_file():
        raise RunDirError(f"{one_line(folder, 200)}: no {file.name} yet; run the command that makes it again")
    return json_lines(file)


def read_json(path: Path) -> Any:
    """The content of a JSON file; an empty mapping where there is none. Raises RunDirError: damaged."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; none where there is no file. Raises RunDirError: damaged."""
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunDirError:
    return RunDirError(
        f"{one_line(path, 200)}: cannot be read ({one_line(error, 100)}); run the command again to write it"
    )

"""The rows that a run's filters, a filtering or a selective recycling dropped, as a folder has them: their texts, and
why they were dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.dataset import load_dataset
from refed_dspy.data.rows import dropped_rows
from refed_dspy.data.sources import REMARKS, as_trained
from refed_dspy.data.stored import DROPPED, ROWS, SOURCE, json_lines, read_json, work_in
from refed_dspy.errors import ReferencesError, RunDirError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import named_work


@dataclass(frozen=True)
class DroppedRow:
    """A dropped row. `response` is what would have been trained on, `plain` the response before it was improved: None
    where there is none."""

    filter: str
    reason: str
    score: float | None
    detail: str
    instruction: str
    plain: str | None
    response: str | None


def dropped_in(folder: Path) -> Iterator[DroppedRow]:
    """The rows dropped in `folder`. Raises RunDirError: no such work there, or damaged."""
    if (work := work_in(folder)) in ROWS:
        columns = read_json(folder / SOURCE).get("columns", {}) if work == "filtering" else {}
        for row in json_lines(folder / DROPPED):
            yield _of_data(row, columns)
        return
    if work != "run":
        raise RunDirError(f"{folder}: contains {named_work(work)}, not a run")
    with Ledger.read(folder) as ledger:
        for row in dropped_rows(ledger):
            plain, improved = row["response"], row["improved_response"]
            response = plain if improved is None else improved
            plain = None if improved is None or improved == plain else plain
            yield DroppedRow(*_why(row), row["instruction"], plain, response)


def _of_data(row: Mapping[str, Any], columns: Mapping[str, str]) -> DroppedRow:
    """A dropped row of a data set; one that is no pair of texts with all the texts in it."""
    recycled = {"filter": "selection", "reason": row.get("selection_reason", "")}
    why = _why(row[REMARKS] if REMARKS in row and "filter" in row[REMARKS] else recycled)
    try:
        trained = as_trained(load_dataset([row], columns).rows[0])
    except ReferencesError:
        return DroppedRow(*why, "\n".join(value for value in row.values() if isinstance(value, str)), None, None)
    return DroppedRow(*why, trained["instruction"], trained["response"], trained["improved_response"])


def _why(row: Mapping[str, Any]) -> tuple[str, str, float | None, str]:
    return str(row["filter"]), str(row["reason"]), row.get("score"), str(row.get("detail") or "")

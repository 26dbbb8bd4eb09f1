"""Where the rows of a filtering or a recycling come from, noted in its folder; what they are to a trainer; and the rows
that were dropped on the way, with the reasons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.dataset import DataSet, data_identity, load_dataset, noted_columns
from refed_dspy.data.rows import dropped_rows
from refed_dspy.data.stored import DROPPED, ROWS, SOURCE, json_lines, read_json, work_in
from refed_dspy.errors import ReferencesError, RunDirError
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.history import SIMULATED, simulated_note, simulated_text
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import WorkSettings
from refed_dspy.ledger.states import FUNNEL, named_work
from refed_dspy.records import DataRow, digest

REMARKS = "refed_filters"
"""The column of a filtering's remarks."""
ENDPOINTS = ("endpoint", "response_endpoint", "instruction_endpoint")
"""The columns of a run's rows that say where their texts are from."""


def source_of(data: Any, loaded: DataSet, settings: WorkSettings) -> dict[str, Any]:
    """What work with these `settings` notes of the data that it read: `data`, its name; `place`, where it lies on this
    machine, or empty; `identity`, a digest; `rows`, how many; `simulated`, what to know of rows by the simulated
    teacher; and `of`, the same of the folder that the data is from."""
    path = Path(data) if isinstance(data, str | Path) else None
    place = "" if path is None or not path.exists() else str(path.resolve())
    return {
        "data": loaded.name,
        "place": place,
        "identity": data_identity(data, loaded),
        "rows": len(loaded.rows) + len(loaded.unread),
        "settings": settings.values,
        "simulated": _simulated(loaded) or (simulated_in(Path(place)) if place else ""),
        "of": _noted(Path(place)) if place else None,
    }


def simulated_rows(folder: Path) -> str:
    """What people must know of the rows that the work in `folder` read, if the simulated teacher wrote any."""
    return str(read_json(folder / SOURCE).get("simulated", ""))


def _simulated(loaded: DataSet) -> str:
    return simulated_text({any(row.fields.get(name) == SIMULATED for name in ENDPOINTS) for row in loaded.rows})


def simulated_in(path: Path) -> str:
    """The same of the filtered or recycled rows at `path`, a folder or its file, which may have no such columns."""
    folder = path.parent if path.name in ROWS.values() else path
    note = simulated_rows(folder)
    if note or (folder / FUNNEL).is_file() or not (folder / FILE).is_file():
        return note
    with Ledger.read(folder) as ledger:
        return simulated_note(ledger)


def _noted(path: Path) -> dict[str, Any] | None:
    """What is noted in the folder at `path`, or in that of the rows' file at `path`."""
    folder = path.parent if path.name in ROWS.values() else path
    if not (folder / SOURCE).is_file():
        return None
    return {"funnel": read_json(folder / FUNNEL) or [], **read_json(folder / SOURCE)}


def sources(folder: Path) -> Iterator[dict[str, Any]]:
    """What `folder` notes of its data, then what that data's folder noted of its own, down to the first."""
    note = _noted(folder)
    while note:
        yield note
        note = note["of"]


@contextmanager
def run_behind(folder: Path) -> Iterator[Ledger | None]:
    """The ledger of the run that the rows in `folder` come from; None where that is no run, or no longer there."""
    first = [*sources(folder)][-1:]
    try:
        ledger = Ledger.read(Path(first[0]["place"])) if first and first[0]["place"] else None
    except RunDirError:
        ledger = None
    if ledger is None:
        yield None
        return
    with ledger:
        same = digest(["run", ledger.meta("identity")]) == first[0]["identity"]
        yield ledger if same and ledger.holds() in {"", "run"} else None


def as_trained(row: DataRow) -> dict[str, Any]:
    """The row under the names that a run's rows have: `improved_response` is what to train on, `response` the text
    before it was improved, None where there is none."""
    return {
        "sample": row.number,
        **row.fields,
        "instruction": row.instruction,
        "response": row.plain if row.plain is not None else _original(row),
        "improved_response": row.response,
        "system": row.stands_under,
    }


def _original(row: DataRow) -> str | None:
    """The response before recycling, where it answers the same instruction."""
    same = row.fields.get("original_instruction") == row.instruction
    return row.fields.get("original_response") if same else None


def margin_of(row: DataRow) -> float | None:
    """How clearly a filtering's judge preferred the row's response; None where none compared."""
    remarks = row.fields.get(REMARKS)
    while isinstance(remarks, Mapping):
        if (score := (remarks.get("scores") or {}).get("judge")) is not None:
            return float(score)
        remarks = remarks.get("before")
    return None


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
        columns = noted_columns(folder)
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

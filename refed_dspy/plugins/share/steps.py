"""What was done to a run's rows, or to other data, before they are shared: filterings and recyclings, without anything
private."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from refed_dspy.data.export import Pairs
from refed_dspy.data.sources import ENDPOINTS, as_trained, margin_of, run_behind, sources
from refed_dspy.data.stored import ROWS
from refed_dspy.errors import RunDirError, one_line
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.history import SIMULATED
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import run_status
from refed_dspy.plugins.share.facts import UNKNOWN, Cost, RunFacts, StageFacts, cost_of, run_facts, stages_of
from refed_dspy.plugins.share.redact import public_model
from refed_dspy.plugins.share.run_settings import public_settings
from refed_dspy.records import DataRow


@dataclass(frozen=True)
class Step:
    """One filtering or recycling (`work`) of `rows` rows. `filters`: the funnel; `settings`: each filter's, as JSON;
    `model`: the teacher of a recycling; `stages` and `cost`: of its calls, where its ledger is still there."""

    work: str
    rows: int
    filters: Sequence[Mapping[str, Any]] = ()
    settings: Sequence[tuple[str, str]] = ()
    seed: int | None = None
    model: str = ""
    stages: Sequence[StageFacts] = ()
    cost: Cost | None = None


@contextmanager
def made_facts(folder: Path) -> Iterator[tuple[RunFacts, Sequence[Step], str, Sequence[Ledger]]]:
    """Of the rows in the folder of a filtering or a recycling: the facts of the run behind them (`UNKNOWN` where there
    is none, or it is no longer there), the steps since, the first one first, the public name of what they began with,
    and the ledgers that are read for it."""
    notes, places = [*sources(folder)], [folder]
    if not notes:
        raise RunDirError(f"{one_line(folder, 200)}: does not say where its rows are from; make it again")
    places += [_folder_of(Path(note["place"])) for note in notes[:-1]]
    with run_behind(folder) as ledger:
        facts = UNKNOWN if ledger is None else run_facts(ledger)
        steps = [_step(note, place) for note, place in zip(notes, places, strict=True)]
        name = re.split(r"[/\\]", str(notes[-1]["data"]).rstrip("/\\"))[-1]
        if not notes[-1]["place"]:  # a Hub data set by its id; what came from Python has no name
            name = str(notes[-1]["data"]) if "/" in str(notes[-1]["data"]) else ""
        yield replace(facts, cost=replace(facts.cost, per_row="")), steps[::-1], name, [ledger] if ledger else []


def _folder_of(place: Path) -> Path:
    return place.parent if place.name in ROWS.values() else place


def _step(note: Mapping[str, Any], folder: Path) -> Step:
    work = "filtering" if "filters" in note else "recycling"
    step = Step(
        work,
        note["rows"],
        note["funnel"],
        [(name, public_settings(settings)) for name, settings, _ in note.get("filters", ())],
        note.get("seed"),
        public_model(note["teacher"]) if "teacher" in note else "",
    )
    try:
        ledger = Ledger.read(folder) if (folder / FILE).is_file() else None
    except RunDirError:
        ledger = None
    if ledger is None:
        return step
    with ledger:
        if ledger.holds() != work:
            return step
        return replace(step, stages=stages_of(ledger), cost=cost_of(run_status(ledger)))


def simulated_in(rows: Sequence[DataRow], steps: Sequence[Step]) -> str:
    """That the simulated teacher answered in a step, or wrote a row; empty where it did neither."""
    asked = {stage.endpoint for step in steps for stage in step.stages}
    written = {row.fields.get(name) for row in rows for name in ENDPOINTS}
    simulated = SIMULATED in {*asked, *written}
    return "made in part by the simulated teacher, for trying refed out only" if simulated else ""


def pairs_of(rows: Sequence[DataRow]) -> str:
    """How many pairs the rows make, and what to know of them; empty for none."""
    pairs = Pairs(((as_trained(row), margin_of(row)) for row in rows), "preference").counted()
    return f"{pairs.count} ({pairs.told()})" if pairs.count else ""

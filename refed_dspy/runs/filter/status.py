"""How a filtering stands, from its funnel and, where a judge was asked, its ledger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from refed_dspy.data.sources import simulated_rows
from refed_dspy.data.stored import read_json
from refed_dspy.errors import RunDirError, one_line
from refed_dspy.ledger.batches import all_batches
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import FUNNEL, state_without_ledger
from refed_dspy.ledger.summary import work_status

_NOTHING_PAID = {
    "failures": [], "usage": {}, "cost": 0.0, "in_flight_cost": 0.0, "unpriced": 0, "caps": {}, "simulated": "",
    "batches": [],
}  # fmt: skip


def filtering_status(folder: Path) -> dict[str, Any]:
    """The state of the filtering in `folder`, whose funnel is written, in JSON types: `rows`, how many of them were
    `kept` and are `undecided`, and the `filters` with their counts and reasons; the rest as `work_status`.

    Raises RunDirError: damaged.
    """
    passes = read_json(folder / FUNNEL)
    try:
        counts = {
            "rows": passes[0]["in"],
            "kept": passes[-1]["kept"],
            "undecided": sum(each["undecided"] for each in passes),
            "filters": passes,
            **({"simulated": note} if (note := simulated_rows(folder)) else {}),
        }
    except (LookupError, TypeError):
        raise RunDirError(f"{one_line(folder / FUNNEL, 200)}: is no funnel of refed filter; filter again") from None
    if not (folder / FILE).is_file():
        return {"work": "filtering", **state_without_ledger(folder), "asked": 0, **_NOTHING_PAID, **counts}
    with Ledger.read(folder) as ledger:
        return {**work_status(ledger), "batches": all_batches(ledger), **counts}

"""What the results of all benchmarks have in common: figures in JSON types, and how the training data overlaps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from refed_dspy.data.dataset import load_dataset
from refed_dspy.filters.overlap import Contamination, overlap
from refed_dspy.ledger.spending import Spent

UNCHECKED = "not checked for overlap with the training data; name it with data=…"


def overlap_with(data: Any, prompts: Sequence[str]) -> Contamination | None:
    """What of `data`, as `load_dataset` takes it, overlaps with the prompts; None where none is named."""
    return None if data is None else overlap(load_dataset(data).rows, prompts)


def overlap_lines(found: Contamination | None) -> list[str]:
    """The same for people."""
    if found is None:
        return [UNCHECKED]
    first, *rows = found.lines()
    return [f"training data: {first}", *rows]


def facts_of(made: Any, figures: Mapping[str, float]) -> dict[str, Any]:
    """The result `made`, a dataclass with `out`, `overlap` and `notes`, in JSON types. `figures` has numbers by their
    names, for MLflow and scripts; money is in dollars, and a number that is not finite is None."""
    share = {} if made.overlap is None else {"overlap_share": made.overlap.share}
    facts = asdict(made) | {"out": str(made.out), "notes": made.notes(), "figures": {**figures, **share}}
    used = getattr(made, "used", None)
    if isinstance(used, Spent):
        facts["used"] = {"calls": used.calls, "cost": None if used.unpriced else used.cost}
    return dict(json.loads(json.dumps(facts, default=str), parse_constant=lambda _: None))

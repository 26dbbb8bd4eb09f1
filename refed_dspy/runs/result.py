"""A run's outcome, read from its folder: finished, unfinished, or running right now."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.export import export, to_dataset
from refed_dspy.data.rows import Samples, dropped_rows
from refed_dspy.errors import CapReached, ExportError, RunDirError
from refed_dspy.ledger.identity import named
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.provenance import usage_by_model
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.ledger.summary import run_status
from refed_dspy.records import PICO, Failure, dollars
from refed_dspy.runs.forecast import Forecast, as_facts, forecast


@dataclass(frozen=True)
class Synthesis:
    """A run's outcome. `samples` reads from the run's folder as it is looked at."""

    run_dir: Path
    size: int
    samples: Samples
    failures: list[Failure]
    usage: dict[str, dict[str, Any]]
    """Stage → calls, tokens and dollars, over the whole run."""
    left_out: Mapping[str, int]
    """Reason → references left out."""
    status: dict[str, Any]
    stopped: str | None = None
    """Where a cap ended the run before its size: which, what there is, and what more would take. Else None."""

    @property
    def complete(self) -> bool:
        """Whether `size` samples were kept; False where every reference ran dry first."""
        return len(self.samples) >= self.size

    def to_dataset(self) -> Any:
        """The samples as a `datasets.Dataset`."""
        return to_dataset(self.run_dir)

    def export(self, format: str, out: str | Path, *, force: bool = False) -> int:  # noqa: A002
        """Write the samples to a file; see `refed export`."""
        return export(self.run_dir, format, Path(out), force=force)

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The rows that filters dropped, each with filter, reason and score (`data.rows.DROPPED_COLUMNS`)."""
        with Ledger.read(self.run_dir) as ledger:
            yield from dropped_rows(ledger)


def read_run(run_dir: str | Path) -> Synthesis:
    """The outcome, so far, of the run in `run_dir`. Raises RunDirError where there is none."""
    folder = Path(run_dir)
    with Ledger.read(folder) as ledger:
        if (holds := ledger.holds()) not in {"", "run", "comparison"}:
            raise RunDirError(f"{folder}: holds {named(holds)}, not a run")
        status, failures = full_status(ledger), ledger.failures()
    return Synthesis(
        folder,
        status["size"],
        Samples(folder),
        failures,
        status["usage"],
        status["left_out"],
        status,
        status["stopped"],
    )


def full_status(ledger: Ledger) -> dict[str, Any]:
    """`run_status`, what each of the `models` took, and what the whole run is projected to take (None while too little
    was made)."""
    status = run_status(ledger)
    begun = bool(ledger.meta("identity")) and not status["complete"]
    status["models"] = usage_by_model(ledger)
    return {**status, "projected": as_facts(forecast(ledger)) if begun else None}


SAMPLES = "samples-at-cap.jsonl"
"""Where in the run's folder a run that ended at a cap leaves its samples."""


def end_at_cap(folder: Path, cap: CapReached) -> str:
    """Export what there is, and say in one line what it is and how to go on. A comparison has a table of its own."""
    with Ledger.read(folder) as ledger:
        kept, size = ledger.kept(), int(ledger.meta("size"))
        told, used, limit = forecast(ledger), spent(ledger), ledger.meta(cap.cap)
        is_run = ledger.holds() == "run"
        failed = Counter(failure.kind for failure in ledger.failures()).most_common(1)
    shown = dollars(limit * PICO) if cap.cap == "max_cost" else f"{limit:,.10g}"
    start = f"{cap.cap} {shown} is reached after {_used(cap.cap, used)}: {kept} of {size} samples are kept"
    if kept and is_run:
        start += _exported(folder)
    begin = f"refed resume {shlex.quote(str(folder))}" if is_run else "the same command with"
    again = f"{begin} --{cap.cap.replace('_', '-')}"
    if told is None:
        why = f"; most that failed was {failed[0][0]}" if failed else ""
        return f"{start}{why}; too few to say what more would take: {again} MORE"
    return f"{start}; {_rest(cap.cap, told, used, size - kept)}: {again} {_enough(cap, told, used, limit)}"


def refresh_samples(folder: Path) -> None:
    """Where a cap once left the samples in the folder, leave those of now."""
    if (folder / SAMPLES).is_file():
        export(folder, "jsonl", folder / SAMPLES, force=True)


def _exported(folder: Path) -> str:
    """Leave the samples in the folder. What the message says of it: a file that cannot be written ends nothing."""
    try:
        export(folder, "jsonl", folder / SAMPLES, force=True)
    except ExportError as error:
        return f", not exported ({error})"
    return f", in {folder / SAMPLES}"


def _used(cap: str, used: Spent) -> str:
    if cap == "max_cost":
        return dollars(used.cost)
    return f"{used.calls:,} calls" if cap == "max_calls" else f"{used.seconds / 60:.1f} minutes"


def _rest(cap: str, told: Forecast, used: Spent, missing: int) -> str:
    """What the missing samples would take."""
    cost = ""
    if told.cost is not None and told.low is not None and told.high is not None:
        low, high = dollars(told.low - told.spent), dollars(told.high - told.spent)
        cost = f"about {dollars(told.cost - told.spent)} ({low} to {high})"
    if cap == "max_cost":
        return f"the other {missing} would cost {cost}"
    also = f", {cost}" if cost else ""
    if cap == "max_calls":
        return f"the other {missing} would take about {told.calls_to_come:,} calls{also}"
    return f"the other {missing} would take about {told.calls_to_come * _pace(used):.1f} minutes{also}"


def _enough(cap: CapReached, told: Forecast, used: Spent, limit: float) -> str:
    """A cap that should be enough: what is foreseen at the most, and room for a call's worst case beyond it."""
    most = 1 + told.spread
    if cap.cap == "max_cost":
        return _up(max(told.high or 0, limit * PICO) / PICO + cap.worst / PICO)
    if cap.cap == "max_calls":
        return str(max(math.ceil(used.calls + told.calls_to_come * most), int(limit) + 1))
    return _up(max(used.seconds / 60 + told.calls_to_come * _pace(used) * most, 1.1 * limit))


def _pace(used: Spent) -> float:
    """Minutes a call."""
    return used.seconds / 60 / max(1, used.calls)


def _up(value: float) -> str:
    """`value` rounded up to two digits that count."""
    if value <= 0:
        return "1"
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / step) * step:.10g}"

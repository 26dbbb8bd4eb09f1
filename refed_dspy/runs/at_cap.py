"""A run that ended at a cap: what there is of it, and what more would take."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from pathlib import Path

from refed_dspy.data.export import export
from refed_dspy.desk import CapAtWork
from refed_dspy.engine.accounts import Spent, spent
from refed_dspy.engine.ledger import Ledger
from refed_dspy.errors import ExportError
from refed_dspy.forecast import Forecast, forecast
from refed_dspy.records import PICO, dollars

SAMPLES = "samples-at-cap.jsonl"
"""Where in the run's folder a run that ended at a cap leaves its samples."""


def end_at_cap(folder: Path, cap: CapAtWork) -> str:
    """Export what there is, and say in one line what it is and how to go on. A comparison has a table of its own."""
    with Ledger.read(folder) as ledger:
        kept, size = ledger.kept(), int(ledger.meta("size"))
        told, used, limit = forecast(ledger), spent(ledger), ledger.meta(cap.name)
        is_run = ledger.holds() == "run"
        failed = Counter(failure.kind for failure in ledger.failures()).most_common(1)
    shown = dollars(limit * PICO) if cap.name == "max_cost" else f"{limit:,.10g}"
    start = f"{cap.name} {shown} is reached after {_used(cap.name, used)}: {kept} of {size} samples are kept"
    if kept and is_run:
        start += _exported(folder)
    begin = f"refed resume {shlex.quote(str(folder))}" if is_run else "the same command with"
    again = f"{begin} --{cap.name.replace('_', '-')}"
    if told is None:
        why = f"; most that failed was {failed[0][0]}" if failed else ""
        return f"{start}{why}; too few to say what more would take: {again} MORE"
    return f"{start}; {_rest(cap.name, told, used, size - kept)}: {again} {_enough(cap, told, used, limit)}"


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


def _enough(cap: CapAtWork, told: Forecast, used: Spent, limit: float) -> str:
    """A cap that should be enough: what is foreseen at the most, and room for a call's worst case beyond it."""
    most = 1 + told.spread
    if cap.name == "max_cost":
        return _up(max(told.high or 0, limit * PICO) / PICO + cap.worst / PICO)
    if cap.name == "max_calls":
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

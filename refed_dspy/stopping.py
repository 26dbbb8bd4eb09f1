"""A run that ended at a cap: what there is of it, and what more would take."""

from __future__ import annotations

import math
from pathlib import Path

from refed_dspy.data.export import export
from refed_dspy.engine.accounts import Spent, spent
from refed_dspy.engine.ledger import Ledger
from refed_dspy.forecast import Forecast, forecast
from refed_dspy.records import PICO, dollars

SAMPLES = "samples.jsonl"
"""Where in the run's folder a run that ended at a cap leaves its samples."""


def end_at_cap(folder: Path, cap: str) -> str:
    """Export what there is, and say in one line what it is and how to go on."""
    with Ledger.read(folder) as ledger:
        kept, size = ledger.kept(), int(ledger.meta("size"))
        told, used, limit = forecast(ledger), spent(ledger), ledger.meta(cap)
    start = f"{cap} {_shown(cap, limit)} is reached after {_used(cap, used)}: {kept} of {size} samples are kept"
    if kept:
        export(folder, "jsonl", folder / SAMPLES, force=True)
        start += f", in {folder / SAMPLES}"
    flag = f"--{cap.replace('_', '-')}"
    if told is None:
        return f"{start}; too few to say what more would take: refed resume {folder} {flag} …"
    more, enough = _more(cap, told, used, size - kept)
    return f"{start}; {more}: refed resume {folder} {flag} {enough}"


def _shown(cap: str, limit: float) -> str:
    return dollars(limit * PICO) if cap == "max_cost" else f"{limit:g}"


def _used(cap: str, used: Spent) -> str:
    if cap == "max_cost":
        return dollars(used.cost)
    return f"{used.calls} calls" if cap == "max_calls" else f"{used.seconds / 60:.1f} minutes"


def _more(cap: str, told: Forecast, used: Spent, missing: int) -> tuple[str, str]:
    """What the missing samples would take, and a cap that would be enough."""
    high = 1 + told.spread
    cost = ""
    if told.cost is not None and told.low is not None and told.high is not None:
        low, most = dollars(told.low - told.spent), dollars(told.high - told.spent)
        cost = f"about {dollars(told.cost - told.spent)} ({low} to {most})"
    if cap == "max_cost":
        return f"the other {missing} would cost {cost}", f"{_up((told.high or 0) / PICO)}"
    calls = max(0, told.calls - used.calls)
    also = f", {cost}" if cost else ""
    if cap == "max_calls":
        return f"the other {missing} would take about {calls} calls{also}", f"{math.ceil(used.calls + calls * high)}"
    pace = used.seconds / 60 / max(1, used.calls)
    return (
        f"the other {missing} would take about {calls * pace:.1f} minutes{also}",
        f"{_up(used.seconds / 60 + calls * pace * high)}",
    )


def _up(value: float) -> str:
    """`value` rounded up to two digits that count."""
    if value <= 0:
        return "1"
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / step) * step:.10g}"

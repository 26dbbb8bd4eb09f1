"""The run at a glance: the figures at the top of its page, and its tables."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refed_dspy.ledger.account import RunAccount, spent_text
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import seconds_at_work
from refed_dspy.plugins.share.report.charts import amounts, readable
from refed_dspy.plugins.share.report.rows import AllRows, Rows
from refed_dspy.records import money
from refed_dspy.text import counted

_EXAMPLES = "SELECT stage, kind, count(*), min(reason) FROM failures GROUP BY 1, 2 ORDER BY 3 DESC"
_RECENT = "SELECT count(*) FROM calls WHERE outcome != 'sent' AND created + seconds > ?"
_SECONDS = 10
"""Over which the pace is measured."""


@dataclass(frozen=True)
class Fact:
    """A figure with its name; `note` qualifies it."""

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """`digests`: rows that are shown on demand."""

    id: str
    title: str
    text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    digests: Sequence[Sequence[str]] = ()


@dataclass(frozen=True)
class Lead:
    """The run in a sentence. `by`: the models that wrote the final responses."""

    samples: int
    references: int
    by: Sequence[str]
    cost: str

    def __str__(self) -> str:
        made = f"{counted(self.samples, 'sample')} from {counted(self.references, 'reference')}"
        return f"{made} by {' and '.join(self.by)}: {self.cost}"


def lead(status: Mapping[str, Any], references: int, rows: Rows) -> Lead:
    """`references`: those that the kept rows are from."""
    finals = (writers[-1] for writers, kept in zip(rows.columns["writers"], rows.columns["kept"], strict=True) if kept)
    by = tuple(dict.fromkeys(rows.names["writers"][final]["model"] for final in finals if final >= 0))
    by = by or (str(status["teacher"].get("model", "a teacher")),)
    return Lead(status["kept"], references, by, spent_text(status))


def facts(ledger: Ledger, status: Mapping[str, Any]) -> list[Fact]:
    """The figures at the top of a run's page that its ledger counts."""
    each, complete = status["cost_per_sample"], status["kept"] >= status["size"]
    figures = [
        Fact("Samples", f"{status['kept']:,}", f"of {status['size']:,} requested"),
        *paid(ledger, status, f"{money(each)} per sample" if each else ""),
        Fact("References", f"{status['opened']:,}", f"used of {status['references']:,}"),
    ]
    if failed := sum(failure["count"] for failure in status["failures"]):
        figures.append(Fact("Failures", f"{failed:,}", "other rows took their place" if complete else ""))
    if status["filters"]:
        dropped = sum(counts["dropped"] for counts in status["filters"])
        figures.append(Fact("Dropped", f"{dropped:,}", "by the run's filters"))
    return figures


def unchanged(rows: AllRows) -> list[Fact]:
    """How many responses the improvement left as they were; nothing where it changed all."""
    note = f"of {rows.improved:,} responses, after improvement"
    return [Fact("Unchanged", f"{rows.unchanged:,}", note)] if rows.unchanged else []


def paid(ledger: Ledger, status: Mapping[str, Any], each: str = "") -> list[Fact]:
    """What any paid work took. `each`: what the cost is in other terms."""
    used = status["used"]
    in_flight = f"up to {money(at_most)} more in flight" if (at_most := status["in_flight_cost"]) else ""
    return [
        Fact("Cost", spent_text(status), ", ".join(filter(None, [each, in_flight]))),
        Fact("Calls", f"{used['calls']:,}", f"{used['answered']:,} answered"),
        Fact("Tokens read", f"{used['prompt_tokens']:,}", f"{used['cached_tokens']:,} of them cached"),
        Fact("Tokens written", f"{used['completion_tokens']:,}"),
        Fact("Time at work", _duration(seconds_at_work(ledger))),
    ]


def pace(ledger: Ledger) -> Fact:
    """How fast calls come back at the moment."""
    (count,) = ledger.db.execute(_RECENT, (time.time() - _SECONDS,)).fetchone()
    return Fact("Calls per second", f"{count / _SECONDS:.1f}", f"in the last {_SECONDS} seconds")


def listed(status: Mapping[str, Any], rows: Rows) -> list[str]:
    """That not every row is listed, where it is so."""
    if not rows.left_out:
        return []
    kept, all_ = sum(rows.columns["kept"]), len(rows) + rows.left_out
    dropped = all_ - status["kept"]
    also = f" and {len(rows) - kept:,} of {dropped:,} dropped rows" if dropped else ""
    drawn = f"{kept:,} of {status['kept']:,} samples{also} are listed, drawn at random"
    return [f"{drawn}. Figures and charts count all rows."]


def notes(status: Mapping[str, Any]) -> list[str]:
    """What a reader of a run's page has to know first."""
    texts = spending_notes(status)
    if status["kept"] < status["size"] and status["state"] != "running":
        texts.append(f"The run has {status['kept']:,} of {status['size']:,} samples.")
    if status["left_out"]:
        left = ", ".join(f"{count:,} {why}" for why, count in status["left_out"].items())
        texts.append(f"References left out: {left}.")
    return texts


def spending_notes(status: Mapping[str, Any]) -> list[str]:
    """That the teacher was simulated, and what the cost leaves out or sets aside."""
    texts = [f"{status['simulated'].capitalize()}."] if status["simulated"] else []
    if status["unpriced"]:
        texts.append(f"{counted(status['unpriced'], 'call')} without a known price, not counted in dollars.")
    if reserved := status["used"]["reserved"]:
        texts.append(f"{money(reserved)} of the cost is set aside for calls that never reported their tokens.")
    return texts


def self_judged(teacher: str | None, judge: str | None) -> list[str]:
    """That the judge grades its own answers, where it does."""
    note = f"judge and teacher are the same model ({judge}), and models prefer their own words: take scores as a guide"
    return [note] if judge is not None and judge == teacher else []


def tables(ledger: Ledger, account: RunAccount) -> list[Table]:
    others = [_settings(account), models(account.status["models"])]
    rows = [
        [readable(stage), kind, f"{count:,}", reason] for stage, kind, count, reason in ledger.db.execute(_EXAMPLES)
    ]
    if rows:
        text = "What failed, for good or for now, by stage and kind, with one reason each."
        columns = ("stage", "kind", "how many", "for instance")
        return [Table("failures", "Failures by reason", text, columns, rows), *others]
    return others


def models(usage: Sequence[Mapping[str, Any]]) -> Table:
    """A table of `ledger.summary.usage_by_model`."""
    counts = ("calls", "prompt_tokens", "completion_tokens")
    rows = [[use["model"], use["endpoint"], *amounts(use, counts)] for use in usage]
    columns = ("model", "endpoint", "calls", "tokens read", "tokens written", "dollars")
    return Table("models", "Models", "Calls, tokens and cost of each model.", columns, rows)


def _settings(account: RunAccount) -> Table:
    """The run's settings: enough to identify the program that wrote the rows."""
    values = {
        "program": account.program,
        "saved program": ", ".join(f"{name} {value}" for name, value in account.source.items()),
        "features": ", ".join(account.features),
        "instructions a feature": account.instructions_per_feature,
        "seed": account.status["seed"],
        **_teachers(account),
        "judge": account.settings.judge.get("model"),
        "filters": "; ".join(f"{label}{_short(settings)}" for label, settings in account.filters),
        "prices of": account.status["price_source"],
        **{name.replace("_", " "): value for name, value in account.status["caps"].items()},
    }
    rows = [[name, str(value)] for name, value in values.items() if value not in (None, "")]
    digests = [[f"prompt of {readable(stage)}", prompt] for stage, prompt in account.prompts.items()]
    if digests:
        digests.insert(0, ["all prompts", account.prompts_digest])
    return Table("settings", "What made it", "", ("what", "value"), rows, digests)


def _teachers(account: RunAccount) -> dict[str, Any]:
    """The run's only teacher, or the members of the pools by stage."""
    if not account.settings.several:
        config = account.status["teacher"].get("config") or {}
        return {"teacher": account.status["teacher"].get("model"), "temperature": config.get("temperature")}
    return {f"teacher of {readable(stage) or 'other stages'}": models for stage, models in account.pools.items()}


def _short(settings: Mapping[str, Any]) -> str:
    """A filter's settings in brackets, if it has any."""
    texts = [
        f"{name.replace('_', ' ')} {json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value}"
        for name, value in settings.items()
        if value not in (None, "")
    ]
    return f" ({', '.join(texts)})" if texts else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    if minutes >= 10:
        return f"{minutes + (rest >= 30)} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest or seconds:.2g} s"

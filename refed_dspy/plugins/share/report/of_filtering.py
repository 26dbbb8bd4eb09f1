"""The page of a filtering, from its funnel and its rows; its ledger, if a judge was asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from refed_dspy.data.references import LeftOut, exchange_of
from refed_dspy.data.sources import REMARKS, simulated_rows
from refed_dspy.data.stored import DROPPED, ROWS, json_lines, read_json
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import FUNNEL
from refed_dspy.plugins.share.report import charts, glance
from refed_dspy.plugins.share.report.charts import FunnelStep
from refed_dspy.plugins.share.report.glance import Fact, Table
from refed_dspy.plugins.share.report.page import Page
from refed_dspy.plugins.share.report.rows import Extract, Gallery, Text, plain
from refed_dspy.text import counted

KEPT = ROWS["filtering"]
_EXAMPLES = 3
"""Rows that are shown for each reason."""
_REASONS = 12
"""Reasons of which rows are shown, the most frequent first."""


def filtering_page(folder: Path, ledger: Ledger | None) -> Page:
    """The contents of a filtering's page. `ledger`: None where no judge was asked."""
    passes: Sequence[Mapping[str, Any]] = read_json(folder / FUNNEL) or []
    rows = passes[0]["in"] if passes else 0
    kept = passes[-1]["kept"] if passes else 0
    facts = [
        Fact("Rows", f"{rows:,}"), Fact("Kept", f"{kept:,}", f"{kept / rows:.0%}" if rows else ""),
        Fact("Dropped", f"{sum(each['dropped'] for each in passes):,}"),
    ]  # fmt: skip
    if undecided := sum(each["undecided"] for each in passes):
        facts.append(Fact("Undecided", f"{undecided:,}", "a judge gave no answer"))
    flow = charts.flow(_steps(passes), "From row to kept row", f"{kept:,} of {rows:,} rows passed all filters.")
    drawn, tables, notes, state, reason = [flow] if flow else [], [_reasons(passes)], list[str](), "done", ""
    simulated = simulated_rows(folder)
    if ledger is not None:
        status = status_of(ledger)
        status["simulated"] = simulated or status["simulated"]
        state, reason = status["state"], status["reason"]
        facts += glance.paid(ledger, status)
        notes = glance.spending_notes(status)
        drawn.append(charts.costs(status["usage"]))
        tables.append(glance.models(status["models"]))
    elif simulated:
        notes.append(f"{simulated.capitalize()}.")
    notes += _gaps(passes)
    if not passes:
        notes.append("The filters have not finished; this is the cost so far.")
    names = ", ".join(each["filter"] for each in passes)
    return Page(
        title=folder.absolute().name,
        lead=f"{kept:,} of {rows:,} rows kept by {names}" if passes else "a data set being filtered",
        state=state,
        reason=reason,
        facts=facts,
        notes=notes,
        galleries=_galleries(folder),
        charts=drawn,
        tables=tables if passes else tables[1:],
    )


def _steps(passes: Sequence[Mapping[str, Any]]) -> list[FunnelStep]:
    steps = [FunnelStep("rows", passes[0]["in"])] if passes else []
    for each in passes:
        lost = {**each["reasons"], **({"undecided": each["undecided"]} if each["undecided"] else {})}
        steps.append(FunnelStep(f"kept by {each['filter']}", each["kept"], lost))
    return steps or [FunnelStep("rows", 0)]


def _gaps(passes: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What a judge did not decide, and which filter kept nothing."""
    for each in passes:
        rows = counted(each["in"], "row")
        if each["undecided"]:
            yield f"the judge of {each['filter']} gave no answer on {each['undecided']:,} of {rows}"
        elif each["in"] and not each["kept"]:
            yield f"{each['filter']} kept none of {rows}"


def _reasons(passes: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [each["filter"], "dropped", reason, f"{count:,}"]
        for each in passes
        for reason, count in each["reasons"].items()
    ]
    rows += [
        [each["filter"], "kept", remark, f"{count:,}"] for each in passes for remark, count in each["remarks"].items()
    ]
    return Table("reasons", "Reasons", "", ("filter", "rows", "reason", "how many"), rows)


def _galleries(folder: Path) -> list[Gallery]:
    """Rows that were kept, and some for each reason of a filter to drop them."""
    galleries = []
    if kept := [
        Extract(f"Row {_row_number(row)}", _texts(row)) for row in islice(json_lines(folder / KEPT), _EXAMPLES)
    ]:
        galleries.append(Gallery("kept", "Kept", f"The first of the rows in {KEPT}.", kept))
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[Extract]] = {}
    for row in json_lines(folder / DROPPED):
        remarks = row[REMARKS]
        why = (remarks["filter"], remarks["reason"])
        counts[why] += 1
        if len(shown := examples.setdefault(why, [])) < _EXAMPLES:
            detail = [plain("Detail", remarks["detail"])] if remarks["detail"] else []
            score = "" if remarks["score"] is None else f", score {remarks['score']:,.4g}"
            shown.append(Extract(f"Row {_row_number(row)}{score}", [*_texts(row), *detail]))
    for at, (why, count) in enumerate(counts.most_common(_REASONS)):
        title = f"Dropped by {why[0]}: {why[1] or 'no reason given'} ({count:,})"
        galleries.append(Gallery(f"dropped-{at}", title, "", examples[why], listed=at == 0))
    return galleries


def _row_number(row: Mapping[str, Any]) -> str:
    return f"{row[REMARKS]['row']:,}"


def _texts(row: Mapping[str, Any]) -> list[Text]:
    """The row's instruction and response; where they cannot be told, every text in it."""
    try:
        exchange = exchange_of(row, {}, "last")
        response = row.get("improved_response") or exchange.response
        return [plain("Instruction", exchange.instruction), plain("Response", str(response))]
    except LeftOut:
        return [plain(str(name), value) for name, value in row.items() if isinstance(value, str) and value]

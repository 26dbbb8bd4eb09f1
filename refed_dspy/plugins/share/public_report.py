"""The report page for publication: without addresses, folders and the reasons of failures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refed_dspy.plugins.share.redact import public_detail, public_endpoint, public_model, public_source
from refed_dspy.plugins.share.report.glance import Lead, Table
from refed_dspy.plugins.share.report.of_run import best_map
from refed_dspy.plugins.share.report.page import Page, render
from refed_dspy.plugins.share.report.report import read_page
from refed_dspy.plugins.share.report.rows import Columns, Rows

_MODELS = {"teacher", "judge"}
_OF_A_STAGE = "teacher of "
_PRIVATE = {"saved program", "filters", "prices of"}
"""Settings that may name a folder: where a program is saved, what a filter reads, which table the prices are from."""


def public_page(folder: Path, title: str) -> bytes:
    """The page as a file's content. `title` replaces the run folder's name. Raises what `read_page` raises."""
    return render(public(read_page(folder, best_map(lambda _: None)), title), version("refed-dspy"))


def public(page: Page, title: str) -> Page:
    """`page` without anything private; what the models wrote stays as it is."""
    return replace(
        page,
        title=title,
        lead=_lead(page.lead),
        reason="",
        tables=[_table(table) for table in page.tables],
        rows=None if page.rows is None else _rows(page.rows),
    )


def _rows(rows: Rows) -> Rows:
    return replace(rows, names=_names(rows.names), columns=_columns(rows.columns))


def _lead(lead: Lead | str) -> Lead | str:
    if isinstance(lead, str):  # of other work than a run
        return lead
    return replace(lead, by=tuple(public_model(model) for model in lead.by))


def _names(names: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **names,
        "writers": [
            {"model": public_model(writer["model"]), "endpoint": public_endpoint(writer["endpoint"])}
            for writer in names["writers"]
        ],
        "references": [
            {**reference, "source": public_source(reference["source"])} for reference in names["references"]
        ],
    }


def _columns(columns: Columns) -> Columns:
    """A decision is (filter's number, whether the row was kept, score, reason, detail); only the detail may change."""
    cleaned = [
        [[*head, reason, public_detail(reason, detail)] for *head, reason, detail in decisions]
        for decisions in columns["decisions"]
    ]
    return {**columns, "decisions": cleaned}


def _table(table: Table) -> Table:
    if table.id == "models":
        return replace(table, rows=[[public_model(row[0]), public_endpoint(row[1]), *row[2:]] for row in table.rows])
    if table.id == "reasons":
        return table
    if table.id == "failures":
        return replace(table, columns=table.columns[:-1], rows=[row[:-1] for row in table.rows])
    rows = [[name, _setting(name, value)] for name, value in table.rows if name not in _PRIVATE]
    return replace(table, rows=rows)


def _setting(name: str, value: str) -> str:
    if name in _MODELS:
        return public_model(value)
    if name.startswith(_OF_A_STAGE):  # the models of a pool
        return " + ".join(map(public_model, value.split(" + ")))
    return value

"""The run's page as everyone may see it: without addresses, folders, and what failures said."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refed_dspy.sharing.redact import public_detail, public_endpoint, public_model, public_source
from refed_dspy.sharing.report.glance import Table
from refed_dspy.sharing.report.page import Page, render
from refed_dspy.sharing.report.report import read_page
from refed_dspy.sharing.report.rows import Columns, Rows

_MODELS = {"teacher", "judge"}
_OF_A_STAGE = "teacher of "
_PRIVATE = {"saved program", "filters", "prices of"}
"""Settings that may name a folder: where a program lies, what a filter reads, whose table gave the prices."""


def public_page(folder: Path, title: str) -> bytes:
    """The page's file. `title` stands for the run's folder. Raises what `reporting.report.report` raises."""
    return render(public(read_page(folder, lambda _: None), title), version("refed-dspy"))


def public(page: Page, title: str) -> Page:
    """`page` with nothing in it that is nobody else's business; what the models wrote stays as it is."""
    return replace(
        page,
        title=title,
        lead=replace(page.lead, by=tuple(public_model(model) for model in page.lead.by)),
        stopped=None,
        tables=[_table(one) for one in page.tables],
        rows=Rows(_names(page.rows.names), _columns(page.rows.columns)),
    )


def _names(names: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **names,
        "writers": [
            {"model": public_model(one["model"]), "endpoint": public_endpoint(one["endpoint"])}
            for one in names["writers"]
        ],
        "references": [{**one, "source": public_source(one["source"])} for one in names["references"]],
    }


def _columns(columns: Columns) -> Columns:
    """A decision is a filter's number, whether the row was kept, score, reason and detail."""
    told = [
        [[*said, reason, public_detail(reason, detail)] for *said, reason, detail in decisions]
        for decisions in columns["decisions"]
    ]
    return {**columns, "decisions": told}


def _table(table: Table) -> Table:
    if table.id == "models":
        return replace(table, rows=[[public_model(a), public_endpoint(b), *rest] for a, b, *rest in table.rows])
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

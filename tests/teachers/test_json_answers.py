"""Verdicts of a judge behind a real HTTP endpoint. Where a schema has a choice the client hands over a value and no
text: read as text it is empty, and every verdict is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.filters.judge import ABSTAINED
from refed_dspy.ledger.ledger import Ledger
from tests.support.compiling import compiled, without_words  # noqa: F401 — DSPy logs each example that fails
from tests.teachers.test_routes import WIRES, any_key, config

__all__ = ["any_key"]  # a fixture

GRADES = {"A>>B", "A>B", "A=B", "B>A", "B>>A", "cannot tell"}


def verdicts(folder: Path) -> list[str]:
    """The judge's verdicts, as the ledger keeps them."""
    with Ledger.read(folder) as ledger:
        rows = ledger.db.execute("SELECT output FROM answers WHERE stage LIKE '%judge'").fetchall()
    return [json.loads(output)["verdict"] for (output,) in rows]


@pytest.mark.usefixtures("any_key")
@pytest.mark.parametrize("wire", [*WIRES, "caller's"])
def test_a_judge_decides_pairs_over_http(server: SimulatedTeacher, tmp_path: Path, wire: str) -> None:
    judge: Any
    if wire == "caller's":
        # A model that DSPy knows to take a schema: without one there is no choice in it, and plain text comes back.
        judge = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="sk-any", cache=False)
    else:
        judge = config(server, wire)
    rows = [{"instruction": f"Say {i}.", "response": f"Word {i} at length.", "plain": f"Word {i}."} for i in range(15)]
    made = refed_dspy.filter_data(rows, ["judge"], judge=judge, out=tmp_path / "out", columns={"plain": "plain"})
    found = verdicts(tmp_path / "out")
    assert len(found) == 30 and set(found) <= GRADES and len(set(found)) >= 4, "all kinds of verdicts came through"
    (step,) = made.funnel()
    decided = step["in"] - step["reasons"].get(ABSTAINED, 0)
    assert decided >= 8, "a sixth of what the server says is that it cannot tell, and nothing else abstains"

"""`refed status`: what a person and a script are told of a folder's batches."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.ledger.batches import begun, ended, named
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.ledger.statements import Key, reserved
from tests.support.command_line import refed, refused
from tests.support.hostile import STEERING, TERMINAL
from tests.support.said import Said


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One batch that ended, one under way with two calls, one that was never named."""
    with Ledger.create(tmp_path / "run") as ledger:
        for number in (1, 2, 3, 4):
            key = Key("stage", "item", number, f"k{number}")
            ledger.commit(reserved(number, key, "openai/m", "http://there", 100))
        ledger.commit([*begun(1, "n1", "http://there", "openai/m", [1]), *named(1, "batch_a"), *ended(1, "completed")])
        ledger.commit([*begun(2, "n2", "http://there", "openai/m", [2, 3]), *named(2, f"batch_b{TERMINAL}")])
        ledger.commit(begun(3, "n3", "http://there", "openai/m", [4]))
    return tmp_path / "run"


def test_a_line_for_each(said: Said, folder: Path) -> None:
    shown = refed("status", folder)
    lines = [line for line in shown.output.splitlines() if line.startswith("batch ")]
    assert shown.exit_code == 0 and not STEERING.search(shown.output)
    said([re.sub("from .* to ", "from TIME to ", line) for line in lines])


def batches(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(refed("status", folder, "--json").stdout)["batches"]
    return rows


def test_the_same_for_scripts(folder: Path) -> None:
    assert [(row["state"], row["calls"], row["requests"]) for row in batches(folder)] == [
        ("completed", 0, 1), (None, 2, 2), (None, 1, 1),
    ]  # fmt: skip


def test_giving_up_keeps_the_charge(said: Said, folder: Path) -> None:
    first = refed("status", folder, "--give-up").stdout.splitlines()[0]
    with Ledger.create(folder) as ledger:
        begin_start(ledger)
        assert spent(ledger).picodollars == 400
        (open_calls,) = ledger.db.execute("SELECT count(*) FROM batched").fetchone()
    assert open_calls == 0
    said(
        (first, refed("status", folder, "--give-up").stdout.splitlines()[0], [row["state"] for row in batches(folder)])
    )


def test_a_folder_in_use_is_not_given_up(folder: Path) -> None:
    with Ledger.create(folder):
        refused(refed("status", folder, "--give-up"))
    assert batches(folder)[1]["calls"] == 2


def test_a_folder_without(tmp_path: Path) -> None:
    for more in ([], ["--give-up"]):
        refused(refed("status", tmp_path / "none", *more))
    assert not (tmp_path / "none").exists()

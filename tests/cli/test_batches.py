"""`refed status`: what a person and a script are told of a folder's batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from refed_dspy.cli.main import app
from refed_dspy.ledger.batches import begun, ended, named
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.ledger.statements import Key, reserved


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One batch that ended, one under way with two calls, one that was never named."""
    with Ledger.create(tmp_path / "run") as ledger:
        for number in (1, 2, 3, 4):
            key = Key("stage", "item", number, f"k{number}")
            ledger.commit(reserved(number, key, "openai/m", "http://there", 100))
        ledger.commit([*begun(1, "n1", "http://there", "openai/m", [1]), *named(1, "batch_a"), *ended(1, "completed")])
        ledger.commit([*begun(2, "n2", "http://there", "openai/m", [2, 3]), *named(2, "batch_b\x1b[31m")])
        ledger.commit(begun(3, "n3", "http://there", "openai/m", [4]))
    return tmp_path / "run"


def output_of(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["status", *words])
    return result.exit_code, result.output


def test_a_line_for_each(folder: Path) -> None:
    code, text = output_of(str(folder))
    first, second, third = [line for line in text.splitlines() if line.startswith("batch ")]
    assert code == 0 and "\x1b" not in text
    assert first.startswith("batch batch_a: 1 request from ") and first.endswith("to openai/m, completed")
    assert second.startswith("batch batch_b") and second.endswith("under way, 2 calls pending")
    assert third.startswith("batch (refed_batch n3): ") and "not confirmed, 1 call pending" in third


def test_the_same_for_scripts(folder: Path) -> None:
    code, text = output_of(str(folder), "--json")
    rows = json.loads(text)["batches"]
    assert code == 0 and [(row["state"], row["calls"], row["requests"]) for row in rows] == [
        ("completed", 0, 1), (None, 2, 2), (None, 1, 1),
    ]  # fmt: skip


def test_giving_up_keeps_the_charge(folder: Path) -> None:
    assert output_of(str(folder), "--give-up")[1].startswith("2 given up: 3 calls stay charged in full\n")
    with Ledger.create(folder) as ledger:
        begin_start(ledger)
        assert spent(ledger).picodollars == 400
        assert ledger.db.execute("SELECT count(*) FROM batched").fetchone() == (0,)
    assert [row["state"] for row in json.loads(output_of(str(folder), "--json")[1])["batches"]] == [
        "completed", "given up", "given up",
    ]  # fmt: skip
    assert output_of(str(folder), "--give-up")[1].startswith("0 given up: 0 calls stay charged in full\n")


def test_a_folder_in_use_is_not_given_up(folder: Path) -> None:
    with Ledger.create(folder):
        code, text = output_of(str(folder), "--give-up")
    assert code == 2 and len(text.splitlines()) == 1
    assert json.loads(output_of(str(folder), "--json")[1])["batches"][1]["calls"] == 2


def test_a_folder_without(tmp_path: Path) -> None:
    code, text = output_of(str(tmp_path / "none"))
    assert code == 2 and len(text.splitlines()) == 1 and not (tmp_path / "none").exists()
    assert output_of(str(tmp_path / "none"), "--give-up")[0] == 2 and not (tmp_path / "none").exists()

"""`refed show`: a few samples, what was changed in them, nothing that steers a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import refed_dspy
from refed_dspy.cli.main import app
from refed_dspy.cli.show import LONGEST
from tests.support.scripted_engine import Writer, fake_lm, references


def show(*words: object) -> Result:
    return CliRunner().invoke(app, ["show", *map(str, words)])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    writer = Writer()

    def answer(request: object) -> str | None:
        texts = json.loads(writer.write(request))
        if "improved_response" in texts:
            return json.dumps({**texts, "improved_response": f"A dog \x1b[31mran home. {'And on. ' * 400}"})
        return json.dumps({**texts, "response": "A cat ran home."}) if "response" in texts else None

    writer.on_request = answer
    refed_dspy.synthesize(
        None, references(1), size=5, teacher=fake_lm(writer), run_dir=tmp_path / "run", guards=False, track=False
    )
    return tmp_path / "run"


def test_three_are_shown_short_with_what_was_changed(run: Path) -> None:
    printed = show(run).stdout
    assert [line for line in printed.splitlines() if line.startswith("──")] == [
        f"── sample {n} of 5" for n in (1, 2, 3)
    ]
    assert "A [-cat ran home.-]{+dog \\u001b[31mran home." in printed
    assert "\x1b" not in printed and max(map(len, printed.splitlines())) < LONGEST + 100


def test_as_many_as_asked_for(run: Path) -> None:
    assert show(run, "--number", 9).stdout.count("── sample") == 5


def test_the_simulated_teacher_is_named_first(tmp_path: Path) -> None:
    words = ["synth", "--teacher", "simulated", "--size", "2", "--run-dir", str(tmp_path / "first")]
    made = CliRunner().invoke(app, words)
    note = "made by the simulated teacher: no model wrote these rows, for trying refed out only"
    assert made.exit_code == 0 and made.stdout.endswith(f"{note}\n")
    assert show(tmp_path / "first").stdout.startswith(f"{note}\n\n── sample 1 of 2\n  Simulated task ")


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    result = show(tmp_path)
    assert result.exit_code == 2 and result.stderr.startswith("refed: ") and result.stderr.count("\n") == 1

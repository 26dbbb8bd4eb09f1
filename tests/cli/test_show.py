"""`refed show`: a few samples, what was changed in them, nothing that steers a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import refed_dspy
from refed_dspy.cli.main import app
from refed_dspy.cli.runs import _LONGEST as LONGEST
from tests.support.said import Said
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
    heads = [line for line in printed.splitlines() if line.startswith("──")]
    reference = references(1)[0]["instruction"]
    for number, head in enumerate(heads, start=1):
        assert head.startswith(f"── sample {number} of 5, from references row 1: {reference[:50]}"), head
        assert head.endswith(" (price unknown)")
    assert len(heads) == 3
    assert "A [-cat ran home.-]{+dog \\u001b[31mran home." in printed
    assert "\x1b" not in printed and max(map(len, printed.splitlines())) < LONGEST + 100


def test_as_many_as_asked_for(run: Path) -> None:
    assert show(run, "--number", 9).stdout.count("── sample") == 5


def test_the_simulated_teacher_is_named_first(said: Said, tmp_path: Path) -> None:
    words = ["synth", "--teacher", "simulated", "--size", "2", "--run-dir", str(tmp_path / "first")]
    made = CliRunner().invoke(app, words)
    note = "made by the simulated teacher: no model wrote these rows, for trying refed out only"
    assert made.exit_code == 0 and made.stdout.endswith(f"{note}\n")
    said(show(tmp_path / "first").stdout)
    refed_dspy.filter_data(tmp_path / "first", ["refusals"], out=tmp_path / "kept")
    refed_dspy.filter_data(tmp_path / "kept", ["refusals"], out=tmp_path / "again")
    for folder in (tmp_path / "kept", tmp_path / "again"):
        said(show(folder).stdout)
        assert CliRunner().invoke(app, ["status", str(folder)]).stdout.endswith(f"{note}\n")
        assert f"{note.capitalize()}." in refed_dspy.report(folder).read_text()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    result = show(tmp_path)
    assert result.exit_code == 2 and result.stderr.startswith("refed: ") and result.stderr.count("\n") == 1


def test_dropped_rows_are_shown_with_filter_and_reason(said: Said, run: Path, tmp_path: Path) -> None:
    result = show(run, "--dropped")
    assert result.exit_code == 2
    said(result.stderr)
    made = refed_dspy.filter_data(run, [{"length": {"max_words": 50}}, {"random": {"keep": 1}}], out=tmp_path / "out")
    assert len(made) == 0
    printed = show(made.out, "--dropped", "-n", 9).stdout
    assert (
        printed.count("── dropped by length: too long, score 804\n   improved response: 804 words, ") == 5
        and "\x1b" not in printed
    )
    result = show(made.out)
    assert result.exit_code == 2
    said(result.stderr)
    status = CliRunner().invoke(app, ["status", str(made.out)]).stdout
    said(status)


def test_a_rows_number_other_texts_and_a_runs_own_drops(said: Said, tmp_path: Path) -> None:
    rows = [{"instruction": "Say \x1b[31mred.", "response": "Red."}, {"nothing": "but \x1b[2J this"}]
    made = refed_dspy.filter_data(rows, ["refusals"], out=tmp_path / "out")
    said(show(made.out).stdout)
    said(show(made.out, "--dropped").stdout)
    words = ["synth", "--teacher", "simulated", "--size", "2", "--run-dir", str(tmp_path / "run")]
    (tmp_path / "run.yaml").write_text("filters: [random: {share: 0.5}]")
    assert CliRunner().invoke(app, [*words, "--config", str(tmp_path / "run.yaml")]).exit_code == 0
    said(show(tmp_path / "run", "--dropped").stdout)


def test_a_duplicate_is_shown_below_the_text_that_was_kept(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Name {n} rivers of this part of Spain, please", "response": "Ebro."} for n in ("two", "some")
    ]
    made = refed_dspy.filter_data(rows, [{"rouge": {"threshold": 0.5}}], out=tmp_path / "out", seed=1)
    kept, dropped = ("\n  " + next(iter(texts))["instruction"] for texts in (made.kept(), made.dropped()))
    assert f"\nkept:{kept}\ndropped:{dropped}\nresponse:\n  Ebro.\n" in show(made.out, "--dropped").stdout


def test_the_list_has_filterings_that_asked_nobody(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refed_dspy.filter_data([{"instruction": "i", "response": "r"}], ["refusals"], out="kept/first")
    listed = CliRunner().invoke(app, ["status"]).stdout.splitlines()
    assert listed[1].split()[:7] == ["kept/first", "filtering", "done", "1", "of", "1", "kept"]
    (tmp_path / "kept" / "first" / "funnel.json").write_text("[]")
    said(CliRunner().invoke(app, ["status"]).stderr)
    broken = CliRunner().invoke(app, ["status", "kept/first"])
    assert broken.exit_code == 2
    said(broken.stderr)

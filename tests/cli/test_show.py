"""`refed show`: a few samples, what was changed in them, nothing that steers a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import Result

import refed_dspy
from refed_dspy.cli.runs import _LONGEST as LONGEST
from tests.support.command_line import refed, refusal, refused
from tests.support.hostile import STEERING, TERMINAL
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


def show(*words: object) -> Result:
    return refed("show", *words)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("shown")
    writer = Writer()

    def answer(request: object) -> str | None:
        texts = json.loads(writer.write(request))
        if "improved_response" in texts:
            return json.dumps({**texts, "improved_response": f"A dog {TERMINAL}ran home. {'And on. ' * 400}"})
        return json.dumps({**texts, "response": "A cat ran home."}) if "response" in texts else None

    writer.on_request = answer
    refed_dspy.synthesize(
        None, references(1), size=5, teacher=fake_lm(writer), run_dir=tmp_path / "run", guards=False, track=False
    )
    return tmp_path / "run"


def test_three_are_shown_short_with_what_was_changed(said: Said, run: Path) -> None:
    printed = show(run).stdout
    heads = [line for line in printed.splitlines() if line.startswith("──")]
    said((heads, re.findall(r"\[-.*?-\]\{\+.*? ran home", printed)[:1]))
    assert not STEERING.search(printed) and max(map(len, printed.splitlines())) < LONGEST + 100
    assert show(run, "--number", 9).stdout.count("── sample") == 5


def test_the_simulated_teacher_is_named_first(said: Said, tmp_path: Path) -> None:
    made = refed("synth", "--teacher", "simulated", "--size", 2, "--run-dir", tmp_path / "first")
    note = made.stdout.splitlines()[-1]
    said((note, show(tmp_path / "first").stdout))
    refed_dspy.filter_data(tmp_path / "first", ["refusals"], out=tmp_path / "kept")
    refed_dspy.filter_data(tmp_path / "kept", ["refusals"], out=tmp_path / "again")
    for folder in (tmp_path / "kept", tmp_path / "again"):
        assert note.capitalize() in show(folder).stdout.splitlines()[0].capitalize()
        assert refed("status", folder).stdout.endswith(f"{note}\n")
        assert f"{note.capitalize()}." in refed_dspy.report(folder).read_text()


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    refused(show(tmp_path))


def test_dropped_rows_are_shown_with_filter_and_reason(said: Said, run: Path, tmp_path: Path) -> None:
    none = refusal(show(run, "--dropped"))
    made = refed_dspy.filter_data(run, [{"length": {"max_words": 50}}, {"random": {"keep": 1}}], out=tmp_path / "out")
    printed = show(made.out, "--dropped", "-n", 9).stdout
    assert len(made) == 0 and printed.count("── dropped") == 5 and not STEERING.search(printed)
    said((none, printed.splitlines()[:2], refusal(show(made.out)), refed("status", made.out).stdout))


def test_a_rows_number_other_texts_and_a_runs_own_drops(said: Said, tmp_path: Path) -> None:
    rows = [{"instruction": "Say \x1b[31mred.", "response": "Red."}, {"nothing": "but \x1b[2J this"}]
    made = refed_dspy.filter_data(rows, ["refusals"], out=tmp_path / "out")
    said(show(made.out).stdout)
    said(show(made.out, "--dropped").stdout)
    words = ("synth", "--teacher", "simulated", "--size", 2, "--run-dir", tmp_path / "run")
    (tmp_path / "run.yaml").write_text("filters: [random: {share: 0.5}]")
    assert refed(*words, "--config", tmp_path / "run.yaml").exit_code == 0
    said(show(tmp_path / "run", "--dropped").stdout)


def test_a_duplicate_is_shown_below_the_text_that_was_kept(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Name {n} rivers of this part of Spain, please", "response": "Ebro."} for n in ("two", "some")
    ]
    made = refed_dspy.filter_data(rows, [{"rouge": {"threshold": 0.5}}], out=tmp_path / "out", seed=1)
    kept, dropped = ("\n  " + next(iter(texts))["instruction"] for texts in (made.kept(), made.dropped()))
    assert f"\nkept:{kept}\ndropped:{dropped}\nresponse:\n" in show(made.out, "--dropped").stdout


def test_the_list_has_filterings_that_asked_nobody(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refed_dspy.filter_data([{"instruction": "i", "response": "r"}], ["refusals"], out="kept/first")
    listed = refed("status").stdout.splitlines()
    assert listed[1].split()[:7] == ["kept/first", "filtering", "done", "1", "of", "1", "kept"]
    (tmp_path / "kept" / "first" / "funnel.json").write_text("[]")
    said((refed("status").stderr, refusal(refed("status", "kept/first"))))

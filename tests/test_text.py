"""What Python and notebooks show of results, and results as sequences, data frames and data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy import Reference, TeacherConfig
from refed_dspy.data.dataset import load_dataset
from refed_dspy.errors import ExportError
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.saved import program_digests, save_program
from refed_dspy.runs.result import Synthesis
from tests.support.looks import small
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

NASTY = "<script>alert('&\"')</script> $5 and $6 \x1b[31m\u202e\n\n| a | b |\n" * 90


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    writer = Writer()
    writer.on_request = lambda request: json.dumps(
        {name: NASTY if name.endswith("response") else writer._value(name) for name in writer.fields(request)}
    )
    folder = tmp_path_factory.mktemp("nasty") / "run"
    return refed_dspy.synthesize(
        None, references(4), size=6, teacher=fake_lm(writer), run_dir=folder, guards=False, track=False
    )


def test_texts_are_data_and_sizes_are_small(said: Said, made: Synthesis) -> None:
    rows = [{"instruction": f"{i} {NASTY}", "response": NASTY} for i in range(60)]
    loaded = refed_dspy.load_references(rows)
    for value in (made, made.samples, made[0], loaded, loaded[0], load_dataset(rows), made[0].analysis):
        small(value)
    assert "&lt;script&gt;" in small(made) and "mathjax_ignore" in small(made)
    assert repr(loaded) == "<References: 60>"
    said(repr(made))
    said(repr(Reference(instruction="a", response="b")))


def test_a_program_is_a_line_and_a_table_of_its_predictors(said: Said, tmp_path: Path) -> None:
    program = refed_dspy.ReferenceLevelFeedback(guidance={"response_generation": NASTY})
    said(repr(program))
    assert "response_improvement" in small(program)
    save_program(program, tmp_path / "saved.json")
    loaded = refed_dspy.load_program(tmp_path / "saved.json")
    assert repr(loaded.deepcopy()).endswith("saved.json>") and program_digests(loaded) == program_digests(program)
    said(repr(PairwiseJudge()))


def test_settings_show_what_was_set(said: Said) -> None:
    said(repr(TeacherConfig(model="a/b", retries=2)))
    assert len(repr(TeacherConfig(model="a/b", params={"x": "y" * 5000}))) <= 200


def test_a_run_is_a_sequence_of_its_samples(made: Synthesis) -> None:
    everything = list(made.samples)
    assert len(made) == len(made.samples) == len(everything) == 6
    for samples in (made, made.samples):
        assert [samples[at] for at in range(-6, 6)] == everything * 2 and everything[3] in samples
        for part in (slice(2, 5), slice(None, None, -3), slice(4, 99), slice(5, 2)):
            assert samples[part] == everything[part]
        for index in (6, -7):
            with pytest.raises(IndexError):
                samples[index]
    frame, rows = made.to_pandas(), made.to_dataset()
    assert list(frame.columns) == rows.column_names and list(frame["instruction"]) == rows["instruction"]


def test_filtered_rows_are_a_sequence(made: Synthesis, tmp_path: Path) -> None:
    filtered = refed_dspy.filter_data(made, [{"random": {"keep": 5}}], out=tmp_path / "filtered")
    assert "random" in small(filtered) and len(filtered) == 5 and list(filtered) == list(filtered.kept())
    assert filtered[0] == next(filtered.kept()) and filtered[3:] == list(filtered)[3:]
    assert len(filtered.to_pandas()) == filtered.to_dataset().num_rows == 5
    again = refed_dspy.measure(filtered, embeddings=False)
    assert small(again) and list(again.to_pandas().columns) == ["plain", "improved"]


def test_a_column_of_several_kinds_is_told(said: Said, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"instruction": f"a{i}", "response": "b", "x": x} for i, x in enumerate((1, "one"))]
    filtered = refed_dspy.filter_data(rows, [{"random": {"keep": 2}}], out=tmp_path / "out")
    with said.by(ExportError):
        filtered.to_dataset()
    assert list(filtered.to_pandas()["x"]) == [1, "one"]

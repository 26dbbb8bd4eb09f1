"""What a filtering refuses or reports: bad filters, files and folders that must stay, filters that keep nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy.data.dataset import load_dataset
from refed_dspy.errors import ExportError, InputError, RefedError, RunDirError, RunStopped
from tests.runs.filter.helpers import PAIRS, NumberJudge, adds_up, filtered, lines, numbers
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


@pytest.mark.parametrize(
    "filters",
    [
        [],
        ["judges"],
        [{"rouge": {"treshold": 0.7}}],
        [{"rouge": {}, "judge": {}}],
        ["random"],
        [{"rubric": {"criterion": "grace"}}],
        [{"rubric": {"criterion": "unlike_its_siblings"}}],
        [{"judge": {"description": "how graceful it is"}}],
        ["judge"],
        [{"overlap": {"against": "no/such.jsonl"}}],
        [7],
    ],
)
def test_bad_filters_are_reported_in_a_line(said: Said, tmp_path: Path, filters: list[Any]) -> None:
    with said.by(InputError) as raised:
        filtered(tmp_path / "out", filters)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_a_file_of_somebody_else_s_is_never_written_over(said: Said, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.jsonl").write_text("precious")
    with said.by(ExportError):
        filtered(tmp_path / "out", ["refusals"])
    assert (tmp_path / "out" / "kept.jsonl").read_text() == "precious"
    filtered(tmp_path / "other", ["refusals"])
    filtered(tmp_path / "other", [{"length": {"min_words": 1}}], force=True)  # its own files may be


def test_another_filtering_in_a_folder_is_refused_by_name_and_the_same_goes_on(said: Said, tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("\n".join(map(json.dumps, PAIRS)))
    filtered(out, ["refusals"], data)
    data.write_text("\n".join(map(json.dumps, PAIRS[:7])))
    assert len(filtered(out, ["refusals"], data)) == 7, "the same data, changed since"
    (out / "report.html").write_text("a page")
    (tmp_path / "link.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    for filters, other, more in (
        ([{"length": {"min_words": 1}}], data, {}),
        (["refusals"], tmp_path / "link.jsonl", {}),
        (["refusals"], PAIRS, {}),
        (["refusals"], data, {"seed": 1}),
        (["refusals"], data, {"columns": {"plain": "response"}}),
    ):
        with said.by(RunDirError):
            filtered(out, filters, other, **more)
    assert len(lines(out / "kept.jsonl")) == 7 and (out / "report.html").exists()
    assert len(filtered(out, [{"random": {"keep": 3}}], data, force=True)) == 3
    assert not (out / "report.html").exists(), "it showed what was replaced"


@pytest.mark.parametrize("where", ["out/kept.jsonl", "out/dropped.jsonl", "out/undecided.jsonl"])
def test_what_is_read_is_never_written_over(said: Said, tmp_path: Path, where: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    rows = "\n".join(map(json.dumps, PAIRS))
    path.write_text(rows)
    (tmp_path / "link.jsonl").symlink_to(path)
    for source in (path, tmp_path / "link.jsonl"):
        with said.by(ExportError):
            filtered(tmp_path / "out", ["refusals"], source)
    assert path.read_text() == rows


def test_a_filter_that_keeps_nothing_is_named(said: Said, tmp_path: Path) -> None:
    judge = NumberJudge()
    filters = ["refusals", {"length": {"min_words": 90}}, "judge", "refusals"]
    made = filtered(tmp_path / "out", filters, judge=judge)
    said(made.problem)
    assert not judge.requests and made.used is None
    adds_up(made, 40)
    assert (made.out / "kept.jsonl").read_text() == ""


def test_a_folder_that_cannot_be_written(said: Said, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with said.by(RunDirError):
        filtered(tmp_path / "file", ["refusals"])
    (tmp_path / "out" / "kept.jsonl").mkdir(parents=True)
    (tmp_path / "out" / "funnel.json").write_text("[]")
    with said.by(ExportError):
        filtered(tmp_path / "out", ["refusals"])
    judge = NumberJudge()
    with said.by(RunStopped) as raised:
        filtered(tmp_path / "out", ["judge"], judge=judge)
    assert raised.value.exit_code == 1
    (tmp_path / "out" / "kept.jsonl").rmdir()
    filtered(tmp_path / "out", ["judge"], judge=judge)
    assert len(judge.requests) == 80


def test_the_folder_of_other_work_is_refused(said: Said, tmp_path: Path) -> None:
    refed_dspy.synthesize(None, references(2), size=4, teacher=fake_lm(Writer()), run_dir=tmp_path / "run", track=False)
    with said.by(RefedError):
        filtered(tmp_path / "run", ["judge"], judge=NumberJudge())
    made = filtered(tmp_path / "out", [{"random": {"keep": 3}}], tmp_path / "run")
    assert [row["sample"] for row in lines(made.out / "kept.jsonl")] == numbers(lines(made.out / "kept.jsonl"))
    assert len(load_dataset(made.out / "kept.jsonl").rows) == 3

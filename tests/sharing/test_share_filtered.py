"""Filtered and recycled rows made ready for the Hub: exactly those rows, and a card that says what was done to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest

import refed_dspy
from refed_dspy.errors import ExportError, RefedError, RunDirError
from refed_dspy.plugins.share.share import SharedFolder, share
from refed_dspy.runs.filter.result import Filtering

ROWS = [{"question": f"Say {n} words.", "answer": "word " * n} for n in range(1, 9)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "run"
    refed_dspy.synthesize(None, "builtin", size=8, teacher="simulated", run_dir=folder, track=False, progress=False)
    return folder


def shared(folder: Path, **settings: object) -> tuple[SharedFolder, str]:
    made = share(folder, folder.with_name(f"{folder.name}-shared"), **settings)  # type: ignore[arg-type]
    return made, (made.folder / "README.md").read_text()


def rows_noted(first: Filtering, row: dict[str, object]) -> object:
    """What an earlier filtering noted on the row."""
    return next(each["refed_filters"] for each in first if each["instruction"] == row["instruction"])


def loaded(made: SharedFolder, config: str = "default") -> list[dict[str, object]]:
    cache = str(made.folder.with_name("cache"))
    return list(datasets.load_dataset(str(made.folder), config, split="train", cache_dir=cache))


def test_a_filtered_run_keeps_the_runs_facts_and_tells_of_each_step(run: Path, tmp_path: Path) -> None:
    first = refed_dspy.filter_data(run, [{"random": {"keep": 6}}], out=tmp_path / "first")
    kept = refed_dspy.filter_data(tmp_path / "first", [{"random": {"keep": 4}}, "refusals"], out=tmp_path / "kept")
    made, card = shared(kept.out, dropped=True, report=True)
    rows = loaded(made)
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in kept]
    assert [row["instruction"] for row in loaded(made, "dropped")] == [row["instruction"] for row in kept.dropped()]
    assert (
        json.loads(str(rows[0]["refed_filters"]))["before"] == first[0]["refed_filters"]
    )  # none was dropped before it
    assert "what these steps left of 8 rows" in card and "1. 8 rows were filtered" in card and "2. 6 rows" in card
    assert "| `random` | 6 | 4 | 2 | 0 | 2 not checked\\: enough were kept |" in card
    assert "Reference-Level Feedback" in card and "of the run, which made 8 rows" in card and "references.jsonl" in card
    assert str(tmp_path) not in card and (made.folder / "report.html").is_file()


def test_without_its_run_or_of_other_data_the_card_says_what_it_does_not_know(run: Path, tmp_path: Path) -> None:
    source = shutil.copytree(run, tmp_path / "gone")
    refed_dspy.filter_data(source, [{"random": {"keep": 3}}], out=tmp_path / "kept")
    shutil.rmtree(source)
    made, card = shared(tmp_path / "kept")
    assert made.rows == 3 and "come from `gone`. No run of refed-dspy is known" in card
    assert "Made in part by the simulated teacher" in card and "## References" not in card
    other = refed_dspy.filter_data(
        ROWS,
        [{"length": {"min_words": 3}}],
        columns={"instruction": "question", "response": "answer"},
        out=tmp_path / "other",
    )
    made, card = shared(other.out, license="mit")
    assert [row["question"] for row in loaded(made)] == [row["question"] for row in ROWS[2:]]
    assert "come from data without a name" in card and "Which models wrote the rows" in card
    assert made.notes == [
        "no run is known to have made these rows; say in the card where they are from and whose they are"
    ]


def test_recycled_rows_name_the_teacher_that_rewrote_them(tmp_path: Path) -> None:
    rows = [{"instruction": "Say a word.", "response": "Word."}]
    refed_dspy.recycle(rows, teacher="simulated", out=tmp_path / "new", embeddings=False, progress=False)
    made, card = shared(tmp_path / "new")
    assert [set(row) >= {"original_response", "response"} for row in loaded(made)] == [True]
    assert "1. 1 row was read and recycled by Reflection-Tuning" in card
    assert "| `response_reflection` | `simulated` |" in card


@pytest.mark.parametrize(
    ("filters", "dropped", "error", "message"),
    [
        ([{"length": {"min_words": 99}}], False, ExportError, "no row was kept, so there is nothing to share"),
        (["refusals"], True, ExportError, "nothing was dropped; leave out dropped=True"),
        (None, False, RunDirError, "does not say where its rows are from; make it again"),
    ],
)
def test_what_cannot_be_shared(
    tmp_path: Path, filters: list[object] | None, dropped: bool, error: type[RefedError], message: str
) -> None:
    columns = {"instruction": "question", "response": "answer"}
    made = refed_dspy.filter_data(ROWS, filters or ["refusals"], columns=columns, out=tmp_path / "kept")
    if filters is None:  # as an earlier version left it
        (made.out / "source.json").unlink()
        made.out.joinpath("kept.jsonl").write_text('{"instruction": "i", "response": "r"}')
    with pytest.raises(error, match=message):
        share(made.out, tmp_path / "out", dropped=dropped)
    assert not (tmp_path / "out").exists()

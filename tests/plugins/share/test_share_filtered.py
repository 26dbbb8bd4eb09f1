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
from tests.plugins.share.test_card import sections, table_rows
from tests.support.said import Said

ROWS = [{"question": f"Say {n} words.", "answer": "word " * n} for n in range(1, 9)]
COLUMNS = {"instruction": "question", "response": "answer"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "run"
    refed_dspy.synthesize(None, "builtin", size=8, teacher="simulated", run_dir=folder, track=False, progress=False)
    return folder


def shared(folder: Path, **settings: object) -> tuple[SharedFolder, str]:
    made = share(folder, folder.with_name(f"{folder.name}-shared"), **settings)  # type: ignore[arg-type]
    return made, (made.folder / "README.md").read_text()


def told(card: str) -> list[str]:
    """What a card says of the steps between the data and its rows."""
    return [card.partition("\n# ")[2].partition("\n\nTrain on")[0], sections(card)["What was kept"]]


def loaded(made: SharedFolder, config: str = "default") -> list[dict[str, object]]:
    cache = str(made.folder.with_name("cache"))
    return list(datasets.load_dataset(str(made.folder), config, split="train", cache_dir=cache))


def test_a_filtered_run_keeps_the_runs_facts_and_tells_of_each_step(said: Said, run: Path, tmp_path: Path) -> None:
    first = refed_dspy.filter_data(run, [{"random": {"keep": 6}}], out=tmp_path / "first")
    kept = refed_dspy.filter_data(tmp_path / "first", [{"random": {"keep": 4}}, "refusals"], out=tmp_path / "kept")
    made, card = shared(kept.out, dropped=True, report=True)
    rows = loaded(made)
    assert [row["instruction"] for row in rows] == [row["instruction"] for row in kept]
    assert [row["instruction"] for row in loaded(made, "dropped")] == [row["instruction"] for row in kept.dropped()]
    before = json.loads(str(rows[0]["refed_filters"]))["before"]
    assert before == first[0]["refed_filters"], "none was dropped before it"
    said(told(card))
    assert (
        "`ReferenceLevelFeedback`" in sections(card)["How it was made"]
        and "references.jsonl" in card
        and str(tmp_path) not in card
        and (made.folder / "report.html").is_file()
    )


def test_without_its_run_or_of_other_data_the_card_says_what_it_does_not_know(
    said: Said, run: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(run, tmp_path / "gone")
    refed_dspy.filter_data(source, [{"random": {"keep": 3}}], out=tmp_path / "kept")
    shutil.rmtree(source)
    made, gone = shared(tmp_path / "kept")
    assert made.rows == 3 and "References" not in sections(gone)
    refed_dspy.filter_data(ROWS, [{"length": {"min_words": 3}}], columns=COLUMNS, out=tmp_path / "other")
    made, other = shared(tmp_path / "other", license="mit")
    assert [row["question"] for row in loaded(made)] == [row["question"] for row in ROWS[2:]]
    said([(told(card), *unknown(card)) for card in (gone, other)])
    said(made.notes)


def unknown(card: str) -> tuple[str, str]:
    """Without the version that wrote the card."""
    return sections(card)["How it was made"].partition(" This card")[0], sections(card)["The teacher's terms"]


def test_recycled_rows_name_the_teacher_that_rewrote_them(said: Said, tmp_path: Path) -> None:
    rows = [{"instruction": "Say a word.", "response": "Word."}]
    refed_dspy.recycle(rows, teacher="simulated", out=tmp_path / "new", embeddings=False, progress=False)
    made, card = shared(tmp_path / "new")
    assert [set(row) >= {"original_response", "response"} for row in loaded(made)] == [True]
    said(told(card))
    assert ["`response_reflection`", "`simulated`"] in [row[:2] for row in table_rows(card)]


@pytest.mark.parametrize(
    ("filters", "dropped", "error"),
    [
        ([{"length": {"min_words": 99}}], False, ExportError),
        (["refusals"], True, ExportError),
        ([], False, RunDirError),
    ],
    ids=["no row", "none dropped", "of an earlier version"],
)
def test_what_cannot_be_shared(
    said: Said, tmp_path: Path, filters: list[object], dropped: bool, error: type[RefedError]
) -> None:
    made = refed_dspy.filter_data(ROWS, filters or ["refusals"], columns=COLUMNS, out=tmp_path / "kept")
    if not filters:  # as an earlier version left it
        (made.out / "source.json").unlink()
        made.out.joinpath("kept.jsonl").write_text('{"instruction": "i", "response": "r"}')
    with said.by(error):
        share(made.out, tmp_path / "out", dropped=dropped)
    assert not (tmp_path / "out").exists()

"""Writing a data set: the same samples in every format, written whole or not at all."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from refed_dspy import read_run, synthesize
from refed_dspy.data.export import FORMATS, export, to_dataset
from refed_dspy.data.references import load_references
from refed_dspy.data.rows import LINEAGE_COLUMNS, PAPER_COLUMNS, data_rows
from refed_dspy.errors import ExportError, RunDirError
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.statements import Answer, Key, answered, sampled
from refed_dspy.records import Call, Reference, Sample
from refed_dspy.runs.result import Synthesis
from tests.support.refusals import refusal
from tests.support.row_files import rows_in
from tests.support.said import Said
from tests.support.scripted_engine import SAMPLE_FIELDS, Writer, fake_lm, references

SIZE = 12
BETTER = {**SAMPLE_FIELDS, "improved_response": "B"}
NASTY = "“Ünïcode” 鸟 🐦\u2028\x00 {braces} </s>\r\n\tend"


def nasty(writer: Writer) -> Writer:
    """Makes each improved response end in a text that formats trip over."""

    def answer(request: Any) -> str | None:
        if "improved_response" not in writer.fields(request):
            return None
        return json.dumps({**SAMPLE_FIELDS, "improved_response": f"Better {next(writer.numbers)}: {NASTY}"})

    writer.on_request = answer
    return writer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """A finished run. Its samples come from two references: per_reference is less than the size."""
    folder = tmp_path_factory.mktemp("run")
    teacher = fake_lm(nasty(Writer()))
    return synthesize(None, references(3), size=SIZE, teacher=teacher, run_dir=folder, per_reference=7)


@pytest.fixture
def broken(run: Synthesis, tmp_path: Path) -> Path:
    """A copy of the run in which the last sample cannot be read."""
    folder = tmp_path / "broken"
    folder.mkdir()
    with Ledger.read(run.run_dir) as ledger:
        copy = sqlite3.connect(folder / FILE)
        ledger.db.backup(copy)
    copy.execute(
        "UPDATE instructions SET sample='{' WHERE id=(SELECT instruction FROM samples ORDER BY seq DESC LIMIT 1)"
    )
    copy.commit()
    copy.close()
    return folder


def filled(run_dir: Path, size: int) -> Path:
    """A run with so many samples, put straight into its ledger."""
    outputs = {"response_generation": {"response": "R"}, "response_improvement": BETTER}
    with Ledger.create(run_dir) as ledger:
        ledger.begin([Reference(instruction="Q", response="A", source="a row 1")], teacher={"model": "m"})
        added = ledger.commit_proposal(0, "tone", 0, [f"Task {i}." for i in range(size)], 0, frozenset())
        for number, text in added.new:
            for stage, output in outputs.items():
                key = Key(stage, str(number), 0, f"{stage} {number}")
                calls = [Call("m", "e", "ok", 0.1, 100, 0, 20)]
                ledger.commit(answered(key, Answer(json.dumps(output)), "e", calls))
            ledger.commit(sampled(number, 0, Sample.model_validate({"instruction": text, "response": "R", **BETTER})))
    return run_dir


def written(run: Synthesis, format_: str, folder: Path) -> list[dict[str, Any]]:
    out = folder / f"out.{format_}"
    assert export(run.run_dir, format_, out).count == SIZE
    return rows_in(out)


# --- what is written


def test_jsonl_holds_the_papers_columns_then_the_lineage_in_the_order_made(run: Synthesis, tmp_path: Path) -> None:
    rows = written(run, "jsonl", tmp_path)
    assert all(tuple(row) == PAPER_COLUMNS + LINEAGE_COLUMNS for row in rows)
    assert [row["sample"] for row in rows] == list(range(1, SIZE + 1))
    assert [{name: row[name] for name in PAPER_COLUMNS} for row in rows] == [s.model_dump() for s in run.samples]
    assert all(row["improved_response"].endswith(NASTY) for row in rows)
    assert "鸟 🐦" in (tmp_path / "out.jsonl").read_text(encoding="utf-8"), "written as it is, and not escaped"


def test_the_lineage_says_where_each_row_came_from(run: Synthesis, tmp_path: Path) -> None:
    rows = written(run, "jsonl", tmp_path)
    sources = {reference.id: reference.source for reference in load_references(references(3))}
    assert len({row["reference"] for row in rows}) == 2
    for row in rows:
        assert row["reference_source"] == sources[row["reference"]]
        assert row["feature"] in {"subject_areas", "relevant_skills"}
        assert (row["round"], row["teacher"], row["endpoint"]) == (0, "fake/model", "fake")
        for of in ("response", "instruction"):
            assert (row[f"{of}_teacher"], row[f"{of}_endpoint"]) == ("fake/model", "fake")
        assert len(row["program"]) == 16
        assert (row["prompt_tokens"], row["completion_tokens"]) == (200, 40)  # two calls of 100 and 20


def test_parquet_and_the_dataset_hold_what_jsonl_holds(run: Synthesis, tmp_path: Path) -> None:
    rows = written(run, "jsonl", tmp_path)
    assert export(run.run_dir, "parquet", tmp_path / "out.parquet").count == SIZE
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == rows
    assert to_dataset(run.run_dir).to_list() == rows
    assert run.to_dataset().column_names == list(PAPER_COLUMNS + LINEAGE_COLUMNS)


def test_the_chat_formats_train_on_the_improved_response(run: Synthesis, tmp_path: Path) -> None:
    first = run.samples[0]
    assert written(run, "messages", tmp_path)[0] == {
        "messages": [
            {"role": "user", "content": first.instruction},
            {"role": "assistant", "content": first.improved_response},
        ]
    }
    assert written(run, "sharegpt", tmp_path)[0] == {
        "conversations": [
            {"from": "human", "value": first.instruction},
            {"from": "gpt", "value": first.improved_response},
        ]
    }
    alpaca = {"instruction": first.instruction, "input": "", "output": first.improved_response}
    assert written(run, "alpaca", tmp_path)[0] == alpaca
    for format_ in ("messages", "sharegpt", "alpaca"):
        run.export(format_, out := tmp_path / f"{format_}.jsonl")
        read = [(reference.instruction, reference.response) for reference in load_references(out)]
        assert read == [(sample.instruction, sample.improved_response) for sample in run.samples]


def test_the_work_of_reading_a_row_does_not_grow_with_the_run(tmp_path: Path) -> None:
    def steps_a_row(size: int) -> float:
        steps = []
        with Ledger.read(filled(tmp_path / str(size), size)) as ledger:
            ledger.db.set_progress_handler(lambda: steps.append(1), 100)
            assert len(list(data_rows(ledger))) == size
        return len(steps) / size

    assert steps_a_row(100) < 2 * steps_a_row(10)


def test_every_row_of_a_long_run_is_written_once(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert export(filled(tmp_path / "long", 301), "jsonl", out).count == 301
    assert [row["sample"] for row in rows_in(out)] == list(range(1, 302))
    assert export(tmp_path / "long", "parquet", tmp_path / "out.parquet").count == 301
    assert pq.read_table(tmp_path / "out.parquet")["sample"].to_pylist() == list(range(1, 302))


# --- whole or not at all


@pytest.mark.parametrize("format_", FORMATS)
def test_an_existing_file_is_kept_unless_forced_and_progress_sees_every_row(
    run: Synthesis, tmp_path: Path, format_: str
) -> None:
    out, passed = tmp_path / "out", list[Any]()
    out.write_text("mine")
    with pytest.raises(ExportError, match="force=True"):
        export(run.run_dir, format_, out)
    assert out.read_text() == "mine"

    def through(rows: Any, total: int | None) -> Any:
        assert total == SIZE
        for row in rows:
            passed.append(row)
            yield row

    assert export(run.run_dir, format_, out, force=True, through=through).count == SIZE == len(passed)
    assert out.read_bytes() != b"mine"


@pytest.mark.parametrize("format_", FORMATS)
def test_a_write_that_fails_halfway_leaves_the_old_file_and_no_other(
    broken: Path, tmp_path: Path, format_: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "train").write_text("mine")
    with pytest.raises(RunDirError):
        export(broken, format_, folder / "train", force=True)
    assert [path.name for path in folder.iterdir()] == ["train"]
    assert (folder / "train").read_text() == "mine"


def test_the_file_gets_the_rights_any_new_file_gets(run: Synthesis, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run.export("jsonl", tmp_path / "out.jsonl")
    finally:
        os.umask(before)
    assert (tmp_path / "out.jsonl").stat().st_mode & 0o777 == 0o640


# --- what cannot be written


def test_what_cannot_be_written_is_told_in_a_line(said: Said, run: Synthesis, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for format_ in ("xlsx", "", "JSONL", "json\nl"):
        line = refusal(ExportError, export, run.run_dir, format_, tmp_path / "out")
        assert all(name in line for name in FORMATS)
    for name in ("none/out.jsonl", "file/out.jsonl", "folder"):
        said(refusal(ExportError, export, run.run_dir, "jsonl", tmp_path / name, force=True))
    refusal(ExportError, export, run.run_dir, "jsonl", tmp_path / ("x" * 300))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_folder_without_samples_is_refused_but_a_run_gives_an_empty_dataset(said: Said, tmp_path: Path) -> None:
    said(refusal(RunDirError, export, tmp_path, "jsonl", tmp_path / "out"))
    Ledger.create(tmp_path).close()
    said(refusal(ExportError, export, tmp_path, "jsonl", tmp_path / "out"))
    assert to_dataset(tmp_path).num_rows == 0


# --- samples in parts


def test_rows_can_be_read_from_a_number_on_and_up_to_a_limit(run: Synthesis) -> None:
    with Ledger.read(run.run_dir) as ledger:
        numbers = [
            [row["sample"] for row in data_rows(ledger, after, limit)]
            for after, limit in ((0, 3), (3, 3), (10, 9), (0, 0))
        ]
    assert numbers == [[1, 2, 3], [4, 5, 6], [11, 12], []]


def test_rows_and_samples_outlive_the_result_they_come_from(run: Synthesis) -> None:
    rows = read_run(run.run_dir).samples.rows()
    samples = iter(read_run(run.run_dir).samples)
    assert len(list(rows)) == len(list(samples)) == SIZE

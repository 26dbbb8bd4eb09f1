"""Rows as Arrow tables: types that hold all values of a column, whatever group of a thousand they are in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from refed_dspy.data import tables as module
from refed_dspy.data.tables import common_types, made_schema, mapped, tables
from refed_dspy.errors import ExportError
from tests.support.refusals import refusal
from tests.support.said import Said


def test_a_type_holds_the_values_of_all_groups() -> None:
    rows: list[dict[str, Any]] = [{"n": 1, "mixed": 1, "deep": {"a": 1}, "none": None} for _ in range(1_500)]
    rows += [{"n": 0.5, "mixed": "one", "deep": {"b": "x"}, "late": [1]}]
    types = common_types(rows)
    assert types["n"] == pa.float64() and types["none"] == pa.string() and types["late"] == pa.list_(pa.int64())
    assert types["mixed"] is None and {field.name for field in types["deep"]} == {"a", "b"}
    schema, as_text = made_schema(rows)
    table = pa.concat_tables(tables(rows, schema, as_text))
    assert as_text == {"mixed"} and table["mixed"].to_pylist() == [*["1"] * 1_500, "one"]
    assert table["n"].to_pylist()[-2:] == [1.0, 0.5] and table["deep"].to_pylist()[-1] == {"a": None, "b": "x"}


def test_a_column_of_a_run_has_its_type() -> None:
    schema, _ = made_schema([{"cost": 1, "round": None, "feature": None, "refed_filters": {"row": 1}}])
    assert schema.field("cost").type == pa.float64() and schema.field("round").type == pa.int64()
    assert schema.field("feature").type == schema.field("refed_filters").type == pa.string()


def test_a_data_set_is_a_file_that_other_processes_read() -> None:
    rows = [{"n": n, "text": "x" * 100} for n in range(1_500)]
    schema = pa.schema([("n", pa.int64()), ("text", pa.string())])
    made = mapped(tables(rows, schema), schema)
    assert made.cache_files and made.to_list() == rows
    assert made.map(lambda row: {"n": -row["n"]}, num_proc=2)["n"][-1] == -1_499
    assert Path(made.cache_files[0]["filename"]).exists(), "the end of a worker is not the end of this process"


@pytest.mark.slow
def test_the_file_goes_with_the_process(tmp_path: Path) -> None:
    code = (
        "import pyarrow as pa; from refed_dspy.data.tables import mapped; schema = pa.schema([('n', pa.int64())]);"
        "made = mapped([pa.table({'n': [1]}, schema)], schema); print(made.cache_files[0]['filename'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(str(tmp_path)) and not Path(done.stdout.strip()).exists()
    assert not list(tmp_path.glob("refed-*"))


def test_a_folder_that_takes_nothing_is_named(said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    monkeypatch.setattr(module, "_folder", module._folder.__wrapped__)
    said(refusal(ExportError, mapped, [], pa.schema([("n", pa.int64())])))

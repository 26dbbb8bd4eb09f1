"""Files of prompts: AlpacaEval's, Arena-Hard's, IFEval's and others, word for word, and what is wrong with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import ConfigError, ReferencesError
from refed_dspy.plugins.evaluate.prompts import load_prompts
from tests.support.said import Said

BENCHMARKS: list[dict[str, Any]] = [
    {"instruction": "Name a fish.", "dataset": "koala", "output": "Cod.", "generator": "other"},
    {"uid": "1a", "category": "hard_prompt", "prompt": "Name a fish."},
    {"key": 1000, "prompt": "Name a fish.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"question": "Name a fish.", "answer": "Cod."},
]


@pytest.mark.parametrize("row", BENCHMARKS, ids=["AlpacaEval", "Arena-Hard", "IFEval", "question"])
def test_the_instruction_is_found_where_benchmarks_have_it(said: Said, row: dict[str, Any]) -> None:
    (prompt,) = load_prompts([row]).rows
    said((prompt.number, prompt.text, prompt.system, prompt.fields))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_files_of_every_kind_give_the_text_to_the_letter(tmp_path: Path, suffix: str) -> None:
    texts = ["  Name a fish.\n", "Say “ü”, and\nthen 魚. "]
    rows = [{"prompt": text, "uid": str(place)} for place, text in enumerate(texts)]
    file = tmp_path / f"q.{suffix}"
    if suffix == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    elif suffix == "csv":
        quoted = "".join(f'{row["uid"]},"{row["prompt"]}"\n' for row in rows)
        file.write_text(f"uid,prompt\n{quoted}", encoding="utf-8", newline="")
    else:
        lines = json.dumps(rows) if suffix == "json" else "".join(f"{json.dumps(row)}\n" for row in rows)
        file.write_text(lines, encoding="utf-8")
    assert [(row.number, row.text) for row in load_prompts(file).rows] == list(enumerate(texts, start=1))


def test_columns_inputs_and_system_prompts(said: Said) -> None:
    rows = [{"q": "Sort these.", "text": "b, a", "sys": "Be brief."}, {"q": "Name a fish.", "text": None}]
    columns = {"instruction": "q", "input": "text", "system": "sys"}
    prompts = load_prompts(rows, columns, system="Be kind.").rows
    said([(row.text, row.system) for row in prompts])  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        (
            [{"uid": "1", "text": "Hi"}, {"uid": "2", "cluster": 3}],
            {},
            "prompts: no instructions: none of its rows has instruction or prompt or question; its columns are uid, "
            "text, cluster; name the right one in a --config file, or in Python: `columns: {instruction: …}`",
        ),
        ([{"prompt": "Hi"}], {"instruction": "task"}, "none of its rows has task; its columns are prompt; name"),
        ([{"prompt": "Hi"}], {"response": "x"}, "columns: 'response' is not one of instruction, input, system"),
        ([{"prompt": "Hi"}, {"prompt": " \n"}], {}, "prompts row 2: no instruction (column prompt); write one or"),
        ([{"prompt": "Hi"}, {"uid": "2"}], {}, "prompts row 2: no instruction (column instruction)"),
        ([{"prompt": [{"role": "user", "content": "Hi"}]}], {}, "prompts row 1: prompt is a list; it must be text"),
        ([{"prompt": "Hi", "system": "\ud800"}], {}, "prompts row 1: system is broken text"),
        ([], {}, "prompts: no rows; write one instruction per row"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    rows: list[dict[str, Any]], columns: dict[str, str], message: str
) -> None:
    with pytest.raises((ReferencesError, ConfigError)) as refused:
        load_prompts(rows, columns)
    assert message in str(refused.value) and "\n" not in str(refused.value)

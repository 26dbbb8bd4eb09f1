"""Files of prompts: AlpacaEval's, Arena-Hard's, IFEval's and others, word for word, and what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import InputError
from refed_dspy.plugins.evaluate.prompts import load_prompts
from tests.support.refusals import refusal
from tests.support.row_files import KINDS, write_rows
from tests.support.said import Said

FISH = "Name a fish."
BENCHMARKS: list[dict[str, Any]] = [
    {"instruction": FISH, "dataset": "koala", "output": "Cod.", "generator": "other"},
    {"uid": "1a", "category": "hard_prompt", "prompt": FISH},
    {"key": 1000, "prompt": FISH, "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {"question": FISH, "answer": "Cod."},
]


@pytest.mark.parametrize("row", BENCHMARKS, ids=["AlpacaEval", "Arena-Hard", "IFEval", "question"])
def test_the_instruction_is_found_where_benchmarks_have_it(row: dict[str, Any]) -> None:
    (prompt,) = load_prompts([row]).rows
    assert (prompt.number, prompt.text, prompt.system, prompt.fields) == (1, FISH, "", row)


@pytest.mark.parametrize("kind", KINDS)
def test_files_of_every_kind_give_the_text_to_the_letter(tmp_path: Path, kind: str) -> None:
    texts = ["  Name a fish.\n", "Say “ü”, and\nthen 魚. "]
    file = write_rows(tmp_path / f"q.{kind}", [{"prompt": text, "uid": str(at)} for at, text in enumerate(texts)])
    assert [(row.number, row.text) for row in load_prompts(file).rows] == list(enumerate(texts, start=1))


def test_columns_inputs_and_system_prompts() -> None:
    rows = [{"q": "Sort.", "text": "b, a", "sys": "Briefly."}, {"q": FISH, "text": None}]
    columns = {"instruction": "q", "input": "text", "system": "sys"}
    prompts = load_prompts(rows, columns, system="Kindly.").rows
    assert [(row.text, row.system) for row in prompts] == [("Sort.\n\nb, a", "Briefly."), (FISH, "Kindly.")]


def test_a_file_that_cannot_be_used_is_told_in_a_line(said: Said) -> None:
    hi = {"prompt": "Hi"}
    wrong: dict[str, tuple[list[dict[str, Any]], dict[str, str]]] = {
        "no instructions": ([{"uid": "1", "text": "Hi"}, {"uid": "2", "cluster": 3}], {}),
        "no such column": ([hi], {"instruction": "task"}),
        "no such role": ([hi], {"response": "x"}),
        "a blank one": ([hi, {"prompt": " \n"}], {}),
        "none in a row": ([hi, {"uid": "2"}], {}),
        "a list": ([{"prompt": [{"role": "user", "content": "Hi"}]}], {}),
        "half a character": ([{"prompt": "Hi", "system": "\ud800"}], {}),
        "no rows": ([], {}),
    }
    said({what: refusal(InputError, load_prompts, *given) for what, given in wrong.items()})

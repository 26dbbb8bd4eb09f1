"""Reading references from what a notebook has at hand: data frames, a `DatasetDict`, pairs of texts."""

from __future__ import annotations

import datasets
import pandas
import pytest

from refed_dspy.data.references import load_references
from refed_dspy.errors import ReferencesError
from tests.data.test_references import pairs, refusal
from tests.support.said import Said

TABLE = [{"question": "Q1", "answer": "A1"}, {"question": "Q2", "answer": "A2"}]


def test_a_data_frame_is_read_and_a_missing_value_counted() -> None:
    references = load_references(pandas.DataFrame([*TABLE, {"question": "Q3"}]))
    assert pairs(references) == [("Q1", "A1"), ("Q2", "A2")] and references.left_out == {"empty": 1}


def test_a_dataset_dict_of_one_split_is_read() -> None:
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(TABLE))
    assert pairs(load_references(splits)) == [("Q1", "A1"), ("Q2", "A2")]


def test_of_several_splits_one_must_be_named(said: Said) -> None:
    table = datasets.Dataset.from_list(TABLE)
    splits = datasets.DatasetDict(train=table, test=table)
    said(refusal(splits))
    assert len(load_references(splits["train"])) == 2


def test_pairs_of_texts_are_read() -> None:
    assert pairs(load_references([("Q1", "A1"), ("Q2", "A2")])) == [("Q1", "A1"), ("Q2", "A2")]


@pytest.mark.parametrize("source", [{}, {"instruction": "Q", "response": "A"}])
def test_one_mapping_is_not_a_list_of_them(said: Said, source: dict[str, str]) -> None:
    said(refusal(source))


def test_a_system_prompt_counts_where_a_window_is_small(said: Said) -> None:
    references = load_references([{"instruction": "Q", "response": "A", "system": "S" * 30_000}])
    with said.by(ReferencesError):
        references.fitting(8192, 1024)

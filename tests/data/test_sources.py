"""Reading references from what a notebook has at hand: data frames, a `DatasetDict`, pairs of texts."""

from __future__ import annotations

import datasets
import pandas
import pytest

from refed_dspy.data.references import load_references
from refed_dspy.errors import ReferencesError
from tests.data.test_references import pairs, refusal

TABLE = [{"question": "Q1", "answer": "A1"}, {"question": "Q2", "answer": "A2"}]


def test_a_data_frame_is_read_and_a_missing_value_counted() -> None:
    references = load_references(pandas.DataFrame([*TABLE, {"question": "Q3"}]))
    assert pairs(references) == [("Q1", "A1"), ("Q2", "A2")] and references.left_out == {"empty": 1}


def test_a_dataset_dict_of_one_split_is_read() -> None:
    splits = datasets.DatasetDict(train=datasets.Dataset.from_list(TABLE))
    assert pairs(load_references(splits)) == [("Q1", "A1"), ("Q2", "A2")]


def test_of_several_splits_one_must_be_named() -> None:
    table = datasets.Dataset.from_list(TABLE)
    splits = datasets.DatasetDict(train=table, test=table)
    assert refusal(splits) == "references: has the splits train, test; choose one, for instance ['train']"
    assert len(load_references(splits["train"])) == 2


def test_pairs_of_texts_are_read() -> None:
    assert pairs(load_references([("Q1", "A1"), ("Q2", "A2")])) == [("Q1", "A1"), ("Q2", "A2")]


@pytest.mark.parametrize("source", [{}, {"instruction": "Q", "response": "A"}])
def test_one_mapping_is_not_a_list_of_them(source: dict[str, str]) -> None:
    assert refusal(source) == "references: got a dict; pass a list of mappings, one per row"


def test_a_system_prompt_counts_where_a_window_is_small() -> None:
    references = load_references([{"instruction": "Q", "response": "A", "system": "S" * 30_000}])
    with pytest.raises(ReferencesError, match=r"window of 8192 tokens with max_tokens [0-9]+; raise"):
        references.fitting(8192, 1024)

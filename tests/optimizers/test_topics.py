"""Topics of held-out references."""

from __future__ import annotations

from pathlib import Path

import dspy
import numpy as np
import pytest

from refed_dspy.measures.embedder import Vectors
from refed_dspy.optimizers.examples import Split, cluster_of
from refed_dspy.optimizers.proof import find_topics, topics_of


def directions(*angles: float) -> Vectors:
    return np.array([[np.cos(np.radians(each)), np.sin(np.radians(each))] for each in angles], dtype=np.float32)


def test_what_points_the_same_way_is_one_topic() -> None:
    assert topics_of(directions(0, 20, 180, 200), list("abcd"), 0.15) == ["a", "a", "c", "c"]
    assert topics_of(directions(0, 120, 240), list("abc"), 0.15) == ["a", "b", "c"]


def test_a_chain_of_neighbours_is_not_one_topic() -> None:
    topics = topics_of(directions(0, 60, 120, 180, 240, 300), list("abcdef"), 0.15)
    assert 1 < len(set(topics)) < 6


def test_one_in_the_very_middle_is_nobodys_relative() -> None:
    vectors = np.vstack([directions(0, 10), np.zeros((1, 2), dtype=np.float32)])
    assert topics_of(vectors, list("abc"), 0.15) == ["a", "a", "c"]


def examples(*instructions: str) -> tuple[dspy.Example, ...]:
    return tuple(dspy.Example(instruction=each).with_inputs("instruction") for each in instructions)


BREAD = ("Explain how to keep a sourdough starter alive.", "My sourdough loaf comes out dense. What should I change?")
OTHERS = ("Prove that the square root of 2 is irrational.", "Write a cover letter for a junior data analyst.",
          "When should I prune apple trees?", "Plan three days in Lisbon with two children.")  # fmt: skip


@pytest.mark.live
def test_two_on_bread_are_one_topic() -> None:
    split = Split(examples(*OTHERS), (), examples(*BREAD, *OTHERS[:3]))
    topics = find_topics(split)
    assert topics is not None and len(topics) == 5
    first, second, *others = (topics[cluster_of(example)] for example in split.test)
    assert first == second and len({first, *others}) == 4


def test_without_the_embedding_model_or_instructions_there_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert find_topics(Split((), (), examples(*BREAD))) is None
    numbers = tuple(dspy.Example(x=n).with_inputs("x") for n in range(3))
    assert find_topics(Split((), (), numbers)) is None

"""Models on the nodes say what they say in one process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import refed_dspy
from benchmarks.nodes import Nodes
from refed_dspy.errors import ConfigError
from tests.support.toy_server import ToyServer, toy_served

pytestmark = pytest.mark.cluster

ROWS = [
    {"instruction": f"What is number {n}?", "response": f"It is {n}, as was asked. " * (1 + n % 5)} for n in range(90)
]


@pytest.fixture
def toy() -> Iterator[ToyServer]:
    with toy_served() as server:
        yield server


def test_figures_on_nodes_are_those_of_one_process(nodes: Nodes, toy: ToyServer) -> None:
    scorer = {"model": "toy", "api_base": toy.url}
    alone, together = (
        refed_dspy.measure(ROWS, embeddings=False, scorer=scorer, sample=90, cluster=cluster)
        for cluster in (None, nodes.address)
    )
    assert dict(together.columns["data"]) == dict(alone.columns["data"])
    assert together.columns["data"]["perplexity of the instruction, mean"]


def test_a_scorer_that_no_node_can_open(nodes: Nodes) -> None:
    scorer = {"model": "toy", "api_base": "http://127.0.0.1:9/v1"}
    with pytest.raises(ConfigError, match=r"scorer: cannot be opened on a node: .*127.0.0.1:9") as raised:
        refed_dspy.measure(ROWS, embeddings=False, scorer=scorer, cluster=nodes.address)
    assert "\n" not in str(raised.value)

"""Small compiles on the simulated server: what their tests share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.optimizers.result import Compiled
from tests.support.scripted_engine import references

RATES = {"prompt": 1.0, "completion": 10.0}
"""Dollars a million tokens: a token costs a whole number of picodollars."""
SMALL: dict[str, Any] = {
    "train": 3,
    "validation": 2,
    "test": 5,
    "features": {"topic": "What it is about."},
    "instructions_per_feature": 1,
    "track": False,
}
"""One feature, one instruction each: about nine calls an evaluation."""


@pytest.fixture
def terse_server(server: SimulatedTeacher) -> SimulatedTeacher:
    """One instruction an answer, of eight words."""
    server.control(response_words=8, items=1)
    return server


@pytest.fixture(autouse=True)
def without_words() -> Iterator[None]:
    """DSPy logs each example that fails, whole."""
    dspy_log = logging.getLogger("dspy")
    before = dspy_log.level
    dspy_log.setLevel(logging.CRITICAL)
    yield
    dspy_log.setLevel(before)


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values = {"model": "openai/sim", "api_base": server.base_url, "price": RATES, "max_tokens": 512}
    return TeacherConfig.model_validate({**values, **settings})


def compiled(program: Any, examples: Any, folder: Path, optimizer: str, **settings: Any) -> Compiled:
    """A compile by the SMALL settings, on ten references where no examples are given."""
    dataset = references(10) if examples is None else examples
    small = SMALL
    if isinstance(program, dspy.Module) and not isinstance(program, refed_dspy.ReferenceLevelFeedback):
        small = {name: value for name, value in SMALL.items() if "feature" not in name}
    return refed_dspy.compile(program, dataset, optimizer=optimizer, out=folder, **{**small, **settings})


def requests(server: SimulatedTeacher) -> int:
    return int(server.stats()["requests"])


class Answerer(dspy.Module):  # type: ignore[misc]
    """A program of one call, which also says what it was asked with."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        output = self.answer(question=question)
        return dspy.Prediction(answer=output.answer, prompt=self.answer.signature.instructions)


def questions(count: int) -> list[dspy.Example]:
    return [dspy.Example(question=f"What is {n}?").with_inputs("question") for n in range(count)]

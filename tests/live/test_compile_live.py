"""A compile on a real model: bootstrap with the tiny embedded teacher ends at its cap, and keeps what it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import dspy
import pytest

import refed_dspy
from refed_dspy import TeacherConfig
from refed_dspy.records import AtMost

pytestmark = pytest.mark.live
SMOKE = TeacherConfig(model="embedded-smoke", max_tokens=80, temperature=0.7, concurrency=2)
CAP = 14


class Naming(dspy.Signature):  # type: ignore[misc]
    """Answer in a word or two."""

    question: str = dspy.InputField()
    answer: Annotated[str, AtMost(40)] = dspy.OutputField(desc="a word or two")


def short(example: dspy.Example, prediction: Any) -> float:
    return 1 / (1 + len(prediction.answer.split()))


def test_a_capped_compile_ends_at_its_cap(tmp_path: Path) -> None:
    questions = [dspy.Example(question=f"Name fruit {n}.").with_inputs("question") for n in range(12)]
    made = refed_dspy.compile(
        dspy.Predict(Naming),
        questions,
        metric=short,
        teacher=SMOKE,
        optimizer="bootstrap",
        options={"max_bootstrapped_demos": 2},
        train=6,
        validation=3,
        test=3,
        max_calls=CAP,
        out=tmp_path / "compile",
    )
    assert made.manifest["calls"] <= CAP and made.manifest["usage"]["teacher"]["answered"] > 0
    assert made.stopped == "max_calls" or made.proof is not None
    assert json.loads(made.path.read_text())["refed"]["calls"] == made.manifest["calls"]

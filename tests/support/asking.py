"""Asking a predictor as a stage of a program does."""

from __future__ import annotations

from typing import Any

import dspy

from refed_dspy.programs.asking import about, again


async def ask(stage: str, item: str, predictor: dspy.Module, repetition: int = 0, **inputs: Any) -> dspy.Prediction:
    """The answer of `predictor` for `inputs`, from the language model of this context."""
    with about(stage, item):
        return await predictor.acall(config=again(repetition), **inputs)

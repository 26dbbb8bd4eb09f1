"""What all programs of this package have in common."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy

from refed_dspy.concurrency import run_blocking


class Program(dspy.Module):
    """A module that does its work in `aforward`, and that ordinary code can call as well."""

    def forward(self, *inputs: Any, **named: Any) -> dspy.Prediction:
        """`aforward` from ordinary code, and from notebooks, whose event loop is running."""
        return run_blocking(self.aforward(*inputs, **named))


@contextmanager
def trace_in_order(program: dspy.Module) -> Iterator[None]:
    """Sort DSPy's trace of this block by stage, then by inputs, so that it does not depend on which call ended first.

    Optimizers make demonstrations from it, and a resumed compile must make the same ones.
    """
    outer = dspy.settings.trace
    if outer is None or not dspy.settings.max_trace_size:
        yield
        return
    position = {id(predictor): n for n, predictor in enumerate(program.predictors())}
    with dspy.context(trace=[]):
        inner = dspy.settings.trace
        try:
            yield
        finally:
            outer.extend(sorted(inner, key=lambda step: (position.get(id(step[0]), -1), repr(step[1]))))

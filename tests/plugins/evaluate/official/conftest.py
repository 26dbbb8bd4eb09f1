"""Official benchmarks' own code, in environments that take hundreds of megabytes (make evaluate)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from refed_dspy.plugins.evaluate.program import ALPACA_EVAL, Installed, environment


@pytest.fixture(scope="session")
def installed() -> Installed:
    """AlpacaEval's code in the user's own environment for it, or in the one that ALPACA_EVAL_PYTHON names."""
    chosen = os.environ.get("ALPACA_EVAL_PYTHON")
    return environment(ALPACA_EVAL, Path(chosen) if chosen else None)

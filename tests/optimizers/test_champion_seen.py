"""A champion that saw what would be held out: nothing could be proved over it, and nothing is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from refed_dspy.errors import ConfigError
from tests.support import mlflow_stores
from tests.support.mlflow_stores import Mlflow
from tests.support.said import Said
from tests.tracking.test_compile import BETTER, compiled_in_the_world

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked


@pytest.mark.slow
def test_a_compile_on_what_the_champion_saw_is_refused_before_its_first_call(said: Said, tracked: Mlflow) -> None:
    first = compiled_in_the_world("first", **BETTER, track=True)
    assert first.proved
    with said.by(ConfigError):
        compiled_in_the_world("second", **BETTER, track=True, seed=5)
    assert not list(Path("second").glob("program.json"))
    assert compiled_in_the_world("third", **BETTER, track=True, seed=5, prove=False).proof is None

"""Every settings file in examples/ loads."""

from __future__ import annotations

import pytest

from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.jobs import CompareConfig, FilterRunConfig, RecycleConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from tests.support import ROOT

EXAMPLES = ROOT / "examples"
KINDS: dict[str, type[Settings]] = {
    "demo.yaml": RunConfig,
    "pool.yaml": RunConfig,
    "compile.yaml": CompileConfig,
    "compare.yaml": CompareConfig,
    "filters.yaml": FilterRunConfig,
    "recycle.yaml": RecycleConfig,
}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.yaml")))
def test_a_settings_file_loads(name: str) -> None:
    config = load_config(KINDS[name], EXAMPLES / name, {})
    assert config.model_fields_set

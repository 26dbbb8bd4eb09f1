"""Every settings file in examples/ is one."""

from __future__ import annotations

import pytest

from refed_dspy.config.loading import (
    CompareConfig,
    CompileConfig,
    FilterRunConfig,
    RecycleConfig,
    RunConfig,
    Settings,
    load_job_config,
)
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
    told = load_job_config(KINDS[name], EXAMPLES / name, {})
    assert told.model_fields_set

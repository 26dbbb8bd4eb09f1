"""Every settings file in examples/ loads, and the embedded model's program is what examples/embedded made."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.data.read import OWN
from refed_dspy.filters.rouge import rouge_l, tokens
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.plugins.recycle.settings import RecycleConfig
from refed_dspy.programs import ReferenceLevelFeedback
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


# --- the embedded model's own program


@pytest.fixture(scope="module")
def example() -> Iterator[Any]:
    """examples/embedded/compile.py as a module."""
    spec = importlib.util.spec_from_file_location("embedded_example", EXAMPLES / "embedded" / "compile.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_embedded_model_s_program_is_the_present_one_with_the_demonstrations(example: Any) -> None:
    program, plain = refed_dspy.load_program("embedded"), ReferenceLevelFeedback(guidance=example.WRITTEN["guidance"])
    for stage, predictor in plain.named_predictors():
        theirs = getattr(program, stage)
        assert theirs.signature.instructions == predictor.signature.instructions, f"run {EXAMPLES}/embedded/compile.py"
        shown = [dict(demonstration) for demonstration in theirs.demos]
        assert shown == example.WRITTEN["demonstrations"][stage]
    assert program.instructions_per_feature == 3


def test_no_demonstration_is_on_the_subject_of_a_reference(example: Any) -> None:
    written = example.WRITTEN["demonstrations"].values()
    shown = {text for stage in written for one in stage for name, text in one.items() if name.endswith("instruction")}
    for name in OWN:
        for reference in refed_dspy.load_references(name):
            assert all(rouge_l(tokens(text), tokens(reference.instruction)) < 0.8 for text in shown)


@pytest.mark.slow
def test_the_compile_of_the_demonstrations_runs(example: Any, server: SimulatedTeacher, tmp_path: Path) -> None:
    teacher = refed_dspy.TeacherConfig(model="sim/sim-model", api_base=server.base_url)
    made = example.compiled(tmp_path / "compile", teacher)
    assert made.path.is_file() and made.proof is not None
    assert not made.changed, "the simulated teacher writes the same with demonstrations"
    shown = example.WrittenDemonstrations().compile(made.program, trainset=[])
    assert [len(predictor.demos) for predictor in shown.predictors()] == [2, 2, 2, 2, 2]


# --- notebooks


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((EXAMPLES / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell in one process, as a kernel would: with `await` and `async for` at the top."""
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] for cell in cells)

    async def run() -> None:
        names: dict[str, Any] = {}
        for number, cell in enumerate(cells):
            code = compile("".join(cell["source"]), f"cell {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            if inspect.iscoroutine(coroutine := eval(code, names)):
                await coroutine

    asyncio.run(run())

"""Every settings file in examples/ loads, and the embedded model's program is what examples/embedded made."""

from __future__ import annotations

import ast
import asyncio
import importlib.util
import inspect
import json
import math
import sys
from collections.abc import Callable
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
from refed_dspy.teachers.simulated.model import SimulatedModel
from tests.support import ROOT
from tests.support.scripted_engine import Killed

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


def module_of(path: Path) -> Any:
    """An example's file as a module, which stays importable: a program's code is part of a run's identity."""
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example() -> Any:
    """examples/embedded/compile.py as a module."""
    return module_of(EXAMPLES / "embedded" / "compile.py")


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


# --- programs of one's own


class Simulated:
    """Counts what the simulated teacher is asked. At the request number `dies_at` the process goes away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requests, self.dies_at = 0, math.inf
        complete = SimulatedModel.complete

        async def counted(model: SimulatedModel, request: Any) -> Any:
            self.requests += 1
            if self.requests >= self.dies_at:
                raise Killed
            return await complete(model, request)

        monkeypatch.setattr(SimulatedModel, "complete", counted)

    def dying_after(self, more: int) -> Any:
        """The block is a process that goes away at this request."""
        self.dies_at = self.requests + more
        return pytest.raises(Killed)

    def asked_by(self, work: Callable[[], object]) -> int:
        """How many requests `work` makes."""
        before, self.dies_at = self.requests, math.inf
        work()
        return self.requests - before


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Simulated:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REFED_TRACK", "false")
    monkeypatch.setenv("REFED_TEACHER__CONCURRENCY", "1")  # no request is in flight beside the one that dies
    return Simulated(monkeypatch)


def test_evol_instruct_is_estimated_capped_killed_and_goes_on(
    simulated: Simulated, capsys: pytest.CaptureFixture[str]
) -> None:
    evol = module_of(EXAMPLES / "evol_instruct.py")
    whole = simulated.asked_by(lambda: evol.main("20", "simulated", "whole"))
    said = capsys.readouterr().out
    assert f"about {whole} calls" in said and f"20 samples, {whole} calls; done" in said
    with simulated.dying_after(25):
        evol.main("20", "simulated", "killed")
    assert simulated.asked_by(lambda: evol.main("20", "simulated", "killed")) == whole - 24
    settings: dict[str, Any] = {"size": 20, "teacher": "simulated", "run_dir": "capped", "guards": {"copies": False}}
    capped = refed_dspy.synthesize(evol.EvolInstruct(), "builtin", max_calls=30, **settings)
    assert capped.status["used"]["calls"] == 30 and "max_calls" in capped.reason
    instructions = [
        {sample.instruction for sample in refed_dspy.read_run(folder).samples} for folder in ("whole", "killed")
    ]
    assert instructions[0] == instructions[1]


def test_evol_instruct_is_compared_with_the_method(simulated: Simulated) -> None:
    evol = module_of(EXAMPLES / "evol_instruct.py")
    settings: dict[str, Any] = {"size": 4, "teacher": "simulated", "judge": "simulated", "embeddings": False}
    made = refed_dspy.compare([evol.EvolInstruct(), "reference-level"], "builtin", out="c", subsets=[4], **settings)
    assert [(line.program, line.rows) for line in made.programs] == [("A", 4), ("reference-level", 4)]


@pytest.mark.slow
def test_evol_instruct_is_compiled(simulated: Simulated) -> None:
    evol = module_of(EXAMPLES / "evol_instruct.py")
    sizes = {"train": 3, "validation": 3, "test": 5, "evaluations": 8}
    settings: dict[str, Any] = {"teacher": "simulated", "judge": "simulated", "optimizer": "gepa", "out": "c", **sizes}
    made = refed_dspy.compile(evol.EvolInstruct(), "builtin", **settings)
    assert made.path.is_file()
    assert simulated.asked_by(lambda: refed_dspy.compile(evol.EvolInstruct(), "builtin", **settings)) == 0
    assert len(refed_dspy.synthesize(made, size=3, teacher="simulated", run_dir="r", guards=False).samples) == 3


def test_self_instruct_grows_the_same_pool_whether_it_is_killed_or_not(simulated: Simulated) -> None:
    self_instruct = module_of(EXAMPLES / "self_instruct.py")
    seeds = [{"instruction": f"Explain matter {n}.", "response": f"It is {n}."} for n in range(8)]
    pools: dict[str, list[dict[str, str]]] = {}

    def grown(folder: str, max_calls: int = 1_000) -> None:
        run = {"size": 8, "teacher": "simulated", "filters": [{"rouge": {"threshold": 0.7}}]}
        pools[folder] = self_instruct.grow(seeds, 2, max_calls, folder, **run)

    whole = simulated.asked_by(lambda: grown("whole"))
    assert len(pools["whole"]) == 16
    for more in (5, whole // 2):
        with simulated.dying_after(more):
            grown("killed")
    assert simulated.asked_by(lambda: grown("killed")) == whole - (5 - 1) - (whole // 2 - 1)
    assert pools["killed"] == pools["whole"]
    assert simulated.asked_by(lambda: grown("whole")) == 0

    assert simulated.asked_by(lambda: grown("capped", whole // 2)) == whole // 2, "the cap is that of all rounds"
    assert simulated.asked_by(lambda: grown("capped")) == whole - whole // 2
    assert pools["capped"] == pools["whole"]


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

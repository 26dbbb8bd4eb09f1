"""The ready teacher files: each loads, goes where it says, and makes samples over its wire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.judge import in_role
from refed_dspy.teachers.prices import price_of
from refed_dspy.teachers.route import resolve
from tests.support import ROOT
from tests.support.said import Said
from tests.support.scripted_engine import references

FILES = sorted((ROOT / "examples" / "teachers").glob("*.yaml"))
HOSTED = {
    "openai": "https://api.openai.com/v1",
    "gpt-5": "https://api.openai.com/v1",
    "azure": "https://YOUR-RESOURCE.openai.azure.com",
    "anthropic": "https://api.anthropic.com/v1",
    "openrouter": "https://openrouter.ai/api/v1",
    "openai-batch": "https://api.openai.com/v1",
    "anthropic-batch": "https://api.anthropic.com/v1",
    "gemini-batch": "https://generativelanguage.googleapis.com/v1beta",
    "azure-batch": "https://YOUR-RESOURCE.openai.azure.com",
}
KEYS = ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "OPENROUTER_API_KEY")


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.setenv(name, "a-key-for-tests")


def test_there_is_one_for_each_kind() -> None:
    names = {"openai", "azure", "anthropic", "openrouter", "ollama", "vllm", "llama-cpp", "embedded"}
    names |= {"openai-batch", "azure-batch", "anthropic-batch", "gemini-batch", "vllm-folder"}
    names |= {"gpt-5", "qwen3", "deepseek-r1"}
    assert {file.stem for file in FILES} == names


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_is_a_teacher_with_a_known_price(file: Path) -> None:
    teacher = load_config(RunConfig, environ={}, teacher=str(file)).teacher
    assert isinstance(teacher, TeacherConfig)
    if teacher.embedded:
        return
    route = resolve(teacher)
    own = Path("batches").absolute().as_uri() if teacher.mode == "folder" else teacher.api_base
    assert route.endpoint == HOSTED.get(file.stem, own)
    price = price_of(teacher, route.endpoint)
    assert price is not None and (price.rates.prompt > 0) == (file.stem in HOSTED)


def counted(server: SimulatedTeacher, file: Path) -> int:
    """Requests that came over the file's wire, or in a batch."""
    stats = server.stats()
    name = file.stem if file.stem in {"azure", "anthropic"} else "openai"
    return int(stats["batch_requests"] if "batch" in file.stem else stats["by_wire"].get(name, 0))


FAST = ("gpt-5", "azure", "anthropic", "azure-batch", "deepseek-r1")


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.stem, marks=[] if file.stem in FAST else pytest.mark.slow)
        for file in FILES
        if file.stem not in {"embedded", "vllm-folder"}  # nothing answers the latter here
    ],
)
def test_each_makes_samples_over_its_wire(file: Path, server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(batch_seconds=0)
    settings = yaml.safe_load(file.read_text())
    roots = {"azure": server.root, "anthropic": server.anthropic_url, "gemini": server.gemini_url}
    settings |= {
        "api_base": roots.get(file.stem.removesuffix("-batch"), server.base_url),
        "api_key_env": "OPENAI_API_KEY",
    }
    settings |= {"batch": {"quiet": 0.05, "poll": 0.05}} if "batch" in file.stem else {}
    before = counted(server, file)
    made = refed_dspy.synthesize(
        None, references(2), size=2, teacher=TeacherConfig.model_validate(settings), run_dir=tmp_path / "run"
    )
    assert made.complete and not made.failures
    assert counted(server, file) > before


@pytest.mark.parametrize(
    "source", ["nosuch", "a/b", {"model": "simulated", "temprature": 1}, {}], ids=["name", "key", "typo", "nothing"]
)
def test_whatever_is_wrong_with_a_model_is_said_of_what_it_is_for(said: Said, source: Any) -> None:
    with said.by(ConfigError), in_role("reflection"), in_role("judge"):
        open_teacher(source)

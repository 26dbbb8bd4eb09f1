"""`refed init`: a file that the loader takes, with every setting that it names, and the commands that come next."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from refed_dspy.cli.main import app
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import TeacherConfig
from tests.support.said import Said

NAMES = [
    "openai/gpt-4o-mini", "openai/gpt-5-mini", "anthropic/claude-haiku-4-5", "azure/prod", "azure/gpt-4o-mini",
    "ollama/llama3.1", "vllm/Qwen/Qwen3-8B", "sglang/any", "llama-cpp/any", "our gateway/model: 2 #1", "simulated",
    "embedded", "embedded-smoke", "models/any.gguf",
]  # fmt: skip
_SWITCHED_OFF = re.compile(r"^( *)#(?! \S)", re.MULTILINE)
"""A setting behind a #; a comment has one space behind it."""


def init(*words: object) -> Result:
    return CliRunner().invoke(app, ["init", *map(str, words)])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_the_loader_takes_it_as_it_is_and_with_everything_switched_on(name: str) -> None:
    assert init("--teacher", name).exit_code == 0
    text = Path("refed.yaml").read_text()
    assert "{" not in re.sub(r"\{\w+: [^{}]*\}", "", text) and max(map(len, text.splitlines())) <= 120
    settings = load_config(RunConfig, Path("refed.yaml"), {})
    assert isinstance(settings.teacher, TeacherConfig) and name in {settings.teacher.model, str(settings.teacher.gguf)}
    Path("all.yaml").write_text(_SWITCHED_OFF.sub(r"\1", text))
    everything = load_config(RunConfig, Path("all.yaml"), {})
    assert len(everything.filters) == 4 and everything.max_cost == 1.0 and everything.judge is not None
    assert everything.model_fields_set > settings.model_fields_set


def test_what_to_do_next_is_printed(said: Said) -> None:
    names = ("anthropic/claude-haiku-4-5", "azure/prod", "ours/model", "embedded", "simulated")
    said({name: init("--teacher", name, f"a {at}.yaml").stdout for at, name in enumerate(names)})


def test_the_file_it_writes_makes_samples() -> None:
    init("--teacher", "simulated")
    made = CliRunner().invoke(app, ["synth", "--config", "refed.yaml", "--size", "3"], env={"REFED_TRACK": "false"})
    assert made.exit_code == 0, made.output
    assert CliRunner().invoke(app, ["show", "runs/first"]).exit_code == 0


def test_a_file_that_is_there_stays(said: Said) -> None:
    Path("refed.yaml").write_text("mine")
    result = init()
    said((result.exit_code, result.stderr))
    assert Path("refed.yaml").read_text() == "mine"


def test_a_name_that_no_teacher_has_writes_nothing(said: Said) -> None:
    result = init("--teacher", "simulatd")
    assert result.exit_code == 2
    said(result.stderr)
    assert not Path("refed.yaml").exists()

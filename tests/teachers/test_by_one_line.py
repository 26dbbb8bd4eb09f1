"""Teachers by one line of settings, at endpoints that refuse and answer as the real ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.runs.result import Synthesis
from tests.support.scripted_engine import references

REASONS = ["no max_tokens", "default temperature", "no bounds"]
"""What OpenAI's reasoning models refuse."""
THINKS = "Let me see: [1] {so}.\n</think>\n\n"
AZURE = {"api_key_env": "ANY_KEY"}
DATED = {**AZURE, "api_version": "2024-10-21"}


CASES: list[tuple[dict[str, Any], dict[str, Any], int]] = [
    ({"model": "openai/gpt-4o-mini"}, {"rules": ["no bounds"]}, 1),
    ({"model": "openai/gpt-5-mini"}, {"rules": REASONS}, 1),
    ({"model": "gateway/ours"}, {"rules": REASONS}, 2),
    ({"model": "gateway/ours", "temperature": 0.7}, {"rules": REASONS}, 3),
    ({"model": "gateway/ours", "answer_schema": "strict"}, {"rules": REASONS}, 1),
    ({"model": "gateway/ours"}, {"rules": ["no schema"]}, 1),
    ({"model": "gateway/ours", "reasoning": "low"}, {"rules": ["no reasoning"]}, 1),
    ({"model": "gateway/ours", "answer_schema": "none"}, {"rules": ["no schema"]}, 0),
    ({"model": "azure/prod", **AZURE}, {"rules": REASONS}, 0),
    ({"model": "azure/prod", **DATED}, {"rules": REASONS}, 1),
    ({"model": "azure/prod", **DATED}, {"rules": ["no max_completion_tokens", "no bounds"]}, 0),
    ({"model": "anthropic/ours", "temperature": 0.5}, {"rules": ["no temperature"]}, 1),
    ({"model": "anthropic/ours", "temperature": 0.5, "reasoning": "low"}, {"rules": ["thinks at temperature 1"]}, 1),
    ({"model": "vllm/Qwen/Qwen3-8B"}, {"reasoning": "So."}, 0),
    ({"model": "vllm/Qwen/Qwen3-8B"}, {"thinking": f"<think>{THINKS}"}, 0),
    ({"model": "ollama/deepseek-r1"}, {"thinking": THINKS}, 0),
]
"""Settings; what the endpoint refuses, or how it answers; how many refusals that takes."""
BATCHED = [(settings, answers) for settings, answers, _ in CASES if settings["model"].startswith(("openai", "azure"))]


def run(folder: Path, server: SimulatedTeacher, settings: dict[str, Any], answers: dict[str, Any]) -> Synthesis:
    """Three samples by the teacher of these settings."""
    server.control(**answers, batch_seconds=0)
    base = server.root if settings["model"].startswith("azure") else server.base_url
    values = {"api_base": base, "concurrency": 1, "price": {"prompt": 1, "completion": 2}, **settings}
    teacher = refed_dspy.TeacherConfig.model_validate(values)
    return refed_dspy.synthesize(None, references(1), size=3, teacher=teacher, run_dir=folder, track=False)


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY_KEY", "sk-any-0123456789")


@pytest.mark.parametrize(("settings", "answers", "refusals"), CASES, ids=str)
def test_rows_are_made_at_once_and_each_refusal_is_told_and_remembered(
    tmp_path: Path,
    server: SimulatedTeacher,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    answers: dict[str, Any],
    refusals: int,
) -> None:
    made = run(tmp_path, server, settings, answers)
    assert made.complete and not made.status["failures"]
    assert server.stats()["by_status"].get("400", 0) == refusals == len(caplog.messages)


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "answers"), BATCHED, ids=str)
def test_rows_are_made_in_batches(
    tmp_path: Path, server: SimulatedTeacher, settings: dict[str, Any], answers: dict[str, Any]
) -> None:
    batched = {**settings, "mode": "batch", "batch": {"quiet": 0.05, "poll": 0.05}}
    made = run(tmp_path, server, batched, answers)
    assert made.complete and not made.status["failures"]

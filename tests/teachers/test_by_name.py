"""Teachers by their names alone, at the providers' own hosts, which refuse as they do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import TeacherRefused
from tests.support.provider_hosts import standing_in
from tests.support.recording_endpoint import listening
from tests.support.scripted_engine import references

REASONS = ["no max_tokens", "default temperature", "no bounds"]
CLAUDE = "api.anthropic.com"
EU = "https://eu.api.openai.com/v1"
AZURE = {"api_base": "https://prod.openai.azure.com", "api_key_env": "AZURE_KEY"}


@pytest.mark.parametrize(
    ("settings", "rules", "host"),
    [
        ({"model": "openai/gpt-4o-mini"}, ["no bounds"], "api.openai.com"),
        ({"model": "openai/gpt-5-mini"}, REASONS, "api.openai.com"),
        ({"model": "openai/gpt-5-mini", "api_base": EU, "api_key_env": "OPENAI_API_KEY"}, REASONS, "eu.api.openai.com"),
        ({"model": "azure/any", **AZURE}, REASONS, "prod.openai.azure.com"),
        ({"model": "anthropic/claude-opus-5"}, ["no temperature"], "api.anthropic.com"),
        (
            {"model": "anthropic/claude-sonnet-4-5", "reasoning": "low"},
            ["thinks at temperature 1"],
            "api.anthropic.com",
        ),
    ],
    ids=str,
)
def test_nothing_is_refused(
    tmp_path: Path,
    server: SimulatedTeacher,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    rules: list[str],
    host: str,
) -> None:
    server.control(rules=rules)
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AZURE_KEY"):
        monkeypatch.setenv(name, "sk-any-0123456789")
    with standing_in(server.port, tmp_path, monkeypatch) as connected:
        teacher = refed_dspy.TeacherConfig.model_validate({**settings, "concurrency": 2})
        made = refed_dspy.synthesize(None, references(1), size=3, teacher=teacher, run_dir=tmp_path / "run")
    assert made.complete and set(connected) == {host}
    assert set(server.stats()["by_status"]) == {"200"}
    assert made.usage["response_generation"]["cost"] or host.endswith("azure.com")  # the table knows its price


@pytest.mark.parametrize(
    ("model", "thinking"),
    [
        ("gemini/gemini-2.5-flash", {"includeThoughts": True, "thinkingBudget": 8_000}),
        ("gemini/gemini-3-pro", {"includeThoughts": True, "thinkingLevel": "high"}),
    ],
)
def test_gemini_has_room_for_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, thinking: dict[str, Any]
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "any-0123456789")
    with listening(lambda _: (400, {"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}})) as there:
        port = int(there.root.rpartition(":")[2])
        with standing_in(port, tmp_path, monkeypatch), pytest.raises(TeacherRefused):
            teacher = refed_dspy.TeacherConfig(model=model, reasoning="high", concurrency=1)
            refed_dspy.synthesize(None, references(1), size=1, teacher=teacher, run_dir=tmp_path / "run")
    settings = there.bodies[0]["generationConfig"]
    assert settings["maxOutputTokens"] == 16_000 and settings["thinkingConfig"] == thinking

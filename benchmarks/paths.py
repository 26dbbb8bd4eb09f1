"""Whose chat a path of the simulated server is."""

from __future__ import annotations

from benchmarks.wires import ANTHROPIC, AZURE, AZURE_V1, OPENAI, OpenAI
from benchmarks.wires_gemini import GEMINI, METHOD, model_of

PATHS = {
    "/v1/chat/completions": OPENAI,
    "/openai/v1/chat/completions": AZURE_V1,
    "/v1/messages": ANTHROPIC,
}


def wire_of(path: str) -> OpenAI | None:
    """The wire of a chat path (without its query); None for any other path."""
    if path.startswith("/openai/deployments/"):
        segments = path.split("/")
        return AZURE if segments[4:] == ["chat", "completions"] and segments[3] else None
    if path.endswith(METHOD):
        return GEMINI if model_of(path, METHOD) else None
    return PATHS.get(path)


def wire_at(path: str) -> OpenAI:
    """The wire in which errors at any path are told."""
    if path.startswith(("/v1beta/", "/upload/v1beta/", "/download/v1beta/")):
        return GEMINI
    if path.startswith("/openai/"):
        return AZURE_V1 if path.startswith("/openai/v1/") else AZURE
    return ANTHROPIC if path.startswith("/v1/messages") else OPENAI

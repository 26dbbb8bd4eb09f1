"""The three wire shapes against the real llama.cpp server, which speaks them too."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import pytest

from refed_dspy import TeacherConfig
from refed_dspy.ledger.recorder import calls_kept_by
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.records import Call
from refed_dspy.teachers import open_teacher
from refed_dspy.weights import SMOKE, fetch
from tests.support.scripted_engine import CallCollector
from tests.support.two_ways import running_lm

SCRIPT = """
import json, os, sys
import xllamacpp
from refed_dspy.teachers.local.llama_child import parameters
settings = json.loads(sys.argv[1])
params = parameters(xllamacpp, settings)
params.api_prefix = settings["prefix"]
engine = xllamacpp.Server(params)
print(engine.listening_address, file=sys.stderr, flush=True)
sys.stdin.buffer.read()
os._exit(0)
"""


@pytest.fixture(scope="module")
def model() -> Path:
    return fetch(SMOKE, print)


@contextmanager
def llama(model: Path, prefix: str) -> Iterator[str]:
    """llama.cpp's server with all its paths under `prefix`, as Azure has them."""
    settings = {"gguf": str(model), "name": "smol", "slots": 1, "window": 1024, "threads": 2}
    settings |= {"cache_ram_mib": 16, "host": "127.0.0.1", "prefix": prefix}
    command = [sys.executable, "-c", SCRIPT, json.dumps(settings)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stderr is not None
    try:
        address = next(line.strip() for line in process.stderr if line.startswith("http"))
        yield address.removesuffix(prefix)
    finally:
        process.stdin.close()
        process.stderr.close()
        process.wait(20)


DEMOS = [
    dspy.Example(question=f"Is {thing} wet?", wet=wet)
    for thing, wet in {"the sea": True, "a desert": False, "a river": True, "a stone in the sun": False}.items()
]
"""Over Anthropic's wire llama.cpp takes no schema: without them so small a model answers in prose."""


def ask(**settings: Any) -> tuple[bool, Call]:
    """One typed answer over the wire that the settings name, and its call."""

    async def answer() -> bool:
        teacher = open_teacher(
            TeacherConfig.model_validate({"max_tokens": 64, "timeout": 120, "temperature": 0.0, **settings})
        )
        async with running_lm(teacher) as lm:
            with dspy.context(lm=lm, adapter=SchemaAdapter(), disable_history=True, trace=None):
                predictor = dspy.Predict("question -> wet: bool")
                predictor.demos = DEMOS
                prediction = await predictor.acall(question="Is rain wet?")
        return bool(prediction.wet)

    with calls_kept_by(CallCollector()) as recorder:
        wet = asyncio.run(answer())
    (call,) = recorder.calls
    return wet, call


@pytest.mark.live
@pytest.mark.parametrize(
    ("prefix", "settings"),
    [
        ("", {"model": "any/smol", "api_base": "{root}/v1"}),
        ("/openai/deployments/smol", {"model": "azure/smol", "api_base": "{root}", "api_version": "2024-10-21"}),
        ("/openai", {"model": "azure/smol", "api_base": "{root}"}),
        ("", {"model": "anthropic/smol", "api_base": "{root}/v1"}),
    ],
    ids=["openai", "azure-dated", "azure-v1", "anthropic"],
)
def test_a_typed_answer_over_every_wire(
    model: Path, prefix: str, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_TEST_KEY", "not-looked-at")
    with llama(model, prefix) as root:
        teacher = {name: value.format(root=root) for name, value in settings.items()}
        wet, call = ask(**teacher, api_key_env="LLAMA_TEST_KEY")
    assert isinstance(wet, bool)
    assert call.outcome == "ok" and call.prompt_tokens and call.completion_tokens

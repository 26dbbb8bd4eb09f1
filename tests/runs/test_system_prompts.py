"""A reference's system prompt: what the teacher is shown, and what its rows are exported with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy.runs.result import Synthesis
from tests.support.scripted_engine import Writer, fake_lm

SYSTEM = "Answer only in French."
WITH = {"messages": [
    {"role": "system", "content": SYSTEM}, {"role": "user", "content": "Name a fish."},
    {"role": "assistant", "content": "La morue."},
]}  # fmt: skip


def run(folder: Path, **settings: Any) -> tuple[Synthesis, Writer]:
    teacher = Writer()
    made = refed_dspy.synthesize(
        None, [WITH], size=2, teacher=fake_lm(teacher), run_dir=folder, track=False, guards=False, **settings
    )
    return made, teacher


def test_it_is_shown_with_the_example_and_with_what_is_to_be_answered(tmp_path: Path) -> None:
    _, teacher = run(tmp_path)
    for request in teacher.requests:
        text = str(request.messages[-1].text)
        shown = f"System prompt:\n{SYSTEM}\n\nInstruction:\n"
        times = 2 if teacher.fields(request) == ["response"] else 1
        assert text.count(shown) == times


@pytest.mark.parametrize("method", ["sample-level", "instruction-only"])
def test_it_is_shown_by_the_other_methods_too(tmp_path: Path, method: str) -> None:
    _, teacher = run(tmp_path, method=method)
    assert all(SYSTEM in str(request.messages[-1].text) for request in teacher.requests)


def test_every_format_has_it(tmp_path: Path) -> None:
    made, _ = run(tmp_path / "run")
    first = {}
    for format_ in ("jsonl", "messages", "sharegpt", "alpaca", "prompt-completion", "preference", "kto"):
        made.export(format_, out := tmp_path / format_)
        first[format_] = json.loads(out.read_text().splitlines()[0])
    said = {"role": "system", "content": SYSTEM}
    assert first["jsonl"]["system"] == first["alpaca"]["system"] == SYSTEM
    assert first["messages"]["messages"][0] == said
    assert first["sharegpt"]["conversations"][0] == {"from": "system", "value": SYSTEM}
    assert all(first[format_]["prompt"][0] == said for format_ in ("prompt-completion", "preference", "kto"))
    assert made.to_dataset()["system"][0] == SYSTEM

"""Compiles on the simulated server under caps, and what they were charged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, TeacherConfig
from refed_dspy.ledger.candidates import Candidate, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.optimizers.result import Compiled
from refed_dspy.programs.saved import program_state
from tests.support import compiling

OPTIMIZERS = ("gepa", "mipro", "simba", "bootstrap")
BASELINE = 18
"""Calls of the uncompiled program's evaluation on two references."""


@pytest.fixture
def any_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caps that are too small are not refused, as on a later start: to see what happens where they are reached."""
    monkeypatch.setattr("refed_dspy.optimizers.compile.refuse_small_caps", lambda _: None)


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    return compiling.config(server, **{"timeout": 5, "retries": 1, **settings})


def compiled(server: SimulatedTeacher, folder: Path, optimizer: str = "gepa", **settings: Any) -> Compiled:
    models = {"teacher": config(server), "judge": config(server, temperature=0.0, model="openai/judge")}
    return compiling.compiled(None, None, folder, optimizer, **{**models, "evaluations": 8, **settings})


def billed(server: SimulatedTeacher) -> int:
    stats = server.stats()
    return int(stats["billed_prompt_tokens"] * 10**6 + stats["billed_completion_tokens"] * 10**7)


def charged(folder: Path) -> tuple[int, int]:
    """Picodollars and calls."""
    with Ledger.read(folder) as ledger:
        return spent(ledger).picodollars, spent(ledger).calls


def candidates(folder: Path) -> list[Candidate]:
    with Ledger.read(folder) as ledger:
        return load_candidates(ledger)


def is_whole(made: Compiled, cap: str) -> None:
    """It ended at `cap`, and what it left can be used."""
    assert made.stopped == cap == made.manifest["stopped"]
    again = ReferenceLevelFeedback({"topic": "What it is about."})
    refed_dspy.load_program(made.path, into=again)
    written, here = program_state(again), program_state(made.program)
    assert all(written[name] == here[name] for name, _ in again.named_predictors())
    assert f"stopped: {cap} " in "\n".join(made.lines())
    assert json.loads(made.path.read_text())["refed"]["calls"] == made.manifest["calls"] == charged(made.folder)[1]

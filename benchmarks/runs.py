"""Shared by the benchmarks: forty references, teacher settings for the simulated server, a run in a fresh folder."""

from __future__ import annotations

import shutil
from pathlib import Path

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.runs.result import Synthesis

REFERENCES = [
    {"instruction": f"Explain topic {i} to a student.", "response": f"Topic {i} is about many things. " * 20}
    for i in range(40)
]


def teacher_config(server: SimulatedTeacher, concurrency: int) -> TeacherConfig:
    return TeacherConfig(model="sim/sim-model", api_base=server.base_url, concurrency=concurrency, timeout=30)


def fresh_run(
    server: SimulatedTeacher, folder: Path, size: int, concurrency: int = 40, per_reference: int | None = None
) -> Synthesis:
    """A complete run in an emptied `folder`, with the server's counts reset first."""
    shutil.rmtree(folder, ignore_errors=True)
    server.reset()
    made = refed_dspy.synthesize(
        None, REFERENCES, size=size, teacher=teacher_config(server, concurrency), run_dir=folder,
        per_reference=per_reference,
    )  # fmt: skip
    assert len(made.samples) == size, made.status
    return made

"""Small runs that are tracked in MLflow."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.runs.result import Synthesis
from tests.support.scripted_engine import Writer, fake_lm, references

COUNTS = ("calls", "dollars", "prompt_tokens", "completion_tokens", "failed_calls", "kept")


def made(folder: Path | str = "run", size: int = 6, **settings: Any) -> Synthesis:
    """A run on a teacher in this process."""
    return refed_dspy.synthesize(
        None, references(4), size=size, teacher=settings.pop("teacher", fake_lm(Writer())), run_dir=folder, **settings
    )


def teacher(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    price = {"prompt": 1.0, "completion": 2.0}
    values = {"model": "sim/sim-model", "api_base": server.base_url, "retries": 1, "timeout": 20, "price": price}
    return TeacherConfig(**{**values, **settings})


def spread_over_minutes(folder: Path, minutes: int) -> None:
    """Have the run's calls and samples end in so many minutes, one after the other."""
    with Ledger.create(folder) as ledger:
        begun = ledger.db.execute("SELECT min(begun) FROM starts").fetchone()[0]
        for table, key in (("calls", "id"), ("samples", "seq")):
            count = ledger.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            ledger.db.execute(
                f"UPDATE {table} SET created = ? + 1 + 60 * ((SELECT count(*) FROM {table} o WHERE o.{key} < "
                f"{table}.{key}) * ? / ?)",
                (begun, minutes, count),
            )
        ledger.db.execute("UPDATE calls SET seconds = 1")


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "refed_dspy.tracking" and r.levelno >= logging.WARNING]

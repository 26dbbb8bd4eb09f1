"""Runs of two teachers, each behind an endpoint of its own (the fixture `two`), and checks of who wrote what."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.jobs.session import Session
from refed_dspy.jobs.work import CapSettings, CapsLeft, Start, Work
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import Spent
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers.by_stage import open_teachers
from refed_dspy.teachers.pool import PoolSetup
from tests.conftest import MARKS
from tests.support.asking import ask
from tests.support.clocks import Clock
from tests.support.scripted_engine import Writer, fake_lm, references

PRICE = {"prompt": 1.0, "completion": 2.0}


def config(server: SimulatedTeacher | str, **settings: Any) -> TeacherConfig:
    address = server if isinstance(server, str) else server.base_url
    values = {"model": "sim/sim-model", "api_base": address, "price": PRICE, "max_tokens": 512, "retries": 0}
    return TeacherConfig.model_validate({**values, "concurrency": 8, **settings})


def pool(two: tuple[SimulatedTeacher, ...], *weights: float) -> list[TeacherConfig]:
    """A member a server, each another model."""
    named = zip(two, ("sim/sim-model", "sim/other-model"), weights or (1.0, 1.0), strict=True)
    return [config(server, model=model, weight=weight) for server, model, weight in named]


def run(folder: Path, size: int = 40, **settings: Any) -> Synthesis:
    settings.setdefault("references", references(12))
    return refed_dspy.synthesize(None, settings.pop("references"), size=size, run_dir=folder, **settings)


def asked(two: tuple[SimulatedTeacher, ...]) -> list[int]:
    """Requests at each since the last look."""
    counts = [server.stats()["requests"] for server in two]
    for server in two:
        server.reset()
    return counts


def repeated(two: tuple[SimulatedTeacher, ...]) -> int:
    return sum(server.stats()["repeated"] for server in two)


def answered_twice(folder: Path) -> list[Any]:
    """Questions that two teachers were paid for."""
    with Ledger.read(folder) as ledger:
        twice = "SELECT stage, item FROM answers GROUP BY stage, item, repetition HAVING count(*) > 1"
        return ledger.db.execute(twice).fetchall()


def check_lineage(made: Synthesis, two: tuple[SimulatedTeacher, ...]) -> list[dict[str, Any]]:
    """Every row says who wrote it, as its texts' own marks do."""
    marks = {server.base_url: mark for server, mark in zip(two, MARKS, strict=True)}
    rows = list(made.samples.rows())
    for row in rows:
        assert row["improved_response"].startswith(marks[row["endpoint"]])
        assert row["response"].startswith(marks[row["response_endpoint"]])
        assert row["instruction"].startswith(marks[row["instruction_endpoint"]])
    return rows


AskPool: TypeAlias = Callable[[int], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class PoolWork(Work):
    """Work of a pool whose clock is the test's."""

    setup: PoolSetup

    def pool_setup(self, ledger: Ledger) -> PoolSetup:
        return self.setup


def at_session(ledger: Ledger, writers: list[Writer], clock: Clock) -> tuple[Session, AskPool]:
    """A session with a pool of these writers, and a function that asks it."""
    by_stage = open_teachers([fake_lm(writer, name=f"fake/{number}") for number, writer in enumerate(writers)])
    caps = CapSettings(max_cost=None, max_calls=None, max_minutes=None)
    setup = PoolSetup(by_stage, (), clock)
    work = PoolWork(kind="testing", identity={}, models=by_stage.roles, size=1, caps=caps, setup=setup)
    left = CapsLeft(Caps(), Spent(0, 0, 0, 0.0), None)
    start = Start(ledger, work, 1, left, RunRecorder(ledger, left.caps, left.before))
    session = Session(start)
    predictor = refed_dspy.ReferenceLevelFeedback().response_generation

    def ask_pool(number: int) -> Awaitable[Any]:
        inputs: dict[str, Any] = {"example_instruction": "e", "example_response": "r", "instruction": f"Task {number}"}
        return ask("response_generation", str(number), predictor, **inputs)

    return session, ask_pool

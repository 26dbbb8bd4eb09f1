"""What is not paid for: a response to an instruction that its judge drops, and a question already on its way."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError, NothingKept, RunStopped
from refed_dspy.jobs.work import Work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.reference_level import ReferenceLevelFeedback
from refed_dspy.teachers import open_teacher
from tests.support.asking import ask, row_job
from tests.support.said import Said

NONE: Any = {"max_cost": None, "max_calls": None, "max_minutes": None}


def teacher_of(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    return TeacherConfig(model="sim/sim-model", api_base=server.base_url, **settings)


def test_a_rubric_of_the_instruction_is_asked_before_a_response_is_paid_for(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    rubric = {"rubric": {"of": "instruction", "criterion": "clear", "at_least": 5}}
    judge = teacher_of(server, temperature=0.0)
    made = refed_dspy.synthesize(
        None, size=8, teacher=teacher_of(server), judge=judge, filters=[rubric], run_dir=tmp_path / "run"
    )
    calls = {stage: use["calls"] for stage, use in made.usage.items()}
    assert len(made.samples) == 8 and calls["response_generation"] == 8 < calls["rubric_judge"]
    with Ledger.read(tmp_path / "run") as ledger:
        (dropped,) = ledger.db.execute("SELECT count(*) FROM decisions WHERE NOT kept").fetchone()
    # A judge at work on more instructions than are missing has answers that nobody waits for.
    assert dropped + 8 <= calls["rubric_judge"]


def test_a_hopeless_run_does_not_propose_a_resume(server: SimulatedTeacher, tmp_path: Path) -> None:
    never = {"length": {"min_words": 5_000}}
    with pytest.raises(NothingKept, match="were all dropped") as raised:
        refed_dspy.synthesize(None, size=80, teacher=teacher_of(server), filters=[never], run_dir=tmp_path / "run")
    assert "resume" not in str(raised.value) and raised.value.exit_code == 1


def test_a_judge_has_nothing_to_compare_where_nothing_is_improved(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    program = refed_dspy.programs.InstructionFeedbackOnly()
    with said.by(ConfigError):
        refed_dspy.synthesize(program, size=2, teacher=teacher_of(server), filters=["judge"], run_dir=tmp_path / "run")
    assert server.stats()["requests"] == 0


async def test_equal_questions_at_once_are_one_call(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.05)
    teacher = open_teacher(teacher_of(server))
    reference = refed_dspy.load_references()[0]
    job = Work(kind="statistics", identity={}, models={"teacher": teacher, "judge": teacher}, size=1, caps=NONE)
    async with row_job(tmp_path / "work", job) as session:
        program = ReferenceLevelFeedback()
        answers = await asyncio.gather(*(program.collect_response_feedback(reference) for _ in range(5)))
        assert (
            session.recorded_teachers["teacher"] is session.recorded_teachers["judge"]
        )  # one model: equal questions are one call
    assert len(set(answers)) == 1 and server.stats()["requests"] == 1


async def test_equal_questions_fail_together_and_cost_one_call(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(latency=0.05, faults={"refusal": 1.0})
    job = Work(kind="statistics", identity={}, models={"teacher": open_teacher(teacher_of(server))}, size=1, caps=NONE)
    with said.by(RunStopped):
        async with row_job(tmp_path / "work", job):
            program = ReferenceLevelFeedback()
            fields: dict[str, Any] = {"reference_instruction": "a", "reference_response": "b"}
            questions = (ask("response_feedback", "x", program.response_feedback, **fields) for _ in range(3))
            errors = await asyncio.gather(*questions, return_exceptions=True)
    assert {type(error).__name__ for error in errors} == {"RefusedAnswer"} and server.stats()["requests"] == 1

"""Judges as filters of a run: what they cost, what happens where they do not answer, and caps."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMServerError

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.data.rows import dropped_rows
from refed_dspy.errors import ConfigError, NothingKept, RunStopped, TeacherError
from refed_dspy.filters.judge import ABSTAINED, ImprovedWins
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import settings_of
from refed_dspy.programs.judges import PairwiseJudge
from refed_dspy.records import DataRow, Reference
from tests.conftest import KEY_VARIABLE
from tests.filters.filtered_runs import Judge, Teacher, dropped, odd, run
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm


def test_a_judge_decides_and_is_paid_once(said: Said, tmp_path: Path) -> None:
    judge = Judge()
    made = run(tmp_path / "run", Teacher(), ["judge", {"rubric": {"at_least": 3}}], size=8, judge=judge)
    assert len(made.samples) == 8 and not any(odd(sample.improved_response) for sample in made.samples)
    assert made.usage["pairwise_judge"]["calls"] == 2 * (8 + len(dropped(tmp_path / "run")))
    assert made.usage["rubric_judge"]["calls"] == 8
    assert {row["score"] for row in dropped(tmp_path / "run")} == {-1.0}
    said({row["reason"] for row in dropped(tmp_path / "run")})
    more = Judge()
    run(tmp_path / "run", Teacher(), ["judge", {"rubric": {"at_least": 3}}], size=8, judge=more)
    assert not more.requests


def test_a_rubric_of_the_instruction_is_asked_before_a_response_is_paid_for(tmp_path: Path) -> None:
    teacher, judge = Teacher(), Judge()
    judge.on_request = lambda _: json.dumps({"reason": "r", "grade": str(4 + len(judge.requests) % 2)})
    rubric = {"rubric": {"of": "instruction", "criterion": "clear", "at_least": 5}}
    made = run(tmp_path / "run", teacher, [rubric], size=8, judge=judge)
    assert len(made.samples) == teacher.asked("response") == teacher.asked("improved_response") == 8
    # A judge at work on more instructions than are missing has answers that nobody waits for.
    assert 8 < len(dropped(tmp_path / "run")) + 8 <= len(judge.requests)


def test_a_judge_has_nothing_to_compare_where_nothing_is_improved(said: Said, tmp_path: Path) -> None:
    teacher = Teacher()
    with said.by(ConfigError):
        refed_dspy.synthesize(
            refed_dspy.programs.InstructionFeedbackOnly(), size=2, teacher=fake_lm(teacher), filters=["judge"],
            run_dir=tmp_path / "run",
        )  # fmt: skip
    assert not teacher.requests


def test_without_a_judge_the_teacher_judges_at_temperature_zero(
    said: Said, server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url, temperature=0.9)
    with caplog.at_level(logging.WARNING):
        made = run(tmp_path / "run", teacher, [{"rubric": {"at_least": 2}}], size=4)
    assert len(made.samples) == 4
    said(caplog.text)
    with Ledger.read(tmp_path / "run") as ledger:
        assert settings_of(ledger).judge["config"]["temperature"] == 0.0
        assert ledger.meta("identity")["teacher"] != ledger.meta("identity")["judge"]


def test_a_sample_that_the_judge_did_not_answer_on_is_not_lost(tmp_path: Path) -> None:
    busy = LMServerError(message="busy", status=503)
    run(tmp_path / "run", Teacher(), ["judge"], size=6, judge=Judge(busy, busy, busy, busy), per_reference=20)
    with Ledger.read(tmp_path / "run") as ledger:
        waiting = [id_ for _, id_, _ in ledger.open_instructions()][:2]
        assert not {row["reason"] for row in dropped_rows(ledger)} & {ABSTAINED}
    again, asked = Teacher(), Judge()
    run(tmp_path / "run", again, ["judge"], size=7, judge=asked)
    with Ledger.read(tmp_path / "run") as ledger:
        decided = {id_ for (id_,) in ledger.db.execute("SELECT instruction FROM decisions")}
    assert decided & set(waiting), "asked about again, with the responses that were paid for"
    assert again.asked("improved_response") == 0 or len(asked.requests) > 2


def test_a_judge_that_cannot_be_asked_ends_the_run_and_the_next_judge_goes_on(
    server: SimulatedTeacher, locked: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-wrong-and-secret")
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url, concurrency=2)
    judge = TeacherConfig(model="sim/other-model", api_base=locked.base_url, api_key_env="OTHER_KEY")
    with pytest.raises((RunStopped, TeacherError)) as raised:
        run(tmp_path / "run", teacher, ["judge"], judge=judge)
    message = str(raised.value)
    assert "pairwise_judge" in message and "\n" not in message and "wrong-and-secret" not in message
    paid = server.stats()["requests"]
    good = judge.model_copy(update={"api_key_env": KEY_VARIABLE})
    made = refed_dspy.resume(tmp_path / "run", judge=good, size=1)
    assert len(made.samples) >= 1 and server.stats()["repeated"] == 0 and paid < 20


@pytest.mark.parametrize("filter_", ["judge", "rubric"])
def test_a_judge_that_always_abstains_ends_the_run_and_a_second_start_pays_nothing(
    tmp_path: Path, filter_: str
) -> None:
    judge = Judge()
    judge.on_request = lambda _: json.dumps({"reason": "r", "verdict": "cannot tell", "grade": "cannot tell"})
    teacher = Teacher()
    for start in range(2):
        with pytest.raises(NothingKept):
            run(tmp_path / "run", teacher, [filter_], size=60, count=9, judge=judge)
        if not start:
            paid = len(teacher.requests) + len(judge.requests)
    assert len(teacher.requests) + len(judge.requests) == paid < 200


def test_caps_hold_with_a_judge_and_count_its_worst_case(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    price = {"prompt": 1.0, "completion": 2.0}
    common: dict[str, Any] = {"api_base": server.base_url, "price": price, "concurrency": 4}
    teacher = TeacherConfig(model="sim/sim-model", max_tokens=2000, **common)
    dear = TeacherConfig(model="sim/other-model", max_tokens=100_000, **common)
    with said.by(ConfigError):
        run(tmp_path / "run", teacher, ["judge"], judge=dear, max_cost=0.1)
    assert server.stats()["requests"] == 0
    judge = TeacherConfig(model="sim/other-model", max_tokens=300, **common)
    made = run(tmp_path / "run", teacher, [{"rubric": {"at_least": 2}}], judge=judge, max_calls=40, size=90)
    assert server.stats()["requests"] == 40
    said(made.state)
    assert made.usage["rubric_judge"]["calls"] > 0
    assert made.status["kept"] + len(dropped(tmp_path / "run")) == made.usage["rubric_judge"]["calls"]


# --- what the judge is shown


@pytest.mark.parametrize(
    "row",
    [
        DataRow(
            1, "Q", "improved_response 2", "response 1", reference=Reference(instruction="q", response="a", system="S")
        ),
        DataRow(1, "Q", "improved_response 2", "response 1", system="S"),
    ],
)
async def test_the_judge_sees_the_system_prompt(row: DataRow) -> None:
    judge = Judge()
    with dspy.context(lm=fake_lm(judge)):
        await ImprovedWins(PairwiseJudge()).judged(row, "1")
    assert all("System prompt:\nS\n\nInstruction:\nQ\n" in str(request.messages[0].text) for request in judge.requests)

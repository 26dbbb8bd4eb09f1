"""Criteria in a run: what they cost, the filter that asks by them, resumes, and where there are none."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Request

import refed_dspy
from refed_dspy.config.filters import FilterConfig
from refed_dspy.data.rows import dropped_rows
from refed_dspy.errors import ConfigError, InputError
from refed_dspy.filters.judge import ABSTAINED, NO_CRITERIA
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs import InstructionFeedbackOnly, ReferenceLevelFeedback
from tests.filters.filtered_runs import Judge, Teacher, dropped, kept_by, run
from tests.support.said import Said
from tests.support.scripted_engine import Killed, fake_lm, question_of, references

CRITERIA = [
    {"criterion": "Does the answer give a concrete example?", "weight": 3},
    {"criterion": "Does the answer say why each step is needed?", "weight": 1},
    {"criterion": "Does the answer warn the reader of mistakes?", "weight": 1},
]
FILTER = {"criteria": {"threshold": 0.6}}


class Critic(Teacher):
    """Writes the same three criteria of each reference, or those of `written`."""

    written: list[dict[str, Any]] = CRITERIA

    def _value(self, name: str) -> Any:
        return self.written if name == "criteria" else super()._value(name)


class Checker(Judge):
    """Finds the first criterion met where the response's number is even, and the second always."""

    def write(self, request: Request) -> str:
        number = re.search(r"improved_response (\d+)", str(request.messages[-1].text))
        even = number is not None and int(number[1]) % 2 == 0
        return json.dumps({"met": ["yes" if even else "no", "yes", "no"]})


def asked(teacher: Teacher) -> int:
    """Calls for criteria."""
    return sum(teacher.fields(request) == ["criteria"] for request in teacher.requests)


def test_a_run_asks_two_calls_a_reference_and_keeps_what_meets_enough(tmp_path: Path) -> None:
    teacher, judge = Critic(), Checker()
    made = run(tmp_path / "run", teacher, [FILTER], size=8, judge=judge, criteria=True)
    lost = dropped(tmp_path / "run")
    assert len(made.samples) == 8 and lost
    assert made.usage["plain_answer"]["calls"] == made.usage["reference_criteria"]["calls"] == 4
    assert made.usage["criteria_judge"]["calls"] == len(judge.requests) == 8 + len(lost), "one call a row"
    assert all(row["score"] == pytest.approx(0.2) and row["reason"] == "meets less than 0.6" for row in lost)
    with Ledger.read(tmp_path / "run") as ledger:
        details = {row["detail"] for row in dropped_rows(ledger)}
    assert details == {f"{CRITERIA[0]['criterion']} {CRITERIA[2]['criterion']}"}
    assert len(kept_by(tmp_path / "run", "criteria")) == 8


def test_a_resume_asks_nothing_twice(tmp_path: Path) -> None:
    run(tmp_path / "run", Critic(), [FILTER], size=8, judge=Checker(), criteria=True)
    again, judge = Critic(), Checker()
    made = refed_dspy.resume(tmp_path / "run", teacher=fake_lm(again), judge=fake_lm(judge))
    assert made.complete and not again.requests and not judge.requests
    more = refed_dspy.resume(tmp_path / "run", size=12, teacher=fake_lm(again), judge=fake_lm(judge))
    assert len(more.samples) == 12 and asked(again) == 0 and judge.requests


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 7, 9])
def test_killed_anywhere_it_pays_for_no_answer_twice(tmp_path: Path, after: int) -> None:
    broken, judge = Critic(), Checker()

    def die(request: Request) -> None:
        if len(broken.requests) >= after:
            raise Killed

    broken.on_request = die
    with pytest.raises(Killed):
        run(tmp_path / "run", broken, [FILTER], size=4, count=1, judge=judge, criteria=True)
    rest = Critic()
    rest.numbers = broken.numbers
    made = run(tmp_path / "run", rest, [FILTER], size=4, count=1, judge=judge, criteria=True)
    assert len(made.samples) == 4
    paid = [question_of(request) for request in broken.requests[: after - 1]]
    assert not [request for request in rest.requests if question_of(request) in paid]
    assert len({question_of(request) for request in judge.requests}) == len(judge.requests)


def test_a_reference_without_criteria_is_told_and_its_rows_pass(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teacher, judge = Critic(), Checker()
    teacher.written = [CRITERIA[0], {"criterion": "Is the answer at least 200 words long?", "weight": 5}]
    with caplog.at_level(logging.WARNING, "refed_dspy"):
        made = run(tmp_path / "run", teacher, [FILTER], size=4, count=2, judge=judge, criteria=True)
    assert len(made.samples) == 4 and not judge.requests
    assert caplog.text.count("has no criteria: too few that were written can be used") == 2
    with Ledger.read(tmp_path / "run") as ledger:
        assert [*ledger.db.execute("SELECT DISTINCT reason, kept FROM decisions WHERE filter = 'criteria'")] == [
            (NO_CRITERIA, 1)
        ]


def test_a_judge_that_leaves_criteria_out_has_not_decided(tmp_path: Path) -> None:
    judge = Checker()
    judge.on_request = lambda _: json.dumps({"met": ["yes"]}) if len(judge.requests) < 4 else None
    made = run(tmp_path / "run", Critic(), [FILTER], size=4, judge=judge, criteria=True)
    reasons = [row["reason"] for row in dropped(tmp_path / "run")]
    assert len(made.samples) == 4 and reasons.count(ABSTAINED) == 3


@pytest.mark.parametrize("method", ["sample-level", "instruction-only"])
def test_other_methods_have_them_too(tmp_path: Path, method: str) -> None:
    filters = [{"criteria": {"threshold": 0.2}}]
    made = run(tmp_path / "run", Critic(), filters, size=4, judge=Checker(), criteria=True, method=method)
    assert len(made.samples) == 4 and made.usage["reference_criteria"]["calls"] == 4


def test_a_saved_program_gets_the_stages_where_it_lacks_them(tmp_path: Path) -> None:
    refed_dspy.save_program(ReferenceLevelFeedback(), tmp_path / "p.json")
    teacher = Critic()
    made = refed_dspy.synthesize(
        tmp_path / "p.json", references(2), size=2, teacher=fake_lm(teacher), criteria=True, run_dir=tmp_path / "run",
        guidance={"reference_criteria": "Be strict."}, track=False,
    )  # fmt: skip
    assert made.complete and asked(teacher) == 2
    assert all("Be strict." in str(each.system) for each in teacher.requests if teacher.fields(each) == ["criteria"])


def test_what_cannot_be_is_refused_in_a_line(said: Said, tmp_path: Path) -> None:
    teacher = Critic()
    with said.by(ConfigError):
        run(tmp_path / "run", teacher, [FILTER], judge=Checker())
    with said.by(ConfigError):
        refed_dspy.synthesize(
            InstructionFeedbackOnly(), references(2), teacher=fake_lm(teacher), criteria=True, run_dir=tmp_path / "run"
        )
    with said.by(InputError):
        refed_dspy.filter_data([{"instruction": "a", "response": "b"}], ["criteria"], judge=fake_lm(teacher))
    with said.by(InputError):
        run(tmp_path / "run", teacher, [{"criteria": {"threshold": 2}}], criteria=True)
    with said.by(InputError):
        run(tmp_path / "run", teacher, [{"criteria": {"keep": 2}}], criteria=True)
    assert not teacher.requests and not (tmp_path / "run").exists()
    assert FilterConfig.model_validate("criteria").settings.threshold == 0.6


def test_the_simulated_teacher_and_judge_play_along(tmp_path: Path) -> None:
    made = refed_dspy.synthesize(
        None, references(3), size=6, teacher="simulated", criteria=True, filters=[{"criteria": {"threshold": 0.3}}],
        run_dir=tmp_path / "run", track=False, guards=False,
    )  # fmt: skip
    assert len(made.samples) == 6 and made.usage["criteria_judge"]["calls"] >= 6
    with Ledger.read(tmp_path / "run") as ledger:
        scores = [score for (score,) in ledger.db.execute("SELECT score FROM decisions WHERE filter = 'criteria'")]
    assert all(score is not None and 0 <= score <= 1 for score in scores)

"""Which teachers a program asks: who is asked where, how they are told apart, and how many units run at once."""

from __future__ import annotations

from typing import Any

import pytest

from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError
from refed_dspy.ledger.settings import WorkSettings
from refed_dspy.teachers.by_stage import ANY, TeachersByStage, open_teachers
from tests.support.said import Said

STAGES = ("instruction_feedback", "response_feedback", "response_generation")
PRICE = {"prompt": 1.0, "completion": 2.0}


def config(name: str, port: int = 1, **settings: Any) -> TeacherConfig:
    values = {"model": f"sim/{name}", "api_base": f"http://localhost:{port}/v1", "concurrency": 4, **settings}
    return TeacherConfig.model_validate(values)


def models(teachers: TeachersByStage, stage: str) -> list[tuple[str, float]]:
    return [(share.teacher.model, share.weight) for share in teachers.pool(stage)]


def test_each_stage_has_its_own_and_its_name_wins_over_feedback() -> None:
    teachers = open_teachers(
        [config("a"), config("b", weight=3)],
        {"response_feedback": config("c"), "feedback": [config("d"), config("a", weight=2)]},
        STAGES,
    )
    assert models(teachers, "response_generation") == [("sim/a", 1), ("sim/b", 3)] == models(teachers, ANY)
    assert models(teachers, "instruction_feedback") == [("sim/d", 1), ("sim/a", 2)]
    assert models(teachers, "response_feedback") == [("sim/c", 1)]
    assert [teacher.model for teacher in teachers.teachers] == ["sim/a", "sim/b", "sim/d", "sim/c"], "each once"
    assert teachers.first.model == "sim/a" and teachers.several
    assert teachers.asks("sim/d") and not teachers.asks("sim/e")
    assert teachers.pool(ANY)[0].teacher is teachers.pool("instruction_feedback")[1].teacher


def test_settings_in_a_mapping_are_a_teacher_as_in_a_config() -> None:
    mapping, pooled = {"model": "sim/a", "api_base": "http://localhost:1/v1"}, {"model": "simulated", "weight": 3}
    teachers = open_teachers([mapping, pooled], {"feedback": mapping}, STAGES)
    assert models(teachers, ANY) == [("sim/a", 1), ("simulated", 3)]
    assert models(teachers, "response_feedback") == [("sim/a", 1)] and len(teachers.teachers) == 2


def test_one_teacher_is_told_as_one() -> None:
    teachers = open_teachers(config("a", price=PRICE))
    assert not teachers.several and list(teachers.roles) == ["teacher"]
    assert teachers.identity() == teachers.first.identity and not WorkSettings(teachers.recorded()).several
    assert TeachersByStage.of(teachers.first).pool("any").__len__() == 1
    assert teachers.shape() == {ANY: [[teachers.first.identity, teachers.first.endpoint]]}


def test_several_are_told_apart_by_model_then_by_endpoint_then_by_number(said: Said) -> None:
    pool = [config("a"), config("b", 1), config("b", 2), config("b", 2, temperature=0.1)]
    said(list(open_teachers(pool).roles))


def test_as_many_units_run_as_the_largest_pool_takes() -> None:
    teachers = open_teachers(config("a", concurrency=5), {"feedback": [config("b"), config("c")]}, STAGES)
    assert teachers.slots == 8
    assert open_teachers(config("a", concurrency=9), {"feedback": [config("b"), config("c")]}, STAGES).slots == 9


def test_what_the_ledger_stores_of_them(said: Said) -> None:
    teachers = open_teachers([config("a", price=PRICE, weight=2), config("b")])
    first, second = teachers.recorded()["teacher"]
    assert (first["model"], first["endpoint"], first["weight"]) == ("sim/a", "http://localhost:1/v1", 2)
    assert first["rates"] == [10**6, 10**6, 10**6, 2 * 10**6] and second["rates"] is None
    assert first["config"]["model"] == "sim/a"
    assert teachers.identity() == [teacher.identity for teacher in teachers.teachers]
    assert open_teachers(config("b")).price_source is None
    said(teachers.price_source)


def test_teachers_at_one_server_share_its_limits_and_others_do_not() -> None:
    shares = open_teachers([config("a"), config("a", temperature=0.1), config("a", 2), config("b")]).pool(ANY)
    first, *others = [share.teacher.server for share in shares]
    assert [engine.shares_limits_with is first for engine in others] == [True, False, False]


@pytest.mark.parametrize(
    ("teacher", "given", "stages"),
    [
        ([], {}, STAGES),
        ([config("a"), config("a", weight=2)], {}, STAGES),
        (config("a"), {"feedback": []}, STAGES),
        (config("a"), {"response_feedbak": config("b")}, STAGES),
        (config("a"), {"xyz": config("b")}, STAGES),
        (config("a"), {"feedback": config("b")}, ("judge",)),
    ],
    ids=["nobody", "twice", "nobody for a stage", "a typo", "no such stage", "no feedback there"],
)
def test_what_makes_no_sense_is_told(said: Said, teacher: Any, given: dict[str, Any], stages: tuple[str, ...]) -> None:
    with said.by(ConfigError):
        open_teachers(teacher, given, stages)

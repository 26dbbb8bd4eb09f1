"""Several teachers: who is asked, which stages have their own, and how they are set."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.cli.preview import one_sample
from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError, RunDirError, RunStopped
from refed_dspy.ledger.account import RunAccount
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import settings_of
from refed_dspy.plugins.recycle.settings import RecycleConfig
from refed_dspy.programs.asking import stages_of
from refed_dspy.teachers.by_stage import open_teachers
from refed_dspy.tracking.run import run_parameters
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references
from tests.support.two_teachers import answered_twice, asked, check_lineage, config, pool, repeated, run

# --- the draw


def test_a_pool_splits_by_weight_and_one_member_writes_a_sample(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path
) -> None:
    made = run(tmp_path / "run", 60, teacher=pool(two, 3, 1))
    rows = check_lineage(made, two)
    wrote = Counter(row["teacher"] for row in rows)
    assert 31 <= wrote["sim/sim-model"] <= 58, "45 expected, with a standard deviation of 3.4"
    assert wrote.total() == 60
    assert all(row["teacher"] == row["response_teacher"] for row in rows)
    uses = {use["model"]: use for use in made.status["models"]}
    assert sum(use["calls"] for use in uses.values()) == sum(asked(two))
    assert sum(use["cost"] for use in uses.values()) == pytest.approx(made.status["cost"])


def test_other_weights_another_order_and_fewer_members_pay_nothing_again(
    said: Said, two: tuple[SimulatedTeacher, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = pool(two)
    first = list(run(tmp_path / "run", 16, teacher=both).samples)
    assert all(asked(two))
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        for who in (pool(two, 1, 9), both[::-1], both[:1], both[1:], both):
            made = run(tmp_path / "run", 16, teacher=who)
            assert list(made.samples) == first
    assert asked(two) == [0, 0]
    said(caplog.messages)
    rows = check_lineage(run(tmp_path / "run", 16, teacher=both[:1]), two)
    assert len({row["teacher"] for row in rows}) == 2, "who is asked no more has written it all the same"
    assert run(tmp_path / "run", 24, teacher=both[1:]).complete
    assert asked(two)[0] == 0 and not answered_twice(tmp_path / "run"), "nor is its feedback paid for again"


def test_what_a_further_start_asks_goes_by_the_new_weights(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    run(tmp_path / "run", 4, teacher=config(two[0]))
    assert asked(two)[1] == 0
    run(tmp_path / "run", 20, teacher=pool(two, 1, 9))
    assert repeated(two) == 0
    first, second = asked(two)
    assert second > 2 * first
    assert len(refed_dspy.resume(tmp_path / "run", size=26).samples) == 26
    assert asked(two)[1] > 0
    assert run(tmp_path / "run", 32, teacher=config(two[0])).complete
    assert asked(two)[1] == 0 and not answered_twice(tmp_path / "run"), "one is asked now, and both have answered"


@pytest.mark.slow
def test_who_began_a_sample_ends_it_whatever_the_weights_are_now(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path
) -> None:
    first, second = pool(two, 1, 50)
    two[1].control(down_after=0)
    with pytest.raises(RunStopped):
        run(tmp_path / "run", 60, teacher=first, teachers={"response_improvement": second}, per_reference=20)
    two[1].control(down_after=None)
    made = run(tmp_path / "run", teacher=[first, second], per_reference=20)
    assert made.complete and not made.failures
    rows = check_lineage(made, two)
    assert all(row["teacher"] == row["response_teacher"] for row in rows)
    assert len({row["teacher"] for row in rows}) == 2, "those begun before, and those begun now"


def test_a_run_of_other_teachers_is_another_run(said: Said, two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    run(tmp_path / "run", 2, teacher=pool(two))
    others = [config(server, temperature=0.5) for server in two]
    with said.by(RunDirError):
        run(tmp_path / "run", 2, teacher=others[0])
    with pytest.raises(RunDirError):
        run(tmp_path / "run", 2, teacher=others)


# --- stages


def test_stages_have_teachers_of_their_own(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    writer, strong = config(two[0]), config(two[1], model="sim/other-model")
    made = run(tmp_path / "run", 10, teacher=writer, teachers={"feedback": strong}, per_reference=5)
    usage = made.status["usage"]
    feedback = sum(usage[stage]["calls"] for stage in ("instruction_feedback", "response_feedback"))
    assert asked(two) == [sum(use["calls"] for use in usage.values()) - feedback, feedback]
    rows = check_lineage(made, two)
    assert {(row["teacher"], row["instruction_teacher"]) for row in rows} == {("sim/sim-model", "sim/sim-model")}
    refed_dspy.resume(tmp_path / "run", size=20)
    assert asked(two)[1] > 0, "the folder remembers who gives feedback"
    split = {"feedback": strong, "response_feedback": writer, "response_improvement": strong}
    made = run(tmp_path / "split", 4, teacher=writer, teachers=split)
    assert {row["teacher"] for row in check_lineage(made, two)} == {"sim/other-model"}
    assert {row["response_teacher"] for row in check_lineage(made, two)} == {"sim/sim-model"}


def test_one_teacher_in_several_places_is_one(tmp_path: Path) -> None:
    writer = Writer()
    lm = fake_lm(writer)
    made = run(tmp_path / "run", 4, teacher=lm, teachers={"feedback": lm, "response_generation": [lm]})
    assert made.complete and made.status["models"][0]["calls"] == len(writer.requests)
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.meta("identity")["teacher"] == {"model": "fake/model"}, "as ever for one teacher"
        assert not settings_of(ledger).several


# --- settings


def test_a_config_and_a_file_may_hold_a_list(tmp_path: Path) -> None:
    pair = tmp_path / "pair.yaml"
    pair.write_text("- {model: openai/a, weight: 3}\n- model: openai/b\n")
    file = tmp_path / "run.yaml"
    file.write_text(f"teacher: [{pair}, openai/c]\nteachers: {{feedback: openai/d, response_generation: {pair}}}\n")
    loaded = load_config(RunConfig, file, {})
    assert isinstance(loaded.teacher, list) and [teacher.model for teacher in loaded.teacher] == [
        "openai/a",
        "openai/b",
        "openai/c",
    ]
    assert [teacher.weight for teacher in loaded.teacher] == [3, 1, 1]
    assert loaded.teachers["feedback"] == TeacherConfig(model="openai/d")
    assert load_config(RunConfig, environ={}, teacher=str(pair)).teacher == loaded.teachers["response_generation"]
    from_environment = load_config(
        RunConfig, file, {"REFED_TEACHER": "openai/e", "REFED_TEACHERS__FEEDBACK": "openai/f"}
    )
    assert from_environment.teacher == TeacherConfig(model="openai/e") and from_environment.teachers[
        "feedback"
    ] == TeacherConfig(model="openai/f")


@pytest.mark.parametrize(
    ("kind", "text", "environ"),
    [
        (RunConfig, "teacher: []", {}),
        (RunConfig, "teacher: [{modle: x}]", {}),
        (RunConfig, "teachers: {feedback: {model: x}}", {}),
        (RunConfig, "teacher: [{model: a/b, weight: 0}]", {}),
        (RunConfig, "teacher: [a/b, c/d]", {"REFED_TEACHER__MODEL": "e/f"}),
        (CompileConfig, "teacher: [a/b, c/d]", {}),
        (RecycleConfig, "teacher: [a/b, c/d]", {}),
        (RunConfig, "judge: [a/b, c/d]", {}),
    ],
)
def test_wrong_settings_of_several_are_told_in_one_line(
    said: Said, tmp_path: Path, kind: type[Settings], text: str, environ: dict[str, str]
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with said.by(ConfigError) as refused:
        load_config(kind, file, environ)
    assert str(refused.value).isprintable()


@pytest.mark.slow
def test_a_judge_beside_a_pool_answers_by_itself(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    judge = config(two[1], model="sim/judge", temperature=0.0)
    settings = {"teacher": pool(two), "filters": [{"rubric": {"at_least": 1}}], "judge": judge}
    made = run(tmp_path / "run", 12, **settings)
    calls = {use["model"]: use["calls"] for use in made.status["models"]}
    assert calls["sim/judge"] == made.status["usage"]["rubric_judge"]["calls"] and len(calls) == 3
    assert refed_dspy.resume(tmp_path / "run", size=14).complete


@pytest.mark.slow
def test_tracking_names_all_teachers(said: Said, two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    made = run(tmp_path / "run", 2, teacher=pool(two), teachers={"feedback": config(two[1], model="sim/strong")})
    with Ledger.read(made.run_dir) as ledger:
        said(run_parameters(RunAccount.of(ledger))["teacher"])


async def test_a_preview_asks_each_stages_own_teacher(two: tuple[SimulatedTeacher, ...]) -> None:
    program = refed_dspy.ReferenceLevelFeedback()
    by_stage = open_teachers(config(two[0]), {"response_feedback": config(two[1])}, stages_of(program))
    await one_sample(program, refed_dspy.Reference(**references(1)[0]), by_stage)
    assert asked(two) == [4, 1]

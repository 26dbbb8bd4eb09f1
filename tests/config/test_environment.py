"""Settings in the environment: variables that are no setting, and those that refine a model, however it is named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ConfigError
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.by_stage import open_teachers
from tests.support import ROOT
from tests.support.refusals import refusal
from tests.support.said import Said

MODEL, OTHER = "openai/gpt-4o-mini", "openai/gpt-4o"
SECRET = "sk-proj-4f9a0c55e1d27b"
SERVER = "http://127.0.0.1:9/v1"
EXPORTED = {
    f"REFED_{role}__{key}": value
    for role in ("TEACHER", "JUDGE")
    for key, value in (("API_BASE", SERVER), ("PRICE", MODEL))
}
"""What docs/how-to/index.md has its reader export."""
REFINED = TeacherConfig(model=MODEL, api_base=SERVER, price=MODEL)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


# --- variables that are no setting


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (RunConfig, "REFED_SIEZ"),
        (RunConfig, "REFED_PER_REFRENCE"),
        (RunConfig, "REFED_TEACHER__TEMPRATURE"),
        (RunConfig, "REFED_TEACHER__BATCH__QUITE"),
        (CompileConfig, "REFED_EVALUATION"),
        (CompileConfig, "REFED_METRIC__WIN"),
        (CompareConfig, "REFED_SUBSET"),
    ],
)
def test_a_variable_that_is_no_setting_is_a_warning_with_the_nearest(
    said: Said, kind: type[Settings], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert load_config(kind, environ={name: "3"}) == load_config(kind, environ={})
    said(caplog.messages)


def test_one_like_no_other_gets_no_guess_and_its_value_is_not_repeated(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    others = {"REFED_CACHE": "/tmp", "SIZE": "3", "XREFED_SIZE": "3"}
    assert load_config(RunConfig, environ={"REFED_XYZZY": SECRET, "REFED_": "", **others}) == RunConfig()
    said(caplog.messages)


def test_none_where_a_config_names_it(said: Said, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"REFED_{role}" for role in ("ONE", "TWO", "THREE", "FOUR")]
    keys = dict.fromkeys(names, SECRET)
    (tmp_path / "judge.yaml").write_text(f"model: {OTHER}\napi_key_env: {names[2]}\n")
    file.write_text(
        f"teacher: [{{model: {MODEL}, api_key_env: {names[0]}}}]\n"
        f"teachers: {{feedback: {{model: {OTHER}, api_key_env: {names[1]}}}}}\njudge: {tmp_path}/judge.yaml\n"
    )
    load_config(RunConfig, file, {**keys, "REFED_SCORER__API_KEY_ENV": names[3], "REFED_SCORER__MODEL": "m"})
    said(caplog.messages)
    caplog.clear()
    load_config(RunConfig, environ={**keys, "REFED_TEACHER__API_KEY_ENV": names[0]}, teacher=MODEL)
    assert names[0] not in caplog.text and names[1] in caplog.text
    caplog.clear()
    load_config(RunConfig, environ={"REFED_GATEWAY_KEY": SECRET, "REFED_TEACHER__API_KEY_EV": "K"})
    assert [message.split()[1] for message in caplog.messages] == ["REFED_TEACHER__API_KEY_EV"]


# --- variables that refine a model


def test_a_model_given_as_a_word_is_refined(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(f"teacher: {MODEL}\njudge: {OTHER}\n")
    config = load_config(RunConfig, file, EXPORTED)
    assert config.teacher == REFINED and config.judge is not None and config.judge.api_base == SERVER
    assert load_config(RunConfig, environ={**EXPORTED, "REFED_TEACHER": MODEL}).teacher == REFINED
    assert load_config(RunConfig, environ=EXPORTED, teacher=MODEL).teacher == REFINED
    assert load_config(RunConfig, environ=EXPORTED) == load_config(RunConfig, environ={}), "and names none by itself"
    assert not caplog.messages


def test_a_variable_names_another_model_than_the_file_but_not_than_a_flag(file: Path) -> None:
    variable = {"REFED_TEACHER__MODEL": MODEL}
    for named in (OTHER, "own.gguf"):
        file.write_text(f"teacher: {named}\n")
        assert load_config(RunConfig, file, variable).teacher == TeacherConfig(model=MODEL)
    assert load_config(RunConfig, file, variable, teacher=OTHER).teacher == TeacherConfig(model=OTHER)
    assert load_config(RunConfig, file, variable, teacher="own.gguf").teacher == TeacherConfig(gguf=Path("own.gguf"))


def test_each_teacher_of_a_list_is_refined_in_what_it_does_not_say_itself(file: Path) -> None:
    own: dict[str, Any] = {"model": OTHER, "api_base": "http://127.0.0.1:8/v1", "weight": 3}
    file.write_text(f"- model: {MODEL}\n- {own}\n")
    members = [REFINED, TeacherConfig(**own, price=MODEL)]
    assert load_config(RunConfig, environ=EXPORTED, teacher=str(file)).teacher == members
    file.write_text(f"teacher: [{MODEL}, {own}]\n")
    assert load_config(RunConfig, file, EXPORTED).teacher == members


@pytest.mark.parametrize("name", ["simulated", "embedded"])
def test_an_address_that_stays_exported_is_not_that_of_a_teacher_without_one(
    file: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected = TeacherConfig(model=name, price=MODEL)
    for text in (f"teacher: {{model: {name}}}", f"teacher: {name}", f"teacher: [{name}, {MODEL}]"):
        file.write_text(f"{text}\n")
        teacher = load_config(RunConfig, file, EXPORTED).teacher
        assert (teacher[0] if isinstance(teacher, list) else teacher) == expected
    assert load_config(RunConfig, environ=EXPORTED, teacher=name).teacher == expected
    assert not caplog.messages


def test_a_word_in_python_is_refined_by_its_roles_variables(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"REFED_TEACHER__API_BASE": SERVER, "REFED_JUDGE__API_BASE": "http://127.0.0.1:7/v1"}.items():
        monkeypatch.setenv(name, value)

    def addresses(likes: Any, **stages: Any) -> list[Any]:
        configs = [teacher.config for teacher in open_teachers(likes, stages).teachers]
        return [config.api_base for config in configs if config is not None]

    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert addresses(MODEL) == addresses([MODEL]) == [SERVER]
    assert addresses(TeacherConfig(model=MODEL)) == [None], "what is no word is as it is"
    judge = open_teacher(MODEL, role="judge").config
    assert judge is not None and judge.api_base == "http://127.0.0.1:7/v1"
    monkeypatch.setenv("REFED_TEACHER__TEMPERATURE", "9")
    said(refusal(ConfigError, open_teacher, MODEL))


@pytest.mark.slow
def test_the_command_line_tells_a_person(said: Said) -> None:
    words = [sys.executable, "-m", "refed_dspy.cli", "synth", "--preview", "--config", "examples/demo.yaml"]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **EXPORTED, "REFED_SIEZ": "3"}, capture_output=True)
    assert done.returncode == 0
    said(done.stderr.decode())

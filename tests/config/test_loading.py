"""Settings: where they come from, which one wins, and what one command's leave alone of another's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig, MetricConfig
from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.plugins.metrics.settings import StatsConfig
from refed_dspy.plugins.recycle.settings import RecycleConfig
from tests.support.said import Said

MODEL, OTHER = "openai/gpt-4o-mini", "openai/gpt-4o"
KINDS: list[type[Settings]] = [RunConfig, CompileConfig, CompareConfig, FilterRunConfig, RecycleConfig, StatsConfig]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


@pytest.mark.parametrize(
    ("in_file", "in_environment", "keyword", "size"),
    [
        (None, None, None, 100),
        (1, None, None, 1),
        (None, 2, None, 2),
        (None, None, 3, 3),
        (1, 2, None, 2),
        (1, None, 3, 3),
        (None, 2, 3, 3),
        (1, 2, 3, 3),
    ],
)
def test_a_keyword_wins_over_the_environment_and_that_over_the_file(
    file: Path, in_file: int | None, in_environment: int | None, keyword: int | None, size: int
) -> None:
    file.write_text("seed: 7\n" if in_file is None else f"seed: 7\nsize: {in_file}\n")
    environ = {} if in_environment is None else {"REFED_SIZE": str(in_environment)}
    config = load_config(RunConfig, file, environ, size=keyword)
    assert (config.size, config.seed) == (size, 7)
    assert "size" in config.model_fields_set or size == 100


def test_the_processs_own_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFED_SEED", "41")
    assert load_config(RunConfig).seed == 41
    assert load_config(RunConfig, environ={}).seed == 0


def test_two_underscores_step_inside_as_often_as_needed(file: Path) -> None:
    environ = {"REFED_TEACHER__MODEL": MODEL, "REFED_TEACHER__PARAMS__TOP_P": "0.9"}
    assert load_config(RunConfig, environ=environ).teacher == TeacherConfig(model=MODEL, params={"top_p": 0.9})
    file.write_text("metric: {wins: 0.5, criteria: {short: brief}}\noptions: {bsize: 4, max_steps: 2}\n")
    environ = {"REFED_METRIC__WINS": "0.9", "REFED_METRIC__ACCEPT": "0.7", "REFED_OPTIONS__MAX_STEPS": "3"}
    config = load_config(CompileConfig, file, environ)
    assert config.metric == MetricConfig(wins=0.9, criteria={"short": "brief"}, accept=0.7)
    assert config.options == {"bsize": 4, "max_steps": 3}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (MODEL, TeacherConfig(model=MODEL)),
        ("embedded", TeacherConfig(model="embedded")),
        ("models/own.gguf", TeacherConfig(gguf=Path("models/own.gguf"))),
    ],
)
def test_a_teacher_may_be_just_a_name(file: Path, name: str, expected: TeacherConfig) -> None:
    file.write_text(f"teacher: {name}\n")
    assert load_config(RunConfig, file, {}).teacher == expected
    assert load_config(RunConfig, environ={"REFED_TEACHER": name}).teacher == expected
    assert load_config(RunConfig, environ={}, teacher=name).teacher == expected


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json", ""])
def test_a_teacher_may_be_a_file_over_which_a_variable_wins(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"teacher{suffix}"
    file.write_text(json.dumps({"model": MODEL, "temperature": 0.3}))
    assert load_config(RunConfig, environ={}, teacher=str(file)).teacher == TeacherConfig(model=MODEL, temperature=0.3)
    warmer = load_config(RunConfig, environ={"REFED_TEACHER__TEMPERATURE": "0.5"}, teacher=str(file)).teacher
    assert warmer == TeacherConfig(model=MODEL, temperature=0.5)


def test_a_slash_at_the_end_of_an_address_is_dropped() -> None:
    assert TeacherConfig(model=MODEL, api_base="http://127.0.0.1:8000/v1/").api_base == "http://127.0.0.1:8000/v1"


def test_a_byte_order_mark_does_no_harm(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfsize: 3\n")
    assert load_config(RunConfig, file, {}).size == 3


def test_a_flag_wins_over_an_empty_variable() -> None:
    assert load_config(RunConfig, environ={"REFED_REFERENCES": ""}, references="mine.jsonl").references == "mine.jsonl"


def test_a_runs_yaml_takes_filters_with_and_without_settings(file: Path) -> None:
    file.write_text("filters:\n  - refusals\n  - judge:\n  - length: {min_words: 3, of: instruction}\n")
    config = load_config(RunConfig, file, {})
    assert [filter_.name for filter_ in config.filters] == ["refusals", "judge", "length"]
    assert config.filters[2].settings.min_words == 3


# --- a compile


def test_no_settings_are_a_compile_of_the_usual_size() -> None:
    config = load_config(CompileConfig, environ={})
    assert (config.optimizer, config.evaluations, config.instructions_per_feature) == ("gepa", 200, 2)
    assert (config.train, config.validation, config.test) == (24, 12, 16)
    assert config.metric == MetricConfig() and (config.metric.wins, config.metric.grades) == (0.6, 0.3)
    assert (config.teacher, config.judge, config.reflection, config.max_cost) == (None, None, None, None)
    assert load_config(CompileConfig, environ={"REFED_MAX_COST": ".inf"}).max_cost == float("inf"), "caps can be lifted"


@pytest.mark.parametrize("role", ["teacher", "judge", "reflection"])
def test_a_variable_sets_one_thing_of_a_model(role: str, file: Path) -> None:
    file.write_text(f"{role}:\n  model: {MODEL}\n  temperature: 0.9\n  retries: 7\n")
    environ = {f"REFED_{role.upper()}__TEMPERATURE": "0.2"}
    made = getattr(load_config(CompileConfig, file, environ), role)
    assert (made.model, made.temperature, made.retries) == (MODEL, 0.2, 7)
    named = getattr(load_config(CompileConfig, file, environ, **{role: OTHER}), role)
    assert (named.model, named.temperature, named.retries) == (OTHER, 0.2, 4), "a flag's name is another model"


def test_a_variable_names_a_model_and_a_judges_temperature_is_its_own(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(CompileConfig, environ={"REFED_JUDGE": OTHER, "REFED_TEACHER__MODEL": MODEL})
    assert config.judge is not None and config.teacher is not None and config.reflection is None
    assert (config.judge.model, config.teacher.model) == (OTHER, MODEL)
    assert "temperature" not in config.judge.model_fields_set, "so that a judge is asked at 0"
    environ = {"REFED_TEACHER": MODEL, "REFED_JUDGE__MODEL": OTHER, "REFED_JUDGE__TEMPERATURE": "0.4"}
    config = load_config(CompileConfig, environ=environ)
    assert config.judge is not None and config.judge.temperature == 0.4
    assert config.teacher is not None and config.teacher.temperature == 1.0
    assert load_config(CompileConfig, environ={"REFED_JUDGE__TEMPERATURE": "0.3"}).judge is None
    said(caplog.messages)


# --- one environment serves all commands


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_another_command_has_is_passed_over(kind: type[Settings], caplog: pytest.LogCaptureFixture) -> None:
    theirs = {key for other in KINDS for key in other.model_fields} - {*kind.model_fields}
    environ = {f"REFED_{key.upper()}": "5" for key in theirs}
    assert load_config(kind, environ=environ) == load_config(kind, environ={}) and not caplog.messages


def test_a_variable_that_refines_a_compiles_judge_makes_none_of_a_run() -> None:
    refines = {"REFED_JUDGE__MAX_TOKENS": "300"}
    assert load_config(RunConfig, None, refines).judge is None
    named = load_config(RunConfig, None, refines, judge=OTHER).judge
    assert named is not None and named.max_tokens == 300 and named.model == OTHER
    whole = load_config(StatsConfig, None, {**refines, "REFED_JUDGE__MODEL": OTHER}).judge
    assert whole is not None and whole.max_tokens == 300

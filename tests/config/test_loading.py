"""Settings: where they come from, which one wins, and the error for a wrong one: one line, never its value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ConfigError
from tests.support.said import Said

KEY = "sk-proj-4f9a0c55e1d27b"
MODEL = "openai/gpt-4o-mini"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def refusal(file: Path | None = None, environ: dict[str, str] | None = None, **keywords: Any) -> str:
    """The one line with which these settings are refused."""
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, file, environ or {}, **keywords)
    message = str(caught.value)
    assert message.isprintable(), f"not one plain line: {message!r}"
    return message


# --- where settings come from


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


def test_a_variable_replaces_one_setting_of_the_files_teacher_and_keeps_the_rest(file: Path) -> None:
    file.write_text(f"teacher:\n  model: {MODEL}\n  temperature: 0.2\n  retries: 7\n")
    teacher = load_config(RunConfig, file, {"REFED_TEACHER__TEMPERATURE": "0.7"}).teacher
    assert teacher == TeacherConfig(model=MODEL, temperature=0.7, retries=7)


def test_two_underscores_step_inside_as_often_as_needed() -> None:
    environ = {"REFED_TEACHER__MODEL": MODEL, "REFED_TEACHER__PARAMS__TOP_P": "0.9"}
    assert load_config(RunConfig, environ=environ).teacher == TeacherConfig(model=MODEL, params={"top_p": 0.9})


def test_the_processs_own_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFED_SEED", "41")
    assert load_config(RunConfig).seed == 41
    assert load_config(RunConfig, environ={}).seed == 0


def test_variables_of_others_and_the_cache_folders_are_no_settings() -> None:
    assert load_config(RunConfig, environ={"REFED_CACHE": "/tmp", "SIZE": "3", "XREFED_SIZE": "3"}) == RunConfig()


def test_a_variable_set_as_a_whole_and_in_part_is_refused(said: Said) -> None:
    message = refusal(environ={"REFED_FEATURES": "all", "REFED_FEATURES__TONE": "how it sounds"})
    said(message)


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
def test_a_teacher_may_be_a_file(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"teacher{suffix}"
    file.write_text(json.dumps({"model": MODEL, "temperature": 0.3}))
    assert load_config(RunConfig, environ={}, teacher=str(file)).teacher == TeacherConfig(model=MODEL, temperature=0.3)


def test_a_fault_in_a_teacher_file_is_placed_in_that_file(said: Said, tmp_path: Path) -> None:
    file = tmp_path / "teacher.yaml"
    file.write_text(f"model: {MODEL}\ntemprature: 1\n")
    message = refusal(teacher=str(file))
    assert str(file) in message
    said(message)


def test_a_missing_teacher_file_is_named(said: Said) -> None:
    said(refusal(teacher="nowhere/teacher.yaml"))


# --- files that cannot be read


def test_a_missing_file_is_named(said: Said, file: Path) -> None:
    said(refusal(file))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "line"),
    [("size: [1\nseed: 2\n", 2), ("size: 1\nseed: 2\n\tx: 3\n", 3), ('size: 1\n\nrun_dir: "a\n', 4)],
)
def test_broken_yaml_is_told_with_its_line(said: Said, file: Path, text: str, line: int) -> None:
    file.write_text(text)
    said(refusal(file))


@pytest.mark.parametrize("content", [b"", b"- size\n", b"size\n", b"# nothing\n"])
def test_a_file_without_settings_is_refused(said: Said, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    said(refusal(file))


@pytest.mark.parametrize("content", [b"size: 1\nrun_dir: caf\xe9\n", "size: 1\n".encode("utf-16"), b"a: \x00\n"])
def test_a_file_that_is_not_text_is_refused(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert str(file) in refusal(file)


def test_a_byte_order_mark_does_no_harm(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfsize: 3\n")
    assert load_config(RunConfig, file, {}).size == 3


def test_a_variable_that_is_not_yaml_is_refused_by_name() -> None:
    assert "REFED_REFERENCES" in refusal(environ={"REFED_REFERENCES": "@file"})


# --- keys that do not exist


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("siez", "size"),
        ("refrences", "references"),
        ("column", "columns"),
        ("per_refrence", "per_reference"),
        ("max_failures_share", "max_failure_share"),
        ("teachr", "teacher"),
    ],
)
def test_an_unknown_key_is_placed_and_the_nearest_right_one_told(
    said: Said, file: Path, wrong: str, right: str
) -> None:
    file.write_text(f"{wrong}: 3\n")
    said(refusal(file))
    keywords: dict[str, Any] = {wrong: 3}
    said(refusal(**keywords))


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("modle", "model"), ("temprature", "temperature"), ("api_key", "api_key_env"), ("url_base", "api_base")],
)
def test_an_unknown_key_of_the_teacher_is_compared_with_the_teachers(
    said: Said, file: Path, wrong: str, right: str
) -> None:
    file.write_text(yaml.safe_dump({"teacher": {"model": MODEL, wrong: "x"}}))
    said(refusal(file))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("temprature", "did you mean temperature, under teacher?"),
        ("api_key", "did you mean api_key_env, under teacher? It names the variable that holds the key, which is no"),
    ],
)
def test_a_setting_of_the_teacher_that_stands_beside_it_is_told_so(
    said: Said, file: Path, wrong: str, told: str
) -> None:
    """Once `temprature` was taken for `features`, and a key got a wall of names."""
    file.write_text(yaml.safe_dump({"teacher": MODEL, wrong: "x"}))
    said(refusal(file))


@pytest.mark.parametrize("kind", [RunConfig, CompileConfig, FilterRunConfig, TeacherConfig])
def test_a_word_that_is_no_slip_of_a_setting_suggests_none(kind: type[Settings]) -> None:
    for word in ("colour", "answers_wanted", "xyzzy", "nothing", "workers"):
        with pytest.raises(ConfigError) as refused:
            kind(**{word: 1})
        assert "did you mean" not in str(refused.value)


def test_a_key_like_no_other_gets_the_list_of_those_known() -> None:
    message = refusal(xyzzy=1)
    assert all(name in message for name in RunConfig.model_fields)


def test_a_fault_of_the_file_is_not_blamed_on_a_variable(file: Path) -> None:
    file.write_text("teacher:\n  modle: x\n")
    assert refusal(file, {"REFED_TEACHER__TEMPERATURE": "0.5"}).startswith(f"{file}: teacher.modle")


def test_a_key_with_a_line_break_is_told_in_one_line(file: Path) -> None:
    file.write_text('"si\\nze": 3\n')
    refusal(file)


# --- values out of range


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": "many"},
        {"size": 1.5},
        {"seed": -1},
        {"per_reference": 0},
        {"max_failure_share": 0},
        {"max_failure_share": 1.1},
        {"instructions_per_feature": 101},
        {"features": {}},
        {"columns": ["question"]},
        {"guidance": "Be brief."},
        {"teacher": 5},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_refused_with_its_key_and_its_place(file: Path, wrong: dict[str, Any]) -> None:
    file.write_text(yaml.safe_dump(wrong))
    (key,) = wrong
    assert refusal(file).startswith(f"{file}: {key}")
    assert refusal(**wrong).startswith(key)


@pytest.mark.parametrize("name", ["size", "seed", "columns", "guidance", "features", "api_key", "authorization"])
def test_a_key_in_any_other_setting_is_not_repeated(name: str) -> None:
    if name in RunConfig.model_fields:
        assert KEY not in refusal(environ={f"REFED_{name.upper()}": KEY})
    keywords: dict[str, Any] = {name: KEY}
    assert KEY not in refusal(**keywords)


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("name", ["REFERENCES", "TEACHER", "MAX_COST", "PROGRAM", "SEED", "TEACHER__TEMPERATURE"])
def test_an_empty_variable_stands_for_no_default(said: Said, name: str, value: str) -> None:
    variable = f"REFED_{name}"
    with said.by(ConfigError):
        load_config(RunConfig, environ={"REFED_TEACHER__MODEL": "openai/x"} | {variable: value})


def test_a_flag_wins_over_an_empty_variable() -> None:
    assert load_config(RunConfig, environ={"REFED_REFERENCES": ""}, references="mine.jsonl").references == "mine.jsonl"


@pytest.mark.parametrize("key", ["references", "program", "max_cost", "max_calls", "max_minutes"])
def test_nothing_after_the_colon_stands_for_no_default(said: Said, key: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"{key}:\n")
    with said.by(ConfigError):
        load_config(RunConfig, file, environ={})


@pytest.mark.parametrize("name", ["simulated", "embedded"])
def test_an_address_that_stays_exported_is_not_that_of_a_teacher_without_one(tmp_path: Path, name: str) -> None:
    exported = {"REFED_TEACHER__API_BASE": "http://localhost:1/v1", "REFED_TEACHER__TEMPERATURE": "0.5"}
    (tmp_path / "run.yaml").write_text(f"teacher: {{model: {name}, temperature: 0.7}}\n")
    for settings in (
        load_config(RunConfig, tmp_path / "run.yaml", exported),
        load_config(RunConfig, environ=exported, teacher=name),
    ):
        assert isinstance(settings.teacher, TeacherConfig)
        assert (settings.teacher.api_base, settings.teacher.temperature) == (None, 0.5)

"""A compile's settings: file, environment, flag; the other command's are passed over; what is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refed_dspy.config.compile import CompileConfig, MetricConfig
from refed_dspy.config.loading import check_config, load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError
from tests.support.said import Said

MODEL, OTHER = "openai/gpt-4o-mini", "openai/gpt-4o"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "compile.yaml"
    path.write_text("seed: 3\n")
    return path


def refusal(file: Path | None = None, environ: dict[str, str] | None = None, **keywords: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(CompileConfig, file, environ or {}, **keywords)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_no_settings_are_a_compile_of_the_usual_size() -> None:
    config = load_config(CompileConfig, environ={})
    assert (config.optimizer, config.evaluations, config.instructions_per_feature) == ("gepa", 200, 2)
    assert (config.train, config.validation, config.test) == (24, 12, 16)
    assert config.metric == MetricConfig() and (config.metric.wins, config.metric.grades) == (0.6, 0.3)
    assert (config.teacher, config.judge, config.reflection, config.max_cost) == (None, None, None, None)


@pytest.mark.parametrize(
    ("in_file", "in_environment", "flag", "expected"),
    [
        (None, None, None, 200),
        (1, None, None, 1),
        (None, 2, None, 2),
        (None, None, 3, 3),
        (1, 2, None, 2),
        (1, None, 3, 3),
        (None, 2, 3, 3),
        (1, 2, 3, 3),
    ],
)
def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    file: Path, in_file: int | None, in_environment: int | None, flag: int | None, expected: int
) -> None:
    file.write_text("seed: 3\n" if in_file is None else f"seed: 3\nevaluations: {in_file}\n")
    environ = {} if in_environment is None else {"REFED_EVALUATIONS": str(in_environment)}
    config = load_config(CompileConfig, file, environ, evaluations=flag)
    assert (config.evaluations, config.seed) == (expected, 3)


def test_a_flag_that_is_not_set_leaves_the_setting_alone(file: Path) -> None:
    config = load_config(CompileConfig, file, {}, seed=None, optimizer=None, max_cost=None)
    assert (config.seed, config.optimizer) == (3, "gepa")
    assert config.model_fields_set == {"seed"}


@pytest.mark.parametrize("role", ["teacher", "judge", "reflection"])
def test_a_variable_sets_one_thing_of_a_model(role: str, file: Path) -> None:
    file.write_text(f"{role}:\n  model: {MODEL}\n  temperature: 0.9\n  retries: 7\n")
    environ = {f"REFED_{role.upper()}__TEMPERATURE": "0.2"}
    config = load_config(CompileConfig, file, environ)
    made = getattr(config, role)
    assert (made.model, made.temperature, made.retries) == (MODEL, 0.2, 7)
    named = getattr(load_config(CompileConfig, file, environ, **{role: OTHER}), role)
    assert (named.model, named.temperature, named.retries) == (OTHER, 0.2, 4), "a flag's name is another model"


def test_a_variable_names_a_model_as_a_flag_does() -> None:
    config = load_config(CompileConfig, environ={"REFED_JUDGE": OTHER, "REFED_TEACHER__MODEL": MODEL})
    assert config.judge is not None and config.teacher is not None and config.reflection is None
    assert (config.judge.model, config.teacher.model) == (OTHER, MODEL)
    assert "temperature" not in config.judge.model_fields_set, "so that a judge is asked at 0"


def test_a_judge_s_temperature_that_is_given_is_kept_apart_from_the_teacher_s() -> None:
    environ = {"REFED_TEACHER": MODEL, "REFED_JUDGE__MODEL": OTHER, "REFED_JUDGE__TEMPERATURE": "0.4"}
    config = load_config(CompileConfig, environ=environ)
    assert config.judge is not None and config.judge.temperature == 0.4
    assert config.teacher is not None and config.teacher.temperature == 1.0


def test_a_model_s_file_is_read_and_variables_win_over_it(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text(f"model: {OTHER}\nmax_tokens: 900\n")
    config = load_config(CompileConfig, environ={"REFED_JUDGE__MAX_TOKENS": "300"}, judge=str(path), teacher=MODEL)
    assert config.judge is not None and (config.judge.model, config.judge.max_tokens) == (OTHER, 300)
    assert config.teacher is not None and config.teacher.max_tokens == 4096


def test_a_judge_s_temperature_without_a_judge_is_told(said: Said, caplog: pytest.LogCaptureFixture) -> None:
    assert load_config(CompileConfig, environ={"REFED_JUDGE__TEMPERATURE": "0.3"}).judge is None
    said(caplog.messages)


def test_a_model_named_by_two_variables_is_refused(said: Said) -> None:
    message = refusal(environ={"REFED_JUDGE": MODEL, "REFED_JUDGE__MODEL": OTHER})
    said(message)


def test_the_metric_s_weights_from_file_and_environment(file: Path) -> None:
    file.write_text("metric: {wins: 0.5, grades: 0.5, criteria: {short: is short}}\n")
    config = load_config(CompileConfig, file, {"REFED_METRIC__WINS": "0.9", "REFED_METRIC__ACCEPT": "0.7"})
    assert config.metric == MetricConfig(wins=0.9, grades=0.5, criteria={"short": "is short"}, accept=0.7)


def test_options_come_from_the_environment_too(file: Path) -> None:
    file.write_text("optimizer: simba\noptions: {bsize: 4, max_steps: 2}\n")
    config = load_config(CompileConfig, file, {"REFED_OPTIONS__MAX_STEPS": "3"})
    assert config.options == {"bsize": 4, "max_steps": 3}


@pytest.mark.parametrize("key", sorted({*RunConfig.model_fields} - {*CompileConfig.model_fields}))
def test_a_run_s_variables_are_passed_over(key: str) -> None:
    """One environment serves `refed synth` and `refed compile`."""
    assert load_config(CompileConfig, environ={f"REFED_{key.upper()}": "5", "REFED_SEED": "4"}).seed == 4


@pytest.mark.parametrize("key", sorted({*CompileConfig.model_fields} - {*RunConfig.model_fields}))
def test_a_compile_s_variables_are_passed_over_by_a_run(key: str) -> None:
    assert load_config(RunConfig, environ={f"REFED_{key.upper()}": "5", "REFED_SEED": "4"}).seed == 4


def test_a_compile_s_inner_settings_are_passed_over_by_a_run() -> None:
    environ = {"REFED_JUDGE__TEMPERATURE": "0.3", "REFED_METRIC__WINS": "1", "REFED_OPTIONS__AUTO": "light"}
    assert load_config(RunConfig, environ=environ) == load_config(RunConfig, environ={})


def test_a_contradiction_among_a_compile_s_variables_is_no_run_s_concern() -> None:
    assert load_config(RunConfig, environ={"REFED_REFLECTION": MODEL, "REFED_REFLECTION__TEMPERATURE": "0.3"})


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("evaluation: 3", "evaluation: unknown key; did you mean evaluations?"),
        ("optimiser: gepa", "optimiser: unknown key; did you mean optimizer?"),
        ("size: 3", "size: unknown key; "),
        ("run_dir: x", "run_dir: unknown key; "),
        ("judge: {modle: x}", "judge.modle: unknown key; did you mean model?"),
        ("reflection: {temprature: 1}", "reflection.temprature: unknown key; did you mean temperature?"),
        ("metric: {win: 1}", "metric.win: unknown key; did you mean wins?"),
        ("metric: {diversty: 1}", "metric.diversty: unknown key; did you mean diversity?"),
        ("teacher: {model: openai/a, price: {promt: 1, completion: 1}}", "teacher.price"),
        ("evaluations: 0", "evaluations: input should be greater than or equal to 1"),
        ("test: 0", "test: input should be"),
        ("seed: -1", "seed: input should be"),
        ("threads: 0", "threads: input should be"),
        ("max_cost: 0", "max_cost: input should be"),
        ("metric: {wins: 1.1}", "metric.wins: input should be less than or equal to 1"),
        ("metric: {length_tolerance: 1.5}", "metric.length_tolerance: unknown key"),
        ("metric: {accept: .nan}", "metric.accept: input should be"),
        ("name: ../x", "name: "),
        ("options: 3", "options: input should be"),
        ("held_out_criteria: depth", "held_out_criteria: input should be"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(file: Path, text: str, fault: str) -> None:
    file.write_text(f"{text}\n")
    assert refusal(file).startswith(f"{file}: {fault}")


@pytest.mark.parametrize(
    ("variable", "value", "fault"),
    [
        ("REFED_EVALUATIONS", "many", "input should be a valid integer"),
        ("REFED_METRIC__WINS", "7", "less than or equal to 1"),
        ("REFED_METRIC", "7", "metric"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named_with_its_variable(variable: str, value: str, fault: str) -> None:
    message = refusal(environ={variable: value})
    assert message.startswith(f"variable {variable.partition('__')[0]}") and fault in message


def test_the_variable_is_named_where_the_file_has_the_rest(said: Said, file: Path) -> None:
    file.write_text(f"judge: {{model: {MODEL}}}\n")
    said(refusal(file, {"REFED_JUDGE__TEMPERATURE": "9"}))


def test_a_key_put_in_the_wrong_place_is_not_repeated(file: Path) -> None:
    key = "sk-proj-4f9a0c55e1d27b"
    for text in (f"judge: {{api_key: {key}}}", f"judge: {{api_key_env: {key}}}", f"seed: {key}", f"metric: {key}"):
        file.write_text(f"{text}\n")
        assert key not in refusal(file)


def test_caps_can_be_lifted() -> None:
    assert load_config(CompileConfig, environ={"REFED_MAX_COST": ".inf"}).max_cost == float("inf")


def test_keywords_are_checked_like_a_file() -> None:
    assert check_config(CompileConfig, {"evaluations": 3, "metric": {"wins": 1}}).metric.wins == 1
    for keywords, fault in (
        ({"evaluation": 3}, "evaluation: unknown key; did you mean evaluations?"),
        ({"metric": {"win": 1}}, "metric: metric.win: unknown key; did you mean wins?"),
        ({"seed": "x"}, "seed: input should be a valid integer"),
        (
            {"optimizer": len},
            "optimizer: needs a name: gepa, or of any other its dotted name, such as dspy.teleprompt.COPRO",
        ),
    ):
        with pytest.raises(ConfigError) as raised:
            check_config(CompileConfig, keywords)
        assert str(raised.value) == fault

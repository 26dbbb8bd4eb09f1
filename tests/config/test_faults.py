"""What is wrong with settings is told in one line: where it stands, what was meant, and never its value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.loading import check_config, load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.errors import ConfigError
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.plugins.metrics.settings import StatsConfig
from refed_dspy.plugins.recycle.settings import RecycleConfig
from tests.support.refusals import refusal
from tests.support.said import Said

MODEL = "openai/gpt-4o-mini"
SECRET = "sk-put-in-the-wrong-place-123"
ADDRESS = "http://127.0.0.1/v1"
WRONG: dict[type[Settings], list[str]] = {
    RunConfig: [
        *(f"{key}: 3" for key in ("siez", "refrences", "column", "per_refrence", "max_failures_share", "teachr")),
        *(f"teacher: {{model: {MODEL}, {key}: x}}" for key in ("modle", "temprature", "api_key", "url_base")),
        # beside the teacher: once `temprature` was taken for `features`, and a key got a wall of names
        *(f"teacher: {MODEL}\n{key}: x" for key in ("temprature", "api_key")),
        "xyzzy: 1", '"si\\nze": 3',
        "size: 0", "size: many", "size: 1.5", "seed: -1", "per_reference: 0", "max_failure_share: 0",
        "max_failure_share: 1.1", "instructions_per_feature: 101", "features: {}", "columns: [question]",
        "guidance: Be brief.", "teacher: 5", "method: smaple-level", "filters: [{rouge: {keep: 5}}]",
        *(f"{key}:" for key in ("references", "program", "max_cost", "max_calls", "max_minutes")),
        "teacher: {}", f"teacher: {{model: {MODEL}, gguf: own.gguf}}", "teacher: {model: gpt-4o-mini}",
        "teacher: {model: ''}", f"teacher: {{model: embedded, api_base: '{ADDRESS}'}}",
        "teacher: {gguf: own.gguf, api_key_env: OPENAI_API_KEY}",
        *(
            f"teacher: {{model: {MODEL}, {setting}}}"
            for setting in (
                "temperature: 2.1", "max_tokens: 15", "concurrency: 0", "timeout: .nan", "retries: 21",
                "context_window: 511", "api_base: '127.0.0.1:8000/v1'", "api_base: 'https://[::1'",
                "params: {max_tokens: 5}", "params: {response_format: {}}", "params: {max_completion_tokens: 9}",
                "price: {promt: 1, completion: 1}", "price: {prompt: -1, completion: 1}",
            )
        ),
    ],
    CompileConfig: [
        "evaluation: 3", "optimiser: gepa", "size: 3", "run_dir: x", "judge: {modle: x}",
        "reflection: {temprature: 1}", "metric: {win: 1}", "metric: {diversty: 1}", "evaluations: 0", "test: 0",
        "seed: -1", "threads: 0", "max_cost: 0", "metric: {wins: 1.1}", "metric: {length_tolerance: 1.5}",
        "metric: {accept: .nan}", "name: ../x", "options: 3", "held_out_criteria: depth",
    ],
    FilterRunConfig: [
        "filtres: [rouge]", "filters: [rogue]", "filters: [judge, {rouge: {treshold: 0.5}}]",
        "filters: [{rouge: {threshold: high}}]", "filters: refusals", "filters: [3]", "filters: [{rouge: 5}]",
        "filters: [{rouge: {}, judge: {}}]", "filters: [{rouge: {keep: 0}}]", "columns: {plian: first}",
        "columns: [plain]", f"judge: {{model: a/b, api_key: {SECRET}}}",
        f"judge: {{model: a/b, api_key_env: {SECRET}}}",
    ],
    StatsConfig: ["scorer: {modle: x}", "sample: 3", "sampel: 20", "judge: {api_base: 'http://h/v1'}"],
    RecycleConfig: ["columns: {instructon: q}", "response_criteria: [clear]"],
    CompareConfig: [
        "programs: [a, b]", "programs: {a: reference-level}", "subset: [5]", "subsets: [5, 0]", "columns: {plain: x}",
        "against: seed-only", "max_cost: -1",
    ],
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_a_fault_is_named_with_where_it_stands(said: Said, file: Path, kind: type[Settings]) -> None:
    told = {}
    for text in WRONG[kind]:
        file.write_text(text)
        given = yaml.safe_load(text)
        line = refusal(ConfigError, load_config, kind, file, {"REFED_TRACK": "false"})
        (*_, key), place = given, f"{file}: "
        assert line.startswith(place) and SECRET not in line and "Config" not in line and "Settings" not in line
        told[text] = line.removeprefix(place)
        if given[key] is not None and key.isidentifier():  # as a keyword, None stands for the default
            assert refusal(ConfigError, load_config, kind, None, {}, **given).endswith(told[text])
    said(told)


@pytest.mark.parametrize("kind", [RunConfig, CompileConfig, FilterRunConfig, TeacherConfig])
def test_a_word_that_is_no_slip_of_a_setting_suggests_none(said: Said, kind: type[Settings]) -> None:
    told = {refusal(ConfigError, kind, **{word: 1}).replace(word, "") for word in ("colour", "nothing", "workers")}
    assert len(told) == 1
    said(*told)


def test_settings_that_do_not_fit_together_are_told_under_the_one_that_is_wrong(said: Said, file: Path) -> None:
    """Also where another setting came first, or from elsewhere."""
    programs = "programs: {a: reference-level, b: sample-level}"  # nobody set the one that does not fit
    wrong: list[tuple[type[Settings], str, dict[str, str], dict[str, Any]]] = [
        (CompareConfig, "size: 3", {}, {"against": "nobody"}),
        (CompareConfig, programs, {}, {}),
        (RecycleConfig, "size: 3", {}, {"selective": True}),
        (RecycleConfig, "size: 3", {"REFED_SELECTIVE": "true"}, {}),
        (RunConfig, "teacher: {modle: x}", {"REFED_TEACHER__TEMPERATURE": "0.5"}, {}),
        (RunConfig, f"teacher: {MODEL}", {"REFED_TEACHER__TEMPERATURE": "9"}, {}),
        (RunConfig, f"teacher: [{MODEL}]", {"REFED_TEACHER__WEIGHT": "0"}, {}),
        (RunConfig, f"teacher: {{model: {MODEL}, temperature: 0.5}}",
         {"REFED_TEACHER__API_VERSION": "2024-10-21", "REFED_TEACHER__RETRIES": "3"}, {}),
        (RunConfig, "teacher: {retries: 3}", {"REFED_TEACHER__TEMPERATURE": "1"}, {}),
        (RunConfig, "teacher: gpt-4o", {"REFED_TEACHER__TEMPERATURE": "9"}, {}),
        (CompileConfig, f"judge: {{model: {MODEL}}}", {"REFED_JUDGE__TEMPERATURE": "9"}, {}),
    ]  # fmt: skip
    for kind, text, environ, keywords in wrong:
        file.write_text(text)
        said(refusal(ConfigError, load_config, kind, file, {"REFED_TRACK": "false", **environ}, **keywords))


def test_a_fault_of_a_variable_is_told_by_its_name(said: Said) -> None:
    wrong: list[tuple[type[Settings], dict[str, str]]] = [
        (RunConfig, {"REFED_FEATURES": "all", "REFED_FEATURES__TONE": "how it sounds"}),
        (RunConfig, {"REFED_REFERENCES": "@file"}),
        *((RunConfig, {"REFED_TEACHER__MODEL": "openai/x"} | {f"REFED_{name}": value})
          for name in ("REFERENCES", "TEACHER", "MAX_COST", "SEED", "TEACHER__TEMPERATURE") for value in ("", " ")),
        (CompileConfig, {"REFED_JUDGE": MODEL, "REFED_JUDGE__MODEL": MODEL}),
        (CompileConfig, {"REFED_EVALUATIONS": "many"}),
        (CompileConfig, {"REFED_METRIC__WINS": "7"}),
        (CompileConfig, {"REFED_METRIC": "7"}),
    ]  # fmt: skip
    told = [refusal(ConfigError, load_config, kind, environ=environ) for kind, environ in wrong]
    for line, (_, environ) in zip(told, wrong, strict=True):
        assert any(name.partition("__")[0] in line for name in environ)
    said(told)


def test_files_that_cannot_be_read(said: Said, file: Path) -> None:
    said(refusal(ConfigError, load_config, RunConfig, file, {}))
    said(refusal(ConfigError, load_config, RunConfig, file.parent, {}))
    said(refusal(ConfigError, load_config, RunConfig, environ={}, teacher="nowhere/teacher.yaml"))
    contents = [
        b"size: [1\nseed: 2\n", b"size: 1\nseed: 2\n\tx: 3\n", b'size: 1\n\nrun_dir: "a\n', b"", b"- size\n", b"size\n",
        b"# nothing\n", b"size: 1\nrun_dir: caf\xe9\n", "size: 1\n".encode("utf-16"), b"a: \x00\n",
    ]  # fmt: skip
    told = {}
    for content in contents:
        file.write_bytes(content)
        told[str(content)] = refusal(ConfigError, load_config, RunConfig, file, {})
    said(told)


def test_a_fault_in_a_teacher_file_is_placed_in_that_file(said: Said, file: Path) -> None:
    file.write_text(f"model: {MODEL}\ntemprature: 1\n")
    said(refusal(ConfigError, load_config, RunConfig, environ={}, teacher=str(file)))


def test_a_value_that_is_no_data_is_refused_by_its_key(said: Said) -> None:
    class Custom:
        name, of_instruction = "custom", True

        def check(self, row: Any) -> Any: ...
        def remember(self, row: Any) -> None: ...

    custom = Custom()

    def checked(kind: type[RunConfig | FilterRunConfig], *filters: Any) -> list[Any]:
        return list(check_config(kind, {"filters": filters}).filters)

    first, second, third = checked(RunConfig, "refusals", custom, {"rouge": {"threshold": 0.5}})
    assert first.name == "refusals" and second is custom and third.settings.threshold == 0.5
    assert checked(RunConfig, custom, third) == [custom, third]
    assert checked(FilterRunConfig, {"rouge": {"keep": 5}})[0].settings.keep == 5
    said(refusal(ConfigError, checked, RunConfig, custom, {"rouge": {"keep": 5}}))
    said(refusal(ConfigError, checked, FilterRunConfig, custom, "rogue"))
    said(refusal(ConfigError, check_config, CompileConfig, {"optimizer": len}))


# --- keys in the wrong place


TEACHERS: list[dict[str, Any]] = [
    {"api_key_env": SECRET}, {"api_key_env": f"${{{SECRET}}}"}, {"api_key": SECRET}, {"token": SECRET},
    {"api_base": f"https://user:{SECRET}@example.org/v1"}, {"api_base": f"https://{SECRET}@example.org/v1"},
    {"api_base": f"https://:{SECRET}@example.org/v1"}, {"api_base": f"https://example.org/v1?key={SECRET}"},
    {"api_base": f"https://example.org/v1#{SECRET}"}, {"api_base": SECRET}, {"temperature": SECRET},
    {"retries": [SECRET]}, {"params": SECRET}, {"params": {"api_key": SECRET}}, {"params": {"apikey": SECRET}},
    {"params": {"Authorization": f"Bearer {SECRET}"}}, {"params": {"extra_headers": {"X-Key": SECRET}}},
    {"params": {"password": SECRET}}, {"params": {"client_secret": SECRET}},
    {"params": {"extra_body": {"api_key": SECRET}}}, {"gguf": SECRET}, {"model": SECRET},
]  # fmt: skip


@pytest.mark.parametrize("settings", TEACHERS, ids=lambda settings: str(settings).replace(SECRET, "KEY"))
def test_a_key_in_the_teachers_settings_is_refused_and_not_repeated(file: Path, settings: dict[str, Any]) -> None:
    teacher = {"model": MODEL, **settings}
    file.write_text(yaml.safe_dump({"teacher": teacher}))
    assert SECRET not in refusal(ConfigError, load_config, RunConfig, file, {})
    assert SECRET not in refusal(ConfigError, load_config, RunConfig, None, {}, teacher=teacher)
    assert SECRET not in refusal(ConfigError, TeacherConfig, **teacher)


@pytest.mark.parametrize(
    "key",
    [
        "sk_live_4f9a0c55e1d27b", "SK_4f9a0c55e1d27b", "gsk_4f9a0c55e1d27bA", "hf_4f9a0c55e1d27bA",
        "AIzaSy4f9a0c55e1d27b",
    ],
)  # fmt: skip
def test_a_key_that_would_do_as_a_variables_name_is_refused(key: str) -> None:
    assert key not in refusal(ConfigError, TeacherConfig, model=MODEL, api_key_env=key)


def test_a_key_in_any_other_setting_is_not_repeated(file: Path) -> None:
    for name in ("size", "seed", "columns", "guidance", "features", "teacher", "api_key", "authorization"):
        assert SECRET not in refusal(ConfigError, load_config, RunConfig, None, {}, **{name: SECRET})
        if name in RunConfig.model_fields:
            assert SECRET not in refusal(ConfigError, load_config, RunConfig, None, {f"REFED_{name.upper()}": SECRET})
    for text in (f"judge: {{api_key: {SECRET}}}", f"judge: {{api_key_env: {SECRET}}}", f"metric: {SECRET}"):
        file.write_text(text)
        assert SECRET not in refusal(ConfigError, load_config, CompileConfig, file, {})

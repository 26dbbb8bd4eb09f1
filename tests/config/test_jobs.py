"""Settings of compare, filter, recycle and stats: where a fault stands, what was meant, and never a value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from refed_dspy.config.base import Settings
from refed_dspy.config.compile import CompileConfig
from refed_dspy.config.jobs import FilterRunConfig
from refed_dspy.config.loading import check_config, load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.plugins.metrics.settings import StatsConfig
from refed_dspy.plugins.recycle.settings import RecycleConfig
from tests.support.said import Said

SECRET = "sk-put-in-the-wrong-place-123"


def fault(
    kind: type[Settings], text: str, tmp_path: Path, environ: dict[str, str] | None = None, **keywords: Any
) -> str:
    """The error, one line, for `text` as the config file of such work."""
    file = tmp_path / "config.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(kind, file, environ or {}, **keywords)
    message = str(caught.value)
    assert "\n" not in message and SECRET not in message, message
    assert "Settings" not in message and "Config" not in message, message
    return message.replace(str(file), "FILE")


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (FilterRunConfig, "filtres: [rouge]", "FILE: filtres: unknown key; did you mean filters?"),
        (FilterRunConfig, "filters: [rogue]", "FILE: filters 1: no filter 'rogue'; did you mean rouge?"),
        (
            FilterRunConfig,
            "filters: [judge, {rouge: {treshold: 0.5}}]",
            "filters 2: rouge.treshold: unknown key; did you",
        ),
        (
            FilterRunConfig,
            "filters: [{rouge: {threshold: high}}]",
            "filters 1: rouge.threshold: input should be a valid",
        ),
        (FilterRunConfig, "filters: refusals", "filters: input should be a list: [one, another]"),
        (FilterRunConfig, "filters: [3]", "filters 1: input should be `key: value` settings"),
        (
            FilterRunConfig,
            "filters: [{rouge: 5}]",
            "filters 1: a filter's settings need their names: 'rouge: {threshold: …}'",
        ),
        (FilterRunConfig, "filters: [{rouge: {}, judge: {}}]", "filters 1: must be one filter"),
        (
            FilterRunConfig,
            "filters: [{rouge: {keep: 0}}]",
            "filters 1: rouge.keep: input should be greater than or equal",
        ),
        (FilterRunConfig, "columns: {plian: first}", "columns: plian: unknown key; did you mean plain?"),
        (FilterRunConfig, "columns: [plain]", "columns: input should be `name: value` lines"),
        (
            FilterRunConfig,
            f"judge: {{model: a/b, api_key: {SECRET}}}",
            "judge.api_key: unknown key; did you mean api_key",
        ),
        (FilterRunConfig, f"judge: {{model: a/b, api_key_env: {SECRET}}}", "judge.api_key_env"),
        (StatsConfig, "scorer: {modle: x}", "scorer.modle: unknown key; did you mean model?"),
        (StatsConfig, "sample: 3", "FILE: sample: input should be greater than or equal to 10"),
        (RecycleConfig, "columns: {instructon: q}", "columns: instructon: unknown key; did you mean instruction?"),
        (RecycleConfig, "response_criteria: [clear]", "response_criteria: input should be `name: value` lines"),
        (CompareConfig, "programs: [a, b]", "programs: input should be `name: value` lines"),
        (CompareConfig, "programs: {a: reference-level}", "programs: needs at least two programs"),
        (CompareConfig, "subset: [5]", "subset: unknown key; did you mean subsets?"),
        (CompareConfig, "subsets: [5, 0]", "subsets 2: input should be greater than or equal to 1"),
        (CompareConfig, "columns: {plain: x}", "columns: plain: unknown key; known keys: instruction, response, input"),
    ],
)
def test_a_fault_is_named_with_where_it_stands(kind: type[Settings], text: str, message: str, tmp_path: Path) -> None:
    assert message in fault(kind, text, tmp_path)


def test_settings_that_do_not_fit_together_are_told_under_the_one_that_is_wrong(said: Said, tmp_path: Path) -> None:
    """Also where another setting came first, or from elsewhere."""
    track = {"REFED_TRACK": "false"}
    said(fault(CompareConfig, "size: 3", tmp_path, track, against="nobody"))
    assert fault(CompareConfig, "against: seed-only", tmp_path, track).startswith("FILE: against: the seed set answers")
    programs = "programs: {a: reference-level, b: sample-level}"  # nobody set the one that does not fit
    said(fault(CompareConfig, programs, tmp_path, track))
    said(fault(RecycleConfig, "size: 3", tmp_path, selective=True))
    message = fault(RecycleConfig, "size: 3", tmp_path, {"REFED_SELECTIVE": "true"})
    said(message)
    assert fault(StatsConfig, "judge: {api_base: 'http://h/v1'}", tmp_path).startswith(
        "FILE: judge: needs either a model"
    )


def test_unreadable_files(said: Said, tmp_path: Path) -> None:
    assert "line 2: not YAML" in fault(StatsConfig, "data: x\n  out: [\n", tmp_path)
    said(fault(StatsConfig, "- a\n", tmp_path))
    with said.by(ConfigError):
        load_config(StatsConfig, tmp_path / "none.yaml", {})


def test_variables_of_one_command_are_no_fault_of_another(tmp_path: Path) -> None:
    """One environment serves all commands: what only others have is passed over."""
    environ = {
        "REFED_SUBSETS": "[3]", "REFED_SIZE": "4", "REFED_SELECTIVE": "false", "REFED_METRIC__LENGTH": "1",
        "REFED_OPTIMIZER": "gepa", "REFED_SCORER__MODEL": "m", "REFED_FILTERS": "[refusals]", "REFED_AGAINST": "b",
        "REFED_PROGRAMS": "{a: reference-level, b: sample-level}", "REFED_METHOD": "sample-level",
    }  # fmt: skip
    assert load_config(CompareConfig, None, environ).subsets == [3]
    assert load_config(FilterRunConfig, None, environ).filters[0].name == "refusals"
    assert load_config(StatsConfig, None, environ).scorer is not None
    assert load_config(RecycleConfig, None, environ).size == 4
    assert load_config(RunConfig, None, environ).method == "sample-level"


def test_a_variable_that_refines_a_compiles_judge_makes_none_of_a_run() -> None:
    refines = {"REFED_JUDGE__MAX_TOKENS": "300"}
    assert load_config(RunConfig, None, refines).judge is None
    named = load_config(RunConfig, None, refines, judge="openai/gpt-4o").judge
    assert named is not None and named.max_tokens == 300 and named.model == "openai/gpt-4o"
    whole = load_config(StatsConfig, None, {**refines, "REFED_JUDGE__MODEL": "openai/gpt-4o"}).judge
    assert whole is not None and whole.max_tokens == 300


def test_filters_set_from_python(said: Said) -> None:
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
    with said.by(ConfigError):
        checked(RunConfig, custom, {"rouge": {"keep": 5}})
    assert checked(FilterRunConfig, {"rouge": {"keep": 5}})[0].settings.keep == 5
    with said.by(ConfigError):
        checked(FilterRunConfig, custom, "rogue")


def test_a_runs_yaml_takes_filters_with_and_without_settings(said: Said, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "filters:\n  - refusals\n  - judge:\n  - length: {min_words: 3, of: instruction}\nmethod: instruction-only\n"
    )
    config = load_config(RunConfig, file, {})
    assert [filter_.name for filter_ in config.filters] == ["refusals", "judge", "length"]
    assert config.filters[2].settings.min_words == 3
    with said.by(ConfigError):
        load_config(RunConfig, file, {}, method="smaple-level")


def test_settings_from_keywords(said: Said) -> None:
    assert check_config(StatsConfig, {"sample": None, "seed": 3}).seed == 3
    with said.by(ConfigError):
        check_config(StatsConfig, {"sampel": 20})
    with said.by(ConfigError):
        check_config(CompareConfig, {"max_cost": -1})


def test_every_key_of_every_kind_is_known_to_the_environment() -> None:
    for kind in (RunConfig, CompileConfig, CompareConfig, FilterRunConfig, RecycleConfig, StatsConfig):
        for key in kind.model_fields:
            load_config(RunConfig, None, {f"REFED_{key.upper()}": "null"} if key not in RunConfig.model_fields else {})

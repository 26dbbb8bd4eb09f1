"""`refed teacher check`: two small calls, what they show, and what later runs know from them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.main import app
from refed_dspy.teachers.requests import learned_file
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.command_line import refused
from tests.support.provider_hosts import standing_in
from tests.support.said import Said
from tests.support.scripted_engine import references

REASONS = ["no max_tokens", "default temperature", "no bounds"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own, which is not there yet."""
    monkeypatch.setenv("REFED_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def settings(server: SimulatedTeacher, **more: Any) -> dict[str, Any]:
    price = {"prompt": 1, "completion": 2}
    return {"model": "gateway/ours", "api_base": server.base_url, "retries": 0, "price": price, **more}


def check(name_or_settings: object) -> Result:
    if not isinstance(name_or_settings, str):
        Path("teacher.yaml").write_text(json.dumps(name_or_settings))
        name_or_settings = "teacher.yaml"
    return CliRunner().invoke(app, ["teacher", "check", name_or_settings])


def findings(result: Result) -> dict[str, str]:
    assert result.exit_code == 0, result.output
    return dict(re.findall(r"^([\w ]+): +(.*)$", result.stdout, re.MULTILINE))


def without_figures(line: str) -> str:
    return re.sub(r"[\d,.]*\d", "N", line)


def test_a_teacher_that_works_takes_two_calls(said: Said, server: SimulatedTeacher, cache: Path) -> None:
    found = findings(check(settings(server, context_window=4096)))
    assert server.stats()["requests"] == 2 and not cache.exists()
    measured = {name: without_figures(found.pop(name)) for name in ("speed", "this check")}
    said(found | measured)


def test_what_is_refused_is_told_and_later_runs_know_it(
    said: Said, server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.control(rules=REASONS, reasoning="So so.")
    found = findings(check(settings(server)))
    told = ("schema", "temperature", "max_tokens", "thinking", "remembered")
    said({name: found[name] for name in told} | {"this check": found["this check"].partition(", $")[0]})
    server.reset()
    caplog.clear()
    teacher = refed_dspy.TeacherConfig.model_validate(settings(server))
    made = refed_dspy.synthesize(None, references(1), size=3, teacher=teacher, run_dir=tmp_path / "run", track=False)
    assert made.complete and "400" not in server.stats()["by_status"] and not caplog.records


def test_a_setting_wins_over_what_is_remembered(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(rules=["no schema"])
    check(settings(server))
    server.control(rules=["no bounds"])
    server.reset()
    teacher = refed_dspy.TeacherConfig.model_validate(settings(server, answer_schema="bounded", concurrency=1))
    refed_dspy.synthesize(None, references(1), size=2, teacher=teacher, run_dir=tmp_path / "run", track=False)
    assert server.stats()["by_status"]["400"] == 1


def test_a_check_begins_afresh_and_forgets_what_holds_no_more(server: SimulatedTeacher) -> None:
    server.control(rules=REASONS)
    check(settings(server))
    server.control(rules=[])
    findings(check(settings(server)))
    assert json.loads(learned_file().read_text()) == {}


def test_a_cache_that_cannot_be_written_is_told_and_no_failure(
    said: Said, server: SimulatedTeacher, cache: Path
) -> None:
    cache.write_text("a file")
    server.control(rules=["no bounds"])
    said(findings(check(settings(server)))["remembered"])


def test_a_damaged_file_is_ignored_with_a_word_and_written_anew(
    said: Said, server: SimulatedTeacher, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    server.control(rules=["no bounds"])
    told = set()
    for content in ("{", '{"gateway/ours at x": {"temperature": "yes"}}', "[]", "\0"):
        learned_file().write_text(content)
        caplog.clear()
        findings(check(settings(server)))
        told.add(caplog.messages[0])
        assert list(json.loads(learned_file().read_text()).values()) == [
            {"tokens_field": None, "temperature": True, "reasoning": True, "schema": "strict"}
        ]
    (word,) = told
    said(word)


def test_the_key_is_named_and_in_no_file(said: Said, locked: SimulatedTeacher, cache: Path) -> None:
    locked.control(rules=["no bounds"])
    result = check(settings(locked, api_key_env=KEY_VARIABLE))
    said(findings(result)["key"])
    assert KEY not in result.output + learned_file().read_text()


@pytest.mark.parametrize(
    "control", [{"faults": {"400": 1}}, {"faults": {"malformed": 1}}, {"auth_fails_after": 0}], ids=str
)
def test_what_does_not_work_is_one_line_in_the_endpoints_words(
    said: Said, server: SimulatedTeacher, control: dict[str, Any]
) -> None:
    server.control(**control)
    result = check(settings(server))
    assert result.exit_code == (2 if "auth_fails_after" in control else 1), "2: a key that never worked"
    assert result.stderr.count("\n") == 1 and "speed" not in result.stdout
    said(result.stderr)


@pytest.mark.parametrize(
    "name",
    ["nothing", "absent.yaml", {"model": "gateway/ours", "api_base": "http://127.0.0.1:1", "api_key_env": "UNSET"}],
    ids=["no model", "no file", "no key"],
)
def test_bad_input_ends_before_a_call(said: Said, name: object) -> None:
    result = check(name)
    refused(result)
    said(result.stderr)


def test_the_settings_of_a_run_are_checked_with_stages_and_judge(server: SimulatedTeacher) -> None:
    one, other = settings(server), settings(server, model="gateway/other", mode="batch")
    result = check({"references": "builtin", "teacher": [one, other], "teachers": {"feedback": one}, "judge": other})
    asked = [line.partition(" at ")[0] for line in result.stdout.splitlines() if line.startswith("───── ")]
    assert [name.split()[-1] for name in asked] == ["gateway/ours", "gateway/other"]
    assert result.exit_code == 0 and server.stats()["requests"] == 4


def test_the_simulated_teacher_has_neither_key_nor_price(said: Said) -> None:
    found = findings(check("simulated"))
    said({name: found[name] for name in ("price", "this check")})
    assert not learned_file().exists()


@pytest.mark.parametrize(
    ("name", "rules", "window"),
    [
        ("openai/gpt-4o-mini", ["no bounds"], "128,000"),
        ("openai/gpt-5-mini", REASONS, "272,000"),
        ("anthropic/claude-haiku-4-5", [], "200,000"),
    ],
    ids=["plain", "reasons", "anthropic"],
)
def test_providers_by_name_are_asked_twice_and_refuse_nothing(
    said: Said,
    server: SimulatedTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rules: list[str],
    window: str,
) -> None:
    server.control(rules=rules)
    for provider in ("OPENAI", "ANTHROPIC"):
        monkeypatch.setenv(f"{provider}_API_KEY", "sk-any-0123456789")
    with standing_in(server.port, tmp_path, monkeypatch):
        found = findings(check(name))
    assert "(LiteLLM" in found["price"] and found["window"].startswith(window)
    assert server.stats()["requests"] == 2 and server.stats()["by_status"] == {"200": 2}
    said({told: found[told] for told in ("key", "temperature")})

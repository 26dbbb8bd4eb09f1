"""`refed teacher check`: two small calls, what they show, and what later runs know from them."""

from __future__ import annotations

import json
import logging
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


def test_a_teacher_that_works_takes_two_calls(server: SimulatedTeacher, cache: Path) -> None:
    found = findings(check(settings(server, context_window=4096)))
    assert server.stats()["requests"] == 2 and not cache.exists()
    assert re.fullmatch(r"[\d,.]+ tokens/s: \d+ in [\d.]+ s", found.pop("speed"))
    assert re.fullmatch(r"2 answers, \$[\d.]+", found.pop("this check"))
    assert found == {
        "key": "none is sent",
        "model": "gateway/ours answers",
        "schema": "accepted, with length bounds; the answer fits",
        "temperature": "1 and 0 are taken",
        "thinking": "none seen",
        "price": "$1 read, $2 written, per million tokens (the teacher's settings)",
        "window": "4,096 tokens (settings)",
        "batches": "taken with mode: batch, within a day, at $0.5 read, $1 written, per million tokens "
        "(the teacher's settings)",
    }


def test_what_is_refused_is_told_and_later_runs_know_it(
    said: Said, server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.control(rules=REASONS, reasoning="So so.")
    found = findings(check(settings(server)))
    said(found["schema"])
    said(found["temperature"])
    said(found["max_tokens"])
    said(found["thinking"])
    assert found["this check"].startswith("2 answers, 3 refused, $")
    said(found["remembered"])
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


def test_a_check_begins_afresh_and_forgets_what_holds_no_more(said: Said, server: SimulatedTeacher) -> None:
    server.control(rules=REASONS)
    check(settings(server))
    server.control(rules=[])
    said(findings(check(settings(server)))["schema"])
    assert json.loads(learned_file().read_text()) == {}


def test_a_cache_that_cannot_be_written_is_told_and_no_failure(
    said: Said, server: SimulatedTeacher, cache: Path
) -> None:
    cache.write_text("a file")
    server.control(rules=["no bounds"])
    said(findings(check(settings(server)))["remembered"])


@pytest.mark.parametrize("content", ["{", '{"gateway/ours at x": {"temperature": "yes"}}', "[]", "\0"])
def test_a_damaged_file_is_ignored_with_a_word_and_written_anew(
    said: Said, server: SimulatedTeacher, cache: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir()
    learned_file().write_text(content)
    server.control(rules=["no bounds"])
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        findings(check(settings(server)))
    said(caplog.text)
    assert list(json.loads(learned_file().read_text()).values()) == [
        {"tokens_field": None, "temperature": True, "reasoning": True, "schema": "strict"}
    ]


def test_the_key_is_named_and_in_no_file(said: Said, locked: SimulatedTeacher, cache: Path) -> None:
    locked.control(rules=["no bounds"])
    result = check(settings(locked, api_key_env=KEY_VARIABLE))
    said(findings(result)["key"])
    assert KEY not in result.output + learned_file().read_text()


@pytest.mark.parametrize(
    ("control", "reason"),
    [
        ({"faults": {"400": 1}}, "check of gateway/ours: "),
        ({"faults": {"malformed": 1}}, "check of gateway/ours: Invalid JSON"),
        ({"auth_fails_after": 0}, "check the key"),
    ],
)
def test_what_does_not_work_is_one_line_in_the_endpoints_words(
    server: SimulatedTeacher, control: dict[str, Any], reason: str
) -> None:
    server.control(**control)
    result = check(settings(server))
    assert result.exit_code == (2 if "auth_fails_after" in control else 1), "2: a key that never worked"
    assert result.stderr.startswith("refed: ") and result.stderr.count("\n") == 1
    assert reason in result.stderr and "speed" not in result.stdout


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nothing", "teacher: model must be PROVIDER/NAME, embedded or simulated"),
        ("absent.yaml", "absent.yaml: no such file"),
        ({"model": "gateway/ours", "api_base": "http://127.0.0.1:1", "api_key_env": "UNSET"}, "UNSET (api_key_env)"),
    ],
)
def test_bad_input_ends_before_a_call(name: object, reason: str) -> None:
    result = check(name)
    assert result.exit_code == 2 and reason in result.stderr and result.stderr.count("\n") == 1


def test_the_settings_of_a_run_are_checked_with_stages_and_judge(server: SimulatedTeacher) -> None:
    one, other = settings(server), settings(server, model="gateway/other", mode="batch")
    result = check({"references": "builtin", "teacher": [one, other], "teachers": {"feedback": one}, "judge": other})
    assert [line.partition(" at ")[0] for line in result.stdout.splitlines() if line.startswith("─────")] == [
        "───── gateway/ours",
        "───── gateway/other",
    ]
    assert result.exit_code == 0 and server.stats()["requests"] == 4


def test_the_simulated_teacher_has_neither_key_nor_price() -> None:
    found = findings(check("simulated"))
    assert found["price"] == "nothing (this machine)" and found["this check"] == "2 answers, $0"
    assert not learned_file().exists()


@pytest.mark.parametrize(
    ("name", "variable", "rules", "window", "temperature"),
    [
        ("openai/gpt-4o-mini", "OPENAI_API_KEY", ["no bounds"], "128,000", "1 and 0 are taken"),
        ("openai/gpt-5-mini", "OPENAI_API_KEY", REASONS, "272,000", "not sent to models of this name"),
        ("anthropic/claude-haiku-4-5", "ANTHROPIC_API_KEY", [], "200,000", "0 is taken"),
    ],
)
def test_providers_by_name_are_asked_twice_and_refuse_nothing(
    said: Said,
    server: SimulatedTeacher,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    variable: str,
    rules: list[str],
    window: str,
    temperature: str,
) -> None:
    server.control(rules=rules)
    monkeypatch.setenv(variable, "sk-any-0123456789")
    with standing_in(server.port, tmp_path, monkeypatch):
        found = findings(check(name))
    assert found["temperature"] == temperature
    said(found["key"])
    assert "(LiteLLM" in found["price"]
    said(found["window"])
    assert found["this check"].startswith("2 answers, $") and server.stats()["requests"] == 2

"""Keys: whose is sent where, and that none is ever told."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError, RefedError, TeacherError, TeacherRefused
from refed_dspy.records import Analysis
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.route import resolve
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.recording_endpoint import Answering, Listener, listening
from tests.support.said import Said
from tests.support.scripted_engine import references
from tests.teachers.test_routes import (
    WIRES,
    any_key,
    ask,
    check_one_line,
    config,
    run,
)

__all__ = ["any_key"]  # a fixture for every test here
PROVIDERS_KEYS = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "AZURE_OPENAI_API_KEY", "AZURE_API_KEY")


def repeating(status: int) -> Answering:
    """Refuses everything, and repeats the headers and so the key that it was sent."""

    def refused(headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        headers_text = " ".join(f"{name}: {value}" for name, value in headers.items())
        error = {"message": f"Bad request with {headers_text}", "type": "invalid_request_error", "code": "bad"}
        return status, {"type": "error", "error": error}

    return refused


@pytest.fixture(params=[400, 401, 500])
def seen(request: pytest.FixtureRequest) -> Iterator[Listener]:
    with listening(repeating(request.param)) as there:
        yield there


@pytest.fixture
def stranger() -> Iterator[Listener]:
    with listening(repeating(401)) as there:
        yield there


@pytest.mark.parametrize("wire", ["openai", "azure", "azure-v1", "anthropic"])
def test_no_providers_key_goes_to_an_address_of_ours(stranger: Any, monkeypatch: pytest.MonkeyPatch, wire: str) -> None:
    for number, name in enumerate(PROVIDERS_KEYS):
        monkeypatch.setenv(name, f"sk-real-{number}-0123456789")
    ask(config(stranger, wire, api_key_env=None))
    assert len(stranger.headers) == 1
    assert "sk-real" not in repr(stranger.headers)


@pytest.mark.parametrize("wire", WIRES)
def test_only_the_key_of_the_named_variable_goes_there(
    stranger: Any, monkeypatch: pytest.MonkeyPatch, wire: str
) -> None:
    for name in PROVIDERS_KEYS:
        monkeypatch.setenv(name, "sk-real-0123456789")
    monkeypatch.setenv("MY_OWN_KEY", "sk-mine-0123456789")
    ask(config(stranger, wire, api_key_env="MY_OWN_KEY"))
    [headers] = stranger.headers
    assert "sk-mine-0123456789" in repr(headers) and "sk-real" not in repr(headers)


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("wire", WIRES)
def test_a_key_that_an_endpoint_repeats_is_told_nowhere(
    seen: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    wire: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_OWN_KEY", "sk-mine-0123456789")
    try:
        run(seen, tmp_path / "run", wire=wire, api_key_env="MY_OWN_KEY", max_tokens=64)
    except RefedError as error:
        shown = texts_of(error)
    else:
        shown = repr(refed_dspy.read_run(tmp_path / "run").failures)
    assert seen.headers and "sk-mine-0123456789" in repr(seen.headers[0]), "it was sent, so it could be repeated"
    assert "sk-mine" not in shown + caplog.text + "".join(capfd.readouterr())
    assert b"sk-mine" not in everything_in(tmp_path)


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {}\t", "\n{}\n"])
@pytest.mark.parametrize("wire", WIRES)
def test_blanks_and_line_breaks_around_a_key_are_not_sent_and_the_key_is_kept_nowhere(
    seen: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    wire: str,
    around: str,
) -> None:
    monkeypatch.setenv("MY_OWN_KEY", around.format("sk-mine-0123456789"))
    shown = ""
    try:
        run(seen, tmp_path / "run", wire=wire, api_key_env="MY_OWN_KEY", max_tokens=64)
    except RefedError as error:
        shown = texts_of(error)
    sent = [
        value for name, value in seen.headers[0].items() if name.lower() in {"authorization", "api-key", "x-api-key"}
    ]
    assert [value.removeprefix("Bearer ") for value in sent] == ["sk-mine-0123456789"]
    assert "sk-mine" not in shown + "".join(capfd.readouterr())
    assert b"sk-mine" not in everything_in(tmp_path)


@pytest.mark.parametrize(
    "key", ["sk-mine-01\n23456789", "sk-mine 0123456789", "sk-mine-é0123456789", "sk-mine-\x7f0123"]
)
def test_a_key_that_no_header_can_hold_is_refused_before_anything_is_sent(
    stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_OWN_KEY", key)
    with pytest.raises(ConfigError, match="MY_OWN_KEY") as error:
        run(stranger, tmp_path / "run", api_key_env="MY_OWN_KEY", max_tokens=64)
    assert not stranger.headers and "sk-mine" not in texts_of(error.value)
    assert b"sk-mine" not in everything_in(tmp_path)


def test_so_is_the_key_in_a_providers_own_variable(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TeacherConfig(model="openai/gpt-4o-mini")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-0123456789\r\n")
    assert resolve(config).key() == "sk-mine-0123456789"
    for key in ("sk-mine-01\n23456789", "sk-mine-é0123456789"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        for teacher in (config, dspy.LM("openai/gpt-4o-mini"), dspy.LM("openai/gpt-4o-mini", api_key=key)):
            with said.by(ConfigError) as error:
                open_teacher(teacher)
            assert error.value.exit_code == 2 and "sk-mine" not in texts_of(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    with said.by(ConfigError):
        resolve(config)


@pytest.mark.parametrize("given", ["setting", "variable"])
def test_so_is_the_key_of_a_callers_own_lm(
    said: Said, stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    key = "sk-mine-0123456789\n"
    monkeypatch.setenv("OPENAI_API_KEY", key if given == "variable" else "sk-other-0123456789")
    own = {"api_key": key} if given == "setting" else {}
    lm = dspy.LM("openai/gpt-4o-mini", api_base=stranger.base_url, num_retries=0, **own)
    with pytest.raises(TeacherRefused) as error:
        refed_dspy.synthesize(None, references(1), size=1, teacher=lm, run_dir=tmp_path / "run")
    said({headers["Authorization"] for headers in stranger.headers})
    assert "sk-mine" not in texts_of(error.value) and b"sk-mine" not in everything_in(tmp_path)


def test_a_variable_of_blanks_holds_no_key(
    said: Said, stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_OWN_KEY", " \n")
    with said.by(ConfigError):
        run(stranger, tmp_path / "run", api_key_env="MY_OWN_KEY")


def texts_of(error: BaseException | None) -> str:
    """Text, repr and attributes of an error and of those that it came from."""
    texts = ""
    while error is not None:
        texts += f"{error} {error!r} {vars(error)!r}\n"
        error = error.__cause__
    return texts


def test_a_key_inside_a_callers_own_lm_is_told_nowhere(
    seen: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    lm = dspy.LM("openai/sim-model", api_base=seen.base_url, api_key="sk-inside-0123456789", num_retries=0)
    shown = ""
    try:
        refed_dspy.synthesize(None, references(2), size=2, teacher=lm, run_dir=tmp_path / "run")
    except RefedError as error:
        shown = str(error) + repr(error)
    assert seen.headers and "sk-inside-0123456789" in repr(seen.headers[0])
    shown += repr(refed_dspy.read_run(tmp_path / "run").failures)
    assert "sk-inside" not in shown + caplog.text + "".join(capfd.readouterr())
    assert b"sk-inside" not in everything_in(tmp_path)


def test_the_key_is_read_by_its_variables_name_at_the_time_of_the_call(
    locked: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = open_teacher(config(locked, api_key_env=KEY_VARIABLE))
    monkeypatch.setenv(KEY_VARIABLE, "sk-rotated-to-a-wrong-one")
    [error], _ = ask(teacher)
    assert isinstance(error, TeacherError)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    [answer], _ = ask(teacher)
    assert isinstance(answer.analysis, Analysis)
    assert KEY not in repr(teacher) + repr(vars(teacher))


def test_a_key_in_place_of_its_variables_name_is_refused_unseen() -> None:
    with pytest.raises(ConfigError) as error:
        load_config(RunConfig, environ={"REFED_TEACHER__API_KEY_ENV": KEY, "REFED_TEACHER__MODEL": "sim/x"})
    check_one_line(error.value, "NAME of an environment variable")
    assert KEY not in str(error.value)

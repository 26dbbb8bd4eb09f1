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
from refed_dspy.errors import ConfigError, RefedError, TeacherError
from refed_dspy.records import Analysis
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.route import resolve
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.recording_endpoint import Answering, Listener, listening
from tests.support.said import Said
from tests.support.scripted_engine import references
from tests.teachers.test_routes import any_key, ask, config, run

__all__ = ["any_key"]  # a fixture for every test here


def repeating(status: int) -> Answering:
    """Refuses everything, and repeats the headers and so the key that it was sent."""

    def refused(headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        headers_text = " ".join(f"{name}: {value}" for name, value in headers.items())
        error = {"message": f"Bad request with {headers_text}", "type": "invalid_request_error", "code": "bad"}
        return status, {"type": "error", "error": error}

    return refused


@pytest.fixture
def stranger() -> Iterator[Listener]:
    with listening(repeating(401)) as there:
        yield there


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "key", ["sk-mine-01\n23456789", "sk-mine 0123456789", "sk-mine-é0123456789", "sk-mine-\x7f0123", " \n"]
)
def test_a_key_that_no_header_can_hold_is_refused_before_anything_is_sent_and_blanks_are_none(
    said: Said, stranger: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_OWN_KEY", key)
    with said.by(ConfigError) as error:
        run(stranger, tmp_path / "run", api_key_env="MY_OWN_KEY", max_tokens=64)
    assert not stranger.headers and "sk-mine" not in texts_of(error.value)
    assert b"sk-mine" not in everything_in(tmp_path)


def test_so_is_the_key_in_a_providers_own_variable(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TeacherConfig(model="openai/gpt-4o-mini")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine-0123456789\r\n")
    assert resolve(config).key() == "sk-mine-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key := "sk-mine-01\n23456789")
    for teacher in (config, dspy.LM("openai/gpt-4o-mini"), dspy.LM("openai/gpt-4o-mini", api_key=key)):
        with said.by(ConfigError) as error:
            open_teacher(teacher)
        assert error.value.exit_code == 2 and "sk-mine" not in texts_of(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", " ")
    with said.by(ConfigError):
        resolve(config)


@pytest.mark.parametrize(("given", "status"), [("setting", 401), ("variable", 400), ("setting", 500)])
def test_a_key_inside_a_callers_own_lm_is_sent_without_blanks_and_told_nowhere(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    given: str,
    status: int,
) -> None:
    caplog.set_level(logging.DEBUG)
    key = "sk-mine-0123456789\n"
    monkeypatch.setenv("OPENAI_API_KEY", key if given == "variable" else "sk-other-0123456789")
    own = {"api_key": key} if given == "setting" else {}
    with listening(repeating(status)) as there:
        lm = dspy.LM("openai/gpt-4o-mini", api_base=there.base_url, num_retries=0, **own)
        with pytest.raises(RefedError) as error:
            refed_dspy.synthesize(None, references(1), size=1, teacher=lm, run_dir=tmp_path / "run")
    assert {headers["Authorization"] for headers in there.headers} == {f"Bearer {key.strip()}"}
    shown = texts_of(error.value) + repr(refed_dspy.read_run(tmp_path / "run").failures) + caplog.text
    assert "sk-mine" not in shown + "".join(capfd.readouterr()) and b"sk-mine" not in everything_in(tmp_path)


def texts_of(error: BaseException | None) -> str:
    """Text, repr and attributes of an error and of those that it came from."""
    texts = ""
    while error is not None:
        texts += f"{error} {error!r} {vars(error)!r}\n"
        error = error.__cause__
    return texts


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
    engine: Any = teacher.start()
    assert KEY not in repr([teacher, vars(teacher), vars(engine), vars(engine.route)])


def test_a_key_in_place_of_its_variables_name_is_refused_unseen(said: Said) -> None:
    with said.by(ConfigError) as error:
        load_config(RunConfig, environ={"REFED_TEACHER__API_KEY_ENV": KEY, "REFED_TEACHER__MODEL": "sim/x"})
    assert KEY not in str(error.value)

"""What a compile refuses before anything is sent, and models that cannot go on."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, RefedError, TeacherError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.teachers import open_teacher
from tests.conftest import KEY, KEY_VARIABLE
from tests.support import capped_compiles, compiling
from tests.support.capped_compiles import BASELINE, compiled, config
from tests.support.compiling import requests
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm

server, without_words, any_cap = compiling.terse_server, compiling.without_words, capped_compiles.any_cap

# --- refused before anything is sent


def refused(server: SimulatedTeacher, folder: Path, **settings: Any) -> str:
    with pytest.raises(ConfigError) as error:
        compiled(server, folder / "new", **settings)
    assert requests(server) == 0 and "\n" not in str(error.value) and not (folder / "new").exists()
    return str(error.value)


@pytest.mark.parametrize("role", ["teacher", "judge", "reflection"])
def test_a_cap_in_dollars_needs_every_price_and_more_than_one_calls_worst_case(
    said: Said, server: SimulatedTeacher, tmp_path: Path, role: str
) -> None:
    dear = config(server, model="openai/dear", max_tokens=9_000, temperature=0.0)
    least = open_teacher(dear).least
    assert least is not None
    said(refused(server, tmp_path, max_cost=0.9 * least / 10**12, **{role: dear}))
    said(refused(server, tmp_path, max_cost=5.0, **{role: config(server, model="openai/free", price=None)}))


@pytest.mark.usefixtures("any_cap")
def test_a_cap_below_the_first_calls_own_worst_case_sends_nothing(server: SimulatedTeacher, tmp_path: Path) -> None:
    least = open_teacher(config(server)).least
    assert least is not None
    made = compiled(server, tmp_path, max_cost=1.01 * least / 10**12, estimate=True)
    assert requests(server) == 0 and made.stopped == "max_cost" and not made.changed


@pytest.mark.parametrize("role", ["teacher", "judge", "reflection"])
def test_a_callers_own_lm_takes_no_cap(said: Said, server: SimulatedTeacher, tmp_path: Path, role: str) -> None:
    writer, caps = Writer(), [{"max_cost": 5.0}, {"max_calls": 500}]
    said([refused(server, tmp_path, **{role: fake_lm(writer)}, **cap) for cap in caps])
    assert not writer.requests


@pytest.mark.parametrize(
    ("cap", "values"),
    [("max_cost", (0, -1.0, math.nan)), ("max_calls", (0, 1.5)), ("max_minutes", (0, math.nan))],
)
def test_a_cap_that_makes_no_sense_is_refused(
    server: SimulatedTeacher, tmp_path: Path, cap: str, values: tuple[float, ...]
) -> None:
    assert all(refused(server, tmp_path, **{cap: value}).startswith(cap) for value in values)


def test_a_wrong_key_of_the_judge_ends_it_at_once(
    locked: SimulatedTeacher,
    server: SimulatedTeacher,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = "sk-wrong-0987654321fedcba"
    monkeypatch.setenv("WRONG_KEY", wrong)
    judge = config(locked, model="openai/locked", api_key_env="WRONG_KEY")
    message = ends_with(TeacherError, caplog, server=server, folder=tmp_path, judge=judge)
    assert "api_key_env" in message and wrong not in message + caplog.text
    assert 1 <= requests(locked) <= 32, "only what was in flight already"
    assert all(wrong.encode() not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_cap_in_dollars_needs_the_price_of_what_was_done_before(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    """As for a run: what earlier starts cost is unknown, so what is left of the cap is unknown too."""
    free = config(server, price=None)
    compiled(server, tmp_path, "bootstrap", teacher=free, judge=free, max_calls=500)
    with said.by(ConfigError):
        compiled(server, tmp_path, "bootstrap", teacher=config(server), judge=config(server), max_cost=1.0)


# --- models that cannot go on


def ends_with(error: type[RefedError], caplog: pytest.LogCaptureFixture, **compile_: Any) -> str:
    with pytest.raises(error) as ended:
        compiled(**compile_)
    message = str(ended.value)
    assert "\n" not in message and "Traceback" not in caplog.text
    return message


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["mipro", "bootstrap"])
def test_a_key_that_stops_working_ends_an_optimizer_and_a_new_one_goes_on(
    locked: SimulatedTeacher, tmp_path: Path, optimizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    locked.control(auth_fails_after=BASELINE + 10, response_words=8, items=1)
    model = config(locked, api_key_env=KEY_VARIABLE)
    settings: dict[str, Any] = {"server": locked, "folder": tmp_path, "optimizer": optimizer}
    settings |= {"teacher": model, "judge": model}
    message = ends_with(TeacherError, caplog, **settings)
    assert "api_key_env" in message and KEY not in message
    answered = locked.stats()["answered"]
    assert answered <= BASELINE + 10 + 32
    locked.control(auth_fails_after=None)
    made = compiled(**settings, max_calls=BASELINE + 60)
    assert made.path.exists()
    assert KEY.encode() not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.slow
def test_an_endpoint_that_goes_down_near_the_end_is_told_of(server: SimulatedTeacher, tmp_path: Path) -> None:
    """17 requests are lost: the optimizer's last ones and the whole proof."""
    server.control(down_after=BASELINE + 5)
    model = config(server, retries=0)
    try:
        made = compiled(server, tmp_path, teacher=model, judge=model)
    except RefedError:
        return
    assert made.stopped or made.proof is not None


def test_an_endpoint_that_is_not_there_ends_it(
    server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gone = config(server, api_base="http://127.0.0.1:9/v1")
    message = ends_with(TeacherError, caplog, server=server, folder=tmp_path, teacher=gone, judge=gone)
    assert "127.0.0.1:9" in message and "api_base" in message
    with Ledger.read(tmp_path) as ledger:
        assert not ledger.has_answers()

"""Caps that hold against a server that keeps its own bill: with faults, many calls at once, kills and resumes."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.states import CAPPED, DONE
from refed_dspy.runs.result import SAMPLES, Synthesis
from refed_dspy.teachers import open_teacher
from tests.support.said import Said
from tests.support.scripted_engine import Writer, references

RATES = {"prompt": 1.0, "completion": 10.0, "cached": 0.5}
"""Dollars a million tokens, so that a token costs a whole number of picodollars."""
FAULTS = {"429": 0.05, "500": 0.05, "malformed": 0.05, "cut": 0.04, "drop": 0.03, "hang": 0.02, "nousage": 0.02}


@pytest.fixture
def server(server: SimulatedTeacher) -> SimulatedTeacher:
    server.control(response_words=8)
    return server


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values = {"model": "sim/sim-model", "api_base": server.base_url, "price": RATES, "max_tokens": 512, "timeout": 0.3}
    return TeacherConfig.model_validate({**values, "retries": 2, "concurrency": 200, **settings})


def run(server: SimulatedTeacher, folder: Path, size: int = 60, **settings: Any) -> Synthesis:
    teacher = settings.pop("teacher", None) or config(server)
    return refed_dspy.synthesize(None, references(20), size=size, teacher=teacher, run_dir=folder, **settings)


def billed(server: SimulatedTeacher) -> int:
    """What the server would charge, in picodollars."""
    stats = server.stats()
    plain = stats["billed_prompt_tokens"] - stats["billed_cached_tokens"]
    return int(plain * 10**6 + stats["billed_cached_tokens"] * 5 * 10**5 + stats["billed_completion_tokens"] * 10**7)


def charged(folder: Path) -> int:
    """Picodollars spent, as the ledger has it."""
    with Ledger.read(folder) as ledger:
        return spent(ledger).picodollars


def calls_made(folder: Path) -> int:
    with Ledger.read(folder) as ledger:
        return spent(ledger).calls


def pico(dollars: float) -> int:
    return round(dollars * 10**12)


def check_spending(server: SimulatedTeacher, folder: Path, max_cost: float) -> None:
    assert billed(server) <= charged(folder) <= pico(max_cost)


def exported(folder: Path) -> int:
    """How many rows the run left at its cap."""
    return len((folder / SAMPLES).read_text().splitlines())


# --- what the ledger has


def test_without_faults_the_ledger_has_the_servers_bill(server: SimulatedTeacher, tmp_path: Path) -> None:
    patient = config(server, timeout=30)  # on a busy machine an answer may take long: no fault of the server's
    made = run(server, tmp_path / "run", size=20, teacher=patient, max_cost=50, max_calls=500, max_minutes=10)
    assert made.complete and made.state == DONE and not (tmp_path / "run" / SAMPLES).exists()
    assert charged(tmp_path / "run") == billed(server) > 0
    assert pico(made.status["cost"]) == pytest.approx(billed(server), abs=2)
    assert calls_made(tmp_path / "run") == server.stats()["requests"]
    assert server.stats()["cached_tokens"] > 0, "the cheaper tokens were there to be told apart"


@pytest.mark.parametrize(
    "faults",
    [("429", "500", "drop", "hang"), ("malformed", "cut", "empty", "refusal"), ("nousage", "oddusage", "filtered")],
)
def test_with_faults_the_ledger_has_at_least_the_bill(
    server: SimulatedTeacher, tmp_path: Path, faults: tuple[str, ...]
) -> None:
    server.control(faults=dict.fromkeys(faults, 0.1), seed=3)
    with contextlib.suppress(RunStopped):
        run(server, tmp_path / "run", size=8, max_failure_share=1, teacher=config(server, timeout=0.2, retries=0))
    assert charged(tmp_path / "run") >= billed(server) > 0
    assert calls_made(tmp_path / "run") == server.stats()["requests"]


# --- max_cost


def test_max_cost_is_never_passed_whatever_goes_wrong(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults=FAULTS, latency=0.02, sigma=0.5, seed=1)
    made = run(server, tmp_path / "run", size=400, max_cost=0.15, max_failure_share=1)
    check_spending(server, tmp_path / "run", 0.15)
    assert not made.complete and made.state == CAPPED
    assert server.stats()["requests"] > 20, "it stopped for its cap, not at once"


def test_at_the_cap_it_returns_with_what_there_is_and_the_cap_that_it_proposes_ends_it(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    made = run(server, folder, size=40, max_cost=0.12, teacher=config(server, max_tokens=4096))
    again = refed_dspy.resume(folder)
    check_spending(server, folder, 0.12)
    assert again.state == CAPPED and len(again.samples) >= len(made.samples), "a cap stays"
    for _ in range(3):
        assert made.state == CAPPED and made.reason.isprintable() and len(made.samples) < 40
        assert str(folder / SAMPLES) in made.reason and exported(folder) == len(made.samples) > 0
        assert refed_dspy.read_run(folder).reason == made.reason
        proposed = float(made.reason.rpartition("max_cost=")[2].rstrip(")"))
        assert proposed > made.status["caps"]["max_cost"]
        made = refed_dspy.resume(folder, max_cost=proposed)
        check_spending(server, folder, proposed)
        if made.complete:
            break
    assert made.complete and made.state == DONE, "following its advice three times ends it"
    assert not (folder / SAMPLES).exists(), "it does not outlive what it holds"
    assert calls_made(folder) == server.stats()["requests"] and server.stats()["repeated"] == 0


def test_a_cap_below_what_was_spent_sends_nothing_and_one_that_is_refused_changes_nothing(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    run(server, tmp_path / "run", size=6)
    sent = server.stats()["requests"]
    made = refed_dspy.resume(tmp_path / "run", size=20, max_cost=0.02)
    assert len(made.samples) == 6 and made.state == CAPPED
    with pytest.raises(ConfigError):
        refed_dspy.resume(tmp_path / "run", max_cost=0.000001)
    now = refed_dspy.read_run(tmp_path / "run")
    assert now.status["caps"] == made.status["caps"] and now.reason == made.reason
    assert server.stats()["requests"] == sent


def test_one_call_at_a_time_where_the_cap_takes_no_more(server: SimulatedTeacher, tmp_path: Path) -> None:
    """A cap that takes one worst case at a time must not end the run while calls in flight give most of it back."""
    least = open_teacher(config(server)).least
    assert least is not None
    made = run(server, tmp_path / "run", size=4, max_cost=3 * least / 1e12)
    assert server.stats()["max_in_flight"] <= 3
    assert billed(server) <= charged(tmp_path / "run") <= 3 * least
    assert made.complete or charged(tmp_path / "run") > least, "what came back was used"


# --- max_calls


@pytest.mark.slow
@pytest.mark.parametrize("faults", [{}, {"429": 0.1, "500": 0.1, "drop": 0.05, "malformed": 0.1}])
def test_max_calls_counts_every_attempt_that_the_server_saw(
    server: SimulatedTeacher, tmp_path: Path, faults: dict[str, float]
) -> None:
    server.control(faults=faults, latency=0.01, seed=5)
    made = run(server, tmp_path / "run", size=200, max_calls=70, max_failure_share=1)
    assert server.stats()["requests"] == calls_made(tmp_path / "run") == 70
    assert made.state == CAPPED and made.status["caps"]["max_calls"] == 70
    more = refed_dspy.resume(tmp_path / "run", max_calls=90)
    assert server.stats()["requests"] == 90 and more.state == CAPPED


def test_max_calls_needs_no_price_and_nothing_is_exported_where_nothing_is_kept(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = run(server, tmp_path / "run", max_calls=2, teacher=config(server, price=None))
    assert server.stats()["requests"] == 2 and made.state == CAPPED
    assert not (tmp_path / "run" / SAMPLES).exists()
    said(made.reason)


# --- max_minutes


@pytest.mark.slow
def test_max_minutes_ends_the_run_in_order(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.05)
    made = run(server, tmp_path / "run", size=5_000, max_minutes=0.1)
    assert made.state == CAPPED and made.reason.startswith("max_minutes")
    assert charged(tmp_path / "run") >= billed(server)
    assert exported(tmp_path / "run") == len(made.samples) > 0
    server.control(latency=0)
    assert refed_dspy.resume(tmp_path / "run", size=len(made.samples) + 5, max_minutes=5).complete


def test_max_minutes_does_not_wait_for_an_endpoint_that_hangs(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"hang": 1})
    made = run(server, tmp_path / "run", max_minutes=0.01, teacher=config(server, timeout=300))
    assert made.state == CAPPED and not made.samples
    assert charged(tmp_path / "run") >= billed(server) > 0, "cancelled calls are charged their worst case"


# --- kills


@pytest.mark.slow
def test_a_killed_run_stays_under_its_cap(server: SimulatedTeacher, tmp_path: Path) -> None:
    (tmp_path / "references.jsonl").write_text("".join(json.dumps(r) + "\n" for r in references(20)))
    (tmp_path / "teacher.yaml").write_text(
        f"model: sim/sim-model\napi_base: {server.base_url}\nmax_tokens: 512\ntimeout: 2\nconcurrency: 40\n"
        f"price: {json.dumps(RATES)}\n"
    )
    command = [sys.executable, "-m", "refed_dspy.cli", "synth", "--size", "300", "--max-cost", "0.4"]
    command += ["--references", "references.jsonl", "--run-dir", "run", "--teacher", "teacher.yaml"]
    server.control(latency=0.05, sigma=0.5)
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        while server.stats()["answered"] < 60 and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert charged(tmp_path / "run") >= billed(server), "what was in flight stays charged"
    server.control(latency=0)
    made = refed_dspy.resume(tmp_path / "run")
    assert made.state == CAPPED and "max_cost" in made.reason
    check_spending(server, tmp_path / "run", 0.4)
    assert calls_made(tmp_path / "run") >= server.stats()["requests"]
    with Ledger.read(tmp_path / "run") as ledger:
        outcomes = {outcome for (outcome,) in ledger.db.execute("SELECT DISTINCT outcome FROM calls")}
    assert "lost" in outcomes and "sent" not in outcomes


# --- caps that make no sense


@pytest.mark.parametrize(
    "caps",
    [
        {"max_cost": 0}, {"max_cost": -1.5}, {"max_cost": math.nan}, {"max_calls": 0},
        {"max_calls": -3}, {"max_minutes": 0}, {"max_minutes": -1}, {"max_minutes": math.nan}, {"max_cost": 0.000001},
    ],
    ids=repr,
)  # fmt: skip
def test_a_cap_that_makes_no_sense_is_told_before_anything_is_sent(
    server: SimulatedTeacher, tmp_path: Path, caps: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError) as error:
        run(server, tmp_path / "run", **caps)
    assert str(error.value).startswith(next(iter(caps))) and str(error.value).isprintable()
    assert server.stats()["requests"] == 0


def test_a_cap_below_the_first_calls_worst_case_names_it(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    least = open_teacher(config(server)).least
    assert least is not None
    # Above what any call can cost at worst, below what the first one can, whose prompt is longer than nothing.
    for cap in (least / 1e12 * 0.9, least / 1e12 * 1.01):
        with said.by(ConfigError):
            run(server, tmp_path / "run", max_cost=cap)
    assert server.stats()["requests"] == 0


def test_a_cap_in_dollars_needs_a_price(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    """Also that of what was done before."""
    unpriced = config(server, price=None)
    with said.by(ConfigError):
        run(server, tmp_path / "run", max_cost=1, teacher=unpriced)
    assert server.stats()["requests"] == 0
    run(server, tmp_path / "run", max_calls=2, teacher=unpriced)
    with said.by(ConfigError):
        run(server, tmp_path / "run", max_cost=5)


@pytest.mark.parametrize("cap", [{"max_cost": 0.003}, {"max_calls": 15}], ids=repr)
def test_a_callers_own_lm_takes_no_cap_that_could_not_be_kept(said: Said, tmp_path: Path, cap: dict[str, Any]) -> None:
    """Its price is in the table, but what it retries is not seen."""
    writer = Writer()
    lm = dspy.LM("openai/gpt-4o-mini", engine=writer, async_engine=writer.asynchronous, num_retries=0, cache=False)
    with said.by(ConfigError):
        refed_dspy.synthesize(None, references(4), size=20, teacher=lm, run_dir=tmp_path / "run", **cap)
    assert not writer.requests
    made = refed_dspy.synthesize(None, references(4), size=2, teacher=lm, run_dir=tmp_path / "run", max_minutes=5)
    assert made.complete

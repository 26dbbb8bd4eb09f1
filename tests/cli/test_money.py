"""Money on the command line: caps, estimates, what a run cost, and one line for each mistake."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from benchmarks.simulated import SimulatedTeacher
from tests.support.command_line import refed, refused
from tests.support.said import Said

PRICE = "{prompt: 1, completion: 10, cached: 0.5}"
MONEY = re.compile(r"\$\d[\d,]*(\.\d+)?")


@pytest.fixture
def home(home: Path, server: SimulatedTeacher) -> Path:
    """A working folder with references and two teachers: one whose price is set, one whose price is not."""
    teacher = f"model: sim/sim-model\napi_base: {server.base_url}\nretries: 1\nmax_tokens: 1024\ntimeout: 5\n"
    (home / "unpriced.yaml").write_text(teacher)
    (home / "priced.yaml").write_text(f"{teacher}price: {PRICE}\n")
    return home


def synth(*more: object, teacher: str = "priced.yaml", run: str = "run") -> Result:
    return refed("synth", "--references", "references.jsonl", "--run-dir", run, "--teacher", teacher, *more)


def facts(run: str = "run") -> dict[str, Any]:
    status: dict[str, Any] = json.loads(refed("status", run, "--json").stdout)
    return status


def last_line(result: Result) -> str:
    """The last line of stderr: above it stands progress."""
    return str(result.stderr.splitlines()[-1])


# --- caps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "value", "reached"),
    [
        ("--max-cost", "0.15", "max_cost $0.15 is reached after $0.1"),
        ("--max-calls", "40", "max_calls 40 is reached after 40 calls"),
        ("--max-minutes", "0.01", "max_minutes 0.01 is reached after 0.0 minutes"),
    ],
)
def test_a_cap_ends_with_exit_code_1_and_how_to_go_on(
    home: Path, server: SimulatedTeacher, flag: str, value: str, reached: str
) -> None:
    server.control(latency=0.01 if flag == "--max-minutes" else 0)
    result = synth("--size", 3_000 if flag == "--max-minutes" else 60, flag, value)
    assert result.exit_code == 1 and "Traceback" not in result.output
    line = last_line(result)
    assert line.startswith(f"refed: {reached}") and f"refed resume run {flag} " in line
    kept = facts()["kept"]
    assert kept == 0 or len((home / "run" / "samples-at-cap.jsonl").read_text().splitlines()) == kept
    status = refed("status", "run")
    assert status.exit_code == 0, "looking at a run that ended at a cap is no mistake"


def test_a_resume_goes_on_under_a_larger_cap(said: Said, home: Path, server: SimulatedTeacher) -> None:
    assert synth("--size", 20, "--max-calls", 30).exit_code == 1
    again = refed("resume", "run")
    assert again.exit_code == 1 and "max_calls 30" in last_line(again), "the caps of before are remembered"
    assert server.stats()["requests"] == 30
    assert refed("resume", "run", "--max-calls", 35).exit_code == 1
    assert server.stats()["requests"] == 35
    done = refed("resume", "run", "--max-calls", 500)
    assert done.exit_code == 0
    said(done.stdout)
    assert (facts()["state"], facts()["reason"]) == ("done", "")


def test_caps_come_from_a_settings_file_and_the_environment_too(
    home: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "config.yaml").write_text("max_calls: 7\n")
    assert synth("--config", "config.yaml").exit_code == 1 and server.stats()["requests"] == 7
    monkeypatch.setenv("REFED_MAX_CALLS", "9")
    assert synth("--config", "config.yaml").exit_code == 1 and server.stats()["requests"] == 9
    assert synth("--config", "config.yaml", "--max-calls", 11).exit_code == 1
    assert server.stats()["requests"] == 11


def test_a_cap_that_is_not_needed_changes_nothing(home: Path) -> None:
    result = synth("--size", 5, "--max-cost", 100, "--max-calls", 1000, "--max-minutes", 60)
    assert result.exit_code == 0 and facts()["caps"] == {"max_cost": 100, "max_calls": 1000, "max_minutes": 60}


BAD = [
    ("--max-cost", "0"), ("--max-cost", "-1"), ("--max-cost", "nan"), ("--max-calls", "0"),
    ("--max-calls", "-5"), ("--max-minutes", "0"), ("--max-minutes", "-1"),
    ("--max-cost", "0.000001"),
]  # fmt: skip


@pytest.mark.parametrize(("flag", "value"), BAD)
def test_a_cap_that_makes_no_sense_is_one_line(home: Path, server: SimulatedTeacher, flag: str, value: str) -> None:
    name = flag.removeprefix("--").replace("-", "_")
    refused(synth(flag, value), name)
    synth("--size", 1, run="there")
    sent = server.stats()["requests"]
    refused(refed("resume", "there", "--size", 4, flag, value), name)
    assert server.stats()["requests"] == sent


@pytest.mark.parametrize(("flag", "value"), [("--max-cost", "much"), ("--max-calls", "1.5"), ("--max-minutes", "")])
def test_a_cap_that_is_no_number_is_bad_input(home: Path, flag: str, value: str) -> None:
    result = synth(flag, value)
    assert result.exit_code == 2 and flag in result.stderr and "Traceback" not in result.output


def test_a_cap_in_dollars_without_a_price_is_one_line(home: Path, server: SimulatedTeacher) -> None:
    refused(synth("--max-cost", 1, teacher="unpriced.yaml"), "max_cost", "price", "unknown", "max_calls")
    assert server.stats()["requests"] == 0


@pytest.mark.parametrize(
    ("price", "expected"),
    [
        ("nosuch/model", "nosuch/model"),
        ("{prompt: 1}", "completion"),
        ("{prompt: -1, completion: 1}", "price"),
        ("{prompt: 1, completion: 1, output: 3}", "output"),
        ("0.15", "price"),
    ],
)
def test_a_price_that_is_none_is_one_line(home: Path, server: SimulatedTeacher, price: str, expected: str) -> None:
    teacher = (home / "unpriced.yaml").read_text()
    (home / "bad.yaml").write_text(f"{teacher}price: {price}\n")
    refused(synth(teacher="bad.yaml"), "price", expected)
    assert server.stats()["requests"] == 0


# --- the estimate


def test_an_estimate_and_then_the_run(home: Path, server: SimulatedTeacher) -> None:
    result = synth("--size", 60, "--estimate")
    assert result.exit_code == 0, result.output
    first, second, *_, last = result.stdout.splitlines()
    assert first.startswith("60 samples from all 12 references: about ") and second.startswith("dollars: $")
    assert last == "to continue, run the same command without --estimate"
    made = facts()
    assert made["size"] == 60 and 0 < made["kept"] <= 15
    sent = server.stats()["requests"]
    assert synth("--size", 60, "--estimate").stdout.splitlines()[:2] == [first, second]
    assert server.stats()["requests"] == sent
    assert synth("--size", 60).exit_code == 0 and facts()["kept"] == 60
    assert server.stats()["repeated"] == 0


def test_an_estimate_at_an_unknown_price(said: Said, home: Path) -> None:
    result = synth("--size", 60, "--estimate", teacher="unpriced.yaml")
    assert result.exit_code == 0
    said(result.stdout.splitlines()[1])


def test_an_estimate_under_a_small_cap_fails_in_one_line(said: Said, home: Path, server: SimulatedTeacher) -> None:
    result = synth("--estimate", "--max-calls", 3)
    assert result.exit_code == 1 and not result.stdout and "Traceback" not in result.stderr
    said(last_line(result))
    assert server.stats()["requests"] == 3


# --- what a run has cost


def test_status_tells_dollars_by_stage_for_each_sample_and_in_all(
    said: Said, home: Path, server: SimulatedTeacher
) -> None:
    synth("--size", 10)
    stats = server.stats()
    plain = stats["billed_prompt_tokens"] - stats["billed_cached_tokens"]
    bill = (plain + 0.5 * stats["billed_cached_tokens"] + 10 * stats["billed_completion_tokens"]) / 1e6
    shown = refed("status", "run", "--tokens").stdout.splitlines()
    for stage in ("instruction_feedback", "instruction_synthesis", "response_generation", "response_improvement"):
        [line] = [line for line in shown if line.startswith(f"{stage}: ")]
        assert MONEY.search(line), line
    [total] = [line for line in shown if line.startswith("dollars: ")]
    said(total)
    said(shown[0])
    said(total)
    status = facts()
    assert status["cost"] == pytest.approx(bill) and status["cost_per_sample"] == pytest.approx(bill / 10)
    assert sum(use["cost"] for use in status["usage"].values()) == pytest.approx(bill)
    assert all(isinstance(use["cost"], float) and use["unpriced"] == 0 for use in status["usage"].values())
    assert status["estimate"] is None
    said(status["price_source"])


def test_status_of_an_unfinished_run_tells_what_it_is_projected_to(home: Path) -> None:
    synth("--size", 60, "--max-calls", 90)
    [line] = [line for line in refed("status", "run").stdout.splitlines() if line.startswith("dollars: ")]
    assert " per sample, about $" in line and " for all 60 ($" in line
    status = facts()["estimate"]
    assert status["size"] == 60 and 0 < status["low"] <= status["cost"] <= status["high"]
    assert all(isinstance(status[name], float) for name in ("cost", "low", "high"))
    assert facts()["state"] == "at its cap" and facts()["reason"].startswith("max_calls 90 is reached")
    assert "continue with: refed_dspy.resume('run', max_calls=" in facts()["reason"]
    assert "continue with: refed resume run --max-calls " in refed("status", "run").stdout


def test_what_was_charged_unseen_is_told_apart(said: Said, home: Path, server: SimulatedTeacher) -> None:
    server.control(faults={"nousage": 0.3}, seed=2)
    synth("--size", 10)
    [line] = [line for line in refed("status", "run").stdout.splitlines() if line.startswith("unknown usage: ")]
    said(line)
    status = facts()
    reserved = sum(use["reserved"] for use in status["usage"].values())
    assert 0 < reserved < status["cost"] and sum(use["unknown"] for use in status["usage"].values()) > 0


def test_an_unknown_price_is_never_told_as_nothing(said: Said, home: Path, server: SimulatedTeacher) -> None:
    made = synth("--size", 8, "--max-calls", 15, teacher="unpriced.yaml")
    for shown in (made.stdout, made.stderr, refed("status", "run").stdout):
        assert "$" not in shown, shown
    said(refed("status", "run").stdout)
    assert facts()["unpriced"] == 15 and facts()["price_source"] is None
    whole = synth("--size", 8, "--max-calls", 10_000, teacher="unpriced.yaml")
    assert whole.exit_code == 0 and "$" not in whole.stdout
    said(whole.stdout)
    assert all(use["unpriced"] == use["calls"] for use in facts()["usage"].values())


def test_a_sample_of_unknown_price_costs_no_number_in_json(home: Path) -> None:
    synth("--size", 2, teacher="unpriced.yaml")
    assert facts()["cost_per_sample"] is None


def test_a_price_known_later_counts_from_then_on(said: Said, home: Path) -> None:
    synth("--size", 3, teacher="unpriced.yaml")
    before = facts()
    assert synth("--size", 6).exit_code == 0
    status = facts()
    assert status["unpriced"] == before["unpriced"] > 0 and status["cost"] > 0
    line = refed("status", "run").stdout.splitlines()[0]
    assert MONEY.search(line)
    said(line)


def test_a_free_teacher_is_told_as_such(said: Said, home: Path) -> None:
    teacher = (home / "unpriced.yaml").read_text()
    (home / "free.yaml").write_text(f"{teacher}price: {{prompt: 0, completion: 0}}\n")
    made = synth("--size", 2, "--max-cost", 0.01, teacher="free.yaml")
    assert made.exit_code == 0, "no call of it can pass a cap"
    said(refed("status", "run").stdout)

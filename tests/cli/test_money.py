"""Money on the command line: caps, estimates, what a run cost, and one line for each mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from benchmarks.simulated import SimulatedTeacher
from tests.support.command_line import refed, refusal, without_numbers
from tests.support.said import Said

PRICE, AT_CAP = "{prompt: 1, completion: 10, cached: 0.5}", "at its cap"


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


# --- caps


def test_at_a_cap_the_rows_so_far_are_kept_and_a_resume_goes_on_under_a_larger_one(
    said: Said, home: Path, server: SimulatedTeacher
) -> None:
    said(without_numbers(refusal(synth("--size", 20, "--max-calls", 60), 1)))
    status, shown = facts(), refed("status", "run")
    assert shown.exit_code == 0, "looking at a run that ended at a cap is no mistake"
    said(without_numbers(shown.stdout))
    assert len((home / "run" / "samples-at-cap.jsonl").read_text().splitlines()) == status["kept"] > 0
    estimate = status["estimate"]
    assert estimate["size"] == 20 and 0 < estimate["low"] <= estimate["cost"] <= estimate["high"]
    assert status["state"] == AT_CAP and "refed_dspy.resume('run', max_calls=" in status["reason"]
    assert refed("resume", "run").exit_code == 1, "the caps of before are remembered"
    assert server.stats()["requests"] == 60
    assert refed("resume", "run", "--max-calls", 65).exit_code == 1 and server.stats()["requests"] == 65
    assert refed("resume", "run", "--max-calls", 500).exit_code == 0
    assert (facts()["state"], facts()["reason"]) == ("done", "")


@pytest.mark.slow
def test_a_cap_in_minutes(said: Said, home: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.01)
    said(without_numbers(refusal(synth("--size", 3_000, "--max-minutes", 0.01), 1)).split(": ")[1])


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
    ("--max-calls", "-5"), ("--max-minutes", "0"), ("--max-minutes", "-1"), ("--max-cost", "0.000001"),
]  # fmt: skip


def test_a_cap_that_makes_no_sense_is_one_line(said: Said, home: Path, server: SimulatedTeacher) -> None:
    said({" ".join(words): refusal(synth(*words)) for words in BAD})
    assert server.stats()["requests"] == 0
    synth("--size", 1)
    sent = server.stats()["requests"]
    said({" ".join(words): refusal(refed("resume", "run", "--size", 4, *words)) for words in BAD})
    assert server.stats()["requests"] == sent
    for flag, value in (("--max-cost", "much"), ("--max-calls", "1.5"), ("--max-minutes", "")):
        result = synth(flag, value)
        assert result.exit_code == 2 and flag in result.stderr and "Traceback" not in result.output


def test_a_price_that_is_none_or_unknown_is_one_line(said: Said, home: Path, server: SimulatedTeacher) -> None:
    unpriced = (home / "unpriced.yaml").read_text()
    lines = {"unknown": refusal(synth("--max-cost", 1, teacher="unpriced.yaml"))}
    for price in ("nosuch/model", "{prompt: 1}", "{prompt: -1, completion: 1}",
                  "{prompt: 1, completion: 1, output: 3}", "0.15"):  # fmt: skip
        (home / "bad.yaml").write_text(f"{unpriced}price: {price}\n")
        lines[price] = refusal(synth(teacher="bad.yaml"))
    said(lines)
    assert server.stats()["requests"] == 0


# --- the estimate


def test_an_estimate_and_then_the_run(said: Said, home: Path, server: SimulatedTeacher) -> None:
    result = synth("--size", 40, "--estimate")
    assert result.exit_code == 0
    said(without_numbers(result.stdout).splitlines()[:2] + result.stdout.splitlines()[-1:])
    made = facts()
    assert made["size"] == 40 and 0 < made["kept"] <= 15
    sent = server.stats()["requests"]
    assert synth("--size", 40, "--estimate").stdout == result.stdout
    assert server.stats()["requests"] == sent
    assert synth("--size", 40).exit_code == 0 and facts()["kept"] == 40
    assert server.stats()["repeated"] == 0


def test_an_estimate_at_an_unknown_price_and_under_a_small_cap(
    said: Said, home: Path, server: SimulatedTeacher
) -> None:
    small = synth("--estimate", "--max-calls", 3)
    assert not small.stdout and server.stats()["requests"] == 3
    said(refusal(small, 1))
    said(synth("--size", 60, "--estimate", teacher="unpriced.yaml", run="other").stdout.splitlines()[1])


# --- what a run has cost


def test_status_tells_dollars_by_stage_for_each_sample_and_in_all(
    said: Said, home: Path, server: SimulatedTeacher
) -> None:
    synth("--size", 10)
    stats = server.stats()
    plain = stats["billed_prompt_tokens"] - stats["billed_cached_tokens"]
    bill = (plain + 0.5 * stats["billed_cached_tokens"] + 10 * stats["billed_completion_tokens"]) / 1e6
    said(without_numbers(refed("status", "run", "--tokens").stdout))
    status = facts()
    assert status["cost"] == pytest.approx(bill) and status["cost_per_sample"] == pytest.approx(bill / 10)
    assert sum(use["cost"] for use in status["usage"].values()) == pytest.approx(bill)
    assert all(isinstance(use["cost"], float) and use["unpriced"] == 0 for use in status["usage"].values())
    assert status["estimate"] is None
    said(status["price_source"])


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
    status = refed("status", "run").stdout
    assert "$" not in made.output + status
    said(status)
    assert facts()["unpriced"] == 15 and facts()["price_source"] is None
    whole = synth("--size", 8, "--max-calls", 10_000, teacher="unpriced.yaml")
    assert whole.exit_code == 0 and "$" not in whole.stdout
    said(whole.stdout)
    assert all(use["unpriced"] == use["calls"] for use in facts()["usage"].values())
    assert facts()["cost_per_sample"] is None


def test_a_price_known_later_counts_from_then_on(said: Said, home: Path) -> None:
    synth("--size", 3, teacher="unpriced.yaml")
    before = facts()
    assert synth("--size", 6).exit_code == 0
    status = facts()
    assert status["unpriced"] == before["unpriced"] > 0 and status["cost"] > 0
    said(refed("status", "run").stdout.splitlines()[0])


def test_a_free_teacher_is_told_as_such(said: Said, home: Path) -> None:
    teacher = (home / "unpriced.yaml").read_text()
    (home / "free.yaml").write_text(f"{teacher}price: {{prompt: 0, completion: 0}}\n")
    made = synth("--size", 2, "--max-cost", 0.01, teacher="free.yaml")
    assert made.exit_code == 0, "no call of it can pass a cap"
    said(refed("status", "run").stdout)

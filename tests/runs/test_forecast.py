"""A run's forecast, compared with what the run then takes; and the estimate made before it."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import ConfigError, RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.records import Rates
from refed_dspy.runs.estimate import PILOT_REFERENCES, PILOT_SAMPLES, Estimate
from refed_dspy.runs.forecast import Forecast, forecast
from refed_dspy.runs.result import Synthesis
from tests.support.looks import small
from tests.support.said import Said

PRICE = {"prompt": 1.0, "completion": 2.0}


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values = {"model": "sim/sim-model", "api_base": server.base_url, "price": PRICE, "max_tokens": 2048, "retries": 2}
    return TeacherConfig.model_validate({**values, "concurrency": 16, **settings})


def uneven(count: int = 30) -> list[dict[str, str]]:
    """References whose lengths vary tenfold: 600 to 6,000 characters."""
    rng = random.Random(4)
    lengths = [int(600 * 10 ** rng.random()) for _ in range(count)]
    return [
        {"instruction": f"Explain topic {i}. " * (1 + i % 9), "response": "It is about things. " * (n // 20)}
        for i, n in enumerate(lengths)
    ]


def run(server: SimulatedTeacher, folder: Path, size: int, **settings: Any) -> Synthesis:
    settings.setdefault("teacher", config(server))
    settings.setdefault("references", uneven())
    return refed_dspy.synthesize(None, settings.pop("references"), size=size, run_dir=folder, **settings)


def estimate(server: SimulatedTeacher, folder: Path, size: int = 200, **settings: Any) -> Estimate:
    settings.setdefault("teacher", config(server))
    return refed_dspy.estimate(None, uneven(), size=size, run_dir=folder, **settings)


def predicted(folder: Path, size: int | None = None, per_reference: int | None = None) -> Forecast:
    with Ledger.read(folder) as ledger:
        prediction = forecast(ledger, size, per_reference)
    assert (
        prediction is not None
        and prediction.cost is not None
        and prediction.low is not None
        and prediction.high is not None
    )
    assert prediction.spent <= prediction.low <= prediction.cost <= prediction.high
    return prediction


def totals(folder: Path) -> tuple[float, int, int, int]:
    """Dollars charged, calls, and tokens read and written."""
    with Ledger.read(folder) as ledger:
        used = spent(ledger)
        read, written = ledger.db.execute("SELECT sum(prompt_tokens), sum(completion_tokens) FROM calls").fetchone()
    return used.cost, used.calls, read, written


# --- the forecast


def test_nothing_is_foreseen_from_too_little(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    made = run(server, tmp_path / "run", 40, max_calls=2)
    with Ledger.read(tmp_path / "run") as ledger:
        assert forecast(ledger) is None
    assert made.status["estimate"] is None
    said(made.state)
    said(made.reason)


def test_a_run_with_nothing_left_to_ask_foresees_what_was_spent(server: SimulatedTeacher, tmp_path: Path) -> None:
    run(server, tmp_path / "run", 60)
    prediction = predicted(tmp_path / "run")
    assert (prediction.cost, prediction.calls, prediction.prompt_tokens, prediction.completion_tokens) == totals(
        tmp_path / "run"
    )
    assert prediction.low == prediction.high == prediction.cost == prediction.spent
    assert prediction.calls_to_come == 0 and prediction.seconds == 0


@pytest.mark.parametrize("per_reference", [None, 4])
def test_half_a_run_foresees_the_other_half(
    server: SimulatedTeacher, tmp_path: Path, per_reference: int | None
) -> None:
    run(server, tmp_path / "run", 50, per_reference=per_reference)
    prediction = predicted(tmp_path / "run", 100)
    run(server, tmp_path / "run", 100, per_reference=per_reference)
    cost, calls, read, written = totals(tmp_path / "run")
    assert prediction.cost is not None
    assert prediction.cost - prediction.spent == pytest.approx(cost - prediction.spent, rel=0.15)
    assert prediction.calls == pytest.approx(calls, rel=0.1)
    assert prediction.prompt_tokens == pytest.approx(read, rel=0.15)
    assert prediction.completion_tokens == pytest.approx(written, rel=0.15)


@pytest.mark.slow
def test_faults_are_foreseen_too(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"malformed": 0.15, "nousage": 0.03, "500": 0.02}, seed=6)
    run(server, tmp_path / "run", 60)
    prediction = predicted(tmp_path / "run", 140)
    run(server, tmp_path / "run", 140)
    cost, *_ = totals(tmp_path / "run")
    assert prediction.cost is not None and prediction.cost == pytest.approx(cost, rel=0.15)


def test_the_length_of_what_is_to_come_counts(server: SimulatedTeacher, tmp_path: Path) -> None:
    """The same start, but one run has long references ahead of it: it is foreseen to cost more."""
    with_long = [*uneven(8), *({"instruction": f"Say {i}.", "response": "Long. " * 4_000} for i in range(40))]
    with_short = [*uneven(8), *({"instruction": f"Say {i}.", "response": "Short."} for i in range(40))]
    costs = []
    for name, references in (("long", with_long), ("short", with_short)):
        run(server, tmp_path / name, 20, references=references, per_reference=2)
        costs.append(predicted(tmp_path / name, 90, per_reference=2).cost)
    assert costs[0] is not None and costs[1] is not None and costs[0] > 2 * costs[1]


def test_rounds_are_played_to_the_end(server: SimulatedTeacher, tmp_path: Path) -> None:
    few = uneven(3)
    run(server, tmp_path / "run", 20, references=few, per_reference=4)
    prediction = predicted(tmp_path / "run", 60, per_reference=4)
    made = run(server, tmp_path / "run", 60, references=few, per_reference=4)
    assert made.complete and prediction.calls == pytest.approx(totals(tmp_path / "run")[1], rel=0.1)


def test_references_that_run_dry_are_foreseen_to_end_the_run(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(items=1)
    run(server, tmp_path / "run", 4, references=uneven(2), per_reference=1)
    server.control(items=0)
    made = run(server, tmp_path / "run", 10_000, references=uneven(2), per_reference=1)
    assert not made.complete
    prediction = predicted(tmp_path / "run")  # must come back at all: nobody gives ten thousand
    assert prediction.size == 10_000


def test_a_smaller_size_than_made_is_what_was_spent(server: SimulatedTeacher, tmp_path: Path) -> None:
    run(server, tmp_path / "run", 30)
    prediction = predicted(tmp_path / "run", 5)
    assert prediction.cost == prediction.spent == totals(tmp_path / "run")[0]


# --- the estimate


def test_an_estimate_makes_a_little_and_the_run_goes_on_from_it(server: SimulatedTeacher, tmp_path: Path) -> None:
    estimated = estimate(server, tmp_path / "run")
    sent = server.stats()["requests"]
    made = refed_dspy.read_run(tmp_path / "run")
    assert len(made.samples) <= PILOT_REFERENCES * PILOT_SAMPLES and made.status["opened"] <= PILOT_REFERENCES + 1
    assert made.size == 200 and not made.complete and estimated.size == 200
    done = refed_dspy.resume(tmp_path / "run")
    assert done.complete and len(done.samples) == 200
    cost, calls, _, written = totals(tmp_path / "run")
    assert calls == server.stats()["requests"] > sent and server.stats()["repeated"] == 0, "nothing of it was wasted"
    assert estimated.cost is not None and estimated.cost == pytest.approx(cost, rel=0.15)
    assert estimated.low is not None and estimated.high is not None and estimated.low <= cost <= estimated.high
    assert estimated.completion_tokens == pytest.approx(written, rel=0.15)


def test_a_second_estimate_sends_nothing(server: SimulatedTeacher, tmp_path: Path) -> None:
    first = estimate(server, tmp_path / "run")
    sent = server.stats()["requests"]
    assert estimate(server, tmp_path / "run") == first and "200 samples" in small(first)
    larger = estimate(server, tmp_path / "run", 2_000)
    assert server.stats()["requests"] == sent
    assert first.cost is not None and larger.cost is not None
    assert larger.cost > 5 * first.cost


def test_an_estimate_of_a_small_run_makes_no_more_than_that(server: SimulatedTeacher, tmp_path: Path) -> None:
    estimated = estimate(server, tmp_path / "run", 4)
    assert len(refed_dspy.read_run(tmp_path / "run").samples) == 4
    assert estimated.cost == estimated.spent == totals(tmp_path / "run")[0]


def test_an_estimate_in_lines_for_people(server: SimulatedTeacher, tmp_path: Path) -> None:
    lines = estimate(server, tmp_path / "run").lines()
    assert lines[0].startswith("200 samples from all 30 references: about ") and lines[0].endswith((" s", " min"))
    assert lines[1].startswith("dollars: $") and "between $" in lines[1] and "the teacher's settings" in lines[1]
    assert any("openai/gpt-4o-mini" in line for line in lines[3:])


def test_an_estimate_at_an_unknown_price_says_so(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    estimated = estimate(server, tmp_path / "run", teacher=config(server, price=None))
    assert estimated.cost is estimated.low is estimated.high is None and estimated.price_source is None
    assert estimated.completion_tokens > 0
    assert "$" not in estimated.lines()[1]
    said(estimated.lines()[1])
    assert estimated.others["openai/gpt-4o-mini"][0] > 0, "other teachers' prices are known all the same"


def test_a_price_that_was_set_as_advised_is_used(server: SimulatedTeacher, tmp_path: Path) -> None:
    estimate(server, tmp_path / "run", teacher=config(server, price=None))
    estimated = estimate(server, tmp_path / "run", teacher=config(server))
    assert estimated.lines()[1].startswith("dollars: $")


def test_an_estimate_under_a_cap_that_is_too_small_ends_in_one_line(server: SimulatedTeacher, tmp_path: Path) -> None:
    with pytest.raises((RunStopped, ConfigError)) as error:
        estimate(server, tmp_path / "run", max_calls=4)
    assert "\n" not in str(error.value) and str(tmp_path / "run") in str(error.value)
    assert server.stats()["requests"] <= 4
    assert refed_dspy.read_run(tmp_path / "run").size == 200


def test_an_estimate_keeps_the_caps(server: SimulatedTeacher, tmp_path: Path) -> None:
    estimated = estimate(server, tmp_path / "run", max_cost=1, max_calls=500)
    assert estimated.cost is not None
    caps = refed_dspy.read_run(tmp_path / "run").status["caps"]
    assert (caps["max_cost"], caps["max_calls"]) == (1, 500)
    with pytest.raises(ConfigError, match="max_cost"):
        estimate(server, tmp_path / "other", max_cost=0.000001)


@pytest.mark.slow
def test_an_estimate_that_broke_off_leaves_the_run_at_its_full_size(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(auth_fails_after=25)
    with said.by(RunStopped):
        estimate(server, tmp_path / "run")
    server.control(auth_fails_after=None)
    made = refed_dspy.resume(tmp_path / "run")
    assert len(made.samples) == made.size == 200


@pytest.mark.parametrize("change", [{"seed": 9}, {"temperature": 0.1}])
def test_an_estimate_in_another_runs_folder_is_refused(
    said: Said, server: SimulatedTeacher, tmp_path: Path, change: dict[str, Any]
) -> None:
    run(server, tmp_path / "run", 20, per_reference=2)
    if "temperature" in change:
        change = {"teacher": config(server, **change)}
    with said.by(RunDirError):
        estimate(server, tmp_path / "run", **change)


def test_an_estimate_in_a_folder_of_other_work_is_refused(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    run(server, tmp_path / "run", 4)
    with Ledger.create(tmp_path / "run") as ledger:
        ledger.set_meta(work="statistics", identity={})
    with said.by(RunDirError):
        estimate(server, tmp_path / "run")


def wide(spread: float) -> Forecast:
    return Forecast(
        size=100, calls=300, prompt_tokens=10_000, cached_tokens=0, completion_tokens=10_000, cost=1.0,
        low=0.1, high=3.0, spent=0.1, seconds=9.0, calls_to_come=250, spread=spread, references=2,
        tokens_to_come=(8_000.0, 0.0, 8_000.0),
    )  # fmt: skip


def test_a_wide_interval_is_shown_as_any_other(tmp_path: Path) -> None:
    cost, low, high = wide(1.4).at(Rates(10**6, 10**6, 10**6, 10**7))
    assert 0 <= low < cost < high
    others = {"other/teacher": (cost, low, high)}
    estimated = Estimate(**vars(wide(1.4)), run_dir=tmp_path, minutes=1.0, price_source="somewhere", others=others)
    assert "other/teacher" in estimated.lines()[-1]


def test_what_was_spent_already_is_no_guess_elsewhere() -> None:
    """Nothing is still to come, so the tokens are known, and with them the price anywhere."""
    cost, low, high = dataclasses.replace(wide(0.5), tokens_to_come=(0.0, 0.0, 0.0)).at(
        Rates(10**6, 10**6, 10**6, 10**7)
    )
    assert cost == low == high == (10_000 * 10**6 + 10_000 * 10**7) / 10**12


def test_the_facts_are_json(server: SimulatedTeacher, tmp_path: Path) -> None:
    run(server, tmp_path / "run", 20)
    made = run(server, tmp_path / "run", 200, max_calls=90)
    projected = json.loads(json.dumps(made.status))["estimate"]
    assert projected["size"] == 200 and 0 < projected["low"] <= projected["cost"] <= projected["high"]
    assert isinstance(projected["calls"], int) and projected["confidence"] == 0.9

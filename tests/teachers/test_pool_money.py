"""Several teachers: what is paid, what it will be, and who is told to have written what is reused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.states import CAPPED
from refed_dspy.records import PICO
from tests.support.said import Said
from tests.support.scripted_engine import references
from tests.support.two_teachers import asked, check_lineage, config, pool, run


def test_caps_hold_over_all_members(said: Said, two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    made = run(tmp_path / "calls", 100, teacher=pool(two), max_calls=31)
    assert sum(asked(two)) <= 31
    assert made.state == CAPPED
    dear = [teacher.model_copy(update={"price": None}) for teacher in pool(two)]
    with said.by(ConfigError):
        run(tmp_path / "unknown", 10, teacher=[dear[0], pool(two)[1]], max_cost=1.0)
    with said.by(ConfigError):
        big = config(two[1], model="sim/other-model", max_tokens=100_000)
        run(tmp_path / "low", 10, teacher=pool(two)[0], teachers={"response_feedback": big}, max_cost=0.1)


@pytest.mark.slow
def test_a_cap_in_dollars_holds_over_all_members(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    made = run(tmp_path / "cost", 200, teacher=pool(two), max_cost=0.05)
    billed = 0.0
    for server in two:
        stats = server.stats()
        billed += (stats["billed_prompt_tokens"] + 2 * stats["billed_completion_tokens"]) / 1e6
    assert len(made.samples) and 0.02 < billed <= 0.05
    assert made.state == CAPPED


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["stages", "pool"])
def test_an_estimate_knows_what_each_charges(two: tuple[SimulatedTeacher, ...], tmp_path: Path, shape: str) -> None:
    """The pool's dear member writes a twentieth of the other's words: tokens and prices must not be mixed."""
    cheap, dear = {"prompt": 0.15, "completion": 0.6}, {"prompt": 3.0, "completion": 12.0}
    two[0].control(response_words=100)
    writer = config(two[0], price=cheap, max_tokens=4096)
    strong = config(two[1], model="sim/other-model", price=dear, max_tokens=4096)
    settings: dict[str, Any] = {"teacher": writer, "teachers": {"feedback": strong}}
    if shape == "pool":
        settings = {"teacher": [writer, strong]}
    settings |= {"references": references(60), "size": 400}
    estimate = refed_dspy.estimate(None, run_dir=tmp_path / "run", **settings)
    made = run(tmp_path / "run", **settings)
    assert estimate.cost is not None
    assert estimate.cost == pytest.approx(made.status["cost"], rel=0.15)
    with Ledger.read(tmp_path / "run") as ledger:
        assert spent(ledger).picodollars == pytest.approx(made.status["cost"] * PICO)


@pytest.mark.slow
def test_an_unknown_price_of_one_makes_the_forecast_s_unknown(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path
) -> None:
    first, second = pool(two)
    estimate = refed_dspy.estimate(
        None,
        references(12),
        size=60,
        teacher=[first, second.model_copy(update={"price": None})],
        run_dir=tmp_path / "run",
    )
    assert estimate.cost is None and estimate.calls > 100
    again = refed_dspy.estimate(None, references(12), size=60, teacher=[first, second], run_dir=tmp_path / "run")
    assert again.cost is not None and again.calls == estimate.calls


@pytest.mark.slow
def test_what_is_reused_says_who_wrote_it(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    run(tmp_path / "lender", teacher=pool(two))
    asked(two)
    made = run(tmp_path / "run", teacher=pool(two, 5, 1), reuse=tmp_path / "lender")
    assert asked(two) == [0, 0]
    assert {row["teacher"] for row in check_lineage(made, two)} == {"sim/sim-model", "sim/other-model"}

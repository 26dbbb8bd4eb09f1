"""Forecasts of runs with filters, of other programs and of comparisons, compared with what the runs then take."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.concurrency import run_blocking
from refed_dspy.config.loading import check_config
from refed_dspy.filters.base import Decision
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.plugins.compare.compare import prepare
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.programs.reference_level import METHODS
from refed_dspy.runs.forecast import Forecast, forecast
from refed_dspy.runs.result import Synthesis
from refed_dspy.runs.synthesize import produce
from tests.support.scripted_engine import references

pytestmark = pytest.mark.slow

PRICE = {"prompt": 1.0, "completion": 2.0}


class Every:
    """Keeps one row in `n`, by the number of those it saw: a custom filter."""

    def __init__(self, n: int, *, of_instruction: bool = False) -> None:
        self.name, self.of_instruction, self.n, self.seen = "every", of_instruction, n, 0

    def check(self, row: Any) -> Decision:
        self.seen += 1
        kept = self.seen % self.n == 0
        return Decision(kept, "" if kept else "not the nth")

    def remember(self, row: Any) -> None: ...


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values = {"model": "sim/sim-model", "api_base": server.base_url, "price": PRICE, "max_tokens": 2048}
    return TeacherConfig.model_validate({**values, "concurrency": 8, **settings})


def run(server: SimulatedTeacher, folder: Path, size: int, program: Any = None, **settings: Any) -> Synthesis:
    values = {"teacher": config(server), "per_reference": 5, **settings}
    return refed_dspy.synthesize(program, references(40), size=size, run_dir=folder, **values)


def predicted(folder: Path, size: int | None = None) -> Forecast:
    with Ledger.read(folder) as ledger:
        prediction = forecast(ledger, size)
    assert prediction is not None and prediction.cost is not None
    return prediction


def actual(folder: Path) -> tuple[int, float]:
    """(calls, dollars) that were paid."""
    with Ledger.read(folder) as ledger:
        used = spent(ledger)
    return used.calls, used.cost


def assert_close(prediction: Forecast, folder: Path, within: float = 0.15) -> None:
    calls, cost = actual(folder)
    assert prediction.calls == pytest.approx(calls, rel=within)
    assert prediction.cost == pytest.approx(cost, rel=within)


def test_what_filters_drop_is_foreseen_as_paid_for(server: SimulatedTeacher, tmp_path: Path) -> None:
    run(server, tmp_path / "run", 12, filters=[Every(3)])
    prediction = predicted(tmp_path / "run", 36)
    assert run(server, tmp_path / "run", 36, filters=[Every(3)]).complete
    assert_close(prediction, tmp_path / "run")
    assert actual(tmp_path / "run")[0] > 2 * 2.2 * 36, "dropped samples cost as much as kept ones"


def test_what_is_dropped_before_it_is_answered_costs_no_response(server: SimulatedTeacher, tmp_path: Path) -> None:
    run(server, tmp_path / "run", 12, filters=[Every(2, of_instruction=True)])
    prediction = predicted(tmp_path / "run", 36)
    run(server, tmp_path / "run", 36, filters=[Every(2, of_instruction=True)])
    assert_close(prediction, tmp_path / "run")
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.db.execute("SELECT count(*) FROM answers WHERE stage='response_generation'").fetchone() == (36,)


def test_a_judges_calls_are_foreseen(server: SimulatedTeacher, tmp_path: Path) -> None:
    """Two calls a sample that is judged, of another model, and most samples dropped by the verdict."""
    settings: dict[str, Any] = {
        "filters": [{"rubric": {"at_least": 3}}, Every(2)],
        "judge": config(server, model="sim/x"),
    }
    run(server, tmp_path / "run", 12, **settings)
    prediction = predicted(tmp_path / "run", 30)
    settings["filters"][1] = Every(2)
    run(server, tmp_path / "run", 30, **settings)
    assert_close(prediction, tmp_path / "run", within=0.25)


@pytest.mark.parametrize("method", ["sample-level", "instruction-only"])
def test_other_programs_are_foreseen(server: SimulatedTeacher, tmp_path: Path, method: str) -> None:
    run(server, tmp_path / "run", 12, METHODS[method]())
    prediction = predicted(tmp_path / "run", 40)
    run(server, tmp_path / "run", 40, METHODS[method]())
    assert_close(prediction, tmp_path / "run", within=0.1)


def test_a_comparison_is_foreseen_with_every_program_and_the_judge(server: SimulatedTeacher, tmp_path: Path) -> None:
    """Two programs that both improve: two improvements a sample; a grade of each reference's own response beside."""
    guided = refed_dspy.programs.ReferenceLevelFeedback(guidance={"response_improvement": "Be brief."})
    programs = {
        "seed-only": "seed-only",
        "instruction-only": "instruction-only",
        "reference-level": "reference-level",
        "guided": guided,
    }

    named = {**dict.fromkeys(programs, "reference-level"), "instruction-only": "instruction-only"}
    models = config(server), config(server, model="sim/x")

    def compare(size: int) -> None:
        settings = check_config(CompareConfig, {"programs": named, "size": size, "out": tmp_path / "run"})
        run_blocking(produce(prepare(settings, programs, references(40), *models)))

    compare(16)
    prediction = predicted(tmp_path / "run", 30)
    compare(30)
    assert_close(prediction, tmp_path / "run", within=0.1)


def max_calls_in(reason: str) -> int:
    """The cap that a reason says is enough."""
    found = re.search(r"max_calls=(\d+)\)", reason)
    assert found is not None, reason
    return int(found[1])


def test_a_cap_in_calls_leaves_room_for_the_judge(server: SimulatedTeacher, tmp_path: Path) -> None:
    """What a run that a cap ended says is enough, nearly is: what a judge drops is chance, so it may say it twice."""
    settings: dict[str, Any] = {"filters": [{"rubric": {"at_least": 2}}], "judge": config(server, model="sim/x")}
    short = run(server, tmp_path / "run", 30, max_calls=45, **settings)
    assert short.state == "at its cap" and "continue with: " in short.reason
    enough = max_calls_in(short.reason)
    made = refed_dspy.resume(tmp_path / "run", max_calls=enough)
    assert len(made.samples) >= 24
    if made.state == "at its cap":
        made = refed_dspy.resume(tmp_path / "run", max_calls=max_calls_in(made.reason))
    assert made.complete
    assert server.stats()["repeated"] == 0

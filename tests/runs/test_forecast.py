"""A run's forecast, compared with what the run then takes; and the estimate made before it."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dspy import lm15
from dspy.lm15 import Request, Response, Usage

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.concurrency import run_blocking
from refed_dspy.config.loading import check_config
from refed_dspy.errors import ConfigError, RunDirError, RunStopped
from refed_dspy.filters.base import Decision
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.states import CAPPED
from refed_dspy.plugins.compare.compare import prepare
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.records import Rates
from refed_dspy.runs.estimate import PILOT_REFERENCES, PILOT_SAMPLES, Estimate
from refed_dspy.runs.forecast import Forecast, forecast
from refed_dspy.runs.result import Synthesis
from refed_dspy.runs.synthesize import produce
from tests.plugins.compare.helpers import Judge
from tests.runs.filter.helpers import CustomFilter
from tests.support.compiling import config
from tests.support.looks import small
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

PRICED = "openai/gpt-4o-mini"


class Counting(Writer):
    """Reports as many tokens as its texts are long, and writes at length now and then."""

    def _value(self, name: str) -> Any:
        value = super()._value(name)
        return value + " and so on" * (next(self.numbers) % 40) if isinstance(value, str) else value

    def answer(self, request: Request) -> Response:
        made = super().answer(request)
        read = len(str(request.system)) + len(str(request.messages[-1].text))
        usage = Usage(input_tokens=read // 4, output_tokens=len(str(made.message.text)) // 4)
        return dataclasses.replace(made, usage=usage)


def uneven(count: int = 30) -> list[dict[str, str]]:
    """References whose lengths vary tenfold: 600 to 6,000 characters."""
    rng = random.Random(4)
    lengths = [int(600 * 10 ** rng.random()) for _ in range(count)]
    return [
        {"instruction": f"Explain topic {i}. " * (1 + i % 9), "response": "It is about things. " * (n // 20)}
        for i, n in enumerate(lengths)
    ]


def run(teacher: Any, folder: Path, size: int, given: Any = None, **settings: Any) -> Synthesis:
    teacher = fake_lm(teacher, PRICED) if isinstance(teacher, Writer) else teacher
    return refed_dspy.synthesize(None, given or uneven(), size=size, teacher=teacher, run_dir=folder, **settings)


def estimate(teacher: Any, folder: Path, size: int = 100, **settings: Any) -> Estimate:
    teacher = fake_lm(teacher, PRICED) if isinstance(teacher, Writer) else teacher
    return refed_dspy.estimate(None, uneven(), size=size, run_dir=folder, teacher=teacher, **settings)


def over_http(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    """A teacher that caps can be kept for."""
    return config(server, max_tokens=2048, **settings)


def predicted(folder: Path, size: int | None = None, per_reference: int | None = None) -> Forecast:
    with Ledger.read(folder) as ledger:
        prediction = forecast(ledger, size, per_reference)
    assert prediction is not None and prediction.cost is not None
    assert prediction.low is not None and prediction.high is not None
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
    made = run(over_http(server), tmp_path / "run", 40, max_calls=2)
    with Ledger.read(tmp_path / "run") as ledger:
        assert forecast(ledger) is None
    assert made.status["estimate"] is None
    said(made.reason)


def test_what_is_made_already_costs_what_was_spent(tmp_path: Path) -> None:
    run(Counting(), tmp_path / "run", 30)
    prediction = predicted(tmp_path / "run")
    assert totals(tmp_path / "run") == (
        prediction.cost, prediction.calls, prediction.prompt_tokens, prediction.completion_tokens,
    )  # fmt: skip
    assert prediction.low == prediction.high == prediction.cost == prediction.spent
    assert prediction.calls_to_come == 0 and prediction.seconds == 0
    fewer = predicted(tmp_path / "run", 5)
    assert fewer.cost == fewer.spent == prediction.cost


@pytest.mark.parametrize(("count", "per_reference"), [(30, None), (30, 4), (3, 4)])
def test_a_part_of_a_run_foresees_the_rest(tmp_path: Path, count: int, per_reference: int | None) -> None:
    """Where there are few references, it plays further rounds of them to the end."""
    writer, settings = Counting(), {"per_reference": per_reference}
    run(writer, tmp_path / "run", 40, uneven(count), **settings)
    prediction = predicted(tmp_path / "run", 80)
    run(writer, tmp_path / "run", 80, uneven(count), **settings)
    cost, calls, read, written = totals(tmp_path / "run")
    assert prediction.cost is not None
    assert prediction.cost - prediction.spent == pytest.approx(cost - prediction.spent, rel=0.15)
    assert prediction.calls == pytest.approx(calls, rel=0.1)
    assert prediction.prompt_tokens == pytest.approx(read, rel=0.15)
    assert prediction.completion_tokens == pytest.approx(written, rel=0.15)


def test_faults_are_foreseen_too(tmp_path: Path) -> None:
    writer = Counting()
    writer.on_request = lambda _: "no JSON" if len(writer.requests) % 7 == 0 else None
    run(writer, tmp_path / "run", 20)
    prediction = predicted(tmp_path / "run", 50)
    run(writer, tmp_path / "run", 50)
    assert prediction.cost == pytest.approx(totals(tmp_path / "run")[0], rel=0.15)


def test_the_length_of_what_is_to_come_counts(tmp_path: Path) -> None:
    """The same start, but one run has long references ahead of it: it is foreseen to cost more."""
    costs = []
    for name, response in (("long", "Long. " * 4_000), ("short", "Short.")):
        ahead = [{"instruction": f"Say {i}.", "response": response} for i in range(40)]
        run(Counting(), tmp_path / name, 20, [*uneven(8), *ahead], per_reference=2)
        costs.append(predicted(tmp_path / name, 90, per_reference=2).cost or 0)
    assert costs[0] > 2 * costs[1]


def test_references_that_run_dry_are_foreseen_to_end_the_run(tmp_path: Path) -> None:
    writer = Counting(per_call=1)
    run(writer, tmp_path / "run", 4, uneven(2), per_reference=1)
    writer.per_call = 0
    assert not run(writer, tmp_path / "run", 10_000, uneven(2), per_reference=1).complete
    assert predicted(tmp_path / "run").size == 10_000, "it comes back at all: nobody gives ten thousand"


# --- with filters, of other programs, of comparisons


def every(n: int, *, of_instruction: bool = False) -> CustomFilter:
    """Keeps one row in `n`, by the number of those it saw."""
    seen = iter(range(1, 10_000))
    return CustomFilter("every", lambda _: Decision(next(seen) % n == 0, "not the nth"), of_instruction=of_instruction)


def assert_foreseen(folder: Path, start: Callable[[int], object], within: float = 0.15) -> None:
    """What `start` takes for 30 samples is foreseen after 12."""
    start(12)
    prediction = predicted(folder, 30)
    start(30)
    cost, calls, *_ = totals(folder)
    assert prediction.calls == pytest.approx(calls, rel=within) and prediction.cost == pytest.approx(cost, rel=within)


def judging() -> dict[str, Any]:
    """A judge that drops every third sample."""
    judge = Counting()
    judge.on_request = lambda _: json.dumps({"reason": "so", "grade": str(3 + len(judge.requests) % 3)})
    return {"filters": [{"rubric": {"at_least": 4}}], "judge": fake_lm(judge, "openai/gpt-4o")}


@pytest.mark.parametrize(
    "settings",
    [
        lambda: {"filters": [every(3)]},
        lambda: {"filters": [every(2, of_instruction=True)]},
        judging,
        lambda: {"method": "sample-level"},
        lambda: {"method": "instruction-only"},
        lambda: {"criteria": True},
    ],
    ids=["filter", "filter of instructions", "judge", "sample-level", "instruction-only", "criteria"],
)
def test_what_is_dropped_or_asked_otherwise_is_foreseen(settings: Callable[[], dict[str, Any]], tmp_path: Path) -> None:
    writer = Counting()
    assert_foreseen(
        tmp_path / "run", lambda size: run(writer, tmp_path / "run", size, per_reference=5, **settings()), within=0.2
    )


@pytest.mark.slow
def test_a_comparison_is_foreseen_with_every_program_and_the_judge(tmp_path: Path) -> None:
    """Two programs that both improve: two improvements a sample; a grade of each reference's own response beside."""
    guided = refed_dspy.programs.ReferenceLevelFeedback(guidance={"response_improvement": "Be brief."})
    names = ("seed-only", "instruction-only", "reference-level")
    programs = {**{name: name for name in names}, "guided": guided}
    named = {**dict.fromkeys(programs, "reference-level"), "instruction-only": "instruction-only"}
    judge = Counting()
    judge.on_request = Judge().decide
    models = fake_lm(Counting(), PRICED), fake_lm(judge, "openai/gpt-4o")

    def compare(size: int) -> None:
        settings = check_config(CompareConfig, {"programs": named, "size": size, "out": tmp_path / "run"})
        run_blocking(produce(prepare(settings, programs, references(40), *models)))

    assert_foreseen(tmp_path / "run", compare)


@pytest.mark.slow
def test_a_cap_in_calls_leaves_room_for_the_judge(server: SimulatedTeacher, tmp_path: Path) -> None:
    """What a run that a cap ended says is enough, nearly is: what a judge drops is chance, so it may say it twice."""
    judged = {"filters": [{"rubric": {"at_least": 2}}], "judge": over_http(server, model="sim/x")}
    made = run(over_http(server), tmp_path / "run", 30, references(40), max_calls=45, **judged)
    for _ in range(2):
        if not made.complete:
            enough = re.search(r"max_calls=(\d+)\)", made.reason)
            assert made.state == CAPPED and enough is not None, made.reason
            made = refed_dspy.resume(tmp_path / "run", max_calls=int(enough[1]))
            assert len(made.samples) >= 24
    assert made.complete and server.stats()["repeated"] == 0


# --- the estimate


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Writer, Estimate]:
    """The folder of an estimate of 100 samples, its teacher, and what it said. See `pilot`."""
    folder, writer = tmp_path_factory.mktemp("estimate") / "run", Counting()
    return folder, writer, estimate(writer, folder)


@pytest.fixture
def pilot(made_once: tuple[Path, Writer, Estimate], tmp_path: Path) -> tuple[Path, Writer, Estimate]:
    """A copy of the folder; the teacher goes on where it was, and has been asked for nothing yet."""
    folder, writer, estimated = made_once
    shutil.copytree(folder, tmp_path / "run")
    again = Counting()
    again.numbers = iter(range(10_000, 1_000_000))
    assert len(writer.requests) == estimated.calls - estimated.calls_to_come
    return tmp_path / "run", again, estimated


def test_an_estimate_makes_a_little_and_the_run_goes_on_from_it(pilot: tuple[Path, Writer, Estimate]) -> None:
    folder, writer, estimated = pilot
    made = refed_dspy.read_run(folder)
    assert len(made.samples) <= PILOT_REFERENCES * PILOT_SAMPLES and made.status["opened"] <= PILOT_REFERENCES + 1
    assert made.size == estimated.size == 100 and not made.complete
    before = totals(folder)[1]
    assert run(writer, folder, 100).complete
    cost, calls, _, written = totals(folder)
    assert calls == before + len(writer.requests) == 30 * 3 + 2 * 100, "nothing of it was wasted"
    assert estimated.cost is not None and estimated.low is not None and estimated.high is not None
    assert estimated.cost == pytest.approx(cost, rel=0.15) and estimated.low <= cost <= estimated.high
    assert estimated.completion_tokens == pytest.approx(written, rel=0.15)


def test_a_second_estimate_sends_nothing(pilot: tuple[Path, Writer, Estimate]) -> None:
    folder, writer, first = pilot
    again, larger = estimate(writer, folder), estimate(writer, folder, 1_000)
    assert not writer.requests and dataclasses.replace(again, run_dir=first.run_dir) == first
    assert first.cost is not None and larger.cost is not None and larger.cost > 5 * first.cost
    assert "openai/gpt-4o" in first.others and PRICED not in first.others
    small(first)


def test_an_estimate_of_a_small_run_makes_no_more_than_that(tmp_path: Path) -> None:
    estimated = estimate(Counting(), tmp_path / "run", 4)
    assert len(refed_dspy.read_run(tmp_path / "run").samples) == 4
    assert estimated.cost == estimated.spent == totals(tmp_path / "run")[0]


def test_an_estimate_at_an_unknown_price_says_so_and_one_that_was_set_is_used(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    estimated = estimate(over_http(server, price=None), tmp_path / "run")
    assert estimated.cost is estimated.low is estimated.high is None and estimated.price_source is None
    assert estimated.completion_tokens > 0
    said(estimated.lines()[1])
    assert estimated.others["openai/gpt-4o-mini"][0] > 0, "other teachers' prices are known all the same"
    priced = estimate(over_http(server), tmp_path / "run")
    assert priced.cost is not None and priced.price_source is not None


def test_an_estimate_keeps_the_caps(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    assert estimate(over_http(server), tmp_path / "run", max_cost=1, max_calls=500).cost is not None
    caps = refed_dspy.read_run(tmp_path / "run").status["caps"]
    assert (caps["max_cost"], caps["max_calls"]) == (1, 500)
    with said.by(ConfigError):
        estimate(over_http(server), tmp_path / "other", max_cost=0.000001)
    server.reset()
    with said.by(RunStopped):
        estimate(over_http(server), tmp_path / "small", max_calls=4)
    assert server.stats()["requests"] <= 4 and refed_dspy.read_run(tmp_path / "small").size == 100


def test_an_estimate_that_broke_off_leaves_the_run_at_its_full_size(tmp_path: Path) -> None:
    writer = Counting()
    writer.on_request = lambda _: lm15.AuthError("no such key", status=401) if len(writer.requests) > 25 else None
    with pytest.raises(RunStopped):
        estimate(writer, tmp_path / "run")
    assert refed_dspy.read_run(tmp_path / "run").size == 100


def test_an_estimate_in_a_folder_of_other_work_is_refused(said: Said, pilot: tuple[Path, Writer, Estimate]) -> None:
    folder, writer, _ = pilot
    with said.by(RunDirError):
        estimate(writer, folder, seed=9)
    with said.by(RunDirError):
        estimate(fake_lm(writer, PRICED, temperature=0.1), folder)
    with Ledger.create(folder) as ledger:
        ledger.set_meta(work="statistics", identity={})
    with said.by(RunDirError):
        estimate(writer, folder)
    assert not writer.requests


def wide(spread: float) -> Forecast:
    return Forecast(
        size=100, calls=300, prompt_tokens=10_000, cached_tokens=0, completion_tokens=10_000, cost=1.0,
        low=0.1, high=3.0, spent=0.1, seconds=9.0, calls_to_come=250, spread=spread, references=2,
        tokens_to_come=(8_000.0, 0.0, 8_000.0),
    )  # fmt: skip


RATES = Rates(10**6, 10**6, 10**6, 10**7)


def test_an_estimate_in_lines_for_people_though_its_interval_is_wide(said: Said, tmp_path: Path) -> None:
    cost, low, high = wide(1.4).at(RATES)
    assert 0 <= low < cost < high
    others = {"other/teacher": (cost, low, high)}
    first, dollars, *_, other = Estimate(
        **vars(wide(1.4)), run_dir=tmp_path, minutes=1.0, price_source="somewhere", used="all references", others=others
    ).lines()
    said([first, dollars, other])


def test_what_was_spent_already_is_no_guess_elsewhere() -> None:
    """Nothing is still to come, so the tokens are known, and with them the price anywhere."""
    cost, low, high = dataclasses.replace(wide(0.5), tokens_to_come=(0.0, 0.0, 0.0)).at(RATES)
    assert cost == low == high == (10_000 * 10**6 + 10_000 * 10**7) / 10**12


def test_the_facts_are_json(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = run(over_http(server), tmp_path / "run", 200, max_calls=50)
    projected = json.loads(json.dumps(made.status))["estimate"]
    assert projected["size"] == 200 and 0 < projected["low"] <= projected["cost"] <= projected["high"]
    assert isinstance(projected["calls"], int) and projected["confidence"] == 0.9

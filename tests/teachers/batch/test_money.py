"""Batches and money: what is remembered before the first answer, what is foreseen, and who waits for whom."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.cli.preview import one_sample
from refed_dspy.errors import RunDirError
from refed_dspy.jobs.job import job
from refed_dspy.jobs.work import CapSettings, Work, lasting_caps
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.batches import begun, left_batches, named, unused
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.statements import Key, reserved
from refed_dspy.programs.asking import stages_of
from refed_dspy.programs.saved import MANIFEST
from refed_dspy.records import PICO, Call, Rates
from refed_dspy.runs.forecast import Forecast, forecast
from refed_dspy.runs.spec import RunSpec, prepare
from refed_dspy.runs.stage_weights import JUDGE, StageWeights
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.by_stage import open_teachers
from refed_dspy.teachers.pool import Pool, PooledTeacher, PoolMember
from refed_dspy.teachers.progress import Progress
from tests.conftest import reset_server
from tests.support.said import Said
from tests.support.scripted_batches import ask, ask_engine, running_at
from tests.support.scripted_engine import Writer, fake_lm, references

NOWHERE = "http://127.0.0.1:9/v1"
NO_LIMITS = CapSettings(max_cost=None, max_calls=None, max_minutes=None)
PRICE = {"prompt": 1.0, "completion": 2.0}
WORST = PICO
"""What a call in a batch is charged while it waits: a dollar."""


def config(address: str = NOWHERE, **settings: Any) -> TeacherConfig:
    values = {"model": "sim/sim-model", "api_base": address, "price": PRICE, "max_tokens": 512, "mode": "batch"}
    return TeacherConfig.model_validate({**values, **settings})


def waiting(ledger: Ledger, address: str = NOWHERE, calls: int = 1, stage: str = "response_generation") -> list[int]:
    """Calls of a start that was killed while their batch ran: their numbers."""
    first = ledger.last_call() + 1
    numbers = list(range(first, first + calls))
    for number in numbers:
        key = Key(stage, "1", 0, f"waiting {number}")
        ledger.commit(reserved(number, key, "sim/sim-model", address, WORST))
    batch = len(left_batches(ledger)) + 1
    ledger.commit([*begun(batch, f"n{batch}", address, "sim/sim-model", numbers), *named(batch, f"batch_{batch}")])
    return numbers


def started(folder: Path, work: Work) -> None:
    """A start that ends at once."""
    with job(folder, work) as at:
        at.begin()


# --- before the first answer


def test_caps_stay_though_nothing_was_answered_yet(tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(max_cost=3.0, max_calls=None, max_minutes=None)
        assert lasting_caps(ledger, NO_LIMITS)["max_cost"] is None, "a start that came to nothing binds none"
        waiting(ledger)
        assert lasting_caps(ledger, NO_LIMITS)["max_cost"] == 3.0


def test_a_run_whose_first_batch_is_under_way_is_no_other(said: Said, tmp_path: Path) -> None:
    spec, other = (
        prepare(None, references(2), teacher=config(), run_dir=tmp_path, size=4, seed=seed) for seed in (0, 9)
    )
    started(tmp_path, other.work())
    started(tmp_path, spec.work())  # nothing came of the other
    with Ledger.create(tmp_path) as ledger:
        waiting(ledger)
    with said.by(RunDirError):
        started(tmp_path, other.work())
    with Ledger.read(tmp_path) as ledger:
        assert ledger.meta("identity")["seed"] == 0 and len(left_batches(ledger)) == 1


# --- what is foreseen


@pytest.fixture(scope="module")
def made_once(shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "run"
    reset_server(shared_server)
    teacher = config(shared_server.base_url, mode="interactive", max_tokens=2048)
    refed_dspy.synthesize(None, references(6), size=12, per_reference=2, teacher=teacher, run_dir=folder)
    return folder


@pytest.fixture
def made(made_once: Path, tmp_path: Path) -> Path:
    """A run of 12 samples."""
    return Path(shutil.copytree(made_once, tmp_path / "run"))


def foreseen(ledger: Ledger, size: int) -> Forecast:
    forecast_ = forecast(ledger, size)
    assert forecast_ is not None and forecast_.cost is not None
    return forecast_


def test_what_waits_in_a_batch_is_foreseen_once(made: Path) -> None:
    with Ledger.create(made) as ledger:
        before, each = foreseen(ledger, 40), status_of(ledger)["cost_per_sample"]
        sent, *others = waiting(ledger, calls=4)
        for number in others:
            ledger.commit(unused(Call("sim/sim-model", NOWHERE, "ok", 0.0, 10**6, 0, 10**6, WORST, number)))
        assert foreseen(ledger, 40) == before and sent not in others
        assert status_of(ledger)["cost_per_sample"] == pytest.approx(each + 3 / 12), "what is set aside is not in it"


def test_what_waits_and_is_not_asked_for_any_more_stays_charged(made: Path) -> None:
    with Ledger.create(made) as ledger:
        before = foreseen(ledger, 12)
        waiting(ledger, calls=2)
        forecast_ = foreseen(ledger, 12)
        assert forecast_.cost == forecast_.spent == spent(ledger).cost == pytest.approx(before.spent + 2 * WORST / PICO)
        waiting(ledger, calls=200)
        some = foreseen(ledger, 40)
        assert some.cost is not None
        assert 0 < before.spent + 202 * WORST / PICO - some.cost < 40 * WORST / PICO, "28 of them or so"


@pytest.mark.parametrize(
    ("judge", "rates"),
    [
        (None, Rates(1, 1, 1, 4)),
        ({"model": "j"}, Rates(1, 1, 1, 4)),  # an earlier version wrote no rates
        ({"model": "j", "rates": None}, None),
        ({"model": "j", "rates": [2, 2, 2, 8]}, Rates(2, 2, 2, 8)),
    ],
)
def test_a_judge_is_foreseen_at_its_own_price(
    tmp_path: Path, judge: Mapping[str, Any] | None, rates: Rates | None
) -> None:
    teacher, identity = {"model": "t", "config": None}, {"program": {"response_generation": "x"}}
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(rates=[1, 1, 1, 4], teacher=teacher, judge=judge, identity=identity)
        weights = StageWeights.read(ledger)
        assert weights.rates_for(JUDGE) == rates and weights.priced is (rates is not None)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["teacher", "judge"])
def test_an_estimate_in_batches_tells_no_minutes(server: SimulatedTeacher, tmp_path: Path, who: str) -> None:
    server.control(batch_seconds=0)
    quick = config(server.base_url, batch={"quiet": 0.02, "poll": 0.02}, max_tokens=2048)
    settings: dict[str, Any] = {"teacher": config(server.base_url, mode="interactive", max_tokens=2048), who: quick}
    settings["filters"] = [{"rubric": {"at_least": 1}}] if who == "judge" else []
    estimate = refed_dspy.estimate(None, references(6), size=60, run_dir=tmp_path, **settings)
    assert estimate.minutes is None and estimate.cost is not None and server.stats()["batches"] > 0


# --- who answers


async def test_the_runs_own_answers_come_before_those_of_the_reused_run(tmp_path: Path) -> None:
    lms = [open_teacher(fake_lm(Writer(f'{{"answer": "{answer}"}}'))) for answer in ("reused", "own")]
    lms = [
        replace(teacher, identity={"model": name}, model=name) for teacher, name in zip(lms, ("a", "b"), strict=True)
    ]
    with Ledger.create(tmp_path / "own") as ledger, Ledger.create(tmp_path / "reused") as reused:
        for of, teacher, answer in ((reused, lms[0], "reused"), (ledger, lms[1], "own")):
            async with running_at(of, RunRecorder(of, Caps(), spent(of)), teacher) as recorded:
                assert await ask(recorded, "q") == answer
        recorder = RunRecorder(ledger, Caps(), spent(ledger))
        recorded_teachers = [
            PooledTeacher(ledger, recorder, teacher, Progress(0), reused_from=reused) for teacher in lms
        ]
        both = Pool([(PoolMember(recorded, set(), lambda: 0.0), 1.0) for recorded in recorded_teachers])
        assert await ask_engine(lms[0], both, "q") == "own"
        assert spent(ledger).calls == 1, "nothing was asked again"
        alone = Pool([(PoolMember(recorded_teachers[0], set(), lambda: 0.0), 1.0)])
        assert await ask_engine(lms[0], alone, "q") == "reused", "what this run has not comes from the reused one"
        recorder.group.close()


# --- who waits for whom

CHEAPER = {**PRICE, "cached": 0.5}
WARM, PLAIN = config(mode="interactive", price=CHEAPER), config(mode="interactive", model="sim/plain")
BATCH = config(model="sim/batch", price=CHEAPER)


def spec_of(**settings: Any) -> RunSpec:
    return prepare(None, references(3), run_dir="nowhere", **settings)


@pytest.mark.parametrize(
    ("settings", "leads"),
    [
        ({"teacher": WARM}, True),
        ({"teacher": PLAIN}, False),
        ({"teacher": BATCH}, False),
        ({"teacher": PLAIN, "teachers": {"feedback": WARM}}, False),  # each of its prompts is asked once
        ({"teacher": PLAIN, "teachers": {"response_improvement": WARM}}, True),
        ({"teacher": WARM, "teachers": {"feedback": BATCH}}, True),
        ({"teacher": WARM, "teachers": {"response_improvement": BATCH}}, False),
        ({"teacher": [WARM, BATCH]}, False),
        ({"teacher": WARM, "judge": BATCH, "filters": ["rubric"]}, False),
        ({"teacher": WARM, "judge": PLAIN, "filters": ["rubric"]}, True),
    ],
)
def test_one_goes_ahead_where_the_others_find_its_prefix_and_wait_for_no_batch(
    settings: dict[str, Any], leads: bool
) -> None:
    assert spec_of(**settings).plan_settings(10).lead is leads


def test_a_judge_in_batches_gets_full_ones() -> None:
    judged = {"teacher": PLAIN, "filters": ["rubric"]}
    assert spec_of(**judged, judge=WARM).slots == 32
    assert spec_of(**judged, judge=BATCH).slots == 10_000


@pytest.mark.slow
def test_small_batches_are_warned_of(
    said: Said, server: SimulatedTeacher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.control(batch_seconds=0)
    quick: dict[str, Any] = {"batch": {"quiet": 0.02, "poll": 0.02}, "max_tokens": 2048}
    with caplog.at_level(logging.WARNING, logger="refed_dspy"):
        for concurrency in (None, 50):
            teacher = config(server.base_url, concurrency=concurrency, **quick)
            refed_dspy.synthesize(None, references(2), size=2, teacher=teacher, run_dir=tmp_path / str(concurrency))
    said(caplog.messages)


def test_a_run_that_is_complete_tells_of_what_waits(
    said: Said, made: Path, server: SimulatedTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    with Ledger.create(made) as ledger:
        waiting(ledger, server.base_url, calls=3)
    with caplog.at_level(logging.WARNING, logger="refed_dspy"):
        assert refed_dspy.resume(made, size=12, teacher=config(server.base_url, max_tokens=2048)).complete
    said(caplog.text)


async def test_a_preview_waits_for_no_batch(server: SimulatedTeacher) -> None:
    program = refed_dspy.ReferenceLevelFeedback()
    by_stage = open_teachers(config(server.base_url, max_tokens=2048), None, stages_of(program))
    await one_sample(program, refed_dspy.Reference(**references(1)[0]), by_stage)
    assert server.stats()["requests"] == 5 and server.stats()["batches"] == 0


# --- going on


def test_a_run_of_other_prompts_is_told_from_a_script_s_own(said: Said, made: Path) -> None:
    with Ledger.create(made) as ledger:
        state = ledger.meta("program")
        state[MANIFEST]["fields"]["response_generation"] = "an earlier version's"
        ledger.set_meta(program=state)
    with said.by(RunDirError):
        refed_dspy.resume(made, size=20)

"""One model at several addresses: who is asked, what rests, and that nothing is paid for again."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Message, Request, Response
from typer.testing import CliRunner

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.cli.main import app
from refed_dspy.errors import ConfigError, RunStopped, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import NullRecorder, calls_kept_by
from refed_dspy.programs.lm_errors import AnswerCut, NotReached
from refed_dspy.runs.stage_weights import StageWeights
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.engine import BalancedEngine
from refed_dspy.teachers.judge import judge_beside
from refed_dspy.teachers.outage import FIRST_OUTAGE
from tests.support.clocks import Clock
from tests.support.said import Said
from tests.support.scripted_engine import references, response
from tests.support.two_teachers import answered_twice, asked, check_lineage, config, repeated, run

NOBODY = "http://127.0.0.1:9/v1"


def at(*places: SimulatedTeacher | str, **settings: Any) -> TeacherConfig:
    """One model at several addresses."""
    addresses = [place if isinstance(place, str) else place.base_url for place in places]
    return config("http://localhost:1/v1", api_base=addresses, **settings)


class Scripted:
    """An engine that holds its answers back until it is told, or raises what is next in its script."""

    model, answered = "m", True

    def __init__(self, endpoint: str, *script: Exception) -> None:
        self.endpoint, self.script, self.asked = endpoint, list(script), 0
        self.free = asyncio.Event()
        self.free.set()

    async def complete(self, request: Request) -> Response:
        self.asked += 1
        await self.free.wait()
        if self.script:
            raise self.script.pop(0)
        return response("Fine.")


def balanced(*engines: Scripted) -> tuple[BalancedEngine, Clock]:
    clock = Clock()
    return BalancedEngine(engines, clock), clock  # type: ignore[arg-type]


async def ask(engine: BalancedEngine, seed: int = 0) -> None:
    recorder = NullRecorder()
    recorder.seed = seed
    with calls_kept_by(recorder):
        async with asyncio.timeout(30):  # of an engine that holds its answers back
            await engine.complete(Request(model="m", messages=(Message.user("?"),)))


async def test_the_one_with_the_fewest_in_flight_is_asked_and_of_several_the_seeds() -> None:
    slow, quick = Scripted("slow"), Scripted("quick")
    engine, _ = balanced(slow, quick)
    for seed in (0, 1, 3, 4):
        await ask(engine, seed)
    assert (slow.asked, quick.asked) == (2, 2), "none is in flight: the seed says who"
    slow.free.clear()
    waiting = asyncio.create_task(ask(engine, 0))
    await asyncio.sleep(0)
    for seed in range(6):
        await ask(engine, seed)
    assert (slow.asked, quick.asked) == (3, 8), "one waits at the slow server"
    slow.free.set()
    await waiting


async def test_one_that_is_down_rests_is_probed_with_one_request_and_comes_back(
    said: Said,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = NotReached("cannot be reached")
    away, other = Scripted("away", gone, gone), Scripted("other")
    engine, clock = balanced(away, other)
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        for seed in range(6):
            await ask(engine, seed)
        assert (away.asked, other.asked) == (1, 6), "it rests"
        clock.now += FIRST_OUTAGE
        away.free.clear()
        cancelled = asyncio.create_task(ask(engine))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        probe = asyncio.create_task(ask(engine))
        await asyncio.sleep(0)
        await ask(engine)
        assert away.asked == 3, "one request probes it, another if that is cancelled"
        away.free.set()
        await probe
        await ask(engine)
        assert away.asked == 3, "it did not answer, and rests twice as long"
        clock.now += 2 * FIRST_OUTAGE
        await ask(engine)
        await ask(engine)
    assert away.asked == 5 and len(caplog.messages) == 2
    said(caplog.messages)


async def test_where_none_answers_the_last_error_is_raised_and_an_answer_that_was_cut_is_no_outage() -> None:
    gone, cut = [NotReached("gone")] * 3, AnswerCut("cut")
    engine, _ = balanced(Scripted("a", *gone), Scripted("b", *gone))
    for _ in range(3):
        with pytest.raises(NotReached):
            await ask(engine)
    whole, short = Scripted("whole"), Scripted("short", cut, cut)
    engine, _ = balanced(short, whole)
    for _ in range(2):
        with pytest.raises(AnswerCut):
            await ask(engine)
    assert (short.asked, whole.asked) == (2, 0), "another server would cut it, too"


def test_servers_come_and_go_between_starts_and_nothing_is_asked_again(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = two
    run(tmp_path / "run", 4, teacher=config(first))
    assert asked(two)[1] == 0
    again = run(tmp_path / "run", 4, teacher=at(second, first))
    assert again.complete and asked(two) == [0, 0]
    both = run(tmp_path / "run", 14, teacher=at(first, second))
    assert both.complete and min(asked(two)) > 2
    left = run(tmp_path / "run", 20, teacher=config(second))
    assert left.complete and asked(two)[0] == 0 and not answered_twice(left.run_dir)
    assert refed_dspy.resume(tmp_path / "run", size=22).complete and not caplog.messages
    check_lineage(left, two)


def test_one_that_stops_answering_and_one_that_was_never_there_cost_no_row(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two[1].control(down_after=12)
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        made = run(tmp_path / "run", 24, teacher=at(*two, NOBODY))
    assert made.complete and not made.failures
    check_lineage(made, two)
    down = [address for address in (NOBODY, two[1].base_url) for line in caplog.messages if address in line.split()[:3]]
    assert down == [NOBODY, two[1].base_url], "each is told once"


def test_where_none_is_there_it_is_a_mistake(said: Said, tmp_path: Path) -> None:
    with said.by(TeacherRefused) as refused:
        run(tmp_path / "run", 10, teacher=at(NOBODY, "http://127.0.0.1:19/v1"))
    assert refused.value.exit_code == 2


def test_a_server_that_refuses_before_it_answered_is_named(
    two: tuple[SimulatedTeacher, ...], locked: SimulatedTeacher, tmp_path: Path
) -> None:
    with pytest.raises((TeacherRefused, RunStopped), match=locked.base_url):
        run(tmp_path / "run", 20, teacher=at(two[0], locked))


def test_a_judge_has_several_servers_too_and_shares_their_limits(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path
) -> None:
    teacher = open_teacher(at(*two))
    judge = judge_beside(teacher, None)
    shared = [engine.shares_limits_with for engine in judge.server.engines]
    assert shared == list(teacher.server.engines) and judge.concurrency == 16
    data = [{**each, "plain": "Things."} for each in references(12)]
    refed_dspy.filter_data(data, ["judge"], judge=at(*two), columns={"plain": "plain"}, out=tmp_path / "kept")
    assert min(asked(two)) > 2


@pytest.mark.parametrize(
    "settings",
    [
        {"api_base": []},
        {"api_base": [NOBODY, f"{NOBODY}/"]},
        {"api_base": [NOBODY, "gpu2:8000"]},
        {"api_base": [NOBODY, 8000]},
        {"api_base": f"{NOBODY},{NOBODY}"},
        {"api_base": {"gpu1": NOBODY}},
        {"api_base": ["http://a/v1", "http://b/v1"], "mode": "batch"},
    ],
    ids=str,
)
def test_a_list_of_addresses_that_cannot_be_used_is_told(said: Said, settings: dict[str, Any]) -> None:
    with said.by(ConfigError):
        TeacherConfig(model="sim/m", **settings)


def test_a_price_known_at_some_addresses_only_is_refused_and_one_address_is_no_list(said: Said) -> None:
    mixed = TeacherConfig(model="openai/gpt-4o-mini", api_base=["https://api.openai.com/v1", NOBODY])
    with said.by(ConfigError):
        open_teacher(mixed)
    assert TeacherConfig(model="sim/m", api_base=[NOBODY]) == TeacherConfig(model="sim/m", api_base=NOBODY)
    alone, listed = (open_teacher(each) for each in (config(NOBODY), at(NOBODY, "http://localhost:8/v1")))
    assert alone.identity == listed.identity and alone.endpoint == listed.endpoint
    assert (alone.concurrency, listed.concurrency) == (8, 16)


@pytest.mark.slow
def test_a_check_asks_at_each_address_and_a_variable_may_hold_the_list(
    two: tuple[SimulatedTeacher, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses = [server.base_url for server in two]
    monkeypatch.setenv("REFED_TEACHER__API_BASE", f"[{', '.join(addresses)}]")
    result = CliRunner().invoke(app, ["teacher", "check", "sim/sim-model"])
    asked_at = [line.split()[-1] for line in result.stdout.splitlines() if line.startswith("───── ")]
    assert asked_at == addresses
    assert result.exit_code == 0 and asked(two) == [2, 2]


def test_a_pools_member_may_have_several_servers(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    other = config(two[0], model="sim/other-model", price={"prompt": 3, "completion": 4})
    made = run(tmp_path / "run", 16, teacher=[at(*two, weight=3), other])
    check_lineage(made, two)
    assert repeated(two) == 0
    assert {(each["model"], each["endpoint"]) for each in made.status["models"]} == {
        ("sim/sim-model", two[0].base_url),
        ("sim/sim-model", two[1].base_url),
        ("sim/other-model", two[0].base_url),
    }
    with Ledger.read(made.run_dir) as ledger:
        weights = StageWeights.read(ledger)
    names = {weights.answerer_of("response_generation", "sim/sim-model", server.base_url) for server in two}
    assert len(names) == 1, "they are one member"

"""Several teachers: who is asked, who goes on where one is down, what is paid, and what is told of who wrote what."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from dspy import lm15

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.allowance import Allowance
from refed_dspy.books import RunBooks
from refed_dspy.calls import StillLimited
from refed_dspy.config import CompileConfig, RecycleConfig, RunConfig, load_config, load_job_config
from refed_dspy.desk import Desk
from refed_dspy.engine.accounts import Spent, spent
from refed_dspy.engine.budget import Caps
from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.summary import run_status
from refed_dspy.errors import ConfigError, RunDirError, RunStopped, TeacherRefused
from refed_dspy.paying import Manner, Progress
from refed_dspy.pools import FIRST_REST, LONGEST_REST, Assignment, Rest
from refed_dspy.preview import one_sample
from refed_dspy.programs.asking import ask
from refed_dspy.records import PICO
from refed_dspy.settings_base import Settings
from refed_dspy.staff import open_staff, stages_of
from refed_dspy.tracking.runs import _parameters
from tests.clocks import Clock
from tests.conftest import KEY_VARIABLE, at_rest
from tests.writing import Writer, fake_lm, references

MARKS = ("north", "south")
PRICE = {"prompt": 1.0, "completion": 2.0}


@pytest.fixture(scope="module")
def second_server() -> Iterator[SimulatedTeacher]:
    with SimulatedTeacher(latency=0, sigma=0) as server:
        yield server


@pytest.fixture
def two(server: SimulatedTeacher, second_server: SimulatedTeacher) -> Iterator[tuple[SimulatedTeacher, ...]]:
    """Two endpoints, each of which begins every text with its mark."""
    at_rest(second_server)
    for one, mark in zip((server, second_server), MARKS, strict=True):
        one.control(signature=mark, response_words=5)
    yield server, second_server
    at_rest(second_server)


def config(server: SimulatedTeacher | str, **settings: Any) -> TeacherConfig:
    address = server if isinstance(server, str) else server.base_url
    values = {"model": "sim/sim-model", "api_base": address, "price": PRICE, "max_tokens": 512, "retries": 0}
    return TeacherConfig.model_validate({**values, "concurrency": 8, **settings})


def pool(two: tuple[SimulatedTeacher, ...], *weights: float) -> list[TeacherConfig]:
    """A member a server, each another model."""
    named = zip(two, ("sim/sim-model", "sim/other-model"), weights or (1.0, 1.0), strict=True)
    return [config(server, model=model, weight=weight) for server, model, weight in named]


def run(folder: Path, size: int = 40, **settings: Any) -> refed_dspy.Synthesis:
    settings.setdefault("references", references(12))
    return refed_dspy.synthesize(None, settings.pop("references"), size=size, run_dir=folder, **settings)


def asked(two: tuple[SimulatedTeacher, ...]) -> list[int]:
    """Requests at each since the last look."""
    counts = [server.stats()["requests"] for server in two]
    for server in two:
        server.reset()
    return counts


def repeated(two: tuple[SimulatedTeacher, ...]) -> int:
    return sum(server.stats()["repeated"] for server in two)


def answered_twice(folder: Path) -> list[Any]:
    """Questions that two teachers were paid for."""
    with Ledger.read(folder) as ledger:
        twice = "SELECT stage, item FROM answers GROUP BY stage, item, repetition HAVING count(*) > 1"
        return ledger.db.execute(twice).fetchall()


def check_lineage(made: refed_dspy.Synthesis, two: tuple[SimulatedTeacher, ...]) -> list[dict[str, Any]]:
    """Every row says who wrote it, as its texts' own marks do."""
    marks = {server.base_url: mark for server, mark in zip(two, MARKS, strict=True)}
    rows = list(made.samples.rows())
    for row in rows:
        assert row["improved_response"].startswith(marks[row["endpoint"]])
        assert row["response"].startswith(marks[row["response_endpoint"]])
        assert row["instruction"].startswith(marks[row["instruction_endpoint"]])
    return rows


NO_CAPS = Allowance(Caps(), Spent(0, 0, 0, 0.0), None)
AskPool: TypeAlias = Callable[[int], Awaitable[Any]]


def at_desk(ledger: Ledger, writers: list[Writer], clock: Clock) -> tuple[Desk, AskPool]:
    """A desk where a pool of these writers sits, and how it is asked."""
    staff = open_staff([fake_lm(writer, name=f"fake/{number}") for number, writer in enumerate(writers)])
    books = RunBooks(ledger, Caps(), NO_CAPS.before)
    desk = Desk(ledger, books, staff.roles, Progress(1), Manner(), {}, None, Assignment(staff, (), clock))
    predictor = refed_dspy.ReferenceLevelFeedback().response_generation

    def ask_pool(number: int) -> Awaitable[Any]:
        inputs: dict[str, Any] = {"example_instruction": "e", "example_response": "r", "instruction": f"Task {number}"}
        return ask("response_generation", str(number), predictor, **inputs)

    return desk, ask_pool


# --- the draw


def test_a_pool_shares_by_weight_and_one_hand_writes_a_sample(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path
) -> None:
    made = run(tmp_path / "run", 120, teacher=pool(two, 3, 1))
    rows = check_lineage(made, two)
    wrote = Counter(row["teacher"] for row in rows)
    assert 70 <= wrote["sim/sim-model"] <= 110, "90 expected, with a standard deviation of 4.7"
    assert wrote.total() == 120
    assert all(row["teacher"] == row["response_teacher"] for row in rows)
    told = {use["model"]: use for use in made.status["models"]}
    assert sum(use["calls"] for use in told.values()) == sum(asked(two))
    assert sum(use["cost"] for use in told.values()) == pytest.approx(made.status["cost"])


def test_other_weights_another_order_and_fewer_members_pay_nothing_again(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    both = pool(two)
    first = list(run(tmp_path / "run", teacher=both).samples)
    assert all(asked(two))
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        for who in (pool(two, 1, 9), both[::-1], both[:1], both[1:], both):
            made = run(tmp_path / "run", teacher=who)
            assert list(made.samples) == first
    assert asked(two) == [0, 0]
    assert "was sim/sim-model (weight 1), sim/other-model (weight 1), is now sim/sim-model (weight 1)" in caplog.text
    rows = check_lineage(run(tmp_path / "run", teacher=both[:1]), two)
    assert len({row["teacher"] for row in rows}) == 2, "who is asked no more has written it all the same"
    assert run(tmp_path / "run", 60, teacher=both[1:]).complete
    assert asked(two)[0] == 0 and not answered_twice(tmp_path / "run"), "nor is its feedback paid for again"


def test_what_a_further_start_asks_goes_by_the_new_weights(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    run(tmp_path / "run", 10, teacher=config(two[0]))
    assert asked(two)[1] == 0
    run(tmp_path / "run", 40, teacher=pool(two, 1, 9))
    first, second = asked(two)
    assert second > 3 * first and repeated(two) == 0
    assert len(refed_dspy.resume(tmp_path / "run", size=44).samples) == 44
    assert asked(two)[1] > 0
    assert run(tmp_path / "run", 60, teacher=config(two[0])).complete
    assert asked(two)[1] == 0 and not answered_twice(tmp_path / "run"), "one is asked now, and both have answered"


def test_who_began_a_sample_ends_it_whatever_the_weights_are_now(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path
) -> None:
    first, second = pool(two, 1, 50)
    two[1].control(down_after=0)
    with pytest.raises(RunStopped, match="response_improvement failed in"):
        run(tmp_path / "run", 60, teacher=first, teachers={"response_improvement": second})
    two[1].control(down_after=None)
    made = run(tmp_path / "run", teacher=[first, second])
    assert made.complete and not made.failures
    rows = check_lineage(made, two)
    assert all(row["teacher"] == row["response_teacher"] for row in rows)
    assert len({row["teacher"] for row in rows}) == 2, "those begun before, and those begun now"


def test_a_run_of_other_teachers_is_another_run(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    run(tmp_path / "run", 4, teacher=pool(two))
    with pytest.raises(RunDirError, match=r"teacher was sim/sim-model, sim/other-model, is sim/sim-model; set these"):
        run(tmp_path / "run", 4, teacher=config(two[0], temperature=0.5))
    with pytest.raises(RunDirError, match="holds another run"):
        run(tmp_path / "run", 4, teacher=[config(one, temperature=0.5) for one in two])


# --- stages


def test_stages_have_teachers_of_their_own(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    writer, strong = config(two[0]), config(two[1], model="sim/other-model")
    made = run(tmp_path / "run", teacher=writer, teachers={"feedback": strong})
    usage = made.status["usage"]
    feedback = sum(usage[stage]["calls"] for stage in ("instruction_feedback", "response_feedback"))
    assert asked(two) == [sum(use["calls"] for use in usage.values()) - feedback, feedback]
    rows = check_lineage(made, two)
    assert {(row["teacher"], row["instruction_teacher"]) for row in rows} == {("sim/sim-model", "sim/sim-model")}
    refed_dspy.resume(tmp_path / "run", size=90)
    assert asked(two)[1] > 0, "the folder remembers who gives feedback"
    split = {"feedback": strong, "response_feedback": writer, "response_improvement": strong}
    made = run(tmp_path / "split", 10, teacher=writer, teachers=split)
    assert {row["teacher"] for row in check_lineage(made, two)} == {"sim/other-model"}
    assert {row["response_teacher"] for row in check_lineage(made, two)} == {"sim/sim-model"}


@pytest.mark.parametrize(
    ("stage", "told"),
    [("respons_feedback", "did you mean response_feedback"), ("x", "the program's stages are instruction_feedback")],
)
def test_a_stage_that_there_is_not_is_refused(tmp_path: Path, stage: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"teachers: {stage}: no such stage; {told}"):
        run(tmp_path / "run", teacher=fake_lm(Writer()), teachers={stage: fake_lm(Writer())})


def test_one_teacher_in_several_places_is_one(tmp_path: Path) -> None:
    writer, other = Writer(), fake_lm(Writer())
    lm = fake_lm(writer)
    with pytest.raises(ConfigError, match="fake/model at fake stands there twice; give it a weight"):
        run(tmp_path / "run", teacher=[lm, other])
    made = run(tmp_path / "run", 4, teacher=lm, teachers={"feedback": lm, "response_generation": [lm]})
    assert made.complete and made.status["models"][0]["calls"] == len(writer.requests)
    with Ledger.read(tmp_path / "run") as ledger:
        assert ledger.meta("identity")["teacher"] == {"model": "fake/model"}, "as ever for one teacher"
        assert ledger.meta("staff") is None


# --- who goes on where one is down


def test_where_one_is_killed_the_others_go_on(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two[1].control(down_after=25)
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        made = run(tmp_path / "run", 60, teacher=pool(two))
    assert made.complete and not made.failures, "what another made good is no failure"
    assert repeated(two) == 0
    check_lineage(made, two)
    (line,) = caplog.messages
    assert line.startswith(f"sim/other-model at {two[1].base_url} does not answer (") and "in 30 s" in line
    assert not answered_twice(made.run_dir)


@pytest.mark.slow
def test_a_key_that_is_revoked_after_it_answered_is_an_outage(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two[0].control(auth_fails_after=20)
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        made = run(tmp_path / "run", teacher=pool(two))
    assert made.complete and not made.failures and len(caplog.messages) == 1
    two[0].control(auth_fails_after=0)
    made = run(tmp_path / "run", 50, teacher=pool(two))
    assert made.complete, "it answered in an earlier start"


def test_a_key_that_never_worked_ends_the_run(
    two: tuple[SimulatedTeacher, ...], locked: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "sk-wrong-987654321"
    locked.control(response_words=5)
    monkeypatch.setenv("WRONG_KEY", wrong)
    one = config(locked, model="sim/other-model", api_key_env="WRONG_KEY")
    with pytest.raises(TeacherRefused, match=f"sim/other-model at {locked.base_url}: .*api_key_env") as refused:
        run(tmp_path / "first", teacher=[one.model_copy(update={"weight": 1e6}), config(two[0])])
    assert refused.value.exit_code == 2 and wrong not in str(refused.value) and two[0].stats()["requests"] == 0
    run(tmp_path / "run", 10, teacher=config(two[0]))
    with pytest.raises(TeacherRefused, match=f"sim/other-model at {locked.base_url}.*go on with: refed resume"):
        run(tmp_path / "run", 40, teacher=[one.model_copy(update={"weight": 1e6}), config(two[0])])
    with pytest.raises(RunStopped, match=f"sim/other-model at {locked.base_url}.*go on with: refed resume"):
        run(tmp_path / "late", 200, teacher=[one.model_copy(update={"weight": 0.02}), config(two[0])])
    assert asked(two)[0] > 4, "others had answered: then it is no mistake that cost nothing"
    right = one.model_copy(update={"api_key_env": KEY_VARIABLE})
    assert run(tmp_path / "run", 40, teacher=[right, config(two[0])]).complete


def test_one_that_cannot_be_reached_at_the_start_is_down_and_all_are_a_mistake(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nobody = config("http://127.0.0.1:9/v1")
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        made = run(tmp_path / "run", 10, teacher=[nobody, config(two[0])])
    assert made.complete and not made.failures
    assert "sim/sim-model at http://127.0.0.1:9/v1 does not answer" in caplog.text
    with pytest.raises(TeacherRefused, match=r"check api_base, and that the server runs") as refused:
        run(tmp_path / "none", 10, teacher=[nobody, config("http://127.0.0.1:19/v1")])
    assert refused.value.exit_code == 2


@pytest.mark.slow
def test_where_all_are_down_the_run_ends_and_goes_on_later(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    for one in two:
        one.control(down_after=15)
    with pytest.raises(RunStopped, match=r"failed in .* check the teacher sim/.*go on with: refed resume"):
        run(tmp_path / "run", 200, teacher=pool(two))
    for one in two:
        one.control(down_after=None)
    made = refed_dspy.resume(tmp_path / "run", size=60)
    assert made.complete and repeated(two) == 0
    check_lineage(made, two)
    with Ledger.read(made.run_dir) as ledger:
        both = "SELECT 1 FROM failures f JOIN answers a ON (a.stage, a.item) = (f.stage, f.item) WHERE a.repetition=0"
        assert not ledger.db.execute(both).fetchall(), "what was answered later is no failure"


@pytest.mark.slow
def test_a_model_that_writes_nothing_usable_ends_the_run_by_name(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path
) -> None:
    two[1].control(faults={"malformed": 1.0})
    with pytest.raises(RunStopped, match=r"20 of its last 20 calls.*check the teacher sim/other-model"):
        run(tmp_path / "run", 100, teacher=pool(two), max_failure_share=1.0)


def test_a_teacher_that_rests_is_tried_with_one_question_and_rests_longer() -> None:
    clock = Clock()
    rest = Rest(clock)
    assert rest.takes() and rest.fall() and not rest.fall(), "it falls once"
    clock.now += FIRST_REST - 1
    assert rest.down and not rest.takes()
    clock.now += 1
    assert rest.takes() and not rest.takes(), "one question"
    assert not rest.fall() and rest.seconds == 2 * FIRST_REST
    for _ in range(9):
        clock.now += rest.seconds
        assert rest.takes() and not rest.fall()
    assert rest.seconds == LONGEST_REST
    clock.now += rest.seconds
    assert rest.takes()
    rest.rise()
    assert not rest.down and rest.takes() and rest.takes()
    clock.now += LONGEST_REST + 1
    assert rest.fall() and rest.seconds == FIRST_REST, "it was well for long"


@pytest.mark.parametrize(
    "error",
    [lm15.ServerError("busy", status=503), StillLimited("refuses everything", model="m"), lm15.AuthError("revoked")],
    ids=lambda error: type(error).__name__,
)
def test_one_that_comes_back_is_asked_again(tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    down, writers, clock = [False], [Writer(), Writer()], Clock()
    writers[1].on_request = lambda request: error if down[0] else None

    async def asked_of_each(rounds: int, ticks: float) -> list[int]:
        before = [len(writer.requests) for writer in writers]
        for _ in range(rounds):
            clock.now += ticks
            await asyncio.gather(*(ask_pool(next(numbers)) for _ in range(8)))
        return [len(writer.requests) - was for writer, was in zip(writers, before, strict=True)]

    numbers = itertools.count()
    with Ledger.create(tmp_path / "run") as ledger, caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        desk, ask_pool = at_desk(ledger, writers, clock)

        async def story() -> None:
            async with desk.open(NO_CAPS, lambda: "again"):
                assert all(await asked_of_each(4, 0))
                down[0] = True
                assert (await asked_of_each(4, 0))[1] <= 8, "those in flight"
                assert (await asked_of_each(1, FIRST_REST))[1] == 1, "one question tells that it is still down"
                down[0] = False
                assert (await asked_of_each(1, FIRST_REST))[1] == 0
                assert (await asked_of_each(1, FIRST_REST))[1] >= 1
                assert (await asked_of_each(4, 0))[1] > 4

        asyncio.run(story())
        assert not ledger.failures()
    fell, rose = caplog.messages
    assert "does not answer" in fell and rose == "fake/1 at fake answers again"


def test_a_trial_that_ends_without_a_word_of_the_teacher_is_made_again(tmp_path: Path) -> None:
    said: list[Exception] = [lm15.ServerError("busy", status=503), ZeroDivisionError("a bug")]
    writers, clock = [Writer(), Writer()], Clock()
    writers[1].on_request = lambda request: said.pop(0) if said else None
    with Ledger.create(tmp_path / "run") as ledger:
        desk, ask_pool = at_desk(ledger, writers, clock)

        async def story() -> None:
            async with desk.open(NO_CAPS, lambda: "again"):
                for number in range(20):
                    clock.now += FIRST_REST
                    await asyncio.gather(ask_pool(number), return_exceptions=True)

        asyncio.run(story())
    assert not said and len(writers[1].requests) > 4


def test_two_that_ask_the_same_at_once_pay_once(tmp_path: Path) -> None:
    writers, clock = [Writer(), Writer()], Clock()
    with Ledger.create(tmp_path / "run") as ledger:
        desk, ask_pool = at_desk(ledger, writers, clock)

        async def twice() -> None:
            async with desk.open(NO_CAPS, lambda: "again"):
                answers = await asyncio.gather(*(ask_pool(number % 5) for number in range(20)))
                assert all(answer.response == answers[number % 5].response for number, answer in enumerate(answers))

        asyncio.run(twice())
    assert sum(len(writer.requests) for writer in writers) == 5


# --- what is paid, and what it will be


def test_caps_hold_over_all_members(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    made = run(tmp_path / "calls", 100, teacher=pool(two), max_calls=31)
    assert made.stopped is not None and sum(asked(two)) <= 31
    dear = [one.model_copy(update={"price": None}) for one in pool(two)]
    with pytest.raises(ConfigError, match=r"price of sim/sim-model at .*set the teacher sim/sim-model's price"):
        run(tmp_path / "unknown", 10, teacher=[dear[0], pool(two)[1]], max_cost=1.0)
    with pytest.raises(ConfigError, match=r"below the worst case .*lower the teacher sim/other-model's max_tokens"):
        big = config(two[1], model="sim/other-model", max_tokens=100_000)
        run(tmp_path / "low", 10, teacher=pool(two)[0], teachers={"response_feedback": big}, max_cost=0.1)


@pytest.mark.slow
def test_a_cap_in_dollars_holds_over_all_members(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    made = run(tmp_path / "cost", 200, teacher=pool(two), max_cost=0.05)
    billed = 0.0
    for one in two:
        stats = one.stats()
        billed += (stats["billed_prompt_tokens"] + 2 * stats["billed_completion_tokens"]) / 1e6
    assert made.stopped is not None and len(made.samples) and 0.02 < billed <= 0.05


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
    told = refed_dspy.estimate(None, run_dir=tmp_path / "run", **settings)
    made = run(tmp_path / "run", **settings)
    assert told.forecast.cost is not None
    assert told.forecast.cost / PICO == pytest.approx(made.status["cost"], rel=0.15)
    with Ledger.read(tmp_path / "run") as ledger:
        assert spent(ledger).cost == pytest.approx(made.status["cost"] * PICO)


@pytest.mark.slow
def test_an_unknown_price_of_one_makes_the_forecast_s_unknown(
    two: tuple[SimulatedTeacher, ...], tmp_path: Path
) -> None:
    one, other = pool(two)
    told = refed_dspy.estimate(
        None, references(12), size=60, teacher=[one, other.model_copy(update={"price": None})], run_dir=tmp_path / "run"
    )
    assert told.forecast.cost is None and told.forecast.calls > 100
    again = refed_dspy.estimate(None, references(12), size=60, teacher=[one, other], run_dir=tmp_path / "run")
    assert again.forecast.cost is not None and again.forecast.calls == told.forecast.calls


@pytest.mark.slow
def test_what_is_reused_says_who_wrote_it(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    run(tmp_path / "lender", teacher=pool(two))
    asked(two)
    made = run(tmp_path / "run", teacher=pool(two, 5, 1), reuse=tmp_path / "lender")
    assert asked(two) == [0, 0]
    assert {row["teacher"] for row in check_lineage(made, two)} == {"sim/sim-model", "sim/other-model"}


# --- settings


def test_a_config_and_a_file_may_hold_a_list(tmp_path: Path) -> None:
    pair = tmp_path / "pair.yaml"
    pair.write_text("- {model: openai/a, weight: 3}\n- model: openai/b\n")
    file = tmp_path / "run.yaml"
    file.write_text(f"teacher: [{pair}, openai/c]\nteachers: {{feedback: openai/d, response_generation: {pair}}}\n")
    told = load_config(file, {})
    assert isinstance(told.teacher, list) and [one.model for one in told.teacher] == [
        "openai/a",
        "openai/b",
        "openai/c",
    ]
    assert [one.weight for one in told.teacher] == [3, 1, 1]
    assert told.teachers["feedback"] == TeacherConfig(model="openai/d")
    assert load_config(environ={}, teacher=str(pair)).teacher == told.teachers["response_generation"]
    one = load_config(file, {"REFED_TEACHER": "openai/e", "REFED_TEACHERS__FEEDBACK": "openai/f"})
    assert one.teacher == TeacherConfig(model="openai/e") and one.teachers["feedback"] == TeacherConfig(
        model="openai/f"
    )


@pytest.mark.parametrize(
    ("kind", "text", "environ", "told"),
    [
        (RunConfig, "teacher: []", {}, "teacher: list should have at least 1 item"),
        (RunConfig, "teacher: [{modle: x}]", {}, "teacher.0.modle: unknown key; did you mean model?"),
        (RunConfig, "teachers: {feedback: {model: x}}", {}, "teachers.feedback: model must be PROVIDER/NAME"),
        (RunConfig, "teacher: [{model: a/b, weight: 0}]", {}, "teacher.0.weight: input should be greater than 0"),
        (
            RunConfig,
            "teacher: [a/b, c/d]",
            {"REFED_TEACHER__RETRIES": "3"},
            "REFED_TEACHER__RETRIES: the file's teacher",
        ),
        (CompileConfig, "teacher: [a/b, c/d]", {}, "teacher: takes one; a list"),
        (RecycleConfig, "teacher: [a/b, c/d]", {}, "teacher: takes one; a list"),
        (RunConfig, "judge: [a/b, c/d]", {}, "judge: takes one; a list"),
    ],
)
def test_wrong_settings_of_several_are_told_in_one_line(
    tmp_path: Path, kind: type[Settings], text: str, environ: dict[str, str], told: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load_job_config(kind, file, environ)
    assert told in str(refused.value) and str(refused.value).isprintable()


@pytest.mark.slow
def test_a_judge_beside_a_pool_answers_by_itself(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    judge = config(two[1], model="sim/judge", temperature=0.0)
    settings = {"teacher": pool(two), "filters": [{"rubric": {"at_least": 1}}], "judge": judge}
    made = run(tmp_path / "run", 12, **settings)
    told = {use["model"]: use["calls"] for use in made.status["models"]}
    assert told["sim/judge"] == made.status["usage"]["rubric_judge"]["calls"] and len(told) == 3
    assert refed_dspy.resume(tmp_path / "run", size=14).complete


@pytest.mark.slow
def test_tracking_names_all_teachers(two: tuple[SimulatedTeacher, ...], tmp_path: Path) -> None:
    made = run(tmp_path / "run", 2, teacher=pool(two), teachers={"feedback": config(two[1], model="sim/strong")})
    with Ledger.read(made.run_dir) as ledger:
        told = _parameters(ledger, run_status(ledger))["teacher"]
    feedback = "instruction_feedback: sim/strong, response_feedback: sim/strong"
    assert told == f"sim/sim-model + sim/other-model, {feedback}"


async def test_a_preview_asks_each_stages_own_teacher(two: tuple[SimulatedTeacher, ...]) -> None:
    program = refed_dspy.ReferenceLevelFeedback()
    staff = open_staff(config(two[0]), {"response_feedback": config(two[1])}, stages_of(program))
    await one_sample(program, refed_dspy.Reference(**references(1)[0]), staff)
    assert asked(two) == [4, 1]

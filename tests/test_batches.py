"""Batch mode: whose answer is whose, what is sent together and when, and what becomes of each request."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig, open_teacher
from refed_dspy.batch_log import LedgerBatches
from refed_dspy.books import RunBooks, UnitBooks
from refed_dspy.calls import Attempt
from refed_dspy.config import PriceConfig
from refed_dspy.engine.budget import Caps
from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.rows import Key
from refed_dspy.errors import (
    CapReached,
    ConfigError,
    CutAnswer,
    MalformedAnswer,
    NoAnswer,
    RefusedAnswer,
    RowError,
    TeacherError,
    UnfitRequest,
)
from refed_dspy.errors import TeacherRefused as Refused
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import Question
from refed_dspy.records import PICO, Call
from refed_dspy.teachers.prices import in_batches, price_of
from tests.compiling import compiled
from tests.conftest import KEY_VARIABLE
from tests.odd_batches import (
    COST,
    PREDICTOR,
    PRICE,
    USED,
    Line,
    OddService,
    Said,
    ask,
    ask_all,
    asked,
    at_work,
    batched,
    body,
    calls,
    line,
    spared,
    states,
    teacher_config,
    well,
    written,
)
from tests.writing import references

RATES = {"prompt": 0.15, "completion": 0.6, "cached": 0.075}
BILLED = (0.075, 0.3)
"""What the simulated server's batches cost at these rates, dollars a million tokens."""


@pytest.fixture
async def service() -> AsyncIterator[OddService]:
    async with OddService().open() as opened:
        yield opened


ALL_PASS = [{"rubric": {"at_least": 1}}]


def simulated(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values: dict[str, Any] = {"model": "sim/sim-model", "api_base": server.base_url, "mode": "batch"}
    values |= {"price": RATES}
    values |= {"batch": {"quiet": 0.05, "poll": 0.05}, "max_tokens": 2048}
    return TeacherConfig.model_validate({**values, **settings})


def bill(server: SimulatedTeacher) -> float:
    """Dollars that the server charges for its batches."""
    stats = server.stats()
    tokens = stats["batch_billed_prompt_tokens"], stats["batch_billed_completion_tokens"]
    return float(sum(count * rate for count, rate in zip(tokens, BILLED, strict=True))) / 1e6


# --- whose answer, and what is sent together


async def test_answers_in_any_order_reach_their_own_waiter(tmp_path: Path, service: OddService) -> None:
    def backwards(lines: Sequence[Line]) -> Said:
        answers = [line(one["custom_id"], body(asked(one))) for one in lines]
        return written(*answers[::-2]), written(*answers[-2::-2])

    service.answers = [backwards]
    texts = [f"q{n}" for n in range(25)]
    async with at_work(tmp_path, teacher_config(service)) as payer:
        assert await ask_all(payer, texts) == texts
        assert await ask_all(payer, texts) == texts, "the second time they are in the ledger"
    assert len(service.sent) == 1 and calls(tmp_path) == {("ok", COST): 25} and batched(tmp_path) == 0


@pytest.mark.parametrize(("limits", "sizes"), [({"requests": 4}, [4, 4, 2]), ({"megabytes": 0.0001}, [1] * 10)])
async def test_limits_split_a_wave(tmp_path: Path, service: OddService, limits: Any, sizes: list[int]) -> None:
    config = teacher_config(service, batch={"quiet": 0.02, "poll": 0.02, **limits})
    async with at_work(tmp_path, config) as payer:
        texts = [f"q{n}" for n in range(10)]
        assert await ask_all(payer, texts) == texts
    assert sorted(map(len, service.sent)) == sorted(sizes)


def test_a_run_takes_as_few_batches_as_it_has_waves(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0)
    made = refed_dspy.synthesize(
        None, references(4), size=12, teacher=simulated(server), run_dir=tmp_path, max_cost=1.0, track=False
    )
    stats = server.stats()
    assert made.complete and (stats["batches"], stats["requests"], stats["batch_repeated"]) == (4, 0, 0)
    assert made.status["cost"] == pytest.approx(bill(server), rel=1e-9) and batched(tmp_path) == 0


def other_unit(run: RunBooks) -> UnitBooks:
    return UnitBooks(run, Key("judge", "1", 0, "p", "i", "other"), rank=0, seed=1)


@pytest.mark.slow
async def test_a_batch_waits_for_calls_in_flight_elsewhere(tmp_path: Path, service: OddService) -> None:
    async with at_work(tmp_path, teacher_config(service)) as payer:
        assert await ask(payer, "first") == "first"  # what is imported late is there from now on
        service.calls.clear()
        judge = other_unit(payer.books)
        number = await judge.reserve(Attempt("judge", "there", 1))
        waiting = asyncio.ensure_future(ask(payer, "q"))
        await asyncio.sleep(0.3)
        assert not service.calls, "what comes of the judge's call may want to join"
        judge.report(Call("judge", "there", "ok", 0.1, 1, 0, 1, 1, number))
        assert await waiting == "q"


@pytest.mark.slow
async def test_but_not_for_ever(tmp_path: Path, service: OddService) -> None:
    async with at_work(tmp_path, teacher_config(service, batch={"quiet": 0.002, "poll": 0.02})) as payer:
        judge = other_unit(payer.books)
        judge.not_sent(await judge.reserve(Attempt("judge", "there", 1)))
        await judge.reserve(Attempt("judge", "there", 1))
        assert await ask(payer, "q") == "q"


@pytest.mark.parametrize("moment", ["collected", "uploaded"])
async def test_nothing_begins_once_the_run_is_stopping(tmp_path: Path, service: OddService, moment: str) -> None:
    async with at_work(tmp_path, teacher_config(service)) as payer:

        def stop() -> None:
            payer.books.stopping = True

        if moment == "uploaded":
            service.hooks["upload"] = [stop]
        asking = asyncio.ensure_future(ask_all(payer, ["a", "b"]))
        if moment == "collected":
            await asyncio.sleep(0.01)
            stop()
        assert {type(said) for said in await asking} == {asyncio.CancelledError}
        assert payer.books.budget.in_flight == payer.books.budget.calls == 0
    assert not service.calls["create"] and not calls(tmp_path) and not states(tmp_path)


async def test_whoever_is_called_off_while_a_file_is_sent_is_not_in_the_batch(
    tmp_path: Path, service: OddService
) -> None:
    async with at_work(tmp_path, teacher_config(service)) as payer:
        first, second = (asyncio.ensure_future(ask(payer, text)) for text in "ab")

        def call_off() -> None:
            first.cancel()

        service.hooks["upload"] = [call_off]
        assert await second == "b"
    assert [asked(one) for lines in service.sent for one in lines] == ["b"]
    assert calls(tmp_path) == {("ok", COST): 1}


async def looked_at(service: OddService) -> None:
    """Until a batch is looked at."""
    while not service.calls["look"]:  # noqa: ASYNC110 — a count is no event
        await asyncio.sleep(0.01)


async def test_whoever_is_called_off_during_the_wait_leaves_a_call_that_the_next_one_takes(
    tmp_path: Path, service: OddService
) -> None:
    service.ready = False
    async with at_work(tmp_path, teacher_config(service)) as payer:
        asking = asyncio.ensure_future(ask(payer, "q"))
        await looked_at(service)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        budget = payer.books.budget
        assert (budget.in_flight, budget.reserved, budget.calls) == (0, 0, 1) and budget.spent > COST
        service.ready = True
        assert await ask(payer, "q") == "q"
        assert (budget.in_flight, budget.spent) == (0, COST)
    assert len(service.sent) == 1 and calls(tmp_path) == {("ok", COST): 1}


class CallingOff(LedgerBatches):
    """Cancels `asking` in the moment in which an answer arrives."""

    asking: asyncio.Future[Any] | None = None

    def arrived(self, answers: Mapping[int, str]) -> None:
        super().arrived(answers)
        if self.asking is not None:
            asyncio.get_running_loop().call_soon(self.asking.cancel)


class CalledOff(RunBooks):
    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.batches: CallingOff = CallingOff(self.group, self.budget, lambda: self.stopping)


async def test_an_answer_that_came_as_its_waiter_was_called_off_is_kept(tmp_path: Path, service: OddService) -> None:
    async with at_work(tmp_path, teacher_config(service), books=CalledOff) as payer:
        assert isinstance(payer.books, CalledOff)
        question = Question("stage", "q", PREDICTOR, {"question": "q"})
        asking: asyncio.Future[Any] = asyncio.ensure_future(payer(question))
        payer.books.batches.asking = asking
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert calls(tmp_path) == {("unused", COST): 1} and batched(tmp_path) == 1
    async with at_work(tmp_path, teacher_config(service)) as payer:
        assert payer.books.budget.spent == COST
        assert await ask(payer, "q") == "q"
    assert len(service.sent) == 1 and calls(tmp_path) == {("ok", COST): 1} and batched(tmp_path) == 0


# --- money


@pytest.mark.parametrize("fates", [[], ["ok", "expired", "cancelled", "token_limit"]])
@pytest.mark.slow
def test_a_cap_is_not_passed_by_a_cent(tmp_path: Path, server: SimulatedTeacher, fates: list[str]) -> None:
    server.control(batch_seconds=0, batch_fates=fates, batch_faults={"missing": 0.1, "nousage": 0.1, "malformed": 0.1})
    config = simulated(server, batch={"quiet": 0.03, "poll": 0.02})
    for cap in (0.004, 0.008):
        made = refed_dspy.synthesize(
            None, references(4), size=60, teacher=config, run_dir=tmp_path, max_cost=cap, track=False
        )
        assert not made.complete and made.stopped and "max_cost" in made.stopped
        assert bill(server) <= made.status["cost"] <= cap
    assert (
        server.stats()["batch_repeated"] == server.stats()["batch_malformed"]
        if "batch_malformed" in server.stats()
        else True
    )


@pytest.mark.slow
async def test_calls_that_wait_for_money_go_in_the_next_batch(tmp_path: Path, service: OddService) -> None:
    teacher = open_teacher(teacher_config(service))
    assert teacher.least is not None
    cap = 3 * teacher.least + 20 * COST  # there is room for a few worst cases at once
    texts = [f"q{n}" for n in range(20)]
    async with at_work(tmp_path, teacher_config(service), Caps(max_cost=cap)) as payer:
        said = await ask_all(payer, texts)
        answered = [one for one in said if isinstance(one, str)]
        assert {type(one) for one in said} <= {str, CapReached} and len(answered) > 3
        assert payer.books.budget.in_flight == 0 and payer.books.budget.spent == len(answered) * COST <= cap
    assert len(service.sent) > 1


@pytest.mark.slow
async def test_calls_are_counted_against_their_cap(tmp_path: Path, service: OddService) -> None:
    async with at_work(tmp_path, teacher_config(service), Caps(max_calls=4)) as payer:
        said = await ask_all(payer, [f"q{n}" for n in range(9)])
        assert [type(one) for one in said].count(str) == 4 and [type(one) for one in said].count(CapReached) == 5
    assert sum(map(len, service.sent)) == 4


@pytest.mark.slow
def test_a_run_whose_time_is_up_leaves_its_batch_to_the_next_start(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=4)
    given: dict[str, Any] = {"size": 4, "teacher": simulated(server), "run_dir": tmp_path, "track": False}
    made = refed_dspy.synthesize(None, references(2), **given, max_minutes=2 / 60)
    assert made.stopped and "max_minutes" in made.stopped and batched(tmp_path)
    server.control(batch_seconds=0)
    assert refed_dspy.resume(tmp_path, max_minutes=10).complete
    assert server.stats()["batch_repeated"] == 0 and batched(tmp_path) == 0
    with Ledger.read(tmp_path) as ledger:
        assert ledger.db.execute("SELECT count(*) FROM calls WHERE outcome != 'ok'").fetchone() == (0,)


# --- the fate of a request


def once(*first: Any) -> list[Callable[[Sequence[Line]], Said]]:
    """What the first batches come to: each of `first` makes a line from a request; then all is well."""

    def by(make: Callable[[Line], Any]) -> Callable[[Sequence[Line]], Said]:
        return lambda lines: (written(*(said for one in lines if (said := make(one)) is not None)), None)

    return [*map(by, first), well]


def with_status(status: int, message: str = "no") -> Callable[[Line], Any]:
    return lambda one: line(one["custom_id"], {"error": {"message": message}}, status)


def odd(said: Any) -> Callable[[Line], Any]:
    return lambda one: line(one["custom_id"], said)


WORST = 1
"""Stands for the worst case of a call."""


CACHED = {**USED, "prompt_tokens_details": {"cached_tokens": 90}}
FATES: dict[str, tuple[Any, Any, list[tuple[str, int]]]] = {
    "refused": (with_status(400), UnfitRequest, [("http 400", 0)]),
    "limited": (with_status(429), None, [("http 429", 0), ("ok", COST)]),
    "broken": (with_status(500), None, [("http 500", 0), ("ok", COST)]),
    "missing": (lambda one: None, None, [("no answer", WORST), ("ok", COST)]),
    "garbled": (lambda one: b"{not json", None, [("no answer", WORST), ("ok", COST)]),
    "expired": (lambda one: spared(one["custom_id"]), None, [("ok", COST)]),
    "an error": (lambda one: spared(one["custom_id"], "server_error"), None, [("no answer", WORST), ("ok", COST)]),
    "no choice": (odd({**body("q"), "choices": []}), MalformedAnswer, [("malformed", COST)]),
    "cut": (odd(body("cut", reason="length")), CutAnswer, [("cut", COST)]),
    "declined": (odd(body("no", reason="content_filter")), RefusedAnswer, [("refused", COST)]),
    "no usage": (odd(body("no usage", usage=None)), None, [("ok", WORST)]),
    "odd usage": (
        odd(body("q", usage={"prompt_tokens": "7", "completion_tokens": -3})),
        NoAnswer,
        [("no answer", WORST)],
    ),
    "much": (odd(body("much", usage={"prompt_tokens": 7, "completion_tokens": 10**30})), None, [("ok", WORST)]),
    "cached": (
        odd(body("cached", usage={**USED, "prompt_tokens_details": {"cached_tokens": 90}})),
        None,
        [("ok", COST)],
    ),
    "null": (odd(None), RowError, [("no answer", WORST)]),
    "text": (odd("a text"), RowError, [("no answer", WORST)]),
    "list": (odd([1, 2]), RowError, [("no answer", WORST)]),
    "error with 200": (odd({"error": {"message": "went wrong"}}), None, [("no answer", WORST), ("ok", COST)]),
    "status a text": (lambda one: line(one["custom_id"], body("q"), "200"), None, [("no answer", WORST), ("ok", COST)]),
}
"""Question → what its first line is, how asking ends (None: with its answer), and the calls that it takes."""


async def test_what_becomes_of_a_request(tmp_path: Path, service: OddService) -> None:
    def by_fate(lines: Sequence[Line]) -> Said:
        return written(*(said for one in lines if (said := FATES[asked(one)][0](one)) is not None)), None

    service.answers = [by_fate, well]
    async with at_work(tmp_path, teacher_config(service, malformed_retries=0)) as payer:
        said = dict(zip(FATES, await ask_all(payer, list(FATES)), strict=True))
        assert payer.books.budget.in_flight == payer.books.budget.reserved == 0
    with Ledger.read(tmp_path) as ledger:
        rows = ledger.db.execute("SELECT item, outcome, cost, reserved FROM calls ORDER BY id").fetchall()
    for name, (_, ends, taken) in FATES.items():
        assert said[name] == name if ends is None else isinstance(said[name], ends), (name, said[name])
        found = [(how, WORST if cost == worst else cost) for item, how, cost, worst in rows if item == name]
        assert found == taken, name
    assert len(service.sent) == 2 and batched(tmp_path) == 0


@pytest.mark.slow
async def test_a_malformed_answer_is_paid_for_and_asked_again(tmp_path: Path, service: OddService) -> None:
    bad = {**body("q")}
    bad["choices"] = [{**bad["choices"][0], "message": {"role": "assistant", "content": "no JSON"}}]
    service.answers = once(odd(bad))
    async with at_work(tmp_path, teacher_config(service)) as payer:
        assert await ask(payer, "q") == "q"
    assert calls(tmp_path) == {("malformed", COST): 1, ("ok", COST): 1}


@pytest.mark.slow
async def test_lines_of_others_and_twice_the_same_change_nothing(tmp_path: Path, service: OddService) -> None:
    def odd_lines(lines: Sequence[Line]) -> Said:
        names = ["call-99", "call--5", "call-", "call-١", "5", None, 7, "x" * 5000, "call-" + "9" * 5000]
        strange = [line(name, body("not yours")) for name in names]
        own = [line(one["custom_id"], body(f"{asked(one)}\u2028\u2029\x85 end")) for one in lines]
        again = [line(one["custom_id"], body("twice")) for one in lines]
        return written(*strange, *own, *again, b"", b"null", b"[" * 200_000), written(*again)

    service.answers = [odd_lines]
    async with at_work(tmp_path, teacher_config(service)) as payer:
        assert await ask_all(payer, ["a", "b"]) == ["a\u2028\u2029\x85 end", "b\u2028\u2029\x85 end"]
    assert calls(tmp_path) == {("ok", COST): 2}


@pytest.mark.slow
async def test_tries_have_an_end(tmp_path: Path, service: OddService) -> None:
    service.answers = once(with_status(500))[:1]
    async with at_work(tmp_path, teacher_config(service, retries=2)) as payer:
        with pytest.raises(NoAnswer):
            await ask(payer, "q")
    assert len(service.sent) == 3 and calls(tmp_path) == {("http 500", 0): 3}


# --- the fate of a batch


async def test_what_an_expired_batch_did_not_come_to_goes_again_and_costs_nothing(
    tmp_path: Path, service: OddService
) -> None:
    def half(lines: Sequence[Line]) -> Said:
        names = [str(one["custom_id"]) for one in lines]
        done = len(lines) // 2
        return well(lines[:done])[0], written(*map(spared, names[done:]))

    service.status, service.answers = ["expired", "cancelled", "completed"], [half, half, well]
    texts = [f"q{n}" for n in range(8)]
    async with at_work(tmp_path, teacher_config(service)) as payer:
        assert await ask_all(payer, texts) == texts
        assert payer.books.budget.calls == 8
    assert [len(lines) for lines in service.sent] == [8, 4, 2] and calls(tmp_path) == {("ok", COST): 8}
    assert states(tmp_path) == ["expired", "cancelled", "completed"]


@pytest.mark.slow
async def test_what_is_garbled_in_an_expired_batch_may_have_been_billed(tmp_path: Path, service: OddService) -> None:
    def half(lines: Sequence[Line]) -> Said:
        return b'{"custom_id": "call-\n', written(*(spared(str(one["custom_id"])) for one in lines[1:]))

    service.status, service.answers = ["expired", "completed"], [half, well]
    async with at_work(tmp_path, teacher_config(service)) as payer:
        assert await ask_all(payer, ["a", "b", "c"]) == ["a", "b", "c"]
    paid = calls(tmp_path)
    assert paid["ok", COST] == 3 and sum(paid.values()) == 4, "one of them was answered, and its line cannot be read"


@pytest.mark.slow
async def test_a_batch_that_fails_whole_is_one_line_and_costs_nothing(tmp_path: Path, service: OddService) -> None:
    service.status, service.errors = (
        ["failed"],
        [[{"code": "invalid", "message": "the model\nis not there", "line": 2}]],
    )
    async with at_work(tmp_path, teacher_config(service)) as payer:
        said = await ask_all(payer, ["a", "b"])
        assert {type(one) for one in said} == {TeacherError}
        assert "the model is not there (line 2)" in str(said[0]) and "\n" not in str(said[0])
        assert payer.books.budget.calls == payer.books.budget.in_flight == 0
    assert not calls(tmp_path) and batched(tmp_path) == 0 and states(tmp_path) == ["failed"]


@pytest.mark.slow
async def test_a_full_queue_takes_smaller_batches_one_after_another(tmp_path: Path, service: OddService) -> None:
    full = [{"code": "token_limit_exceeded", "message": "full"}]
    service.status, service.errors = ["failed", "failed", "completed"], [full, full, None]
    open_at_once: list[int] = []

    def count() -> None:
        going = [one for one in service.made.values() if one["status"] == "in_progress"]
        open_at_once.append(len(going))

    service.hooks["create"] = [None, *[count] * 9]
    texts = [f"q{n}" for n in range(44)]
    async with at_work(tmp_path, teacher_config(service, batch={"quiet": 0.02, "poll": 0.01})) as payer:
        assert await ask_all(payer, texts) == texts
    assert max(map(len, service.sent)) <= 22 and set(open_at_once) == {0} and service.repeated == 0
    assert calls(tmp_path) == {("ok", COST): 44}


@pytest.mark.slow
async def test_a_limit_of_requests_is_not_raised_by_a_full_queue(tmp_path: Path, service: OddService) -> None:
    full = [{"code": "token_limit_exceeded", "message": "full"}]
    service.status, service.errors = ["failed", "completed"], [full, None]
    config = teacher_config(service, batch={"quiet": 0.02, "poll": 0.005, "requests": 3})
    async with at_work(tmp_path, config) as payer:
        for texts in ([f"q{n}" for n in range(6)], [f"later {n}" for n in range(8)]):
            assert await ask_all(payer, texts) == texts
    assert max(map(len, service.sent)) <= 3


async def test_a_file_that_is_named_late_is_waited_for(tmp_path: Path, service: OddService) -> None:
    hidden: dict[str, Any] = {}

    def hide() -> None:
        (batch,) = service.made.values()
        batch["status"] = "in_progress"
        service._run(batch)
        hidden["name"], batch["output_file_id"] = batch["output_file_id"], None

    def show() -> None:
        (batch,) = service.made.values()
        batch["output_file_id"] = hidden["name"]

    service.hooks["look"] = [hide, None, show]
    async with at_work(tmp_path, teacher_config(service)) as payer:
        assert await ask(payer, "q") == "q"
    assert calls(tmp_path) == {("ok", COST): 1}


@pytest.mark.slow
async def test_a_completed_batch_without_any_file_is_not_waited_for_for_ever(
    tmp_path: Path, service: OddService
) -> None:
    service.answers = [lambda lines: (None, None), well]
    async with at_work(tmp_path, teacher_config(service)) as payer:
        assert await ask(payer, "q") == "q"
    assert [how for how, _ in calls(tmp_path)].count("no answer") == 1


# --- runs, roles and loops


def test_an_endpoint_without_batches_is_one_line_before_anything_is_paid(
    tmp_path: Path, server: SimulatedTeacher
) -> None:
    server.control(batches=False)
    with pytest.raises(Refused, match=r"takes no batches .* set mode: interactive") as told:
        refed_dspy.synthesize(None, references(2), size=2, teacher=simulated(server), run_dir=tmp_path, track=False)
    assert told.value.exit_code == 2 and "\n" not in str(told.value) and not calls(tmp_path)


@pytest.mark.slow
def test_a_key_that_is_wrong_is_in_no_message_and_no_file(
    tmp_path: Path, locked: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-wrong-key-0123456789")
    caplog.set_level(0)
    config = simulated(locked, api_key_env=KEY_VARIABLE)
    with pytest.raises(Refused) as told:
        refed_dspy.synthesize(None, references(2), size=2, teacher=config, run_dir=tmp_path, track=False)
    assert told.value.exit_code == 2 and "api_key_env" in str(told.value)
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert "sk-wrong" not in str(told.value) + caplog.text and b"sk-wrong" not in stored


@pytest.mark.slow
async def test_two_runs_at_once_with_one_teacher_keep_apart(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0)
    teacher = open_teacher(simulated(server))
    given: dict[str, Any] = {"teacher": teacher, "track": False}
    made = await asyncio.gather(
        *(
            refed_dspy.asynthesize(None, references(2), size=n, seed=n, run_dir=tmp_path / str(n), **given)
            for n in (2, 5)
        )
    )
    assert [len(one.samples) for one in made] == [2, 5]
    assert sum(one.status["cost"] for one in made) == pytest.approx(bill(server), rel=1e-9)


@pytest.mark.slow
def test_one_teacher_serves_one_run_after_another(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0)
    teacher = open_teacher(simulated(server))
    for n in (1, 2):
        made = refed_dspy.synthesize(
            None, references(2), size=n, seed=n, run_dir=tmp_path / str(n), teacher=teacher, track=False
        )
        assert len(made.samples) == n


@pytest.mark.slow
def test_a_program_on_its_own_needs_no_ledger(server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0)
    lm = open_teacher(simulated(server)).start()
    program = dspy.Predict("question -> answer")

    async def both() -> list[Any]:
        return list(await asyncio.gather(*(program.acall(question=f"What is {n}?") for n in range(2))))

    with dspy.context(lm=lm, adapter=SchemaAdapter()):
        assert all(one.answer for one in asyncio.run(both())) and all(one.answer for one in asyncio.run(both()))
        assert server.stats()["batches"] == 2 and server.stats()["requests"] == 0
        assert program(question="Without a loop?").answer, "the synchronous door makes a call by itself"
        assert server.stats()["requests"] == 1
    assert copy.deepcopy(lm).straight is lm.straight


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_a_judge_in_batches_too(tmp_path: Path, server: SimulatedTeacher, same: bool) -> None:
    server.control(batch_seconds=0)
    judge = simulated(server, temperature=0.0, **({} if same else {"model": "sim/judge"}))
    made = refed_dspy.synthesize(
        *(None, references(4)), size=6, teacher=simulated(server), judge=judge, filters=ALL_PASS,
        run_dir=tmp_path, track=False,
    )  # fmt: skip
    stats = server.stats()
    assert made.complete and stats["requests"] == 0 and stats["batch_repeated"] == 0
    assert made.status["cost"] == pytest.approx(bill(server), rel=1e-9) and batched(tmp_path) == 0


@pytest.mark.slow
def test_an_interactive_judge_does_not_splinter_the_batches(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0, latency=0.1)
    judge = simulated(server, mode="interactive", temperature=0.0)
    made = refed_dspy.synthesize(
        *(None, references(4)), size=12, teacher=simulated(server), judge=judge, filters=ALL_PASS,
        run_dir=tmp_path, track=False,
    )  # fmt: skip
    assert made.complete and server.stats()["batches"] <= 12 and server.stats()["requests"] > 0


@pytest.mark.slow
def test_stragglers_are_asked_by_themselves_at_their_own_price(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0)
    config = simulated(server, mode="mixed", batch={"quiet": 0.05, "poll": 0.05, "stragglers": 6})
    made = refed_dspy.synthesize(None, references(4), size=12, teacher=config, run_dir=tmp_path, track=False)
    stats = server.stats()
    assert made.complete and stats["requests"] and stats["batch_requests"]
    alone = (
        (stats["billed_prompt_tokens"], stats["billed_completion_tokens"]) if "billed_prompt_tokens" in stats else None
    )
    if alone is not None:
        cached = stats.get("billed_cached_tokens", 0)
        dear = ((alone[0] - cached) * 0.15 + cached * 0.075 + alone[1] * 0.6) / 1e6
        assert made.status["cost"] == pytest.approx(bill(server) + dear, rel=1e-6)
    assert made.status["cost"] > bill(server)


@pytest.mark.slow
@pytest.mark.parametrize("version", [None, "2024-10-21"])
def test_azure(tmp_path: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "sk-azure-0123456789")
    server.control(batch_seconds=0)
    config = simulated(
        server, model="azure/sim-model", api_base=server.root, api_key_env=KEY_VARIABLE, api_version=version
    )
    made = refed_dspy.synthesize(None, references(2), size=3, teacher=config, run_dir=tmp_path, track=False)
    assert made.complete and server.stats()["requests"] == 0
    assert made.status["cost"] == pytest.approx(bill(server), rel=1e-9)


def test_providers_with_batches_of_another_kind_are_refused(server: SimulatedTeacher) -> None:
    with pytest.raises(ConfigError, match="set mode: interactive"):
        open_teacher(simulated(server, model="anthropic/x"))


@pytest.mark.slow
def test_a_compile_in_batches(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=0, response_words=8, items=1)
    made = compiled(None, None, tmp_path, "bootstrap", teacher=simulated(server))
    stats = server.stats()
    assert made and stats["requests"] == 0 and stats["batch_requests"] and batched(tmp_path) == 0
    with Ledger.read(tmp_path) as ledger:
        (cost,) = ledger.db.execute("SELECT sum(cost) / 1e12 FROM calls").fetchone()
    assert cost == pytest.approx(bill(server), rel=1e-9)


# --- prices


def test_a_batch_costs_what_the_table_says_or_half(server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none-0123456789")
    listed = open_teacher(TeacherConfig(model="openai/gpt-4o-mini", mode="batch")).price
    assert listed is not None
    million = 1_000_000
    assert listed.cost(million, 0, 0, 0) == 0.075 * PICO and listed.cost(0, 0, 0, million) == 0.3 * PICO
    assert listed.cost(million, million, 0, 0) == 0.075 * PICO, "what is cached costs the same there"
    for share, cost in ((None, 0.5), (0.25, 0.25), (1.0, 1.0), (0.0, 0.0)):
        price = PriceConfig(**PRICE, cached=0.5, **({} if share is None else {"batch": share}))
        config = TeacherConfig(model="x/y", api_base=server.base_url, price=price)
        batch = in_batches(config, price_of(config, server.base_url))
        assert batch is not None
        assert batch.cost(million, million, 0, 0) == cost * PRICE["prompt"] * PICO
        assert batch.cost(0, 0, 0, million) == cost * PRICE["completion"] * PICO
    assert in_batches(config, None) is None

"""Batches over kills and resumes: nothing is paid for twice, nothing is charged that was not sent, nothing hangs."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.allowance import refuse_left_batches
from refed_dspy.engine.accounts import spent
from refed_dspy.engine.batches import given_up, left_batches
from refed_dspy.engine.budget import Caps
from refed_dspy.engine.ledger import Ledger
from refed_dspy.errors import ConfigError, NoAnswer, RunStopped
from refed_dspy.teachers import open_teacher
from tests.odd_batches import (
    COST,
    Line,
    OddService,
    Said,
    as_killed,
    ask,
    ask_all,
    at_work,
    batched,
    body,
    calls,
    line,
    refused,
    spared,
    states,
    teacher_config,
    well,
    written,
)
from tests.writing import references

TEXTS = [f"q{n}" for n in range(6)]


@pytest.fixture
async def service() -> AsyncIterator[OddService]:
    async with OddService().open() as opened:
        yield opened


async def killed_at(
    moment: str, tmp_path: Path, service: OddService, instead: web.StreamResponse | None = None, **settings: Any
) -> Path:
    """The folder of a start that was killed as the service was asked for `moment` (see OddService.hooks)."""
    killed = asyncio.get_running_loop().create_future()

    def kill() -> web.StreamResponse | None:
        killed.set_result(as_killed(tmp_path / "first", tmp_path / "killed"))
        return instead

    service.hooks[moment] = [kill]
    config = teacher_config(service, **settings)
    async with at_work(tmp_path / "first", config) as payer:
        asking = asyncio.ensure_future(ask_all(payer, TEXTS))
        folder = await asyncio.wait_for(killed, 10)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert isinstance(folder, Path)
    return folder


async def goes_on(folder: Path, service: OddService, texts: Sequence[str] = TEXTS, **settings: Any) -> None:
    """The next start gets all answers, pays for each once, and leaves nothing open."""
    async with at_work(folder, teacher_config(service, **settings)) as payer:
        assert await ask_all(payer, texts) == list(texts)
        assert payer.books.budget.in_flight == payer.books.budget.reserved == 0
        assert payer.books.budget.spent == len(texts) * COST and payer.books.budget.calls == len(texts)
    assert service.repeated == 0 and batched(folder) == 0
    assert calls(folder) == {("ok", COST): len(texts)}


# --- killed at each moment


@pytest.mark.slow
async def test_before_a_batch_begins_nothing_is_charged(tmp_path: Path, service: OddService) -> None:
    folder = await killed_at("upload", tmp_path, service, refused(400, "gone"))
    assert not calls(folder) and not states(folder)
    await goes_on(folder, service)


@pytest.mark.parametrize("there", [True, False])
async def test_before_the_service_answers_its_nonce_tells_whether_it_is_there(
    tmp_path: Path, service: OddService, there: bool
) -> None:
    moment, instead = ("created", None) if there else ("create", refused(400, "gone"))
    folder = await killed_at(moment, tmp_path, service, instead)
    with Ledger.read(folder) as ledger:
        (left,) = left_batches(ledger)
        assert left["name"] is None and left["calls"] == len(TEXTS) and spent(ledger).cost > len(TEXTS) * COST
    await goes_on(folder, service)
    assert len(service.sent) == 1 and states(folder) == (["completed"] if there else ["not sent", "completed"])


@pytest.mark.slow
async def test_a_service_whose_clock_is_behind_is_searched_all_the_same(tmp_path: Path, service: OddService) -> None:
    service.clock = -7200
    folder = await killed_at("created", tmp_path, service)
    newer = {"metadata": None, "input_file_id": "other", "status": "completed"}
    service.made["other"] = {**service.made["batch-0"], **newer, "id": "other"}
    await goes_on(folder, service)
    assert len(service.sent) == 1


async def test_during_the_wait_the_batch_is_adopted(tmp_path: Path, service: OddService) -> None:
    folder = await killed_at("look", tmp_path, service, refused(503, "busy"))
    await goes_on(folder, service)
    assert len(service.sent) == 1


@pytest.mark.slow
async def test_between_download_and_hand_over(tmp_path: Path, service: OddService) -> None:
    folder = await killed_at("download", tmp_path, service)
    with Ledger.create(folder) as ledger:  # as if half of it had been written down
        answers = [(json.dumps({"status": 200, "body": body(text)}), n) for n, text in enumerate(TEXTS[:3], 1)]
        ledger.commit([("UPDATE batched SET answer=? WHERE call=?", one) for one in answers])
    await goes_on(folder, service)
    assert len(service.sent) == 1


@pytest.mark.slow
async def test_after_the_end_but_before_the_hand_over(tmp_path: Path, service: OddService) -> None:
    folder = await killed_at("download", tmp_path, service)
    with Ledger.create(folder) as ledger:
        answers = [(json.dumps({"status": 200, "body": body(text)}), n) for n, text in enumerate(TEXTS, 1)]
        ledger.commit([("UPDATE batched SET answer=? WHERE call=?", one) for one in answers])
        ledger.commit([("UPDATE batches SET state='completed'", ())])
    looks = service.calls["look"]
    await goes_on(folder, service)
    assert len(service.sent) == 1 and service.calls["look"] == looks, "nothing is left to be asked"


@pytest.mark.slow
async def test_while_a_part_is_handed_over(tmp_path: Path, service: OddService) -> None:
    """The second of two batches is awaited while the first is done."""
    service.hooks["look"] = [None]
    folder = tmp_path / "first"
    async with at_work(folder, teacher_config(service)) as payer:
        assert await ask_all(payer, TEXTS[:2]) == TEXTS[:2]
        service.ready = False
        asking = asyncio.ensure_future(ask_all(payer, TEXTS[2:]))
        looks = service.calls["look"]
        while service.calls["look"] == looks:  # noqa: ASYNC110 — a count is no event
            await asyncio.sleep(0.01)
        killed = as_killed(folder, tmp_path / "killed")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    service.ready = True
    await goes_on(killed, service)
    assert list(map(len, service.sent)) == [2, 4]


@pytest.mark.slow
async def test_an_orderly_stop_is_no_worse_than_a_kill(tmp_path: Path, service: OddService) -> None:
    await killed_at("look", tmp_path, service, refused(503, "busy"))
    assert batched(tmp_path / "first") == len(TEXTS)
    await goes_on(tmp_path / "first", service)
    assert len(service.sent) == 1


@pytest.mark.slow
async def test_killed_again_and_again(tmp_path: Path, service: OddService) -> None:
    service.ready, folder = False, tmp_path / "0"
    for n in range(4):
        async with at_work(folder, teacher_config(service)) as payer:
            asking = asyncio.ensure_future(ask_all(payer, TEXTS))
            looks = service.calls["look"]
            while service.calls["look"] < looks + 2:  # noqa: ASYNC110 — a count is no event
                await asyncio.sleep(0.01)
            folder = as_killed(folder, tmp_path / str(n + 1))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    service.ready = True
    await goes_on(folder, service)
    assert len(service.sent) == 1


# --- what an adopted batch may come to


@pytest.mark.slow
@pytest.mark.parametrize("status", ["expired", "cancelled"])
async def test_an_adopted_batch_that_expires(tmp_path: Path, service: OddService, status: str) -> None:
    def half(lines: Sequence[Line]) -> Said:
        return well(lines[:2])[0], written(*(spared(str(one["custom_id"])) for one in lines[2:]))

    service.status, service.answers = [status, "completed"], [half, well]
    await goes_on(await killed_at("look", tmp_path, service, refused(503, "busy")), service)
    assert list(map(len, service.sent)) == [6, 4]


@pytest.mark.slow
async def test_an_adopted_batch_that_the_queue_had_no_room_for(tmp_path: Path, service: OddService) -> None:
    full = [{"code": "token_limit_exceeded", "message": "full"}]
    service.status, service.errors = ["failed", "completed"], [full, None]
    folder = await killed_at("look", tmp_path, service, refused(503, "busy"))
    await goes_on(folder, service, batch={"quiet": 0.02, "poll": 0.005})
    assert states(folder) == ["no room", "completed"]


async def test_a_kill_while_there_is_no_room_charges_nothing(tmp_path: Path, service: OddService) -> None:
    full = [{"code": "token_limit_exceeded", "message": "full"}]
    service.status, service.errors = ["failed", "completed"], [full, None]
    service.hooks["upload"] = [None]
    async with at_work(tmp_path / "first", teacher_config(service, batch={"quiet": 0.02, "poll": 0.05})) as payer:
        asking = asyncio.ensure_future(ask_all(payer, TEXTS))
        while states(tmp_path / "first") != ["no room"]:  # noqa: ASYNC110 — a table is no event
            await asyncio.sleep(0.02)
        folder = as_killed(tmp_path / "first", tmp_path / "killed")
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert not calls(folder), "nothing of it was sent"
    await goes_on(folder, service)


@pytest.mark.slow
async def test_an_adopted_batch_that_is_not_there_any_more(tmp_path: Path, service: OddService) -> None:
    folder = await killed_at("look", tmp_path, service, refused(503, "busy"))
    service.made.clear()
    async with at_work(folder, teacher_config(service)) as payer:
        first = await ask_all(payer, TEXTS[:1])
        assert isinstance(first[0], RunStopped) and "--give-up" in str(first[0])
        later = await ask_all(payer, TEXTS)  # and whoever comes later does not wait for ever, and does not pay twice
        assert {type(one) for one in later} == {RunStopped}
    assert sum(calls(folder).values()) == len(TEXTS) == batched(folder)


async def test_what_nobody_asks_for_is_charged_what_it_cost_and_kept(tmp_path: Path, service: OddService) -> None:
    folder = await killed_at("look", tmp_path, service, refused(503, "busy"))
    service.answers = [
        lambda lines: (
            well(lines[:5])[0] + written(line(lines[5]["custom_id"], {"error": {"message": "no"}}, 500)),  # type: ignore[operator]
            None,
        ),
        well,
    ]
    async with at_work(folder, teacher_config(service)) as payer:
        assert await ask(payer, TEXTS[0]) == TEXTS[0]
    assert calls(folder) == {("ok", COST): 1, ("unused", COST): 4, ("unused", 0): 1}
    async with at_work(folder, teacher_config(service)) as payer:
        assert await ask_all(payer, TEXTS) == TEXTS
        assert payer.books.budget.spent == 6 * COST
    assert calls(folder) == {("ok", COST): 6, ("http 500", 0): 1} and list(map(len, service.sent)) == [6, 1]


@pytest.mark.slow
async def test_what_is_missing_and_nobody_asks_for_stays_charged(tmp_path: Path, service: OddService) -> None:
    folder = await killed_at("look", tmp_path, service, refused(503, "busy"))
    service.answers = [lambda lines: (well(lines[:4])[0], None), well]
    async with at_work(folder, teacher_config(service)) as payer:
        assert await ask(payer, TEXTS[0]) == TEXTS[0]
        assert await ask(payer, TEXTS[5]) == TEXTS[5], "its batch has ended without it: it goes again"
    assert calls(folder)["ok", COST] == 2
    assert sorted(how for how, _ in calls(folder)) == ["lost", "ok", "unused"] and calls(folder).total() == 7


@pytest.mark.slow
async def test_a_cap_counts_what_waits_in_a_batch(tmp_path: Path, service: OddService) -> None:
    folder = await killed_at("look", tmp_path, service, refused(503, "busy"))
    async with at_work(folder, teacher_config(service), Caps(max_calls=len(TEXTS))) as payer:
        assert await ask_all(payer, TEXTS) == TEXTS
        assert type((await ask_all(payer, ["one more"]))[0]).__name__ == "CapReached"
    assert len(service.sent) == 1


# --- with other settings


async def test_another_mode_or_place_is_refused_while_calls_wait(tmp_path: Path, service: OddService) -> None:
    folder = await killed_at("look", tmp_path, service, refused(503, "busy"))
    with Ledger.create(folder) as ledger:
        refuse_left_batches(ledger, [open_teacher(teacher_config(service, mode="mixed"))])
        for other in ({"mode": "interactive"}, {"api_base": "http://127.0.0.1:9/v1"}, {"model": "odd/other"}):
            with pytest.raises(ConfigError, match=r"6 calls wait in a batch of odd/m .*--give-up") as told:
                refuse_left_batches(ledger, [open_teacher(teacher_config(service, **other))])
            assert "\n" not in str(told.value)
        before = spent(ledger)
        ledger.commit(given_up(one["id"] for one in left_batches(ledger)))
        refuse_left_batches(ledger, [open_teacher(teacher_config(service, mode="interactive"))])
        assert spent(ledger).cost == before.cost and spent(ledger).calls == before.calls
    assert batched(folder) == 0 and states(folder) == ["given up"]


@pytest.mark.slow
async def test_tries_end_though_every_start_goes_on(tmp_path: Path, service: OddService) -> None:
    service.status = ["expired"]
    service.answers = [lambda lines: (None, written(*(spared(str(one["custom_id"])) for one in lines)))]
    async with at_work(tmp_path, teacher_config(service, retries=1)) as payer:
        with pytest.raises(NoAnswer, match="expired"):
            await ask(payer, "q")
    assert len(service.sent) == 2 and not calls(tmp_path)


# --- the real thing


def command(home: Path, run_dir: Path, size: int) -> list[str]:
    given = ["--references", str(home / "references.jsonl"), "--teacher", str(home / "teacher.yaml")]
    return [sys.executable, "-m", "refed_dspy.cli", "synth", "--size", str(size), "--run-dir", str(run_dir), *given]


@pytest.mark.slow
def test_sigkill_at_any_moment(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=1.0, batch_progressive=True, items=4)
    rows = [{"instruction": one["instruction"], "response": one["response"]} for one in references(4)]
    (tmp_path / "references.jsonl").write_text("\n".join(map(json.dumps, rows)))
    teacher = {"model": "sim/sim-model", "api_base": server.base_url, "mode": "batch", "max_tokens": 2048}
    teacher |= {"batch": {"quiet": 0.1, "poll": 0.1}, "price": {"prompt": 0.15, "completion": 0.6}}
    (tmp_path / "teacher.yaml").write_text(json.dumps(teacher))
    rng, run_dir = random.Random(7), tmp_path / "run"
    for _ in range(5):
        process = subprocess.Popen(command(tmp_path, run_dir, 40), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(1.5, 4.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(tmp_path, run_dir, 40), check=True, stdout=subprocess.DEVNULL)
    stats = server.stats()
    assert stats["batch_repeated"] == stats["requests"] == 0 and batched(run_dir) == 0
    with sqlite3.connect(run_dir / "ledger.sqlite") as db:
        assert db.execute("SELECT count(*) FROM calls WHERE outcome != 'ok' AND cost > 0").fetchone() == (0,)
        (cost,) = db.execute("SELECT sum(cost) / 1e12 FROM calls").fetchone()
    tokens = stats["batch_billed_prompt_tokens"], stats["batch_billed_completion_tokens"]
    assert cost == pytest.approx((tokens[0] * 0.075 + tokens[1] * 0.3) / 1e6, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["create500", "createdrop", "poll500", "download_drop", "upload500"])
def test_a_run_with_a_service_that_stumbles(tmp_path: Path, server: SimulatedTeacher, fate: str) -> None:
    server.control(batch_seconds=0, batch_fates=["ok", fate])
    config = TeacherConfig.model_validate(
        {
            "model": "sim/m",
            "api_base": server.base_url,
            "mode": "batch",
            "max_tokens": 2048,
            "batch": {"quiet": 0.05, "poll": 0.05},
            "price": {"prompt": 0.15, "completion": 0.6},
        }
    )
    made = refed_dspy.synthesize(None, references(3), size=6, teacher=config, run_dir=tmp_path, track=False)
    stats = server.stats()
    assert made.complete and stats["batch_repeated"] == 0 and stats["batches"] == 4
    bill = (stats["batch_billed_prompt_tokens"] * 0.075 + stats["batch_billed_completion_tokens"] * 0.3) / 1e6
    assert made.status["cost"] == pytest.approx(bill, rel=1e-9)

"""Batches over kills and resumes: nothing is paid twice, nothing is charged that was not sent, nothing hangs; what a
batch of an earlier start may come to, and what it does not let change."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.lines import given_up_line
from refed_dspy.errors import CapReached, ConfigError, RunStopped
from refed_dspy.jobs.work import refuse_left_batches
from refed_dspy.ledger.batches import abandoned, all_batches, left_batches
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.records import PICO
from refed_dspy.teachers import open_teacher
from tests.support.killed_starts import TEXTS, called_off, goes_on, killed_at, killed_waiting
from tests.support.said import Said
from tests.support.scripted_batches import (
    COST,
    FULL,
    BatchFiles,
    Line,
    ScriptedService,
    as_killed,
    ask,
    ask_all,
    batched,
    bill,
    body,
    calls,
    line,
    one_start,
    recorded_teacher,
    refused,
    simulated,
    spared,
    states,
    teacher_config,
    until,
    well,
    written,
)
from tests.support.scripted_engine import references

# --- killed at each moment


def arrived(folder: Path, texts: Sequence[str], state: str | None = None) -> None:
    """Write down as answered, before they were handed over, the first of TEXTS; and how their batch ended."""
    with Ledger.create(folder) as ledger:
        answers = [(json.dumps({"status": 200, "body": body(text)}), n) for n, text in enumerate(texts, 1)]
        ledger.commit([("UPDATE batched SET answer=? WHERE call=?", answer) for answer in answers])
        ledger.commit([("UPDATE batches SET state=?", (state,))])


@pytest.mark.slow
async def test_before_a_batch_begins_nothing_is_charged(tmp_path: Path, service: ScriptedService) -> None:
    folder = await killed_at("upload", tmp_path, service, refused(400, "gone"))
    assert not calls(folder) and not states(folder)
    await goes_on(folder, service)


@pytest.mark.parametrize("there", [True, False])
async def test_before_the_service_answers_its_nonce_tells_whether_it_is_there(
    tmp_path: Path, service: ScriptedService, there: bool
) -> None:
    moment, instead = ("created", None) if there else ("create", refused(400, "gone"))
    folder = await killed_at(moment, tmp_path, service, instead)
    with Ledger.read(folder) as ledger:
        (left,) = left_batches(ledger)
        assert left["name"] is None and left["calls"] == len(TEXTS) and spent(ledger).picodollars > len(TEXTS) * COST
    await goes_on(folder, service)
    assert len(service.sent) == 1 and states(folder)[-1] == "completed" and len(states(folder)) == 2 - there
    with Ledger.read(folder) as ledger:
        assert all_batches(ledger)[-1]["name"] == "batch-0", "a third start need not look for it"


@pytest.mark.slow
async def test_a_service_whose_clock_is_behind_is_searched_all_the_same(
    tmp_path: Path, service: ScriptedService
) -> None:
    service.clock = -7200
    folder = await killed_at("created", tmp_path, service)
    newer = {"metadata": None, "input_file_id": "other", "status": "completed"}
    service.made["other"] = {**service.made["batch-0"], **newer, "id": "other"}
    await goes_on(folder, service)
    assert len(service.sent) == 1


async def test_during_the_wait_the_batch_is_adopted(tmp_path: Path, service: ScriptedService) -> None:
    folder = await killed_waiting(tmp_path, service)
    assert batched(tmp_path / "first") == len(TEXTS), "an orderly stop is no worse"
    await goes_on(folder, service)
    assert len(service.sent) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("came", "state"), [(3, None), (len(TEXTS), "completed")])
async def test_between_download_and_hand_over(
    tmp_path: Path, service: ScriptedService, came: int, state: str | None
) -> None:
    folder = await killed_at("download", tmp_path, service)
    arrived(folder, TEXTS[:came], state)
    looks = service.calls["look"]
    await goes_on(folder, service)
    assert len(service.sent) == 1
    assert (service.calls["look"] == looks) is (state is not None), "nothing is left to be asked"


@pytest.mark.slow
async def test_while_a_part_is_handed_over(tmp_path: Path, service: ScriptedService) -> None:
    """The second of two batches is awaited while the first is done."""
    service.hooks["look"] = [None]
    folder = tmp_path / "first"
    async with recorded_teacher(folder, teacher_config(service)) as recorded:
        assert await ask_all(recorded, TEXTS[:2]) == TEXTS[:2]
        service.ready = False
        asking = asyncio.ensure_future(ask_all(recorded, TEXTS[2:]))
        looks = service.calls["look"]
        await until(lambda: service.calls["look"] > looks)
        killed = as_killed(folder, tmp_path / "killed")
        await called_off(asking)
    service.ready = True
    await goes_on(killed, service)
    assert list(map(len, service.sent)) == [2, 4]


# --- what an adopted batch may come to


@pytest.mark.slow
@pytest.mark.parametrize("status", ["expired", "cancelled", "failed"])
async def test_an_adopted_batch_that_comes_to_nothing_or_to_half(
    tmp_path: Path, service: ScriptedService, status: str
) -> None:
    """One that failed: the provider's queue had no room for it."""

    def half(lines: Sequence[Line]) -> BatchFiles:
        return well(lines[:2])[0], written(*(spared(str(request["custom_id"])) for request in lines[2:]))

    failed = status == "failed"
    service.status, service.errors = [status, "completed"], [FULL if failed else None, None]
    service.answers = [well] if failed else [half, well]
    folder = await killed_waiting(tmp_path, service)
    await goes_on(folder, service, batch={"quiet": 0.02, "poll": 0.005})
    assert len(states(folder)) > 1 and sum(map(len, service.sent)) == (6 if failed else 6 + 4)


async def test_a_kill_while_there_is_no_room_charges_nothing(tmp_path: Path, service: ScriptedService) -> None:
    service.status, service.errors = ["failed", "completed"], [FULL, None]
    service.hooks["upload"] = [None]
    async with recorded_teacher(
        tmp_path / "first", teacher_config(service, batch={"quiet": 0.02, "poll": 0.05})
    ) as recorded:
        asking = asyncio.ensure_future(ask_all(recorded, TEXTS))
        await until(lambda: states(tmp_path / "first") == ["no room"])
        folder = as_killed(tmp_path / "first", tmp_path / "killed")
        await called_off(asking)
    assert not calls(folder), "nothing of it was sent"
    await goes_on(folder, service)


@pytest.mark.slow
async def test_an_adopted_batch_that_is_not_there_any_more(tmp_path: Path, service: ScriptedService) -> None:
    folder = await killed_waiting(tmp_path, service)
    service.made.clear()
    async with recorded_teacher(folder, teacher_config(service)) as recorded:
        first = await ask_all(recorded, TEXTS[:1])
        assert isinstance(first[0], RunStopped) and "--give-up" in str(first[0])
        later = await ask_all(recorded, TEXTS)  # and whoever comes later does not wait for ever, and does not pay twice
        assert {type(error) for error in later} == {RunStopped}
    assert sum(calls(folder).values()) == len(TEXTS) == batched(folder)


async def test_what_nobody_asks_for_is_charged_what_it_cost_and_kept(tmp_path: Path, service: ScriptedService) -> None:
    folder = await killed_waiting(tmp_path, service)
    service.answers = [
        lambda lines: (
            well(lines[:5])[0] + written(line(lines[5]["custom_id"], {"error": {"message": "no"}}, 500)),  # type: ignore[operator]
            None,
        ),
        well,
    ]
    assert await one_start(folder, service, [TEXTS[0]]) == [TEXTS[0]]
    assert calls(folder) == {("ok", COST): 1, ("unused", COST): 4, ("unused", 0): 1}
    async with recorded_teacher(folder, teacher_config(service)) as recorded:
        assert await ask_all(recorded, TEXTS) == TEXTS
        assert recorded.recorder.budget.spent == 6 * COST
    assert calls(folder) == {("ok", COST): 6, ("http 500", 0): 1} and list(map(len, service.sent)) == [6, 1]


@pytest.mark.slow
async def test_what_is_missing_and_nobody_asks_for_stays_charged(tmp_path: Path, service: ScriptedService) -> None:
    folder = await killed_waiting(tmp_path, service)
    service.answers = [lambda lines: (well(lines[:4])[0], None), well]
    async with recorded_teacher(folder, teacher_config(service)) as recorded:
        assert await ask(recorded, TEXTS[0]) == TEXTS[0]
        assert await ask(recorded, TEXTS[5]) == TEXTS[5], "its batch has ended without it: it goes again"
    assert calls(folder)["ok", COST] == 2
    assert sorted(how for how, _ in calls(folder)) == ["lost", "ok", "unused"] and calls(folder).total() == 7


@pytest.mark.slow
async def test_a_cap_counts_what_waits_in_a_batch(tmp_path: Path, service: ScriptedService) -> None:
    folder = await killed_waiting(tmp_path, service)
    async with recorded_teacher(folder, teacher_config(service), Caps(max_calls=len(TEXTS))) as recorded:
        assert await ask_all(recorded, TEXTS) == TEXTS
        with pytest.raises(CapReached):
            await ask(recorded, "one more")
    assert len(service.sent) == 1


# --- with other settings


async def test_another_mode_or_place_is_refused_while_calls_wait(
    said: Said, tmp_path: Path, service: ScriptedService
) -> None:
    folder = await killed_waiting(tmp_path, service)
    with Ledger.create(folder) as ledger:
        refuse_left_batches(ledger, [open_teacher(teacher_config(service, mode="mixed"))])
        for other in ({"api_base": "http://127.0.0.1:9/v1"}, {"model": "odd/other"}):
            with pytest.raises(ConfigError):
                refuse_left_batches(ledger, [open_teacher(teacher_config(service, **other))])
        with said.by(ConfigError):
            refuse_left_batches(ledger, [open_teacher(teacher_config(service, mode="interactive"))])
        before = spent(ledger)
        ledger.commit(abandoned(batch["id"] for batch in left_batches(ledger)))
        refuse_left_batches(ledger, [open_teacher(teacher_config(service, mode="interactive"))])
        assert spent(ledger).picodollars == before.picodollars and spent(ledger).calls == before.calls
    assert batched(folder) == 0


async def test_answers_that_have_come_are_not_given_up(said: Said, tmp_path: Path, service: ScriptedService) -> None:
    folder = await killed_at("download", tmp_path, service)
    arrived(folder, TEXTS[:2])
    with Ledger.create(folder) as ledger:
        left, before = left_batches(ledger), spent(ledger).picodollars
        said(given_up_line(left))
        ledger.commit(abandoned(batch["id"] for batch in left))
        assert not left_batches(ledger) and spent(ledger).picodollars == before
    assert await one_start(folder, service, TEXTS) == TEXTS
    assert len(service.sent[-1]) == len(TEXTS) - 2, "only what had not come is asked again"
    assert calls(folder)["ok", COST] == len(TEXTS) and [how for how, _ in calls(folder)].count("lost") == 1


# --- the real thing


def command(home: Path, run_dir: Path, size: int) -> list[str]:
    arguments = ["--references", str(home / "references.jsonl"), "--teacher", str(home / "teacher.yaml")]
    return [sys.executable, "-m", "refed_dspy.cli", "synth", "--size", str(size), "--run-dir", str(run_dir), *arguments]


@pytest.mark.slow
def test_sigkill_at_any_moment(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(batch_seconds=1.0, batch_progressive=True, items=4)
    rows = [{"instruction": reference["instruction"], "response": reference["response"]} for reference in references(4)]
    (tmp_path / "references.jsonl").write_text("\n".join(map(json.dumps, rows)))
    teacher = simulated(server, batch={"quiet": 0.1, "poll": 0.1})
    (tmp_path / "teacher.yaml").write_text(teacher.model_dump_json(exclude_unset=True))
    rng, run_dir = random.Random(7), tmp_path / "run"
    for _ in range(5):
        process = subprocess.Popen(command(tmp_path, run_dir, 40), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(1.5, 4.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command(tmp_path, run_dir, 40), check=True, stdout=subprocess.DEVNULL)
    stats = server.stats()
    assert stats["batch_repeated"] == stats["requests"] == 0 and batched(run_dir) == 0
    paid = calls(run_dir)
    assert {how for how, cost in paid if cost} == {"ok"}
    assert sum((cost or 0) * count for (_, cost), count in paid.items()) / PICO == pytest.approx(bill(server), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("fate", ["create500", "createdrop", "poll500", "download_drop", "upload500"])
def test_a_run_with_a_service_that_stumbles(tmp_path: Path, server: SimulatedTeacher, fate: str) -> None:
    server.control(batch_seconds=0, batch_fates=["ok", fate])
    made = refed_dspy.synthesize(None, references(3), size=6, teacher=simulated(server), run_dir=tmp_path, track=False)
    stats = server.stats()
    assert made.complete and stats["batch_repeated"] == 0 and stats["batches"] == 4
    assert made.status["cost"] == pytest.approx(bill(server), rel=1e-9)

"""Batches over kills and resumes: nothing is paid for twice, nothing is charged that was not sent, nothing hangs."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.batches import all_batches, left_batches
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.records import PICO
from tests.support.killed_starts import TEXTS, called_off, goes_on, killed_at, killed_waiting
from tests.support.scripted_batches import (
    COST,
    ScriptedService,
    as_killed,
    ask_all,
    batched,
    bill,
    body,
    calls,
    recorded_teacher,
    refused,
    simulated,
    states,
    teacher_config,
    until,
)
from tests.support.scripted_engine import references

# --- killed at each moment


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
async def test_between_download_and_hand_over(tmp_path: Path, service: ScriptedService) -> None:
    folder = await killed_at("download", tmp_path, service)
    with Ledger.create(folder) as ledger:  # as if half of it had been written down
        answers = [(json.dumps({"status": 200, "body": body(text)}), n) for n, text in enumerate(TEXTS[:3], 1)]
        ledger.commit([("UPDATE batched SET answer=? WHERE call=?", answer) for answer in answers])
    await goes_on(folder, service)
    assert len(service.sent) == 1


@pytest.mark.slow
async def test_after_the_end_but_before_the_hand_over(tmp_path: Path, service: ScriptedService) -> None:
    folder = await killed_at("download", tmp_path, service)
    with Ledger.create(folder) as ledger:
        answers = [(json.dumps({"status": 200, "body": body(text)}), n) for n, text in enumerate(TEXTS, 1)]
        ledger.commit([("UPDATE batched SET answer=? WHERE call=?", answer) for answer in answers])
        ledger.commit([("UPDATE batches SET state='completed'", ())])
    looks = service.calls["look"]
    await goes_on(folder, service)
    assert len(service.sent) == 1 and service.calls["look"] == looks, "nothing is left to be asked"


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


@pytest.mark.slow
async def test_killed_again_and_again(tmp_path: Path, service: ScriptedService) -> None:
    service.ready, folder = False, tmp_path / "0"
    for n in range(4):
        async with recorded_teacher(folder, teacher_config(service)) as recorded:
            asking = asyncio.ensure_future(ask_all(recorded, TEXTS))
            service.calls.clear()
            await until(lambda: service.calls["look"] >= 2)
            folder = as_killed(folder, tmp_path / str(n + 1))
            await called_off(asking)
    service.ready = True
    await goes_on(folder, service)
    assert len(service.sent) == 1


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

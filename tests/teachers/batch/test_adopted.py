"""A batch that an earlier start left under way: what it may come to, and what it does not let change."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from refed_dspy.errors import CapReached, ConfigError, RunStopped
from refed_dspy.jobs.work import refuse_left_batches
from refed_dspy.ledger.batches import abandoned, left_batches
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.teachers import open_teacher
from tests.support.killed_starts import TEXTS, called_off, goes_on, killed_waiting
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
    calls,
    line,
    recorded_teacher,
    spared,
    states,
    teacher_config,
    until,
    well,
    written,
)

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
    async with recorded_teacher(folder, teacher_config(service)) as recorded:
        assert await ask(recorded, TEXTS[0]) == TEXTS[0]
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

"""What is left of the caps at a start, and which caps last."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import pytest

from refed_dspy import TeacherConfig
from refed_dspy.concurrency import GRACE
from refed_dspy.config.teacher import PriceConfig
from refed_dspy.errors import CapReached, ConfigError
from refed_dspy.jobs.work import (
    CapSettings,
    CapsLeft,
    budget_caps,
    check_caps,
    lasting_caps,
    refuse_left_batches,
)
from refed_dspy.ledger.batches import begun
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent
from refed_dspy.ledger.statements import Answer, Key, answered, reserved, settled
from refed_dspy.records import Call
from refed_dspy.teachers import open_teacher
from tests.support.said import Said

PRICE = PriceConfig(prompt=1.0, completion=10.0, cached=0.5)


@pytest.mark.parametrize(
    ("seconds", "grace", "over"),
    [
        (None, GRACE, False),
        (600.0, GRACE, False),
        (1.0, 0.5, False),
        (0.2, 0.1, False),
        (0.18, 0.09, True),
        (0, 0, True),
    ],
)
def test_some_of_the_time_is_for_ending(seconds: float | None, grace: float, over: bool) -> None:
    left = CapsLeft(Caps(), Spent(0, 0, 0, 0.0), seconds)
    assert (left.grace, left.over) == (grace, over)


async def test_time_that_runs_out_is_a_cap_and_another_timeout_is_not(said: Said) -> None:
    def left(seconds: float | None) -> CapsLeft:
        return CapsLeft(Caps(), Spent(0, 0, 0, 0.0), seconds)

    with pytest.raises(CapReached, match="max_minutes"):
        async with left(0.02).minutes():
            await asyncio.sleep(60)
    for seconds in (60.0, None):
        with said.by(TimeoutError):
            async with left(seconds).minutes():
                raise TimeoutError("of its own")


def test_what_earlier_starts_used_is_gone(tmp_path: Path) -> None:
    teacher = open_teacher(TeacherConfig(model="sim/sim-model", api_base="http://localhost:1/v1", price=PRICE))
    with Ledger.create(tmp_path) as ledger:
        begun, worked = time.time() - 1000, 90.0
        call = Call("sim-model", "e", "ok", worked, cost=7)
        ledger.commit([("INSERT INTO starts (begun) VALUES (?)", (begun,)), *settled(Key("s", "i", 0, "k"), [call])])
        ledger.commit([("UPDATE starts SET last=?", (begun + worked,))])

        def left(**caps: Any) -> CapsLeft:
            settings: Any = {"max_cost": None, "max_calls": None, "max_minutes": None, **caps}
            return check_caps(ledger, {"teacher": teacher}, settings)

        assert left(max_minutes=2).seconds == pytest.approx(30)
        assert left(max_minutes=1).seconds == 0
        assert left().seconds is None and left().caps == Caps()
        assert (left().before.picodollars, left().before.calls) == (7, 1)
        assert left(max_cost=1.5, max_calls=9).caps == Caps(1_500_000_000_000, 9)
        assert left(max_cost=math.inf, max_calls=9).caps == Caps(None, 9)


def test_a_cap_that_nobody_gives_again_is_the_one_that_was_given(tmp_path: Path) -> None:
    nothing = CapSettings(max_cost=None, max_calls=None, max_minutes=None)
    with Ledger.create(tmp_path) as ledger:
        ledger.set_meta(max_cost=3.0, max_calls=7, max_minutes=None)
        assert lasting_caps(ledger, nothing) == nothing, "nothing was paid for: it is another run"
        ledger.commit(answered(Key("s", "i", 0, "k"), Answer("{}"), "e", []))
        assert lasting_caps(ledger, nothing) == {"max_cost": 3.0, "max_calls": 7, "max_minutes": None}
        given = CapSettings(max_cost=math.inf, max_calls=9, max_minutes=5.0)
        assert lasting_caps(ledger, given) == {"max_cost": None, "max_calls": 9, "max_minutes": 5.0}


def test_a_cap_of_exactly_the_worst_case_is_kept() -> None:
    teacher = open_teacher(TeacherConfig(model="sim/sim-model", api_base="http://localhost:1/v1", price=PRICE))
    assert teacher.least is not None
    settings = CapSettings(max_cost=teacher.least / 1e12, max_calls=None, max_minutes=None)
    assert budget_caps({"teacher": teacher}, settings).max_cost == teacher.least


def test_a_batch_is_left_to_the_teacher_that_sent_it(said: Said, tmp_path: Path) -> None:
    settings = {"model": "openai/gpt-4o-mini", "api_base": "http://localhost:1/v1", "max_tokens": 16}
    batched, interactive, other = (
        open_teacher(TeacherConfig.model_validate({**settings, **changed}))
        for changed in ({"mode": "batch"}, {}, {"mode": "batch", "api_base": "http://localhost:2/v1"})
    )
    with Ledger.create(tmp_path) as ledger:
        key = Key("s", "i", 0, "k")
        ledger.commit(reserved(1, key, batched.model, batched.endpoint, 5))
        ledger.commit(begun(1, "nonce", batched.endpoint, batched.model, [1]))
        refuse_left_batches(ledger, [other, batched])
        for models in ([], [interactive], [other]):
            with said.by(ConfigError):
                refuse_left_batches(ledger, models)
        ledger.commit(settled(key, [Call(batched.model, batched.endpoint, "ok", 0.1, number=1)]))
        refuse_left_batches(ledger, [])

"""Claims that come together go together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from refed_dspy.plugins.cluster.coordinator import CoordinatorActor, CoordinatorLost
from refed_dspy.plugins.cluster.worker import Claims


class Answers(CoordinatorActor):
    """A coordinator that says of what begins with x that it is another's."""

    def __init__(self, lost: bool = False) -> None:
        super().__init__(None, patience=1)
        self.asked, self.lost = list[list[bytes]](), lost

    async def ask(self, method: str, *arguments: Any) -> Any:
        assert method == "claim" and arguments[0] == 7
        self.asked.append(list(arguments[1]))
        await asyncio.sleep(0)
        if self.lost:
            raise CoordinatorLost("the coordinator is lost")
        return [digest for digest in arguments[1] if digest.startswith(b"x")]


async def test_each_hears_of_its_own() -> None:
    claims = Claims(there := Answers(), 7)
    first, second = await asyncio.gather(claims([b"a", b"x1"]), claims([b"x2", b"b"]))
    assert first == {b"x1"} and second == {b"x2"} and there.asked == [[b"a", b"x1", b"x2", b"b"]]
    assert await claims([b"c"]) == frozenset() and there.asked[1:] == [[b"c"]]


async def test_one_that_is_cancelled_takes_nobody_along() -> None:
    claims = Claims(Answers(), 7)
    gone, stays = asyncio.ensure_future(claims([b"x1"])), asyncio.ensure_future(claims([b"x2"]))
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays == {b"x2"} and gone.cancelled()


async def test_all_hear_that_the_coordinator_is_lost() -> None:
    claims = Claims(Answers(lost=True), 7)
    answers = await asyncio.gather(claims([b"a"]), claims([b"b"]), return_exceptions=True)
    assert [type(each) for each in answers] == [CoordinatorLost] * 2
    with pytest.raises(CoordinatorLost):
        await claims([b"c"])

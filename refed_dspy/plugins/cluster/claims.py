"""A worker's claims of new instructions: those made within a moment go to the coordinator together, at the cost of
one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from refed_dspy.plugins.cluster.coordinator_actor import CoordinatorActor

MOMENT = 0.05
"""Seconds that a claim waits for others: nothing beside an answer's seconds."""


class Claims:
    """Asks for the worker at `shard` which of some digests belong to other shards. Raises as `CoordinatorActor.ask`."""

    def __init__(self, coordinator: CoordinatorActor, shard: int) -> None:
        self._coordinator, self._shard = coordinator, shard
        self._gathering: list[bytes] = []
        self._asked: asyncio.Future[frozenset[bytes]] | None = None
        """The question that has not gone off yet."""

    async def __call__(self, digests: Sequence[bytes]) -> frozenset[bytes]:
        self._gathering += digests
        if self._asked is None:
            self._asked = asyncio.ensure_future(self._ask())
        others = await asyncio.shield(self._asked)  # one that is cancelled must not end the others' question
        return others.intersection(digests)

    async def _ask(self) -> frozenset[bytes]:
        await asyncio.sleep(MOMENT)
        digests, self._gathering, self._asked = self._gathering, [], None
        return frozenset(await self._coordinator.ask("claim", self._shard, digests))

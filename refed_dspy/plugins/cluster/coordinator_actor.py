"""The coordinator as workers and the driver ask it: an actor of Ray."""

from __future__ import annotations

import asyncio
from typing import Any

from refed_dspy.errors import RefedError, RunStopped, one_line


class CoordinatorLost(RunStopped):
    """The coordinator does not answer."""


class CoordinatorActor:
    """The coordinator, an `actor` of Ray, as workers and the driver ask it. Raises CoordinatorLost where it does not
    answer for `patience` seconds, and what it raised itself."""

    def __init__(self, actor: Any, patience: float) -> None:
        self.actor, self._patience = actor, patience

    async def ask(self, method: str, *arguments: Any) -> Any:
        from ray.exceptions import RayError, RayTaskError

        try:
            asked = getattr(self.actor, method).remote(*arguments)
            async with asyncio.timeout(self._patience):  # wait_for would lose a Ctrl-C that comes with the answer
                return await asyncio.wrap_future(asked.future())
        except RayTaskError as error:
            if isinstance(error.cause, RefedError):
                raise error.cause from None
            raise
        except (RayError, TimeoutError) as error:
            why = one_line(error, 200) or f"no answer in {self._patience:g} s"
            raise CoordinatorLost(f"the coordinator is lost: {why}") from None

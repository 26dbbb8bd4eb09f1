"""One model at several addresses: each request goes to the server with the fewest requests in flight.

All servers give the same model's answers, so which of them is asked is no part of a question's key. A server that does
not answer rests, as a teacher of a pool does, and the others get its requests.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from dspy.clients.errors import wrap_error
from dspy.lm15 import LM15Error, Request, Response, response_to_events
from dspy.utils.exceptions import LMError

from refed_dspy.errors import NoAnswer, NoConnection
from refed_dspy.ledger.recorder import current_recorder
from refed_dspy.programs.lm_errors import StillLimited, row_error_of, stop_hint
from refed_dspy.teachers.engine import TeacherEngine
from refed_dspy.teachers.outage import Outage


@dataclass(eq=False)
class Server:
    """One address: its engine, whether it is down, and how many requests are in flight there."""

    engine: TeacherEngine
    outage: Outage
    in_flight: int = 0

    @property
    def shown(self) -> str:
        return f"{self.engine.model} at {self.engine.endpoint}"

    async def complete(self, request: Request) -> Response:
        """As `TeacherEngine.complete`. Raises NotHere for an error after which another server may answer."""
        was_down, self.in_flight = self.outage.down, self.in_flight + 1
        try:
            response = await self.engine.complete(request)
        except (LM15Error, LMError) as error:
            if not self._is_own(error):
                self.outage.answered(self.shown, was_down)
                raise
            if current_recorder.get().stopping:  # no other may be asked any more
                raise
            self.outage.went_down(self.shown, str(getattr(error, "message", "") or error))
            raise NotHere(error) from error
        except BaseException:
            self.outage.probe_again()
            raise
        finally:
            self.in_flight -= 1
        self.outage.answered(self.shown, was_down)
        return response

    def _is_own(self, error: LM15Error | LMError) -> bool:
        """Whether `error` is this server's, and no fault of the request or of the settings.

        What would stop a run (a key that is refused, an unknown model) is an outage once the server has answered. Until
        then it is a mistake, and the error names the address.
        """
        known = wrap_error(error, model=self.engine.model) if isinstance(error, LM15Error) else error
        if not stop_hint(known):
            return isinstance(error, StillLimited) or row_error_of(known) in {NoAnswer, NoConnection}
        if not self.engine.answered and isinstance(error, LM15Error):
            error.message = f"{self.engine.endpoint}: {error.message}"
        return self.engine.answered


class NotHere(Exception):
    """A server did not answer; another may. `error`: what it said."""

    def __init__(self, error: LM15Error | LMError) -> None:
        super().__init__(str(error))
        self.error = error


class BalancedEngine:
    """The asynchronous engine of one model at several addresses."""

    supports_response_schema = TeacherEngine.supports_response_schema
    supports_function_calling = TeacherEngine.supports_function_calling
    supported_params = TeacherEngine.supported_params

    def __init__(self, engines: Sequence[TeacherEngine], clock: Callable[[], float] = time.monotonic) -> None:
        self.engines = engines
        self._servers = [Server(engine, Outage(clock)) for engine in engines]

    def __deepcopy__(self, memo: object) -> Self:
        return self  # as the engines behind it

    async def complete(self, request: Request) -> Response:
        """As `TeacherEngine.complete`, by the first server that answers; raises the last one's error if none does."""
        failure: NotHere | None = None
        for server in self._candidates(current_recorder.get().seed or 0):
            try:
                return await server.complete(request)
            except NotHere as error:
                failure = error
        assert failure is not None
        raise failure.error from None

    def _candidates(self, seed: int) -> Iterator[Server]:
        """The servers that are up, each once: next the one with the fewest requests in flight, of several the seed's.
        If all are down, one of them all the same."""
        count, tried = len(self._servers), list[Server]()
        turns = [self._servers[(place + seed) % count] for place in range(count)]
        while True:
            order = sorted(turns, key=lambda server: server.in_flight)
            server = next((one for one in order if one not in tried and one.outage.may_ask()), None)
            if server is None and tried:
                return
            tried.append(server or order[0])
            yield tried[-1]

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        """The whole answer at once, as the events that `dspy.streamify` waits for."""
        for event in response_to_events(await self.complete(request)):
            yield event

    async def aclose(self) -> None:
        """Close this loop's connections."""
        for engine in self.engines:
            await engine.aclose()

"""Reading work again from its ledger: programs run as they did, and no call is made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import dspy
from dspy.lm15 import Request, Response

from refed_dspy.errors import NoAnswer, RowError, UnfitRequest
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.adapter import checked_adapter
from refed_dspy.programs.asking import with_roles
from refed_dspy.programs.lm_errors import in_transit
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.recorded import Asked, key_function, recorded_lm, remembered, response_of
from refed_dspy.teachers.session import LEAN


class NotAsked(RowError):
    """A request that was never made."""

    kind = "not asked"


class Replay:
    """An engine that gives back what a teacher's ledger holds, failures too."""

    def __init__(self, ledger: Ledger, teacher: Teacher) -> None:
        self.ledger, self.teacher = ledger, teacher
        self._key = key_function(teacher.identity, teacher.settings)
        self.asked: set[str] = set()
        """The keys of all requests, failed ones too."""
        self.missing = 0
        """Requests without an answer or a final failure."""

    async def complete(self, request: Request) -> Response:
        """The recorded answer. Raises LMError (`in_transit`)."""
        asked = Asked.now(request)
        key = self._key(asked)
        self.asked.add(key.digest)
        try:
            if (answer := remembered(self.ledger, asked, key)) is not None:
                return response_of(self.teacher.model, answer)
        except RowError as error:
            raise in_transit(error) from None
        self.missing += 1
        if (failure := self.ledger.failure(key.digest)) is None:
            raise in_transit(NotAsked(key.stage, key.item, "was never asked"))
        kind, reason, _ = failure
        # Not NoConnection: that would be about the endpoint, which is not called here.
        raise in_transit((UnfitRequest if kind == UnfitRequest.kind else NoAnswer)(key.stage, key.item, reason))


@contextmanager
def replaying(replay: Replay, roles: Mapping[str, Replay]) -> Iterator[None]:
    """Have `replay` answer inside the block, and those of `roles` for their roles. On a running event loop."""
    lms = {role: recorded_lm(engine.teacher, engine) for role, engine in roles.items()}
    lm = recorded_lm(replay.teacher, replay)
    with dspy.context(lm=lm, adapter=checked_adapter(), **LEAN), with_roles(lms):
        yield

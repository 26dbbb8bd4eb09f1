"""Pools of teachers: each question goes to one member of its stage's pool, and to another where that one is down.

Which member is asked is drawn by weight from the content alone, so that a resume asks the same one. What any member
answered before is returned from the ledger, so neither another draw nor an outage pays twice.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from dspy.lm15 import Config, Request, Response

from refed_dspy.errors import (
    EndpointBusy,
    NoAnswer,
    NoConnection,
    RefedError,
    RowError,
    TeacherError,
    TooLong,
    UnfitRequest,
)
from refed_dspy.ledger.batches import unsettled_calls
from refed_dspy.ledger.recorder import CallRecorder
from refed_dspy.ledger.statements import Answer, Key
from refed_dspy.programs.asking import current_sample
from refed_dspy.programs.fast_path import ByIdentity
from refed_dspy.programs.lm_errors import in_transit
from refed_dspy.records import digest
from refed_dspy.teachers.by_stage import ANY, TeachersByStage
from refed_dspy.teachers.failures import LEAST_CALLS
from refed_dspy.teachers.foreign import text_of
from refed_dspy.teachers.outage import Outage
from refed_dspy.teachers.recorded import Asked, RecordedTeacher, key_function, remembered, response_of

FEW = 3
"""So many refusals (400) in a row of a teacher that had answered are its own fault; fewer may be the requests'."""


def _another_may_answer(error: BaseException) -> bool:
    """Whether another teacher is asked after `error`. A request that is too long for one is its row's failure."""
    return isinstance(error, NoAnswer | EndpointBusy | TeacherError | UnfitRequest) and not isinstance(error, TooLong)


class PooledTeacher(RecordedTeacher):
    """The RecordedTeacher of a pool's member: another may answer a question that it did not answer."""

    async def _failed(self, key: Key, error: RowError, recorder: CallRecorder) -> None:
        if _another_may_answer(error):
            recorder.write()
        else:
            await super()._failed(key, error, recorder)


class PoolMember:
    """One teacher of a session: its RecordedTeacher, and its outage."""

    def __init__(self, recorded: RecordedTeacher, served: set[tuple[str, str]], clock: Callable[[], float]) -> None:
        """`served`: (model, endpoint) of the calls that were answered in earlier starts."""
        self.recorded, self.outage = recorded, Outage(clock)
        teacher, config = recorded.teacher, recorded.teacher.config
        self.model, self.id = digest(teacher.identity), digest([teacher.identity, teacher.endpoint])
        self.shown = f"{teacher.model} at {teacher.endpoint}"
        names = {teacher.model, *([str(config.model or config.gguf)] if config else [])}
        self._served = any((name, endpoint) in served for name in names for endpoint in teacher.endpoints)
        self._refused = 0
        """How many requests it refused (400), one after another."""

    @property
    def proved(self) -> bool:
        """Whether it ever answered in this folder: then a refusal is an outage, else a mistake in the settings."""
        return self.recorded.failures.paid or self._served

    async def ask(self, asked: Asked, key: Key) -> Answer:
        """Its answer. Raises as `RecordedTeacher.ask`; a passing error leaves no failure in the ledger."""
        was_down = self.outage.down

        async def first() -> Answer:  # another pool may ask the same teacher at the same time
            return self.recorded.from_ledger(asked, key) or await self.recorded.ask(asked, key)

        try:
            answer = await self.recorded.recorder.single_flight.share(key.digest, first)
        except BaseException as error:
            if _another_may_answer(error):
                raise
            if isinstance(error, RowError):  # an answer, if an unusable one
                self._answered(was_down)
            else:
                self.outage.probe_again()
            raise
        self._answered(was_down)
        return answer

    def refuses_all(self) -> bool:
        """Whether one more refusal says that it is not the request that is at fault."""
        self._refused += 1
        return self._refused >= (FEW if self.proved else LEAST_CALLS)

    def went_down(self, error: RefedError) -> None:
        """Do not ask it for a while."""
        self.outage.went_down(self.shown, error.reason if isinstance(error, RowError) else str(error))

    def _answered(self, was_down: bool) -> None:
        """It answered. `was_down`: it was down when it was asked."""
        self._refused = 0
        self.outage.answered(self.shown, was_down)


@dataclass(frozen=True)
class _WeightedMember:
    """A member of a pool: its weight there, and the name that its draws are made with."""

    member: PoolMember
    weight: float
    name: str


class Pool:
    """The teachers of one stage, or of all stages: an engine for DSPy. `former`: the identities of teachers that were
    asked in earlier starts and are asked no more; their answers count."""

    def __init__(self, members: Sequence[tuple[PoolMember, float]], former: Sequence[Mapping[str, Any]] = ()) -> None:
        models = Counter(member.model for member, _ in members)
        # The endpoint is no part of the draw, unless two members have the same model.
        self._members = [
            _WeightedMember(member, weight, member.model if models[member.model] == 1 else member.id)
            for member, weight in members
        ]
        self._former = [key_function(identity, {}) for identity in former]
        any_member = members[0][0].recorded
        self._seed, self._recorder, self._ledger = any_member.seed, any_member.recorder, any_member.ledger
        self._in_batches = {call.key for call in unsettled_calls(self._ledger)}
        """Keys of calls that wait in a batch: the member that sent one fetches its answer."""

    async def complete(self, request: Request) -> Response:
        """As `RecordedTeacher.complete`."""
        try:
            return response_of(request.model, await self.answer(Asked.now(request)))
        except RefedError as error:
            raise in_transit(error) from None

    async def answer(self, asked: Asked) -> Answer:
        """As `RecordedTeacher.answer`."""
        keys = [weighted.member.recorded.key(asked) for weighted in self._members]

        async def first() -> Answer:
            return self._recorded_answer(asked, keys) or await self._ask_members(asked, keys)

        flight = f"pool {sorted(key.digest for key in keys)}"
        in_flight = flight in self._recorder.single_flight
        answer = await self._recorder.single_flight.share(flight, first)  # the same request is paid for once
        if in_flight:
            answer = self._recorded_answer(asked, keys) or answer
        self._recorder.group.post(self._recorder.recovered(*(key.digest for key in keys)))
        return answer

    def _recorded_answer(self, asked: Asked, keys: Sequence[Key]) -> Answer | None:
        """What any member answered, in this start or earlier: in this folder's ledger, else in the reused run's.

        Raises the RowError that is recorded for the request.
        """
        failure: RowError | None = None
        for weighted, key in zip(self._members, keys, strict=True):
            try:
                if (answer := weighted.member.recorded.from_ledger(asked, key)) is not None:
                    _note_writer(weighted.member)
                    return answer
            except RowError as error:
                failure = failure or error
        for key in (key_of(asked) for key_of in self._former):
            if (answer := remembered(self._ledger, asked, key)) is not None:
                return answer
        for weighted, key in zip(self._members, keys, strict=True):
            if (answer := weighted.member.recorded.from_reused_run(asked, key)) is not None:
                _note_writer(weighted.member)
                return answer
        if failure is not None:
            raise failure
        return None

    async def _ask_members(self, asked: Asked, keys: Sequence[Key]) -> Answer:
        """The answer of the member that is drawn, or of the next that is up.

        Raises as a single teacher does where none answers, and TeacherError for a member that refuses from the start.
        """
        of_member = dict(zip((weighted.member.id for weighted in self._members), keys, strict=True))
        failed: tuple[PoolMember, RefedError] | None = None
        for member in self._candidates(asked, of_member):
            try:
                answer = await member.ask(asked, of_member[member.id])
            except RefedError as error:
                if not _another_may_answer(error):
                    raise
                if self._recorder.ended is not None:
                    raise self._recorder.ended from error
                self._check_outage(member, error)
                failed = member, error
            else:
                _note_writer(member)
                return answer
        assert failed is not None
        await self._give_up(of_member, *failed)
        raise failed[1]

    def _candidates(self, asked: Asked, keys: Mapping[str, Key]) -> Iterator[PoolMember]:
        """The members that are up, in the order of the draw. If all are down, the drawn one is asked all the same."""
        order, none_up = self._drawn(asked, keys), True
        for member in order:
            if member.outage.may_ask():
                none_up = False
                yield member
        if none_up:
            yield order[0]

    def _drawn(self, asked: Asked, keys: Mapping[str, Key]) -> list[PoolMember]:
        """All members, the drawn one first: by content, seed and weight, so that a further member, or another weight,
        moves as few requests as possible. A member whose batch holds the request comes first, then the one that
        wrote the sample's first answer."""
        if len(self._members) == 1:
            return [self._members[0].member]
        sample = current_sample()
        about = sample.about if sample is not None else _content(asked)
        writer = sample.writer if sample is not None else None

        def rank(weighted: _WeightedMember) -> tuple[bool, bool, float]:
            sent = keys[weighted.member.id].digest in self._in_batches
            return (
                not sent,
                weighted.member is not writer,
                _draw(f"{self._seed}/{about}/{weighted.name}") / weighted.weight,
            )

        return [weighted.member for weighted in sorted(self._members, key=rank)]

    def _check_outage(self, member: PoolMember, error: RefedError) -> None:
        """Note that a member is down. Raises TeacherError for one that refuses and never answered."""
        others, refused = len(self._members) > 1, isinstance(error, UnfitRequest)
        if refused and not (others and member.refuses_all()):
            return
        # A refusal by one that never answered is a mistake in its settings, no outage.
        if (refused or isinstance(error, TeacherError)) and not (others and member.proved):
            raise TeacherError(f"{member.shown}: {error}") from error
        if others:
            member.went_down(error)

    async def _give_up(self, keys: Mapping[str, Key], member: PoolMember, error: RefedError) -> None:
        """No member answered: the request fails as it would if the last one asked were the only one."""
        if not isinstance(error, RowError):
            return
        paid = any(weighted.member.recorded.failures.paid for weighted in self._members)
        if isinstance(error, NoConnection) and not paid:
            raise member.recorded.failures.not_reached(error) from error
        await member.recorded.fail(keys[member.id], error)


def _note_writer(member: PoolMember) -> None:
    """The sample's later answers come from the member that gave its first one."""
    sample = current_sample()
    if sample is not None and sample.writer is None:
        sample.writer = member


def _content(asked: Asked) -> str:
    """What a request is about: its last message holds the inputs."""
    return f"{digest(text_of(asked.request.messages[-1]))}/{asked.repetition}"


def _draw(text: str) -> float:
    """An exponential variate made from `text`. Of several, each divided by its weight, the chance of being the least is
    in proportion to the weight."""
    number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
    return -math.log((number + 0.5) / 2**64)


class StageRouter:
    """Several pools, an engine for DSPy: each request goes to its stage's pool. `settings`: those of the language model
    that makes the requests (`Teacher.settings`), in whose place each teacher puts its own."""

    def __init__(self, pools: Mapping[str, Pool], settings: Mapping[str, Any]) -> None:
        self._pools, self._any, self._settings = pools, pools[ANY], tuple(settings.items())

    async def complete(self, request: Request) -> Response:
        """As `Pool.complete`."""
        request = replace(request, config=_without(ByIdentity(request.config), self._settings))
        return await self._pools.get(Asked.now(request).question.stage, self._any).complete(request)


@lru_cache(maxsize=512)
def _without(config: ByIdentity, settings: tuple[tuple[str, Any], ...]) -> Config:
    """The same object for the same one: what depends on it is computed once."""
    given: Config = config.value
    return replace(given, **{name: None for name, value in settings if getattr(given, name) == value})


@dataclass(frozen=True)
class PoolSetup:
    """The teachers of a run with more than one. `former`: identities of teachers of earlier starts that are asked no
    more."""

    by_stage: TeachersByStage
    former: Sequence[Mapping[str, Any]] = ()
    clock: Callable[[], float] = time.monotonic

    def router(self, members: Mapping[int, PoolMember]) -> StageRouter:
        """The engine of all stages. `members`: `id` of a Teacher → its PoolMember."""
        pools = {
            stage: Pool([(members[id(share.teacher)], share.weight) for share in pool], self.former)
            for stage, pool in self.by_stage.pools.items()
        }
        return StageRouter(pools, self.by_stage.first.settings)


def members_of(recorded_teachers: Mapping[int, RecordedTeacher], clock: Callable[[], float]) -> dict[int, PoolMember]:
    """`id` of a Teacher → its PoolMember, from `id` → its RecordedTeacher."""
    served = next(iter(recorded_teachers.values())).ledger.answered_models()
    return {teacher: PoolMember(recorded, served, clock) for teacher, recorded in recorded_teachers.items()}

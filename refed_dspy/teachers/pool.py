"""Several teachers at work: each question goes to one of its stage's pool, and to another where that one is down.

Who is asked is drawn by weight from the content alone, so that a resume asks the same one. What any of them answered
before is given back, so neither another draw nor an outage pays twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import dspy

from refed_dspy.errors import EndpointBusy, NoAnswer, NoConnection, RefedError, RowError, TeacherError, one_line
from refed_dspy.ledger.batches import held
from refed_dspy.ledger.recorder import CallRecorder
from refed_dspy.ledger.statements import Key
from refed_dspy.programs.asking import Answerer, Question, current_sample
from refed_dspy.records import digest
from refed_dspy.teachers.by_stage import ANY, TeachersByStage
from refed_dspy.teachers.recorded import RecordedTeacher, keys_of, remembered

log = logging.getLogger("refed_dspy.teachers")
FIRST_REST, LONGEST_REST = 30.0, 900.0
"""Seconds for which a teacher that went down is left alone: twice as long each time, up to a quarter of an hour."""
_PASSING = (NoAnswer, EndpointBusy, TeacherError)
"""What another teacher may do better at."""


class Rest:
    """Whether one teacher is left alone for a while. Times are the clock's, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.seconds = 0.0
        """How long it rests, or last did."""
        self._until: float | None = None
        self._rose = -math.inf
        self._tried = False

    @property
    def down(self) -> bool:
        return self._until is not None

    def takes(self) -> bool:
        """Whether it may be asked: it is up, or its rest is over and this is the one question it is tried with."""
        if self._until is None:
            return True
        if self._tried or self._clock() < self._until:
            return False
        self._tried = True
        return True

    def fall(self) -> bool:
        """It did not answer. Whether that is news: it was up. One that falls again soon rests longer."""
        now, news = self._clock(), self._until is None
        if not news and not self._tried:
            return False  # it was asked before it fell
        lately = not news or now - self._rose < self.seconds
        self.seconds = min(LONGEST_REST, 2 * self.seconds) if lately else FIRST_REST
        self._until, self._tried = now + self.seconds, False
        return news

    def rise(self) -> None:
        """It answered."""
        self._until, self._tried, self._rose = None, False, self._clock()

    def again(self) -> None:
        """The question it was tried with ended without a word of it."""
        self._tried = False


class PooledTeacher(RecordedTeacher):
    """The RecordedTeacher of a teacher whose questions another may answer: only what is final ends one."""

    async def _failed(self, question: Question, key: Key, error: RowError, recorder: CallRecorder) -> None:
        if error.final:
            await super()._failed(question, key, error, recorder)
        else:
            recorder.write()


class PoolMember:
    """One teacher at work: who pays for its answers, its language model while it runs, and whether it rests."""

    def __init__(self, recorded: RecordedTeacher, served: set[tuple[str, str]], clock: Callable[[], float]) -> None:
        """`served`: (model, endpoint) of the calls that were answered in earlier starts."""
        self.recorded, self.rest = recorded, Rest(clock)
        self.lm: Any = None
        teacher, config = recorded.teacher, recorded.teacher.config
        self.model, self.id = digest(teacher.identity), digest([teacher.identity, teacher.endpoint])
        self.shown = f"{teacher.model} at {teacher.endpoint}"
        names = {teacher.model, *([str(config.model or config.gguf)] if config else [])}
        self._served = any((name, teacher.endpoint) in served for name in names)

    @property
    def proved(self) -> bool:
        """Whether it ever answered in this folder: then a refusal is an outage, else a mistake in the settings."""
        return self.recorded.answered or self._served

    async def ask(self, question: Question, key: Key) -> dspy.Prediction:
        """Its answer. Raises as `RecordedTeacher.pay`; what is passing leaves no failure in the ledger."""
        rested = self.rest.down
        try:
            with dspy.context(lm=self.lm):
                answer = await self.recorded.pay(question, key)
        except _PASSING:
            raise
        except RowError:  # an answer, if an unusable one
            self._rise(rested)
            raise
        except BaseException:
            self.rest.again()
            raise
        self._rise(rested)
        return answer

    def fall(self, error: RefedError) -> None:
        """Leave it alone for a while."""
        if self.rest.fall():
            why = error.reason if isinstance(error, RowError) else str(error)
            log.warning(
                "%s does not answer (%s): its questions go to the others; it is tried again in %.0f s",
                *(self.shown, one_line(why, 200), self.rest.seconds),
            )

    def _rise(self, rested: bool) -> None:
        """It answered; `rested`: what it was asked while it rested."""
        if rested and self.rest.down:
            self.rest.rise()
            log.warning("%s answers again", self.shown)


@dataclass(frozen=True)
class _WeightedMember:
    """A member of a pool: its weight there, and the name that its draws go by."""

    member: PoolMember
    weight: float
    name: str


class Pool:
    """The Answerer of one stage's teachers, or of all stages'. `former`: keys of teachers that were asked in earlier
    starts and are asked no more; their answers count."""

    def __init__(
        self, hands: Sequence[tuple[PoolMember, float]], former: Sequence[Callable[[Question], Key]] = ()
    ) -> None:
        models = Counter(member.model for member, _ in hands)
        # Where a model stands is no part of the draw, unless it stands in two places.
        named = ((one, weight, one.model if models[one.model] == 1 else one.id) for one, weight in hands)
        self._hands = [_WeightedMember(*hand) for hand in named]
        self._former = former
        any_member = hands[0][0].recorded
        self._seed, self._recorder, self._ledger = any_member.seed, any_member.recorder, any_member.ledger
        ledger = self._ledger
        self._flying: dict[str, asyncio.Future[None]] = {}
        self._passing = {key for (key,) in ledger.db.execute("SELECT key FROM failures WHERE NOT final")}
        """Keys of failures in the ledger that an answer puts right."""
        self._settled = {key for (key,) in ledger.db.execute("SELECT key FROM answers")} if former else set[str]()
        self._held = {one.key for one in held(ledger)}
        """Keys of calls that wait in a batch: whoever sent one fetches it."""

    async def __call__(self, question: Question) -> dspy.Prediction:
        keys = [hand.member.recorded.key(question) for hand in self._hands]
        name = keys[0].digest
        while (flying := self._flying.get(name)) is not None:  # two that ask the same at once pay once
            await asyncio.wait([flying])
        self._flying[name] = asyncio.get_running_loop().create_future()
        try:
            answer = self._known(question, keys)
            if answer is None:
                answer = await self._asked(question, keys)
            self._put_right(keys)
            return answer
        finally:
            self._flying.pop(name).set_result(None)

    def _known(self, question: Question, keys: Sequence[Key]) -> dspy.Prediction | None:
        """What any of them answered, now or earlier: in this folder, and only where that has nothing in the one that
        lends its answers. Raises the RowError that the question is known to end with."""
        ended: RowError | None = None
        for hand, key in zip(self._hands, keys, strict=True):
            try:
                if (known := hand.member.recorded.own(question, key)) is not None:
                    _take_note(hand.member)
                    return known
            except RowError as error:
                ended = ended or error
        for digest_ in (key_of(question).digest for key_of in self._former):
            if digest_ in self._settled:
                return remembered(self._ledger, question, replace(keys[0], digest=digest_))
        for hand, key in zip(self._hands, keys, strict=True):
            if (lent := hand.member.recorded.lent(question, key)) is not None:
                _take_note(hand.member)
                return lent
        if ended is not None:
            raise ended
        return None

    async def _asked(self, question: Question, keys: Sequence[Key]) -> dspy.Prediction:
        """The answer of the one that is drawn, or of the next that is up.

        Raises as a single teacher does where none answers, and TeacherError for one that is refused from the start.
        """
        of_hand = dict(zip((hand.member.id for hand in self._hands), keys, strict=True))
        failed: tuple[PoolMember, RefedError] | None = None
        for member in self._in_turn(of_hand):
            try:
                answer = await member.ask(question, of_hand[member.id])
            except _PASSING as error:
                self._fell(member, error)
                failed = member, error
            else:
                _take_note(member)
                return answer
        assert failed is not None
        await self._give_up(question, of_hand, *failed)
        raise failed[1]

    def _in_turn(self, keys: Mapping[str, Key]) -> Iterator[PoolMember]:
        """Those that are up, in the order of the draw. Where all rest the one that is drawn is asked all the same."""
        order = self._drawn(keys)
        asked = False
        for member in order:
            if member.rest.takes():
                asked = True
                yield member
        if not asked:
            yield order[0]

    def _drawn(self, keys: Mapping[str, Key]) -> list[PoolMember]:
        """All, the drawn one first: by content, seed and weight, so that a further member, or another weight, moves as
        few questions as can be. What is written by one hand stays with it."""
        if len(self._hands) == 1:
            return [self._hands[0].member]
        writing = current_sample()
        about = writing.about if writing is not None else _content(keys[self._hands[0].member.id])
        hand = writing.hand if writing is not None else None

        def place(one: _WeightedMember) -> tuple[bool, bool, float]:
            sent = keys[one.member.id].digest in self._held
            return not sent, one.member is not hand, _draw(f"{self._seed}/{about}/{one.name}") / one.weight

        return [one.member for one in sorted(self._hands, key=place)]

    def _fell(self, member: PoolMember, error: RefedError) -> None:
        """Raises TeacherError for a member that is refused and never answered: that is no outage."""
        others = len(self._hands) > 1
        if isinstance(error, TeacherError) and not (others and member.proved):
            raise TeacherError(f"{member.shown}: {error}") from error
        if others:
            member.fall(error)

    async def _give_up(
        self, question: Question, keys: Mapping[str, Key], member: PoolMember, error: RefedError
    ) -> None:
        """None answered: the question fails as it would with the last that was asked alone."""
        if not isinstance(error, RowError):
            return
        if isinstance(error, NoConnection) and not any(hand.member.recorded.answered for hand in self._hands):
            raise member.recorded.not_reached(error) from error
        self._passing.add(keys[member.id].digest)
        await member.recorded.fail(question, keys[member.id], error)

    def _put_right(self, keys: Sequence[Key]) -> None:
        """The question is answered: a passing failure of it, whoever's, is none any more."""
        if self._passing and (stale := self._passing.intersection(key.digest for key in keys)):
            self._passing -= stale
            self._recorder.group.post([("DELETE FROM failures WHERE key=?", (key,)) for key in sorted(stale)])


def _take_note(member: PoolMember) -> None:
    writing = current_sample()
    if writing is not None and writing.hand is None:
        writing.hand = member


def _content(key: Key) -> str:
    return f"{key.inputs}/{key.repetition}"


def _draw(text: str) -> float:
    """An exponential variate of `text`: divided by weights, the least of several is each one's in proportion."""
    number = int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")
    return -math.log((number + 0.5) / 2**64)


class StageRouter:
    """The Answerer of a staff: each question goes to its stage's pool."""

    def __init__(self, pools: Mapping[str, Pool]) -> None:
        self._pools, self._any = pools, pools[ANY]

    async def __call__(self, question: Question) -> dspy.Prediction:
        return await self._pools.get(question.stage, self._any)(question)


@dataclass(frozen=True)
class PoolSetup:
    """Who is asked in a run where that is not one teacher. `former`: identities of those of earlier starts that are
    asked no more."""

    by_stage: TeachersByStage
    former: Sequence[Mapping[str, Any]] = ()
    clock: Callable[[], float] = time.monotonic

    def answerer(self, members: Mapping[int, PoolMember]) -> Answerer:
        """Who answers each stage. `members`: the `id` of a teacher → its Member."""
        former = [keys_of(identity) for identity in self.former]
        return StageRouter(
            {
                stage: Pool([(members[id(share.teacher)], share.weight) for share in pool], former)
                for stage, pool in self.by_stage.pools.items()
            }
        )


def members_of(recorded_teachers: Mapping[int, RecordedTeacher], clock: Callable[[], float]) -> dict[int, PoolMember]:
    """The `id` of a teacher → its Member, from that of each → who pays."""
    ledger = next(iter(recorded_teachers.values())).ledger
    served = set(ledger.db.execute("SELECT DISTINCT model, endpoint FROM calls WHERE outcome='ok'"))
    return {place: PoolMember(recorded, served, clock) for place, recorded in recorded_teachers.items()}

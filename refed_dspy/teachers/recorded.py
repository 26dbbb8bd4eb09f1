"""Pay once: the ledger stands between the stages and the teacher.

What is answered is given back, what failed for good fails again at no cost, and the rest is asked and committed
before anyone sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import dspy

from refed_dspy.errors import (
    CapReached,
    CutAnswer,
    MalformedAnswer,
    NoConnection,
    RefusedAnswer,
    RowError,
    RunStopped,
    TeacherError,
    UnfitRequest,
)
from refed_dspy.ledger.attempt import Attempt
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import CallRecorder, RunRecorder, recording
from refed_dspy.ledger.statements import Answer, Key, answered, failed, taken_over
from refed_dspy.programs.adapter import rendering
from refed_dspy.programs.asking import Question, ask_teacher
from refed_dspy.programs.saved import prompt_digest
from refed_dspy.records import Call, digest
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.outcomes import reserved

ENOUGH_TO_JUDGE = 20
RECENT = 50
"""A stage's share of failures is that of its last 50 calls, once there are 20: a teacher may also fail later on."""

_KINDS = {kind.kind: kind for kind in (MalformedAnswer, CutAnswer, RefusedAnswer, UnfitRequest)}


@dataclass
class Progress:
    """Where a run stands, for whoever watches. Counts of this process, but for `kept`."""

    size: int
    kept: int = 0
    in_flight: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: int = 0
    """Picodollars, as far as prices are known."""
    unpriced: int = 0
    """Calls whose price is unknown."""
    priced: bool = True
    """Whether the teacher's price is known."""
    failed: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)
    kept_at_start: int = 0
    dropped: int = 0
    """Rows that a filter dropped."""
    unit: str = "samples"
    """What is counted, for people."""


@dataclass(frozen=True)
class CallPolicy:
    """How a model is asked in one run: `seed` of its calls, and the share of failures that stops the run."""

    seed: int = 0
    max_failure_share: float = 0.5


class RecordedTeacher:
    """The Answerer of one model. Several may share a ledger, its books and a progress.

    `depth`: stage → how deep it is. Where money runs short the deepest goes first, since it finishes samples; a stage
    that is not named goes before all that are.
    """

    def __init__(
        self,
        ledger: Ledger,
        recorder: RunRecorder,
        teacher: Teacher,
        progress: Progress,
        policy: CallPolicy = CallPolicy(),
        depth: Mapping[str, int] = MappingProxyType({}),
        reuse: Ledger | None = None,
        role: str = "teacher",
    ) -> None:
        self.ledger, self.recorder, self.progress, self.teacher = ledger, recorder, progress, teacher
        self.role = role
        """What the model is here, for messages."""
        self.seed, self.max_failure_share = policy.seed, policy.max_failure_share
        self._reuse = reuse
        self.answered = False
        """Whether any call was answered in this process, usably or not: then something was paid for."""
        self.key = keys(teacher)
        """A question's key."""
        self._settled = ledger.settled_keys()
        self._depth = depth
        self._flying: dict[str, asyncio.Future[None]] = {}
        """Key → when it is settled, of the questions that are being paid for."""
        self._recent: defaultdict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=RECENT))

    async def __call__(self, question: Question) -> dspy.Prediction:
        key = self.key(question)
        while (flying := self._flying.get(key.digest)) is not None:  # two that ask the same at once pay once
            await asyncio.wait([flying])
        if (known := self.known(question, key)) is not None:
            return known
        self._flying[key.digest] = asyncio.get_running_loop().create_future()
        try:
            return await self.pay(question, key)
        finally:
            self._flying.pop(key.digest).set_result(None)

    def known(self, question: Question, key: Key) -> dspy.Prediction | None:
        """The answer that was paid for, here or in the run that lends its answers; None: there is none.

        Raises the RowError that the question is known to end with.
        """
        own = self.own(question, key)
        return own if own is not None else self.lent(question, key)

    def own(self, question: Question, key: Key) -> dspy.Prediction | None:
        """`known` of this folder alone."""
        return remembered(self.ledger, question, key) if key.digest in self._settled else None

    def lent(self, question: Question, key: Key) -> dspy.Prediction | None:
        """What the run that lends its answers has under this key, which is taken over; None: nothing, or no such
        run."""
        if self._reuse is None or (lent := self._reuse.answer(key.digest)) is None:
            return None
        endpoint = self._reuse.endpoint(key.digest)
        self.ledger.commit([*answered(Answer(key, lent, endpoint), []), *taken_over(key.digest, self.teacher.model)])
        return _restored(question, lent)

    async def pay(self, question: Question, key: Key) -> dspy.Prediction:
        """Ask the teacher; whatever comes of it is in the ledger before this returns or raises."""
        if self.recorder.stopping:
            raise asyncio.CancelledError
        if self.recorder.over:
            raise CapReached("max_minutes")
        self.progress.in_flight += 1
        # The call's own seed: another for every key, the same again for the same run seed.
        rank = -self._depth.get(question.stage, len(self._depth))
        recorder = CallRecorder(self.recorder, key, rank, int(key.digest[:7], 16) ^ self.seed)
        try:
            with recording(recorder):
                prediction, text = await self._usable_answer(question, recorder)
        except RowError as error:
            await self._failed(question, key, error, recorder)
            raise
        except BaseException:
            recorder.write()
            raise
        finally:
            self.progress.in_flight -= 1
            self._count(recorder.calls)
        self.answered = True
        endpoint = recorder.calls[-1].endpoint if recorder.calls else self.teacher.endpoint
        await self.recorder.group.commit(answered(Answer(key, text, endpoint), recorder.take()))
        self._settled.add(key.digest)
        self._recent[question.stage].append(True)
        return prediction

    async def _failed(self, question: Question, key: Key, error: RowError, recorder: CallRecorder) -> None:
        """Write down and count a question that no answer came of. Raises TeacherError, RunStopped."""
        if isinstance(error, NoConnection) and not self.answered:
            recorder.write()
            raise self.not_reached(error) from error
        await self.fail(question, key, error, recorder.take())

    async def fail(self, question: Question, key: Key, error: RowError, calls: Sequence[Call] = ()) -> None:
        """The question ends with `error`. Raises RunStopped where too many of its stage did."""
        await self.recorder.group.commit(failed(key, error.kind, error.reason, error.final, calls))
        if error.final:
            self._settled.add(key.digest)
        if not isinstance(error, MalformedAnswer):  # those are counted try by try
            self._count_failure(question.stage, error)

    def not_reached(self, error: NoConnection) -> TeacherError:
        """An endpoint that never answered is not one row's bad luck."""
        whose = "" if self.role == "teacher" else f"{self.role}: "
        return TeacherError(f"{whose}{error.reason} — check api_base, and that the server runs")

    async def _usable_answer(self, question: Question, recorder: CallRecorder) -> tuple[dspy.Prediction, str]:
        """An answer that fits its fields, and its text as the ledger keeps it. Each try is paid for and booked.

        Raises MalformedAnswer when the last try does not fit either, RunStopped when too many do not.
        """
        tries = 0
        while True:
            try:
                prediction = await self._ask(question, recorder)
                return prediction, _as_json(question, prediction)
            except MalformedAnswer as error:
                recorder.rename_last(error.kind)
                recorder.write()
                self._count_failure(question.stage, error)
                if tries == self.teacher.malformed_retries or self.recorder.stopping:
                    raise
                tries += 1
                recorder.seed = (recorder.seed or 0) + 1

    async def _ask(self, question: Question, recorder: CallRecorder) -> dspy.Prediction:
        if self.teacher.reports_calls:
            return await ask_teacher(question)
        number = await reserved(recorder, Attempt(self.teacher.model, self.teacher.endpoint, None))
        started = time.monotonic()
        outcome = "error"
        with dspy.track_usage() as tracker:
            try:
                answer = await ask_teacher(question)
                outcome = "ok"
            finally:
                seconds = round(time.monotonic() - started, 3)
                for call in _tracked(self.teacher, outcome, seconds, tracker.get_total_tokens(), number):
                    recorder.report(call)
        return answer

    def _count(self, calls: Iterable[Call]) -> None:
        for call in calls:
            self.answered = self.answered or call.prompt_tokens is not None or call.outcome == "ok"
            self.progress.calls += 1
            self.progress.prompt_tokens += call.prompt_tokens or 0
            self.progress.completion_tokens += call.completion_tokens or 0
            if call.cost is None:
                self.progress.unpriced += 1
            self.progress.cost += call.cost or 0

    def _count_failure(self, stage: str, error: RowError) -> None:
        self.progress.failed[error.kind] += 1
        recent = self._recent[stage]
        recent.append(False)
        failed = recent.count(False)
        if len(recent) >= ENOUGH_TO_JUDGE and failed / len(recent) >= self.max_failure_share:
            share = self.max_failure_share
            raise RunStopped(
                f"{stage} failed in {failed} of its last {len(recent)} calls, the last one {error.kind}: "
                f"{error.reason} — check the {self.role}"
                + (f", or raise max_failure_share ({share:g})" if share < 1 else "")
            ) from error


def keys(teacher: Teacher) -> Callable[[Question], Key]:
    """What makes a question to `teacher` the same one: stage, that predictor's prompt, inputs, model, repetition."""
    return keys_of(teacher.identity)


def keys_of(identity: Mapping[str, Any]) -> Callable[[Question], Key]:
    """`keys` of the teacher that has this identity, be it that it is asked no more."""
    sampling = digest(identity)
    prompts: dict[int, tuple[dspy.Predict, str]] = {}  # the predictor is held, so that no other gets its id

    def key(question: Question) -> Key:
        known = prompts.get(id(question.predictor))
        if known is None:
            known = prompts[id(question.predictor)] = (question.predictor, prompt_digest(question.predictor))
        prompt, inputs = known[1], digest(question.inputs)
        whole = digest([question.stage, prompt, inputs, sampling, question.repetition])
        return Key(question.stage, question.item, question.repetition, prompt, inputs, whole)

    return key


def remembered(ledger: Ledger, question: Question, key: Key) -> dspy.Prediction | None:
    """The paid answer, or None where there is none. Raises the RowError that the question is known to end with."""
    if (paid := ledger.answer(key.digest)) is not None:
        return _restored(question, paid)
    if (failure := ledger.failure(key.digest)) is not None:
        kind, reason = failure
        raise _KINDS.get(kind, RowError)(question.stage, question.item, reason)
    return None


def _as_json(question: Question, prediction: dspy.Prediction) -> str:
    """The typed outputs as the ledger keeps them. Raises MalformedAnswer where they could not be read back.

    The caller's own adapter need not have held the outputs to their bounds.
    """
    fixed = rendering(question.predictor.signature)
    output = {name: prediction[name] for name in fixed.outputs}
    try:
        text = fixed.answer.model_construct(**output).model_dump_json(warnings=False)
        fixed.answer.model_validate_json(text)
    except ValueError as error:  # pydantic's own errors are ValueErrors, too
        raise MalformedAnswer(question.stage, question.item, f"does not fit its fields: {error}") from None
    return text


def _restored(question: Question, paid: str) -> dspy.Prediction:
    fixed = rendering(question.predictor.signature)
    answer = fixed.answer.model_validate_json(paid)
    return dspy.Prediction(**{name: getattr(answer, name) for name in fixed.outputs})


def _tracked(
    teacher: Teacher, outcome: str, seconds: float, usage: Mapping[str, Mapping[str, Any]], number: int
) -> list[Call]:
    """The calls of a caller's own LM as far as DSPy's tracker shows them: one for each model that answered.

    An endpoint that reports no usage was paid all the same.
    """
    calls: list[Call] = []
    for model, tokens in usage.items():
        details = tokens.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
        prompt, completion = tokens.get("prompt_tokens"), tokens.get("completion_tokens")
        cost = None
        if teacher.price is not None and prompt is not None and completion is not None:
            cost = teacher.price.cost(prompt, cached or 0, 0, completion)
        number = 0 if calls else number
        calls.append(Call(model, teacher.endpoint, "ok", seconds, prompt, cached, completion, cost, number))
    return calls or [Call(teacher.model, teacher.endpoint, outcome, seconds, number=number)]

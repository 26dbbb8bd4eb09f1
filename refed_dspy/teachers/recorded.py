"""The recorded teacher: it answers from the ledger, and asks the teacher for the rest, so that nothing is paid twice.

A recorded answer is returned, a recorded final failure is raised again at no cost, and any other question is asked;
its answer is committed before anyone sees it. `Progress` counts for whoever watches.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy

from refed_dspy.concurrency import SingleFlight
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
from refed_dspy.ledger.statements import Answer, Key, answered, failed, reused
from refed_dspy.programs.adapter import rendering
from refed_dspy.programs.asking import Question, ask_teacher
from refed_dspy.programs.saved import prompt_digest
from refed_dspy.records import Call, digest
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.outcomes import reserved

LEAST_CALLS = 20
RECENT = 50
"""A stage's failure share is taken over its last 50 calls, once there are 20: a teacher may also fail later on."""

_KINDS = {kind.kind: kind for kind in (MalformedAnswer, CutAnswer, RefusedAnswer, UnfitRequest)}


@dataclass
class Progress:
    """How far a run is, for whoever watches: counts of this process, but all starts' `kept`, `cost` and `unpriced`."""

    size: int
    kept: int = 0
    in_flight: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: int = 0
    """Picodollars, of the calls whose price is known."""
    unpriced: int = 0
    """Calls whose price is unknown."""
    priced: bool = True
    """Whether the price of every model at work is known."""
    failed: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)
    kept_at_start: int = 0
    dropped: int = 0
    """Rows that a filter dropped."""
    unit: str = "samples"
    """What is counted, for people."""


@dataclass(frozen=True)
class CallPolicy:
    """How a model is asked in one run: the `seed` of its calls, and the share of failures that stops the run.

    `depth`: stage → how deep in the program it is. Where the budget runs short the deepest stage goes first, since it
    finishes samples; a stage that is not named goes before all that are.
    """

    seed: int = 0
    max_failure_share: float = 0.5
    depth: Mapping[str, int] = field(default_factory=dict)


class RecordedTeacher:
    """The Answerer of one model. Several may share a ledger, a recorder and a progress.

    `reused_from`: the ledger of another run, whose answers count here too.
    """

    def __init__(
        self,
        ledger: Ledger,
        recorder: RunRecorder,
        teacher: Teacher,
        progress: Progress,
        policy: CallPolicy = CallPolicy(),
        reused_from: Ledger | None = None,
        role: str = "teacher",
    ) -> None:
        self.ledger, self.recorder, self.progress, self.teacher = ledger, recorder, progress, teacher
        self.role = role
        """What the model is in this session, for messages."""
        self.seed, self.max_failure_share = policy.seed, policy.max_failure_share
        self._reused_from = reused_from
        self.answered = False
        """Whether any call was answered in this process, usable or not: then something was paid for."""
        self.key = key_function(teacher)
        """Question → its key in the ledger."""
        self._settled = ledger.settled_keys()
        self._depth = policy.depth
        self._single_flight = SingleFlight()
        self._recent: defaultdict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=RECENT))

    async def __call__(self, question: Question) -> dspy.Prediction:
        key = self.key(question)
        async with self._single_flight.alone(key.digest):  # the same question is paid for once
            answer = self.recorded_answer(question, key)
            return answer if answer is not None else await self.ask(question, key)

    def recorded_answer(self, question: Question, key: Key) -> dspy.Prediction | None:
        """The answer that was paid for, in this folder or in the reused run; None: there is none.

        Raises the RowError that is recorded for the question.
        """
        answer = self.from_ledger(question, key)
        return answer if answer is not None else self.from_reused_run(question, key)

    def from_ledger(self, question: Question, key: Key) -> dspy.Prediction | None:
        """`recorded_answer` of this folder alone."""
        return remembered(self.ledger, question, key) if key.digest in self._settled else None

    def from_reused_run(self, question: Question, key: Key) -> dspy.Prediction | None:
        """The reused run's answer under this key, copied into this ledger; None: it has none, or no run is reused."""
        if self._reused_from is None or (text := self._reused_from.answer(key.digest)) is None:
            return None
        endpoint = self._reused_from.endpoint(key.digest)
        self.ledger.commit([*answered(Answer(key, text, endpoint), []), *reused(key.digest, self.teacher.model)])
        return _restored(question, text)

    async def ask(self, question: Question, key: Key) -> dspy.Prediction:
        """Ask the teacher. The answer or failure is in the ledger before this returns or raises."""
        if self.recorder.stopping:
            raise asyncio.CancelledError
        if self.recorder.out_of_time:
            raise CapReached("max_minutes")
        self.progress.in_flight += 1
        # The call's seed: another for every key, the same again for the same run seed.
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
        """Record and count a question without an answer. Raises TeacherError, RunStopped."""
        if isinstance(error, NoConnection) and not self.answered:
            recorder.write()
            raise self.not_reached(error) from error
        await self.fail(question, key, error, recorder.take())

    async def fail(self, question: Question, key: Key, error: RowError, calls: Sequence[Call] = ()) -> None:
        """The question ends with `error`. Raises RunStopped where too many of its stage failed."""
        await self.recorder.group.commit(failed(key, error.kind, error.reason, error.final, calls))
        if error.final:
            self._settled.add(key.digest)
        if not isinstance(error, MalformedAnswer):  # each try of those was counted
            self._count_failure(question.stage, error)

    def not_reached(self, error: NoConnection) -> TeacherError:
        """An endpoint that never answered is not one row's bad luck."""
        prefix = "" if self.role == "teacher" else f"{self.role}: "
        return TeacherError(f"{prefix}{error.reason} — check api_base, and that the server runs")

    async def _usable_answer(self, question: Question, recorder: CallRecorder) -> tuple[dspy.Prediction, str]:
        """An answer that fits its fields, and its text as the ledger keeps it. Each try is paid for and recorded.

        Raises MalformedAnswer when the last try does not fit either, RunStopped when too many calls failed.
        """
        tries = 0
        while True:
            try:
                prediction = await self._ask_once(question, recorder)
                return prediction, _as_json(question, prediction)
            except MalformedAnswer as error:
                recorder.rename_last(error.kind)
                recorder.write()
                self._count_failure(question.stage, error)
                if tries == self.teacher.malformed_retries or self.recorder.stopping:
                    raise
                tries += 1
                recorder.seed = (recorder.seed or 0) + 1

    async def _ask_once(self, question: Question, recorder: CallRecorder) -> dspy.Prediction:
        """One try. The calls of a caller's own LM are recorded here, since nothing else reports them."""
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
        if len(recent) >= LEAST_CALLS and failed / len(recent) >= self.max_failure_share:
            share = self.max_failure_share
            raise RunStopped(
                f"{stage} failed in {failed} of its last {len(recent)} calls, the last one {error.kind}: "
                f"{error.reason} — check the {self.role}"
                + (f", or raise max_failure_share ({share:g})" if share < 1 else "")
            ) from error


def key_function(teacher: Teacher) -> Callable[[Question], Key]:
    """Question → its key: a digest of stage, that predictor's prompt, inputs, model with sampling, and repetition."""
    return key_function_of(teacher.identity)


def key_function_of(identity: Mapping[str, Any]) -> Callable[[Question], Key]:
    """`key_function` for a teacher's identity alone, which may be that of a teacher asked no more."""
    sampling = digest(identity)
    prompts: dict[int, tuple[dspy.Predict, str]] = {}  # holds the predictor, so that no other gets its id

    def key(question: Question) -> Key:
        entry = prompts.get(id(question.predictor))
        if entry is None:
            entry = prompts[id(question.predictor)] = (question.predictor, prompt_digest(question.predictor))
        prompt, inputs = entry[1], digest(question.inputs)
        whole = digest([question.stage, prompt, inputs, sampling, question.repetition])
        return Key(question.stage, question.item, question.repetition, prompt, inputs, whole)

    return key


def remembered(ledger: Ledger, question: Question, key: Key) -> dspy.Prediction | None:
    """The answer in `ledger`, or None where there is none. Raises the RowError that is recorded for the question."""
    if (text := ledger.answer(key.digest)) is not None:
        return _restored(question, text)
    if (failure := ledger.failure(key.digest)) is not None:
        kind, reason = failure
        raise _KINDS.get(kind, RowError)(question.stage, question.item, reason)
    return None


def _as_json(question: Question, prediction: dspy.Prediction) -> str:
    """The typed outputs as the ledger keeps them. Raises MalformedAnswer where they could not be read back.

    The caller's own adapter may not have kept the outputs within their bounds.
    """
    fixed = rendering(question.predictor.signature)
    output = {name: prediction[name] for name in fixed.outputs}
    try:
        text = fixed.answer.model_construct(**output).model_dump_json(warnings=False)
        fixed.answer.model_validate_json(text)
    except ValueError as error:  # pydantic's own errors are ValueErrors, too
        raise MalformedAnswer(question.stage, question.item, f"does not fit its fields: {error}") from None
    return text


def _restored(question: Question, text: str) -> dspy.Prediction:
    """The prediction that `text` is the JSON of."""
    fixed = rendering(question.predictor.signature)
    answer = fixed.answer.model_validate_json(text)
    return dspy.Prediction(**{name: getattr(answer, name) for name in fixed.outputs})


def _tracked(
    teacher: Teacher, outcome: str, seconds: float, usage: Mapping[str, Mapping[str, Any]], number: int
) -> list[Call]:
    """The calls of a caller's own LM as far as DSPy's tracker shows them: one for each model that answered.

    Where no usage was reported there is one call without tokens: it was paid for all the same.
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

"""Pay once: the ledger stands between the stages and the teacher.

What is answered is given back, what failed for good fails again at no cost, and the rest is asked and committed
before anyone sees it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import dspy

from refed_dspy.calls import collecting
from refed_dspy.engine.ledger import Answer, Key, Ledger
from refed_dspy.errors import (
    CutAnswer,
    MalformedAnswer,
    NoConnection,
    RefusedAnswer,
    RowError,
    RunStopped,
    TeacherError,
    UnfitRequest,
)
from refed_dspy.programs.adapter import rendering
from refed_dspy.programs.asking import Question, ask_teacher
from refed_dspy.programs.saved import digest
from refed_dspy.records import Call
from refed_dspy.teachers import Teacher

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
    failed: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.monotonic)
    kept_at_start: int = 0


class PayOnce:
    """The Answerer of a run."""

    def __init__(
        self,
        ledger: Ledger,
        teacher: Teacher,
        prompts: Mapping[str, str],
        max_failure_share: float,
        progress: Progress,
        seed: int = 0,
        reuse: Ledger | None = None,
    ) -> None:
        self.ledger, self.teacher, self.prompts, self.seed = ledger, teacher, prompts, seed
        self._reuse = reuse
        self.stopping = False
        """Set when the run is ending: a call that has not begun does not begin."""
        self.answered = False
        """Whether any call was answered in this process, usably or not: then something was paid for."""
        self.max_failure_share, self.progress = max_failure_share, progress
        self._sampling = digest(teacher.identity)
        self._recent: defaultdict[str, deque[bool]] = defaultdict(lambda: deque(maxlen=RECENT))

    async def __call__(self, question: Question) -> dspy.Prediction:
        key = self._key(question)
        if (paid := self.ledger.answer(key.digest)) is not None:
            return _restored(question, paid)
        if (failure := self.ledger.failure(key.digest)) is not None:
            kind, reason = failure
            raise _KINDS.get(kind, RowError)(question.stage, question.item, reason)
        if self._reuse is not None and (lent := self._reuse.answer(key.digest)) is not None:
            self.ledger.commit_answer(Answer(key, lent, self._reuse.endpoint(key.digest)), [])
            return _restored(question, lent)
        return await self._pay(question, key)

    async def _pay(self, question: Question, key: Key) -> dspy.Prediction:
        """Ask the teacher; whatever comes of it is in the ledger before this returns or raises."""
        if self.stopping:
            raise asyncio.CancelledError
        self.progress.in_flight += 1
        # The call's own seed: another for every key, the same again for the same run seed.
        with collecting(seed=int(key.digest[:7], 16) ^ self.seed, stopping=lambda: self.stopping) as calls:
            try:
                prediction = await self._ask(question, calls)
                text = _as_json(question, prediction)
            except RowError as error:
                if isinstance(error, MalformedAnswer) and calls:
                    calls[-1] = replace(calls[-1], outcome=error.kind)
                self._not_reached_at_all(error, key, calls)
                self.ledger.commit_failure(key, error.kind, error.reason, error.final, calls)
                self._count_failure(question.stage, error)
                raise
            except BaseException:
                self.ledger.commit_calls(key, calls)
                raise
            finally:
                self.progress.in_flight -= 1
                self._count(calls)
        self.answered = True
        endpoint = calls[-1].endpoint if calls else self.teacher.endpoint
        self.ledger.commit_answer(Answer(key, text, endpoint), calls)
        self._recent[question.stage].append(True)
        return prediction

    async def _ask(self, question: Question, calls: list[Call]) -> dspy.Prediction:
        if self.teacher.reports_calls:
            return await ask_teacher(question)
        started = time.monotonic()
        with dspy.track_usage() as tracker:
            try:
                answer = await ask_teacher(question)
            finally:
                seconds = time.monotonic() - started
                for model, usage in tracker.get_total_tokens().items():
                    calls.append(_tracked(model, self.teacher.endpoint, seconds, usage))
        if not calls:  # an endpoint that reports no usage was paid all the same
            calls.append(Call(self.teacher.model, self.teacher.endpoint, "ok", round(seconds, 3)))
        return answer

    def _key(self, question: Question) -> Key:
        prompt, inputs = self.prompts[question.stage], digest(question.inputs)
        whole = digest([question.stage, prompt, inputs, self._sampling, question.repetition])
        return Key(question.stage, question.item, question.repetition, prompt, inputs, whole)

    def _count(self, calls: list[Call]) -> None:
        self.answered = self.answered or any(call.prompt_tokens is not None or call.outcome == "ok" for call in calls)
        self.progress.calls += len(calls)
        self.progress.prompt_tokens += sum(call.prompt_tokens or 0 for call in calls)
        self.progress.completion_tokens += sum(call.completion_tokens or 0 for call in calls)

    def _not_reached_at_all(self, error: RowError, key: Key, calls: list[Call]) -> None:
        """An endpoint that never answered is not one row's bad luck. Raises TeacherError."""
        if isinstance(error, NoConnection) and not self.answered:
            self.ledger.commit_calls(key, calls)
            raise TeacherError(f"{error.reason} — check api_base, and that the server runs") from error

    def _count_failure(self, stage: str, error: RowError) -> None:
        self.progress.failed[error.kind] += 1
        recent = self._recent[stage]
        recent.append(False)
        failed = recent.count(False)
        if len(recent) >= ENOUGH_TO_JUDGE and failed / len(recent) >= self.max_failure_share:
            raise RunStopped(
                f"{stage} failed in {failed} of its last {len(recent)} calls, the last one {error.kind}: "
                f"{error.reason} — check the teacher, or raise max_failure_share ({self.max_failure_share:g})"
            ) from error


def _as_json(question: Question, prediction: dspy.Prediction) -> str:
    """The typed outputs as the ledger keeps them. Raises MalformedAnswer where they could not be read back.

    The caller's own adapter need not have held the outputs to their bounds.
    """
    answer = rendering(question.predictor.signature).answer
    output = {name: prediction[name] for name in question.predictor.signature.output_fields}
    try:
        text = answer.model_construct(**output).model_dump_json(warnings=False)
        answer.model_validate_json(text)
    except ValueError as error:  # pydantic's own errors are ValueErrors, too
        raise MalformedAnswer(question.stage, question.item, f"does not fit its fields: {error}") from None
    return text


def _restored(question: Question, paid: str) -> dspy.Prediction:
    answer = rendering(question.predictor.signature).answer.model_validate_json(paid)
    return dspy.Prediction(**{name: getattr(answer, name) for name in question.predictor.signature.output_fields})


def _tracked(model: str, endpoint: str, seconds: float, usage: Mapping[str, Any]) -> Call:
    details = usage.get("prompt_tokens_details") or {}
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Call(
        model, endpoint, "ok", round(seconds, 3), usage.get("prompt_tokens"), cached, usage.get("completion_tokens")
    )

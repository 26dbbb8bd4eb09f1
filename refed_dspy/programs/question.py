"""What a call is about: what reaches a language model along DSPy's layers besides the request itself.

A predictor's call goes through DSPy's adapter and language model, which pass on a request and nothing else. The stage
and item that it belongs to travel in DSPy's settings, which its threads get, too; the check that its answer must pass,
and the repetition, in context variables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import dspy

PROGRAM = "program"
"""The stage of what a program does outside of any that has a name."""
_fit: ContextVar[Fit | None] = ContextVar("refed_fit", default=None)
_repetition: ContextVar[int] = ContextVar("refed_repetition", default=0)
SECOND = 1_000
"""What is added to the repetition of a call that asks for a second answer: no `rollout_id` of a program is so high."""


@dataclass
class Question:
    """The stage and the item that calls are made for."""

    stage: str
    item: str
    lm: Any = None
    """The language model that was asked last: its keys are taken out of messages."""

    def __str__(self) -> str:
        return f"{self.stage} of {self.item}" if self.item else self.stage


class UnnamedStage(Question):
    """A unit of work on an item, by a program that need not name its stages: a call's stage is then the predictor that
    makes it. `stage` is the stage that was asked last, which is where an error of the program's own code happened."""

    def __init__(self, item: str, names: Mapping[str, str]) -> None:
        """`names`: as `predictor_names` of the program returns them."""
        super().__init__(PROGRAM, item)
        self._names = names

    def called_by(self, modules: Iterable[object]) -> Question:
        """The question of one call. `modules`: the DSPy modules that it is made in, the innermost first."""
        marks = [mark for module in modules if isinstance(mark := getattr(module, "stage", None), str)]
        self.stage = next((self._names[mark] for mark in marks if mark in self._names), PROGRAM)
        return Question(self.stage, self.item, self.lm)


class Fit(ABC):
    """What an answer must be, as the adapter that asked for it sees it."""

    takes_cut = False
    """Whether an answer that ended at the token limit counts as one."""
    slow = False
    """Whether the check may take long whatever the length of the answer."""

    @abstractmethod
    def checked(self, text: str) -> tuple[str, str | None]:
        """An answer's typed outputs as JSON, and the text that the adapter reads; None where it reads that JSON.

        Raises AdapterParseError where the answer does not fit.
        """


@contextmanager
def asking_about(question: Question) -> Iterator[Question]:
    """The calls inside the block are made for `question`: also those in threads that DSPy starts, which get DSPy's
    settings and no other context."""
    with dspy.context(refed_question=question):
        yield question


def current_question() -> Question | None:
    """What the calls of this context are made for; None where nobody said."""
    question: Question | None = dspy.settings.get("refed_question")
    return question


@contextmanager
def fitting(fit: Fit) -> Iterator[None]:
    """The answers of calls inside the block must pass `fit`."""
    token = _fit.set(fit)
    try:
        yield
    finally:
        _fit.reset(token)


def current_fit() -> Fit | None:
    """What the answer must be; None where any text will do."""
    return _fit.get()


@contextmanager
def repeated(repetition: int) -> Iterator[None]:
    """The calls inside the block ask for the answer of this number to the same request (DSPy's `rollout_id`)."""
    token = _repetition.set(repetition)
    try:
        yield
    finally:
        _repetition.reset(token)


def takes_cut() -> bool:
    """Whether an answer that ended at the token limit counts as one in this context."""
    fit = _fit.get()
    return fit is not None and fit.takes_cut


def current_repetition() -> int:
    """0 for the first time that a request is made."""
    return _repetition.get()


@contextmanager
def asked_again(stage: str) -> Iterator[None]:
    """The calls that `stage` makes inside the block ask for a second answer to the same request."""
    with dspy.context(refed_asked_again=stage):
        yield


def repetition_of(stage: str) -> int:
    """Which answer to the same request a call of `stage` asks for in this context: 0 is the first."""
    again = dspy.settings.get("refed_asked_again") == stage
    return current_repetition() + (SECOND if again else 0)


def rollout(*settings: Mapping[str, Any]) -> int:
    """The repetition that the first of `settings` with a `rollout_id` asks for."""
    return next((int(given["rollout_id"] or 0) for given in settings if given.get("rollout_id") is not None), 0)

"""Asking a model the prompts: each as a plain turn of a chat, through the ledger of one folder."""

from __future__ import annotations

from collections.abc import Sequence

from dspy.lm15 import Config, Message, Request

from refed_dspy.errors import RowError
from refed_dspy.ledger.history import answers_of
from refed_dspy.plugins.evaluate.answers.formats import Answered
from refed_dspy.plugins.evaluate.prompts import Prompt
from refed_dspy.programs.question import Fit, Question, asking_about, fitting
from refed_dspy.programs.reasoning import OPEN
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.job import Job
from refed_dspy.teachers.recorded import Asked

STAGE = "answer"


class _AsWritten(Fit):
    """Any text is an answer: also an empty one, and one that was cut. A benchmark counts them as such, and without
    them a model would look better than it is. Reasoning that never ended is no part of the answer."""

    takes_cut = True

    def checked(self, text: str) -> tuple[str, str | None]:
        return ("", text) if text.lstrip().startswith(OPEN) else (text, None)


_AS_WRITTEN = _AsWritten()


class Asking:
    """One start: `prompts` put to `teacher`, whose answers are in the ledger of the work `at` hand."""

    def __init__(self, prompts: Sequence[Prompt], teacher: Teacher, at: Job) -> None:
        self.prompts, self.teacher, self.at = prompts, teacher, at
        self.failed: dict[int, RowError] = {}
        """Why a prompt has no answer, by its number; without those that nobody got to."""
        # The same object for all: settings are prepared once for each.
        self._settings = Config(**{name: value for name, value in teacher.settings.items() if value is not None})

    async def answer(self, prompt: Prompt) -> None:
        """Have the prompt answered, while the models of `at` run."""
        try:
            with asking_about(Question(STAGE, str(prompt.number))), fitting(_AS_WRITTEN):
                await self.at.session.first.answer(Asked.now(self._request(prompt)))
        except RowError as error:
            self.failed[prompt.number] = error

    def _request(self, prompt: Prompt) -> Request:
        messages = (Message.user(prompt.text),)
        return Request(model=self.teacher.model, system=prompt.system or None, messages=messages, config=self._settings)

    def answered(self) -> list[Answered]:
        """Every prompt's answer that any start paid for, in the order of the prompts."""
        by_number = {int(answer.item): answer for answer in answers_of(self.at.ledger, STAGE)}
        found = ((prompt, by_number.get(prompt.number)) for prompt in self.prompts)
        return [Answered(prompt, answer.text, answer.created, answer.cut) for prompt, answer in found if answer]

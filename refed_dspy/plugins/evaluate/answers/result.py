"""Asking a model the prompts, each as a plain turn of a chat; and the result: answers, prompts without one, its cost,
and the files with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dspy.lm15 import Config, Message, Request

from refed_dspy.data.export import KeptRows
from refed_dspy.errors import RowError
from refed_dspy.files import write_lines
from refed_dspy.jobs.job import Job
from refed_dspy.ledger.history import answers_of
from refed_dspy.ledger.spending import Spent
from refed_dspy.plugins.evaluate.answers.formats import OWN, UNANSWERED, Answered, file_of, write_for
from refed_dspy.plugins.evaluate.prompts import Prompt, PromptFile
from refed_dspy.plugins.evaluate.settings import AnswerFormat
from refed_dspy.programs.question import Fit, Question, asking_about, fitting
from refed_dspy.programs.reasoning import OPEN
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.recorded import Asked
from refed_dspy.text import counted

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


@dataclass(frozen=True, repr=False)
class Answers(KeptRows):
    """The answers so far, written to `out`, and a sequence of their rows. `stopped`: the cap that ended it, or
    empty."""

    out: Path
    prompts: PromptFile
    format: AnswerFormat
    generator: str
    answered: Sequence[Answered]
    failed: Mapping[int, RowError]
    """Why a prompt has no answer, by its number; without those that nobody got to."""
    used: Spent
    stopped: str = ""

    @property
    def file(self) -> Path:
        """What the format's benchmark reads; of `jsonl`, the rows."""
        return self.out / file_of(self.format, self.generator)

    @property
    def problem(self) -> str:
        """What to know where prompts have no answer though no cap ended it; else empty."""
        missing = len(self.prompts.rows) - len(self.answered)
        if not missing or self.stopped:
            return ""
        again = any(not error.final for error in self.failed.values())
        hint = "; the same command asks again where that may help" if again else ""
        return (
            f"{missing} of {counted(len(self.prompts.rows), 'prompt')} have no answer: a benchmark's figure is of the "
            f"others alone; {self.out / UNANSWERED} says why{hint}"
        )

    def _describe(self) -> str:
        return f"{self._count()}, {self.used}, in {self.file}"

    def _count(self) -> str:
        return f"{len(self.answered)} of {counted(len(self.prompts.rows), 'prompt')} answered by {self.generator}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return ("instruction", "response"), ((row["instruction"], row["response"]) for row in self.kept())

    def kept(self) -> Iterator[dict[str, Any]]:
        """The rows, as they are written."""
        for answered in self.answered:
            yield {
                "row": answered.prompt.number,
                "instruction": answered.prompt.text,
                "system": answered.prompt.system,
                "response": answered.text,
                "generator": self.generator,
                "cut": answered.cut,
            }

    def unanswered(self) -> Iterator[dict[str, Any]]:
        """The prompts without an answer: row, instruction, kind of failure and reason."""
        there = {answered.prompt.number for answered in self.answered}
        for prompt in self.prompts.rows:
            if prompt.number not in there:
                error = self.failed.get(prompt.number)
                kind, reason = ("not asked", "") if error is None else (error.kind, error.reason)
                yield {"row": prompt.number, "instruction": prompt.text, "kind": kind, "reason": reason}

    def lines(self) -> list[str]:
        """Counts, for a terminal."""
        empty, cut = (
            sum(not answered.text.strip() for answered in self.answered),
            sum(answered.cut for answered in self.answered),
        )
        told = [f"{cut} cut at max_tokens" if cut else "", f"{empty} empty" if empty else ""]
        kinds = Counter(row["kind"] for row in self.unanswered())
        missing = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        return [
            f"{self._count()}, {self.used}",
            *([f"of the answers: {', '.join(filter(None, told))}"] if any(told) else []),
            *([f"without an answer: {missing}"] if missing else []),
            f"answers in {self.file}",
        ]


def write_answers(answers: Answers) -> None:
    """Write the files, each whole or not at all. Raises ExportError."""
    write_lines(answers.out / OWN, answers.kept())
    write_for(answers.format, answers.answered, answers.generator, answers.out)
    if len(answers.answered) < len(answers.prompts.rows):
        write_lines(answers.out / UNANSWERED, answers.unanswered())
    else:
        (answers.out / UNANSWERED).unlink(missing_ok=True)

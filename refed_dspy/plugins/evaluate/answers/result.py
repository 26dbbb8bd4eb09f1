"""The result: answers, prompts without one, what it cost, and the files with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.export import KeptRows
from refed_dspy.errors import RowError
from refed_dspy.files import write_lines
from refed_dspy.ledger.spending import Spent
from refed_dspy.ledger.states import state_in
from refed_dspy.plugins.evaluate.answers.formats import OWN, UNANSWERED, Answered, file_of, write_for
from refed_dspy.plugins.evaluate.prompts import Prompts
from refed_dspy.plugins.evaluate.settings import AnswerFormat
from refed_dspy.text import counted


@dataclass(frozen=True, repr=False)
class Answers(KeptRows):
    """The answers so far, written to `out`, and a sequence of their rows. `stopped`: the cap that ended it, or
    empty."""

    out: Path
    prompts: Prompts
    format: AnswerFormat
    generator: str
    answered: Sequence[Answered]
    failed: Mapping[int, RowError]
    """Why a prompt has no answer, by its number; without those that nobody got to."""
    used: Spent
    stopped: str = ""

    @property
    def state(self) -> str:
        """How the work stands now: running, stopped, killed, ended short, at its cap or done."""
        return state_in(self.out)

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

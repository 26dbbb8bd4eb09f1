"""The formats of trainers: what one sample becomes in each of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from refed_dspy.data.rows import REASONING, data_rows
from refed_dspy.errors import ExportError
from refed_dspy.ledger.ledger import Ledger

Row = Mapping[str, Any]
_MARGINS = """
SELECT s.seq, d.score FROM decisions d JOIN samples s ON s.instruction = d.instruction
WHERE d.filter = 'judge' AND d.kept
"""


def messages(row: Row) -> Row:
    """The format of OpenAI and TRL. The improved response is the text to train on."""
    return {"messages": [*_prompt(row), *answer_of(row["improved_response"], row.get(REASONING, ""))]}


def sharegpt(row: Row) -> Row:
    """The format of ShareGPT."""
    said = [("system", row["system"])] if row["system"] else []
    said += [("human", row["instruction"]), ("gpt", row["improved_response"])]
    return {"conversations": [{"from": speaker, "value": text} for speaker, text in said]}


def alpaca(row: Row) -> Row:
    """The format of Alpaca; a system prompt in a column of its own, where there is one."""
    system = {"system": row["system"]} if row["system"] else {}
    return {"instruction": row["instruction"], "input": "", "output": row["improved_response"], **system}


def prompt_completion(row: Row) -> Row:
    """TRL's conversational prompt and completion."""
    return {"prompt": _prompt(row), "completion": answer_of(row["improved_response"], row.get(REASONING, ""))}


def _prompt(row: Row) -> list[dict[str, str]]:
    return prompt_of(row["instruction"], row["system"])


def prompt_of(instruction: str, system: str) -> list[dict[str, str]]:
    """An instruction as messages, under its system prompt where it has one."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": instruction}]


def answer_of(text: str, reasoning: str = "") -> list[dict[str, str]]:
    """A response as messages, with what was thought before it where that is given."""
    return [{"role": "assistant", **({"reasoning_content": reasoning} if reasoning else {}), "content": text}]


FORMS: dict[str, Callable[[Row], Row]] = {
    "jsonl": lambda row: row,
    "messages": messages,
    "sharegpt": sharegpt,
    "alpaca": alpaca,
    "prompt-completion": prompt_completion,
}
"""Formats with a line a sample."""
THINKING = ("jsonl", "parquet", "messages", "prompt-completion")
"""Formats that have a place for reasoning."""
PAIRED = ("preference", "kto")
"""Formats of pairs: the improved response is chosen, the plain one rejected."""


@dataclass
class Pairs:
    """The pairs of rows that have both responses. What was left out, and how long the texts are, is counted while they
    are read.

    A row whose two texts are equal makes no pair. Those that a filter `judge` kept won in both orders.
    """

    rows: Iterable[tuple[Row, float | None]]
    """Each with the judge's margin, None where no judge compared."""
    format: str
    """`preference`: TRL's conversational pairs, with the judge's margin: above 0, at most 2; 0 where no judge compared,
    so that every file's column has one type. `kto`: its unpaired rows, the improved response labelled True and the
    plain one False."""
    unchanged: int = 0
    """Rows left out, since the improvement left them as they were."""
    alone: int = 0
    """Rows left out, since they have one response."""
    unjudged: int = 0
    """Pairs that no judge compared."""
    count: int = 0
    _longer: array[float] = field(default_factory=lambda: array("d"))

    @classmethod
    def of_run(
        cls,
        ledger: Ledger,
        format: str,  # noqa: A002
        read: Callable[[Ledger], Iterable[Row]] = data_rows,
    ) -> Pairs:
        """The pairs of a run, whose rows `read` gives. Raises ExportError where its program improves no responses."""
        if ledger.meta("final_stage") == "response_generation":
            raise ExportError(f"{format}: this run's program does not improve responses, so there are no pairs")
        margins = margins_of(ledger)
        return cls(((row, margins.get(row["sample"])) for row in read(ledger)), format)

    def __iter__(self) -> Iterator[Row]:
        for row, margin in self._kept():
            prompt, better, worse = _prompt(row), answer_of(row["improved_response"]), answer_of(row["response"])
            if self.format == "preference":
                yield {"prompt": prompt, "chosen": better, "rejected": worse, "margin": margin or 0.0}
            else:
                yield {"prompt": prompt, "completion": better, "label": True}
                yield {"prompt": prompt, "completion": worse, "label": False}

    def counted(self) -> Pairs:
        """The same once all rows have been read, for what is counted of them."""
        for _ in self._kept():
            pass
        return self

    def _kept(self) -> Iterator[tuple[Row, float | None]]:
        for row, margin in self.rows:
            if not row["response"]:
                self.alone += 1
            elif row["improved_response"].strip() == row["response"].strip():
                self.unchanged += 1
            else:
                self.count += 1
                self.unjudged += margin is None
                self._longer.append(len(row["improved_response"]) / len(row["response"]))
                yield row, margin

    def told(self) -> str:
        """What to know of the pairs, on one line."""
        parts = [f"{self.unjudged} unjudged"] if self.unjudged else []
        if self._longer:
            parts.append(f"chosen {median(self._longer):.2f} times as many characters as rejected (median)")
        if self.unchanged:
            parts.append(f"left out {self.unchanged} unchanged")
        if self.alone:
            parts.append(f"left out {self.alone} without a plain response")
        return "; ".join(parts)


def margins_of(ledger: Ledger) -> dict[int, float]:
    """A run's sample → how clearly its filter `judge` preferred the improved response."""
    return dict(ledger.db.execute(_MARGINS))

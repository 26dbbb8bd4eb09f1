"""Runs with filters: a teacher, a judge and a custom filter whose answers and decisions follow from numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dspy.lm15 import Request

import refed_dspy
from refed_dspy.data.rows import dropped_rows
from refed_dspy.filters.base import Decision
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.records import DataRow
from tests.support.scripted_engine import Writer, fake_lm, references

_words = "amber birch cedar delta ember fjord grove heath islet jetty knoll lagoon marsh notch oasis plain quarry ridge"
WORDS = _words.split()


class Teacher(Writer):
    """Writes texts whose words follow from a running number. `text_of(field, number)` may return another text."""

    def __init__(self, *, per_call: int = 10, text_of: Callable[[str, int], str | None] = lambda _, __: None) -> None:
        super().__init__(per_call=per_call)
        self.text_of = text_of

    def _value(self, name: str) -> Any:
        if name == "new_instructions":
            return [self.text("instruction") for _ in range(self.per_call)]
        return self.text(name) if name in {"response", "improved_response"} else super()._value(name)

    def text(self, name: str) -> str:
        n = next(self.numbers)
        words = " ".join(WORDS[n // 18**place % 18] for place in range(3))
        return self.text_of(name, n) or f"{name} {n}: {words} {n} times."

    def asked(self, field: str) -> int:
        return sum(field in self.fields(request) for request in self.requests)


class Judge(Writer):
    """Prefers the improved response where its number is even, else the plain one; grades it 5, else 1."""

    def write(self, request: Request) -> str:
        text = str(request.messages[-1].text)
        number = re.search(r"improved_response (\d+)", text)
        if "verdict" not in self.fields(request):
            return json.dumps({"reason": "r", "grade": "5" if number and int(number[1]) % 2 == 0 else "1"})
        first = text.index("improved_response") < text.index("<answer_b>")
        better = number is not None and int(number[1]) % 2 == 0
        return json.dumps({"reason": "r", "verdict": "A>B" if first == better else "B>A"})


def run(folder: Path, teacher: Any, filters: list[Any], size: int = 12, count: int = 4, **more: Any) -> Any:
    if isinstance(teacher, Writer):
        teacher = fake_lm(teacher)
    if isinstance(more.get("judge"), Writer):
        more["judge"] = fake_lm(more["judge"])
    return refed_dspy.synthesize(
        None, references(count), size=size, teacher=teacher, run_dir=folder, filters=filters, track=False, **more
    )


def dropped(folder: Path) -> list[dict[str, Any]]:
    with Ledger.read(folder) as ledger:
        return list(dropped_rows(ledger))


def kept_by(folder: Path, label: str) -> list[str]:
    with Ledger.read(folder) as ledger:
        query = "SELECT i.text FROM decisions d JOIN instructions i ON i.id=d.instruction WHERE filter=? AND d.kept"
        return [text for (text,) in ledger.db.execute(query, (label,))]


def odd(text: str) -> bool:
    """Whether the first number in `text` is odd."""
    number = re.search(r"\d+", text)
    return number is not None and int(number[0]) % 2 == 1


class Even:
    """A custom filter, of instructions or of samples: keeps texts with an even number."""

    name = "even"

    def __init__(self, of_instruction: bool) -> None:
        self.of_instruction = of_instruction
        self.seen: list[str] = []
        self.remembered: list[str] = []

    def check(self, row: DataRow) -> Decision:
        text = row.instruction if self.of_instruction else row.response
        self.seen.append(text)
        return Decision(not odd(text), "odd" if odd(text) else "", 1.0, text[:9])

    def remember(self, row: DataRow) -> None:
        self.remembered.append(row.instruction if self.of_instruction else row.response)

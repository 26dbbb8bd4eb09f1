"""A run to show on a page: two filters, failures, and texts that the page must not take for markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import refed_dspy
from refed_dspy.filters.base import Decision
from refed_dspy.records import DataRow
from tests.support.hostile import MARKUP
from tests.support.scripted_engine import Writer, fake_lm, references

HOSTILE = MARKUP


class Length:
    """Drops every third by the number in it: instructions early, or responses late."""

    def __init__(self, name: str, of_instruction: bool, text: str = HOSTILE) -> None:
        self.name, self.of_instruction, self.text = name, of_instruction, text

    def check(self, row: DataRow) -> Decision:
        number = int(re.findall(r"\d+", row.instruction if self.of_instruction else row.response)[-1])
        return Decision(number % 3 != 0, "by three" if number % 3 == 0 else "", float(number), self.text)

    def remember(self, row: DataRow) -> None:
        pass


def hostile(writer: Writer, text: str = HOSTILE) -> Writer:
    """Whatever it writes carries `text`, and some of its tasks are never answered."""

    def answer(request: Any) -> str | None:
        if "response" in writer.fields(request) and re.search(r"Task \d*7:", str(request)):
            return "no JSON"
        return json.dumps({name: _planted(value, text) for name, value in json.loads(writer.write(request)).items()})

    writer.on_request = answer
    return writer


def hostile_references(count: int, text: str = HOSTILE) -> list[dict[str, str]]:
    return [{name: f"{own} {text}" for name, own in reference.items()} for reference in references(count)]


def _planted(value: Any, text: str) -> Any:
    """`text` before every text; what ends in a number still does."""
    if isinstance(value, str):
        return f"{text} {value}"
    if isinstance(value, list):
        return [_planted(item, text) for item in value]
    return {name: _planted(item, text) for name, item in value.items()}


def shown_run(folder: Path, size: int = 24, text: str = HOSTILE) -> Path:
    """A finished run in `folder`, which it returns: whatever was written in it carries `text`."""
    made = refed_dspy.synthesize(
        None, hostile_references(4, text), size=size, teacher=fake_lm(hostile(Writer(), text)), run_dir=folder,
        max_failure_share=0.9, per_reference=20, guards=False,
        filters=[Length("early", True, text), Length("late", False, text)],
    )  # fmt: skip
    assert made.complete and made.failures
    return folder

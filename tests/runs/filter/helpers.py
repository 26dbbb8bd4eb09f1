"""Pairs whose quality is a number, a judge that reads it, and readers of the files that filtering writes."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dspy.lm15 import Request

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.filters.base import Decision
from refed_dspy.records import DataRow
from refed_dspy.runs.filter.result import Filtering
from tests.support.scripted_engine import Writer, fake_lm

_sections = re.compile(r"<(\w+)>\n(.*?)\n</>", re.DOTALL).findall


class NumberJudge(Writer):
    """A judge that compares the first number of each text: two more is much better. It cannot tell if the instruction
    says "unclear". A text's grade is its number."""

    def write(self, request: Request) -> str:
        shown = dict(_sections(str(request.messages[-1].text)))
        if "verdict" not in self.fields(request):
            grade = "cannot tell" if "unclear" in shown.get("context", "") else str(number(shown["text"]))
            return json.dumps({"reason": f"it is {grade}", "grade": grade})
        more = number(shown["answer_a"]) - number(shown["answer_b"])
        verdict = ("B>>A", "B>A", "A=B", "A>B", "A>>B")[max(-2, min(2, more)) + 2]
        verdict = "cannot tell" if "unclear" in shown["instruction"] else verdict
        return json.dumps({"reason": f"by {more}", "verdict": verdict})


def number(text: str) -> int:
    match = re.search(r"\d+", text)
    return int(match[0]) if match else 0


def pair(better: int, first: int = 2, instruction: str = "") -> dict[str, Any]:
    words = random.Random(f"{better} {first} {instruction}").choices("ant bee cat dog elk fox gnu hen".split(), k=6)  # noqa: SIM905
    return {
        "instruction": instruction or f"Write of {' '.join(words)}.",
        "response": f"Quality {first}.",
        "improved_response": f"Quality {better} indeed.",
    }


PAIRS = [pair(n % 5, instruction=f"Number {n}: do it.") for n in range(40)]
WON = [index for index, row in enumerate(PAIRS, start=1) if number(row["improved_response"]) > 2]
"""The rows whose improved response is the better one."""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [row["refed_filters"]["row"] for row in rows]


def outputs(out: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix in {".jsonl", ".json", ".txt"}
    }


def filtered(out: Path, filters: list[Any], data: Any = None, judge: Writer | None = None, **more: Any) -> Filtering:
    model = None if judge is None else fake_lm(judge)
    return refed_dspy.filter_data(PAIRS if data is None else data, filters, judge=model, out=out, **more)


def adds_up(made: Filtering, rows: int) -> None:
    """Every row is in one of the files, once, in order; the funnel counts what they hold."""
    kept, dropped = lines(made.out / "kept.jsonl"), lines(made.out / "dropped.jsonl")
    undecided = lines(made.out / "undecided.jsonl") if (made.out / "undecided.jsonl").exists() else []
    for some in (kept, dropped, undecided):
        assert numbers(some) == sorted(numbers(some))
    assert sorted(numbers(kept) + numbers(dropped) + numbers(undecided)) == list(range(1, rows + 1))
    funnel = json.loads((made.out / "funnel.json").read_text())
    assert funnel[0]["in"] == rows
    for stage, following in zip(funnel, [*funnel[1:], {"in": len(kept)}], strict=True):
        assert stage["in"] == stage["kept"] + stage["dropped"] + stage["undecided"]
        assert stage["kept"] == following["in"] and sum(stage["reasons"].values()) == stage["dropped"]
    assert sum(stage["dropped"] for stage in funnel) == len(dropped)
    assert sum(stage["undecided"] for stage in funnel) == len(undecided)


def http(server: SimulatedTeacher, **more: Any) -> TeacherConfig:
    price = {"prompt": 1.0, "completion": 2.0}
    settings: dict[str, Any] = {"api_base": server.base_url, "concurrency": 3, "max_tokens": 300, "retries": 0}
    return TeacherConfig.model_validate({"model": "sim/sim-model", "price": price, **settings, **more})


class CustomFilter:
    """A filter of a caller's own, whose decisions are those of `check`."""

    def __init__(
        self,
        name: str = "mine",
        check: Callable[[DataRow], Any] = lambda _: Decision(True),
        *,
        of_instruction: bool = False,
    ) -> None:
        self.name, self.decision, self.of_instruction = name, check, of_instruction

    def check(self, row: DataRow) -> Any:
        return self.decision(row)

    def remember(self, row: DataRow) -> None: ...

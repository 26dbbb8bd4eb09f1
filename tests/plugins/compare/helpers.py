"""A small comparison over HTTP, a judge with fixed answers, and readers of the files that it writes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from dspy.lm15 import Request

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, TeacherConfig, compare
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.compare.result import Comparison, Line
from refed_dspy.records import Reference, Sample
from tests.support.scripted_engine import Writer, references

RATES = {"prompt": 1.0, "completion": 10.0}
ALL = ("seed-only", "instruction-only", "sample-level", "reference-level")
SMALL: dict[str, Any] = {
    "size": 9, "per_reference": 3, "instructions_per_feature": 3, "embeddings": False, "track": False,
    "subsets": [9], "grades": False,
}  # fmt: skip


def config(server: SimulatedTeacher, **settings: Any) -> TeacherConfig:
    values = {"model": "sim/sim-model", "api_base": server.base_url, "price": RATES, "max_tokens": 1024}
    return TeacherConfig.model_validate({**values, "concurrency": 4, **settings})


class Judge(Writer):
    """A judge with fixed answers: by default the first of a pair is better, and every grade is 4."""

    def __init__(self, verdict: str = "A>B", grade: str = "4") -> None:
        super().__init__()
        self.answers = {"verdict": verdict, "grade": grade}
        self.on_request = self.decide

    def decide(self, request: Request) -> Any:
        fields = self.fields(request)
        return json.dumps({"reason": "it says so", fields[1]: self.answers[fields[1]]})


class CapitalsProgram(ReferenceLevelFeedback):
    """A custom program: the plain answer in capitals, without a further call."""

    stage_names = ("instruction_feedback", "instruction_synthesis", "response_generation")

    async def collect_response_feedback(self, reference: Reference) -> str:
        return ""

    async def respond(self, reference: Reference, response_feedback: str, instruction: str, item: str = "") -> Any:
        response = await self.first_response(reference, instruction, item)
        plan: dict[str, Any] = {
            "analysis": {"original_strengths": [], "improvement_opportunities": [], "relevant_feedback": []},
            "implementation_strategy": {"planned_changes": [], "rationale": ""},
        }
        return Sample(instruction=instruction, response=response, improved_response=response.upper(), **plan)


def run(
    server: SimulatedTeacher, out: Path, programs: Any = None, data: Any = None, judge: Any = None, **settings: Any
) -> Comparison:
    data = references(6) if data is None else data
    teacher = settings.pop("teacher", None) or config(server)
    judge = judge or config(server, model="sim/other-model")
    return compare(programs, data, teacher=teacher, judge=judge, out=out, **{**SMALL, **settings})


def prompt(request: Request) -> str:
    """All text of the request's messages."""
    return "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)


def line(made: Comparison, name: str) -> Line:
    return next(entry for entry in made.programs if entry.program == name)


def answers(folder: Path) -> Counter[str]:
    with Ledger.read(folder) as ledger:
        return Counter(stage for (stage,) in ledger.db.execute("SELECT stage FROM answers"))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in (folder / "rows.jsonl").read_text().splitlines()]


def facts(folder: Path) -> dict[str, Any]:
    """The figures, read as strict JSON."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return dict(json.loads((folder / "comparison.json").read_text(), parse_constant=refuse))

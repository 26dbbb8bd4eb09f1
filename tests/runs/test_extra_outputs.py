"""What a program's stages write beyond a sample's fields is in its rows: samples, exports, after a resume."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
import pyarrow.parquet as pq
import pytest

import refed_dspy
from refed_dspy import ReferenceLevelFeedback
from refed_dspy.programs.reference_level import extra_outputs
from refed_dspy.records import Reference, Sample
from refed_dspy.signatures import InstructionSynthesis, ResponseFeedback, ResponseGeneration, ResponseImprovement
from tests.support.scripted_engine import Writer, fake_lm, references

WHY = "response_improvement_why"


class Improvement(ResponseImprovement):
    """Improve the response, and say why."""

    why: str = dspy.OutputField()


class Explained(ReferenceLevelFeedback):
    """The method with another field in three stages, a module that thinks in one, and a predictor more."""

    signatures: Mapping[str, type[dspy.Signature]] = {
        **ReferenceLevelFeedback.signatures,
        "response_feedback": ResponseFeedback.append("level", dspy.OutputField(), str),
        "instruction_synthesis": InstructionSynthesis.append("topic", dspy.OutputField(), str),
        "response_improvement": Improvement,
    }

    def __init__(self) -> None:
        super().__init__()
        self.response_generation = dspy.ChainOfThought(ResponseGeneration)
        self.rate = dspy.Predict("text -> score: float, marks: list[str]")

    async def respond(self, reference: Reference, response_feedback: str, instruction: str, item: str = "") -> Sample:
        sample = await super().respond(reference, response_feedback, instruction, item)
        await self.rate.acall(text=sample.improved_response)
        return sample


class Rating(Writer):
    def _value(self, name: str) -> Any:
        number = next(self.numbers)
        return {"score": number / 4, "marks": [f"mark {number}"]}.get(name) or super()._value(name)


def made_by(writer: Writer, folder: Path, size: int = 4, **settings: Any) -> Any:
    return refed_dspy.synthesize(
        Explained(), references(2), size=size, teacher=fake_lm(writer), run_dir=folder, track=False, **settings
    )


def test_the_fields_of_a_program_that_no_sample_has_a_place_for() -> None:
    assert extra_outputs(ReferenceLevelFeedback()) == {}
    assert extra_outputs(Explained()) == {
        "response_feedback": {"level": "str"},
        "instruction_synthesis": {"topic": "str"},
        "response_generation": {"reasoning": "str"},
        "response_improvement": {"why": "str"},
        "rate": {"score": "float", "marks": "json"},
    }


@pytest.mark.parametrize("adapter", [None, dspy.JSONAdapter()], ids=["ours", "JSONAdapter"])
def test_every_row_has_them_and_so_have_exports_in_columns(tmp_path: Path, adapter: Any) -> None:
    with dspy.context(adapter=adapter):
        made = made_by(Rating(), tmp_path / "run")
    rows = list(made.samples.rows())
    assert len({row[WHY] for row in rows}) == 4 and all(row[WHY].startswith("why") for row in rows)
    assert len({row["response_generation_reasoning"] for row in rows}) == 4
    assert all(row["instruction_synthesis_topic"].startswith("topic") for row in rows)
    assert len({(row["reference"], row["response_feedback_level"]) for row in rows}) == 2
    assert all(isinstance(row["rate_score"], float) and len(row["rate_marks"]) == 1 for row in rows)
    first = made.samples[0]
    assert first.extra == {name: rows[0][name] for name in list(rows[0])[-6:]} and first.extra[WHY] == rows[0][WHY]
    for name in ("jsonl", "parquet", "messages"):
        made.export(name, tmp_path / name)
    assert [json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines()] == rows
    table = pq.read_table(tmp_path / "parquet")
    assert [table[name].to_pylist() for name in (WHY, "rate_score")] == [
        [row[name] for row in rows] for name in (WHY, "rate_score")
    ]
    assert [json.loads(text) for text in table["rate_marks"].to_pylist()] == [row["rate_marks"] for row in rows]
    assert rows[0][WHY] not in (tmp_path / "messages").read_text(), "a trainer's format has no place for them"


def test_a_resumed_run_has_them_too_and_pays_for_none_again(tmp_path: Path) -> None:
    writer = Rating()
    first = list(made_by(writer, tmp_path / "run", size=2).samples.rows())
    rows = list(made_by(writer, tmp_path / "run", size=4).samples.rows())
    assert rows[:2] == first and all(row[WHY] for row in rows)
    asked = len(writer.requests)
    assert list(made_by(writer, tmp_path / "run", size=4).samples.rows()) == rows and len(writer.requests) == asked


def test_where_a_guard_has_a_response_asked_again_the_row_has_what_came_with_the_second(tmp_path: Path) -> None:
    writer = Rating()
    dropped: list[str] = []

    def spoilt(request: Any) -> str | None:
        """The first improvement speaks of its prompt, so that a guard has it asked again."""
        if "why" not in writer.fields(request) or dropped:
            return None
        answer = json.loads(writer.write(request))
        dropped.append(answer["why"])
        return json.dumps({**answer, "improved_response": "As the feedback suggests, here is more."})

    writer.on_request = spoilt
    rows = list(made_by(writer, tmp_path / "run").samples.rows())
    assert len(rows) == 4 and dropped and dropped[0] not in [row[WHY] for row in rows]

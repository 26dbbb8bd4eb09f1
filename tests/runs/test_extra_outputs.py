"""What a row has beside its texts: outputs of a program's own, a teacher's thoughts, a reference's system prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dspy
import pyarrow.parquet as pq
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback
from refed_dspy.cli.lines import usage_line
from refed_dspy.data.export import export
from refed_dspy.errors import ExportError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.reference_level import extra_outputs
from refed_dspy.records import Reference, Sample
from refed_dspy.runs.result import Synthesis
from refed_dspy.signatures import InstructionSynthesis, ResponseFeedback, ResponseGeneration, ResponseImprovement
from tests.support.said import Said
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


# --- a teacher's thoughts are in the ledger, and nowhere else


MARK = "hmm-marked-thought"
INLINE = f'<think>{MARK}: a draft\n```json\n{{"response": "draft", "new_instructions": ["draft"]}}\n```\n</think>\n'


def kept_and_thoughts(folder: Path, server: SimulatedTeacher) -> tuple[list[str], list[str]]:
    """The rows of a run of four as text, and what the ledger has of thoughts."""
    teacher = refed_dspy.TeacherConfig(model="sim/sim-model", api_base=server.base_url)
    made = refed_dspy.synthesize(None, references(2), size=4, teacher=teacher, run_dir=folder, track=False)
    assert made.complete and not made.status["failures"]
    with Ledger.read(folder) as ledger:
        thoughts = ledger.db.execute("SELECT text FROM answers JOIN reasoning USING (key)").fetchall()
        answers = ledger.db.execute("SELECT count(*) FROM answers").fetchone()[0]
    assert len(thoughts) == answers
    return [str(row) for row in made.samples.rows()], [text for (text,) in thoughts]


def test_a_thought_in_the_text_is_no_part_of_an_answer(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(thinking=INLINE)
    rows, thoughts = kept_and_thoughts(tmp_path, server)
    assert len(rows) == 4 and not any(MARK in row or "think>" in row for row in rows)
    assert all(MARK in text and "think>" not in text for text in thoughts)
    assert server.stats()["requests"] == len(thoughts), "no answer was asked for twice"


def test_a_thought_in_its_own_field_is_kept(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(reasoning=MARK)
    rows, thoughts = kept_and_thoughts(tmp_path, server)
    assert set(thoughts) == {MARK} and not any(MARK in row for row in rows)
    status = refed_dspy.read_run(tmp_path).status
    assert all(use["reasoning_tokens"] == use["calls"] * (len(MARK) // 4) for use in status["usage"].values())
    assert all(" reasoning), " in line for line in map(usage_line, status["usage"], status["usage"].values()))


def test_it_is_exported_on_request(said: Said, tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(reasoning=MARK)
    kept_and_thoughts(tmp_path / "run", server)
    made = refed_dspy.read_run(tmp_path / "run")
    for reasoning in (False, True):
        made.export("prompt-completion", out := tmp_path / "out", force=True, reasoning=reasoning)
        assert [MARK in line for line in out.read_text().splitlines()] == [reasoning] * 4
    row = json.loads(out.read_text().splitlines()[0])
    assert row["completion"][0]["reasoning_content"] == MARK
    said(export(made.run_dir, "parquet", tmp_path / "out.parquet", reasoning=True).told)
    assert pq.read_table(tmp_path / "out.parquet")["reasoning"].to_pylist() == [MARK] * 4
    with said.by(ExportError):
        made.export("alpaca", tmp_path / "no", reasoning=True)


# --- a reference's system prompt: what the teacher is shown, and what its rows are exported with


SYSTEM = "Answer only in French."
WITH = {"messages": [
    {"role": "system", "content": SYSTEM}, {"role": "user", "content": "Name a fish."},
    {"role": "assistant", "content": "La morue."},
]}  # fmt: skip


def under_a_system_prompt(folder: Path, **settings: Any) -> tuple[Synthesis, Writer]:
    teacher = Writer()
    made = refed_dspy.synthesize(
        None, [WITH], size=2, teacher=fake_lm(teacher), run_dir=folder, track=False, guards=False, **settings
    )
    return made, teacher


def test_it_is_shown_with_the_example_and_with_what_is_to_be_answered(tmp_path: Path) -> None:
    _, teacher = under_a_system_prompt(tmp_path)
    for request in teacher.requests:
        text = str(request.messages[-1].text)
        shown = f"System prompt:\n{SYSTEM}\n\nInstruction:\n"
        times = 2 if teacher.fields(request) == ["response"] else 1
        assert text.count(shown) == times


@pytest.mark.parametrize("method", ["sample-level", "instruction-only"])
def test_it_is_shown_by_the_other_methods_too(tmp_path: Path, method: str) -> None:
    _, teacher = under_a_system_prompt(tmp_path, method=method)
    assert all(SYSTEM in str(request.messages[-1].text) for request in teacher.requests)


def test_every_format_has_it(tmp_path: Path) -> None:
    made, _ = under_a_system_prompt(tmp_path / "run")
    first = {}
    for format_ in ("jsonl", "messages", "sharegpt", "alpaca", "prompt-completion", "preference", "kto"):
        made.export(format_, out := tmp_path / format_)
        first[format_] = json.loads(out.read_text().splitlines()[0])
    said = {"role": "system", "content": SYSTEM}
    assert first["jsonl"]["system"] == first["alpaca"]["system"] == SYSTEM
    assert first["messages"]["messages"][0] == said
    assert first["sharegpt"]["conversations"][0] == {"from": "system", "value": SYSTEM}
    assert all(first[format_]["prompt"][0] == said for format_ in ("prompt-completion", "preference", "kto"))
    assert made.to_dataset()["system"][0] == SYSTEM

"""Runs with a teacher that thinks: its thoughts are in the ledger, and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.cli.lines import usage_line
from refed_dspy.data.export import export
from refed_dspy.errors import ExportError
from refed_dspy.ledger.ledger import Ledger
from tests.support.said import Said
from tests.support.scripted_engine import references

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

"""What recycling writes, which rows it draws, and the criteria and programs that it uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, save_program
from refed_dspy.data.dataset import drawn, load_dataset
from refed_dspy.errors import ConfigError, ExportError, RunDirError
from refed_dspy.plugins.metrics.figures import Tools, figures
from refed_dspy.plugins.recycle.program import IMPROVED, ORIGINAL, REFLECTED, ReflectionTuning
from tests.plugins.recycle.helpers import FIELDS, first_pass, mentions, read, recycled, told
from tests.programs.test_reflection import Reflecting
from tests.support.compiling import config, requests
from tests.support.looks import small
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm, references


def test_rows_are_in_order_and_say_where_each_text_is_from(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    server.control(latency=0.01, sigma=1.0)
    made = recycled(tmp_path / "r", config(server))
    rows = read(tmp_path / "r" / "recycled.jsonl")
    assert [list(row) for row in rows] == [FIELDS] * 6 and rows == list(made.kept())
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, original in zip(rows, references(6), strict=True):
        assert row["original_instruction"] == original["instruction"]
        assert row["original_response"] == original["response"]
        assert row["instruction"] != row["original_instruction"] and row["response"] != row["original_response"]
        assert (row["instruction_from"], row["response_from"]) == (REFLECTED, IMPROVED)
        assert row["instruction_reason"] == row["response_reason"] == ""
    assert requests(server) == 12 and made.used.calls == 12
    assert list(made) == rows and len(made) == made.to_dataset().num_rows
    said([small(made), *made.lines()[:3]])
    assert (tmp_path / "r" / "table.txt").read_text("utf-8").splitlines() == made.lines()
    table = json.loads((tmp_path / "r" / "table.json").read_text("utf-8"))
    assert table["old"] == figures([(pair["instruction"], pair["response"]) for pair in references(6)], Tools())
    assert table["new"] == figures([(row["instruction"], row["response"]) for row in rows], Tools())
    assert not (tmp_path / "r" / "dropped.jsonl").exists()


def test_a_file_of_somebody_else_s_is_never_written_over(said: Said, tmp_path: Path) -> None:
    (tmp_path / "recycled.jsonl").write_text("precious")
    with said.by(ExportError):
        recycled(tmp_path, fake_lm(Reflecting()))


def test_a_row_keeps_its_system_prompt(tmp_path: Path) -> None:
    writer, system = Reflecting(), "Answer in French."
    row = {"system": system, "instruction": "Name a fish.", "response": "La morue."}
    made = recycled(tmp_path / "r", fake_lm(writer), [row, references(1)[0]])
    assert [each["system"] for each in made.kept()] == [system, ""]
    assert [mentions(request, system) for request in writer.requests].count(True) == 2


def test_it_can_be_recycled_again(said: Said, tmp_path: Path) -> None:
    recycled(tmp_path / "r", fake_lm(Reflecting()))
    first = (tmp_path / "r" / "recycled.jsonl").read_bytes()
    again = recycled(tmp_path / "s", fake_lm(Reflecting()), tmp_path / "r" / "recycled.jsonl")
    assert len(again.rows) == 6 and (tmp_path / "r" / "recycled.jsonl").read_bytes() == first
    with said.by(ExportError):
        recycled(tmp_path / "r", fake_lm(Reflecting()), tmp_path / "r" / "recycled.jsonl")


def test_what_falls_back_and_what_could_not_be_read_is_counted(said: Said, tmp_path: Path) -> None:
    writer = Reflecting()
    writer.on_request = lambda request: "no JSON" if mentions(request, "topic 2") and first_pass(request) else None
    made = recycled(tmp_path / "r", fake_lm(writer), [*references(6), {"instruction": "x", "response": " "}])
    (row,) = [row for row in made.kept() if row["instruction_reason"]]
    assert (row["row"], row["instruction_from"], row["response_from"]) == (3, ORIGINAL, IMPROVED)
    assert row["instruction"] == row["original_instruction"] and row["response"] != row["original_response"]
    said(told(made))


def test_size_draws_rows_by_the_seed_and_a_larger_one_goes_on(tmp_path: Path) -> None:
    data, writer = references(30), Reflecting()
    few = recycled(tmp_path, fake_lm(writer), data, size=4, seed=3)
    numbers = [row.number for row in drawn(load_dataset(data).rows, 4, 3)]
    assert [row["row"] for row in few.kept()] == numbers == sorted(numbers) != [1, 2, 3, 4]
    assert len(writer.requests) == 8
    whole = recycled(tmp_path, fake_lm(writer), data)
    assert len(whole.rows) == 30 and len(writer.requests) == 60
    by_row = {row["row"]: row for row in whole.kept()}
    assert [by_row[number] for number in numbers] == list(few.kept())


RHYME = {"rhyme": "whether it rhymes"}
SHOWN = "rhyme: whether it rhymes"


def test_criteria_are_part_of_what_the_work_is(said: Said, tmp_path: Path) -> None:
    recycled(tmp_path / "r", fake_lm(Reflecting()), references(1), instruction_criteria=RHYME)
    for criteria, error in (({"rhyme": "no"}, RunDirError), ({}, ConfigError)):
        with said.by(error):
            recycled(tmp_path / "r", fake_lm(Reflecting()), references(1), instruction_criteria=criteria)


def test_a_custom_program_is_used_with_its_criteria(tmp_path: Path) -> None:
    custom, wish = ReflectionTuning(RHYME), "Be a poet."
    custom.response_reflection.signature = custom.response_reflection.signature.with_instructions(wish)
    save_program(custom, tmp_path / "custom.json")
    for name, program, settings in (
        ("object", custom, {}),
        ("file", tmp_path / "custom.json", {"instruction_criteria": RHYME}),
    ):
        writer = Reflecting()
        recycled(tmp_path / name, fake_lm(writer), program=program, **settings)
        assert len(writer.requests) == 12
        for request in writer.requests:
            assert (wish in str(request.system)) != first_pass(request) == mentions(request, SHOWN)


def test_a_program_that_cannot_be_used_is_refused(said: Said, tmp_path: Path) -> None:
    writer, bound = Reflecting(), ReflectionTuning()
    bound.set_lm(fake_lm(writer))
    other: dict[str, Any] = {"program": ReflectionTuning(), "response_criteria": {"a": "b"}}
    for settings in ({"program": ReferenceLevelFeedback()}, other, {"program": "nowhere.json"}, {"program": bound}):
        with said.by(ConfigError):
            recycled(tmp_path / "r", fake_lm(writer), **settings)
    assert not writer.requests and not (tmp_path / "r").exists()

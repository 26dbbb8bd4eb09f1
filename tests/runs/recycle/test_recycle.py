"""Recycling a data set: what is written, what is paid and never again, selection by IFD and r-IFD, old against new."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Request

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, save_program
from refed_dspy.data.dataset import drawn, load_dataset
from refed_dspy.errors import ConfigError, ExportError, ReferencesError, RunDirError, RunStopped, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.metrics.figures import AskedOnce, Tools, figures
from refed_dspy.metrics.perplexity import GUESS, ScoredText
from refed_dspy.programs.reflection import (
    IMPROVED,
    ORIGINAL,
    REFLECTED,
    Improved,
    Recycled,
    Reflected,
    ReflectionTuning,
)
from refed_dspy.records import DataRow
from refed_dspy.runs.recycle.passes import Passes, row_by_row, selectively
from refed_dspy.runs.recycle.result import Recycling
from refed_dspy.runs.recycle.select import UNSCORED, Selected, choose, select
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.caps import CapSettings
from refed_dspy.teachers.recorded import Progress
from refed_dspy.teachers.row_jobs import RowJob
from tests.metrics.test_perplexity import Toy, _Door
from tests.programs.test_reflection import Reflecting, reflected, shown
from tests.support import ROOT
from tests.support.compiling import config
from tests.support.scripted_engine import Writer, fake_lm, references

FIELDS = [
    *("row", "instruction", "response", "original_instruction", "original_response"),
    *("instruction_from", "response_from", "instruction_reason", "response_reason"),
]
BY_SCORE = ["ifd", "r_ifd", "original_ifd", "original_r_ifd", "selection_reason"]


class Moody(_Door):
    """Finds a prompt as likely as its checksum says: so figures lie on both sides of 1."""

    def answer(self, ids: list[int], fault: str) -> dict[str, Any]:
        if fault:
            return super().answer(ids, fault)
        told = -1 - (zlib.crc32(bytes(ids)) % 100) / 100
        places = [None, *({str(token): {"logprob": told}} for token in ids[1:])]
        return {"choices": [{"text": "a", "prompt_logprobs": places}], "usage": {"prompt_tokens": len(ids)}}


@pytest.fixture(scope="module")
def toy() -> Iterator[Toy]:
    """An endpoint that scores as vLLM's does."""
    with Toy() as there:
        there.RequestHandlerClass = Moody
        thread = threading.Thread(target=there.serve_forever, args=(0.05,))
        thread.start()
        yield there
        there.shutdown()
        thread.join()


@pytest.fixture
def scoring(toy: Toy) -> Toy:
    toy.rest()
    return toy


def recycled(folder: Path, teacher: Any, data: Any = None, **settings: Any) -> Recycling:
    given = {"embeddings": False, **settings}
    return refed_dspy.recycle(references(6) if data is None else data, teacher=teacher, out=folder, **given)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def requests(server: SimulatedTeacher) -> int:
    return int(server.stats()["requests"])


# --- what is written


def test_rows_stand_in_order_with_what_became_of_each_part(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(latency=0.01, sigma=1.0)
    made = recycled(tmp_path / "r", config(server))
    rows = read(tmp_path / "r" / "recycled.jsonl")
    assert [list(row) for row in rows] == [FIELDS] * 6 and rows == list(made.kept())
    assert [row["row"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row, original in zip(rows, references(6), strict=True):
        assert (row["original_instruction"], row["original_response"]) == (*original.values(),)
        assert row["instruction"] != row["original_instruction"] and row["response"] != row["original_response"]
        assert (row["instruction_from"], row["response_from"]) == (REFLECTED, IMPROVED)
        assert row["instruction_reason"] == row["response_reason"] == ""
    assert requests(server) == 12 and made.used.calls == 12
    lines = made.lines()
    assert lines[0].startswith("6 of 6 rows recycled, $") and "12 calls" in lines[0]
    assert lines[1:3] == ["instructions: 6 by instruction reflection", "responses: 6 by response reflection"]
    assert (tmp_path / "r" / "table.txt").read_text("utf-8").splitlines() == lines
    table = json.loads((tmp_path / "r" / "table.json").read_text("utf-8"))
    assert table["old"] == figures([(*one.values(),) for one in references(6)], Tools())  # type: ignore[misc]
    assert table["new"] == figures([(row["instruction"], row["response"]) for row in rows], Tools())
    assert not (tmp_path / "r" / "dropped.jsonl").exists()


def test_it_can_be_recycled_again(server: SimulatedTeacher, tmp_path: Path) -> None:
    recycled(tmp_path / "r", config(server))
    first = (tmp_path / "r" / "recycled.jsonl").read_bytes()
    again = recycled(tmp_path / "s", config(server), tmp_path / "r" / "recycled.jsonl")
    assert len(again.rows) == 6 and (tmp_path / "r" / "recycled.jsonl").read_bytes() == first
    with pytest.raises(ExportError, match="name another folder"):
        recycled(tmp_path / "r", config(server), tmp_path / "r" / "recycled.jsonl")


def test_what_falls_back_is_told_by_reason(tmp_path: Path) -> None:
    writer = Reflecting()
    writer.on_request = lambda request: "no JSON" if _about(request, "topic 2") and _first(request) else None
    made = recycled(tmp_path / "r", fake_lm(writer))
    (row,) = [row for row in made.kept() if row["instruction_reason"]]
    assert (row["row"], row["instruction_from"], row["response_from"]) == (3, ORIGINAL, IMPROVED)
    assert row["instruction"] == row["original_instruction"] and row["response"] != row["original_response"]
    assert "fell back: 1 malformed" in made.lines()
    assert not [line for line in made.lines() if "asks again" in line]


def test_rows_that_could_not_be_read_are_told(tmp_path: Path) -> None:
    made = recycled(tmp_path / "r", fake_lm(Reflecting()), [*references(2), {"instruction": "x", "response": " "}])
    assert "not read as a pair: 1 empty" in made.lines()


def _first(request: Request) -> bool:
    """Whether it is the instruction's pass."""
    return "new_instruction" in str(request.config.response_format)


def _about(request: Request, text: str) -> bool:
    return any(text in str(getattr(part, "text", "")) for one in request.messages for part in one.parts)


# --- drawing


def test_size_draws_rows_by_the_seed_and_a_larger_one_goes_on(server: SimulatedTeacher, tmp_path: Path) -> None:
    data = references(30)
    small = recycled(tmp_path / "r", config(server), data, size=4, seed=3)
    numbers = [row.number for row in drawn(load_dataset(data).rows, 4, 3)]
    assert [row["row"] for row in small.kept()] == numbers == sorted(numbers) != [1, 2, 3, 4]
    assert requests(server) == 8
    whole = recycled(tmp_path / "r", config(server), data)
    assert len(whole.rows) == 30 and requests(server) == 60
    by_row = {row["row"]: row for row in whole.kept()}
    assert [by_row[number] for number in numbers] == list(small.kept())


# --- criteria


def test_criteria_reach_the_prompt_and_are_part_of_what_the_work_is(tmp_path: Path) -> None:
    writer = Reflecting()
    recycled(tmp_path / "r", fake_lm(writer), instruction_criteria={"rhyme": "whether it rhymes"})
    assert all(_about(request, "rhyme: whether it rhymes") == _first(request) for request in writer.requests)
    with pytest.raises(RunDirError, match="criteria was"):
        recycled(tmp_path / "r", fake_lm(writer), instruction_criteria={"rhyme": "no"})
    with pytest.raises(ConfigError, match="criteria"):
        recycled(tmp_path / "s", fake_lm(writer), instruction_criteria={})


def test_a_program_of_ones_own_is_used(tmp_path: Path) -> None:
    mine = ReflectionTuning({"rhyme": "whether it rhymes"})
    mine.response_reflection.signature = mine.response_reflection.signature.with_instructions("Be a poet.")
    save_program(mine, tmp_path / "mine.json")
    for name, program, settings in (
        ("object", mine, {}),
        ("file", tmp_path / "mine.json", {"instruction_criteria": {"rhyme": "whether it rhymes"}}),
    ):
        writer = Reflecting()
        recycled(tmp_path / name, fake_lm(writer), program=program, **settings)
        assert len(writer.requests) == 12
        for request in writer.requests:
            assert ("Be a poet." in str(request.system)) != _first(request)
            assert _about(request, "rhyme: whether it rhymes") == _first(request)


@pytest.mark.parametrize(
    ("program", "settings", "told"),
    [
        (ReferenceLevelFeedback(), {}, "a ReferenceLevelFeedback does not recycle"),
        (ReflectionTuning(), {"response_criteria": {"a": "b"}}, "the program given has its own"),
        ("nowhere.json", {}, "nowhere.json: no such file"),
    ],
    ids=["another", "criteria", "no file"],
)
def test_a_program_that_cannot_be_used_is_refused(
    tmp_path: Path, program: Any, settings: dict[str, Any], told: str
) -> None:
    writer = Reflecting()
    with pytest.raises(ConfigError, match=told):
        recycled(tmp_path / "r", fake_lm(writer), program=program, **settings)
    assert not writer.requests and not (tmp_path / "r").exists()


def test_a_program_with_a_model_of_its_own_is_refused(tmp_path: Path) -> None:
    own = ReflectionTuning()
    own.set_lm(fake_lm(Reflecting()))
    with pytest.raises(ConfigError, match="has an LM of its own; pass the LM as teacher="):
        recycled(tmp_path / "r", fake_lm(Reflecting()), program=own)


# --- nothing paid twice, and what ends it early


def test_the_same_call_again_pays_nothing_and_writes_the_same(server: SimulatedTeacher, tmp_path: Path) -> None:
    recycled(tmp_path / "r", config(server))
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").glob("*.json*")}
    recycled(tmp_path / "r", config(server))
    assert requests(server) == 12
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "r").glob("*.json*")}


def test_at_a_cap_the_rows_so_far_are_written_and_told(server: SimulatedTeacher, tmp_path: Path) -> None:
    made = recycled(tmp_path / "r", config(server, concurrency=1), max_calls=7)
    assert made.stopped == "max_calls" and len(made.rows) == 3 and made.used.calls == 7
    assert len(read(tmp_path / "r" / "recycled.jsonl")) == 3
    assert made.lines()[0].startswith("3 of 6 rows recycled")
    assert made.lines()[-1] == "stopped: max_calls is reached; raise it, and the same command goes on"
    made = recycled(tmp_path / "r", config(server, concurrency=1), max_calls=100)
    assert not made.stopped and len(made.rows) == 6 and requests(server) == 12 and server.stats()["repeated"] == 0


def test_a_row_that_got_no_answer_is_asked_again_and_costs_no_other_row_its_place(
    server: SimulatedTeacher, tmp_path: Path
) -> None:
    """The row is the first, and the cap is reached: what the others have is there all the same."""
    teacher = config(server, concurrency=1)
    recycled(tmp_path / "r", teacher)
    with Ledger.create(tmp_path / "r") as ledger:  # as if its second pass had got no answer
        ledger.commit([("DELETE FROM answers WHERE item='1' AND stage='response_reflection'", ())])
    before = requests(server)
    made = recycled(tmp_path / "r", teacher, max_calls=12)
    assert made.stopped == "max_calls" and requests(server) == before
    assert [row["row"] for row in read(tmp_path / "r" / "recycled.jsonl")] == [2, 3, 4, 5, 6]


def test_a_passing_failure_falls_back_and_says_that_it_is_asked_again(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(faults={"500": 0.3}, seed=4)
    made = recycled(tmp_path / "r", config(server, retries=0, concurrency=1), references(8), max_failure_share=1.0)
    lost = [row for row in made.kept() if "no answer" in row["instruction_reason"] + row["response_reason"]]
    assert lost and f"{len(lost)} rows lack an answer that the teacher may still give" in "\n".join(made.lines())
    server.control(faults={})
    made = recycled(tmp_path / "r", config(server, retries=0), references(8))
    assert not [row for row in made.kept() if row["instruction_reason"] or row["response_reason"]]


def test_too_many_failures_stop_it_in_one_line_and_keep_the_rows(server: SimulatedTeacher, tmp_path: Path) -> None:
    teacher = config(server, concurrency=1, malformed_retries=0)
    recycled(tmp_path / "r", teacher, references(60), max_calls=10)
    server.control(faults={"malformed": 1.0})
    with pytest.raises(RunStopped) as told:
        recycled(tmp_path / "r", teacher, references(60), max_calls=1_000)
    line = str(told.value)
    assert "reflection failed in" in line and f"what was paid for is kept in {tmp_path / 'r'}" in line
    assert "\n" not in line and requests(server) < 60
    rows = read(tmp_path / "r" / "recycled.jsonl")
    assert [row["row"] for row in rows[:5]] == [1, 2, 3, 4, 5]
    assert len(rows) > 15 and all(row["response_reason"].startswith("malformed") for row in rows[5:])


def test_a_teacher_that_is_refused_is_bad_input(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(auth_fails_after=0)
    with pytest.raises(TeacherRefused, match="check the key"):
        recycled(tmp_path / "r", config(server))
    server.control(auth_fails_after=5)
    server.reset()
    with pytest.raises(RunStopped, match=r"check the key.*the same command goes on"):
        recycled(tmp_path / "r", config(server, concurrency=1))


def test_other_data_is_refused_by_name(server: SimulatedTeacher, tmp_path: Path) -> None:
    recycled(tmp_path / "r", config(server))
    with pytest.raises(RunDirError, match="holds another recycling: data was"):
        recycled(tmp_path / "r", config(server), references(7))
    with pytest.raises(RunDirError, match=r"teacher\.temperature was"):
        recycled(tmp_path / "r", config(server, temperature=0.5))
    with pytest.raises(ReferencesError):
        recycled(tmp_path / "s", config(server), [])
    assert requests(server) == 12


def test_a_run_that_is_still_growing(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(items=3)
    given: Any = {"teacher": config(server, max_tokens=2048), "run_dir": tmp_path / "run"}
    refed_dspy.synthesize(None, references(4), size=4, **given)
    with pytest.raises(RunDirError, match="holds a run, not "):
        recycled(tmp_path / "run", config(server), tmp_path / "run")
    first = recycled(tmp_path / "r", config(server), tmp_path / "run")
    with Ledger.create(tmp_path / "run"):  # as the run that is writing it has
        assert len(recycled(tmp_path / "r", config(server), str(tmp_path / "run")).rows) == 4
    refed_dspy.synthesize(None, references(4), size=6, **given)
    before = requests(server)
    made = recycled(tmp_path / "r", config(server), tmp_path / "run")
    assert requests(server) == before + 4 and list(made.kept())[:4] == list(first.kept())


# --- selective


class Told:
    """Perplexities by hand: "context|text" → that of the text given the context's first line; alone it is 10."""

    def __init__(self, told: Mapping[str, float]) -> None:
        self.told = told
        self.asked: list[str] = []

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        keys = [f"{context.partition(chr(10))[0]}|{text}" for context, text in zip(contexts, texts, strict=True)]
        self.asked += keys
        return [self.one(key) for key in keys]

    def one(self, key: str) -> ScoredText | None:
        if key.startswith("|"):
            return ScoredText(math.log(10), 1)
        return ScoredText(math.log(10 * self.told[key]), 1) if key in self.told else None


NEW: Reflected = (("new", "first"), "")
BETTER: Improved = ("better", "")


def chosen(reflected: Reflected, improved: Improved, told: Mapping[str, float]) -> tuple[Recycled, Selected]:
    """What becomes of (old, said)."""
    scorer = AskedOnce(Told(told))
    made, selected = select(choose([DataRow(1, "old", "said")], {1: reflected}, scorer), {1: improved}, scorer)
    return made[1], selected[1]


@pytest.mark.parametrize(
    ("ifds", "r_ifds", "pair", "parts", "dropped"),
    [
        # IFD of old and new; r-IFD of old, of new with its first response, and of the one kept with the better one
        ((0.5, 0.6), (0.9, 0.8, 0.7), ("new", "better"), (REFLECTED, IMPROVED), ""),
        ((0.5, 0.6), (0.7, 0.8, 0.75), ("new", "better"), (REFLECTED, IMPROVED), ""),
        ((0.5, 0.6), (0.9, 0.8, 0.8), ("new", "first"), (REFLECTED, REFLECTED), ""),
        ((0.5, 0.6), (0.9, 0.8, 0.9), ("new", "first"), (REFLECTED, REFLECTED), ""),
        ((0.5, 0.5), (0.9, 0.7, 0.8), ("old", "better"), (ORIGINAL, IMPROVED), ""),
        ((0.6, 0.5), (0.9, 0.8, 0.9), ("old", "said"), (ORIGINAL, ORIGINAL), ""),
        ((1.0, 0.5), (0.9, 0.8, 0.9), ("old", "said"), (ORIGINAL, ORIGINAL), "IFD not below 1"),
        ((0.5, 1.2), (0.9, 1.5, 1.6), ("new", "first"), (REFLECTED, REFLECTED), "IFD not below 1"),
        ((0.5, 0.6), (0.9, 1.0, 1.2), ("new", "first"), (REFLECTED, REFLECTED), "r-IFD not below 1"),
        ((0.5, 0.6), (0.9, 1.2, 1.1), ("new", "better"), (REFLECTED, IMPROVED), "r-IFD not below 1"),
        ((0.7, 0.6), (1.2, 0.8, 0.9), ("old", "better"), (ORIGINAL, IMPROVED), ""),
        # None: what was there before stays, and the pair is kept
        ((None, 0.6), (0.9, 0.8, 0.7), ("old", "better"), (ORIGINAL, IMPROVED), ""),
        ((0.5, None), (0.9, 0.8, 0.95), ("old", "said"), (ORIGINAL, ORIGINAL), ""),
        ((0.5, 0.6), (0.9, None, 0.7), ("new", "first"), (REFLECTED, REFLECTED), ""),
        ((0.5, 0.6), (0.9, 0.8, None), ("new", "first"), (REFLECTED, REFLECTED), ""),
    ],
)
def test_selection(ifds: Any, r_ifds: Any, pair: Any, parts: Any, dropped: str) -> None:
    kept = pair[0]
    names = ["old|said", "new|first", "said|old", "first|new", f"better|{kept}"]
    told = {name: value for name, value in zip(names, [*ifds, *r_ifds], strict=True) if value is not None}
    beside = {"new|better": 0.9, "old|better": 0.4}
    made, one = chosen(NEW, BETTER, {**beside, **told})
    assert (made.instruction, made.response) == pair
    assert (made.instruction_from, made.response_from) == parts
    assert made.reflected_response == ("first" if kept == "new" else "said")
    assert (one.kept, one.reason) == (not dropped, dropped)
    assert one.original_ifd == pytest.approx(ifds[0]) and one.original_r_ifd == pytest.approx(r_ifds[0])
    assert one.ifd == pytest.approx({**beside, **told}.get("|".join(pair)))
    assert one.r_ifd == pytest.approx(told.get("|".join(reversed(pair))))


def test_a_better_response_is_dropped_by_its_own_figures() -> None:
    told = {"old|said": 0.5, "said|old": 0.9, "old|better": 1.0, "better|old": 0.8}
    made, one = chosen((None, "cut: cut"), BETTER, told)
    assert (made.response, made.instruction_reason, one.reason) == ("better", "cut: cut", "IFD not below 1")
    assert one.original_ifd == pytest.approx(0.5)


def test_why_a_new_part_is_not_taken_is_told() -> None:
    told = {"old|said": 0.6, "new|first": 0.5, "said|old": 0.9, "old|better": 0.9, "better|old": 0.95}
    made, _ = chosen(NEW, BETTER, told)
    assert made.instruction_reason == "IFD not higher: 0.5, was 0.6"
    assert made.response_reason == "r-IFD not lower: 0.95, was 0.9"
    made, one = chosen(NEW, BETTER, {})
    assert made.instruction_reason == made.response_reason == UNSCORED and one.kept
    made, _ = chosen((None, "the same instruction again"), (None, "no answer: late"), told)
    assert (made.instruction_reason, made.response_reason) == ("the same instruction again", "no answer: late")
    assert made.unanswered


def test_what_was_not_written_is_not_scored() -> None:
    scorer = Told({})
    rows = [DataRow(1, "old", "said"), DataRow(2, "blue", "sky")]
    pairs = choose(rows, {1: NEW, 2: (None, "")}, scorer)
    assert len(scorer.asked) == 12 and {pairs[1].pair, pairs[2].pair} == {("old", "said"), ("blue", "sky")}
    scorer.asked.clear()
    select(pairs, {1: (None, ""), 2: BETTER}, scorer)
    assert sorted(scorer.asked) == ["better|blue", "blue|better", "|better", "|blue"]


# --- selective: the choice stands between the passes


class Fickle:
    """Finds new pairs of odd topics harder than they were, those of even ones easier; likes every better response."""

    def __init__(self) -> None:
        self.before: Callable[[], None] = lambda: None
        """Called when it is asked for the first time."""

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        self.before()
        self.before = lambda: None
        return [self.one(context, text) for context, text in zip(contexts, texts, strict=True)]

    def one(self, context: str, text: str) -> ScoredText:
        if not context:
            return ScoredText(1.0, 1)
        if GUESS in context:
            return ScoredText(0.2 if "better" in context else 0.5, 1)
        harder = {"new odd": 0.9, "new even": 0.1}
        return ScoredText(next((told for name, told in harder.items() if name in context), 0.5), 1)


class Numbering(Reflecting):
    """Names what it writes by what it was asked about."""

    def write(self, request: Request) -> str:
        topic = int(re.findall(r"topic (\d+)", shown(request, "instruction"))[0])
        if not _first(request):
            better = f"better than: {shown(request, 'response')}"
            return json.dumps({"weaknesses": ["short"], "better_response": better})
        new = f"new {'odd' if topic % 2 else 'even'} topic {topic}", f"first of {topic}"
        return reflected(*new)


def passes(folder: Path, writer: Writer, concurrency: int = 8, max_minutes: float | None = None) -> Passes:
    teacher = replace(open_teacher(fake_lm(writer)), concurrency=concurrency)
    limits = CapSettings(max_cost=None, max_calls=None, max_minutes=max_minutes)
    return Passes(ReflectionTuning(), folder, RowJob("recycling", {}, {"teacher": teacher}, limits, 6, "go on"), None)


ROWS = load_dataset(references(6)).rows


def test_the_second_pass_is_over_the_pair_that_was_chosen(tmp_path: Path) -> None:
    writer = Numbering()
    passed = selectively(ROWS, passes(tmp_path, writer), AskedOnce(Fickle()))
    assert [_first(request) for request in writer.requests] == [True] * 6 + [False] * 6
    for at, row in enumerate(ROWS):
        made = passed.made[row.number]
        odd = at % 2 == 1
        before = (f"new odd topic {at}", f"first of {at}") if odd else (row.instruction, row.response)
        (asked,) = [one for one in writer.requests[6:] if shown(one, "instruction") == before[0]]
        assert shown(asked, "response") == before[1] == made.reflected_response
        assert (made.instruction, made.response) == (before[0], f"better than: {before[1]}")
        assert (made.instruction_from, made.response_from) == (REFLECTED if odd else ORIGINAL, IMPROVED)
        assert made.instruction_reason.startswith("" if odd else "IFD not higher: ") and made.response_reason == ""
    assert passed.selected is not None and all(one.kept for one in passed.selected.values())
    assert (passed.stopped, passed.halfway) == ("", 0)


def test_without_selection_both_passes_are_over_one_row_after_the_other(tmp_path: Path) -> None:
    writer, made = Numbering(), dict[int, Recycled]()
    passed = row_by_row(ROWS, passes(tmp_path, writer, concurrency=1), made)
    assert [_first(request) for request in writer.requests] == [True, False] * 6
    assert passed.made is made and passed.selected is None
    assert made[1].response == "better than: first of 0"


def test_a_folder_that_is_taken_between_the_passes_stops_it(tmp_path: Path) -> None:
    scorer, taken = Fickle(), list[Ledger]()
    scorer.before = lambda: taken.append(Ledger.create(tmp_path))
    with pytest.raises(RunStopped, match=r"another process is working .*; go on$"):
        selectively(ROWS, passes(tmp_path, Numbering()), scorer)
    taken[0].close()
    writer = Numbering()
    assert len(selectively(ROWS, passes(tmp_path, writer), scorer).made) == 6
    assert [_first(request) for request in writer.requests] == [False] * 6, "the first pass is not paid for again"


def test_minutes_that_are_used_up_between_the_passes_end_it_in_order(tmp_path: Path) -> None:
    writer = Numbering()

    def last(request: Request) -> None:
        if len(writer.requests) == 6:  # as if an hour had gone by
            with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
                db.execute("UPDATE starts SET begun=begun-3600")

    writer.on_request = last
    passed = selectively(ROWS, passes(tmp_path, writer, max_minutes=10), Fickle())
    assert (passed.stopped, passed.halfway, passed.made) == ("max_minutes", 6, {})
    assert len(writer.requests) == 6
    passed = selectively(ROWS, passes(tmp_path, writer, max_minutes=100), Fickle())
    assert len(passed.made) == 6 and len(writer.requests) == 12


def selective(folder: Path, scoring: Toy, teacher: Any, data: Any = None, **settings: Any) -> Recycling:
    scorer = {"model": "toy", "api_base": scoring.url}
    return recycled(folder, teacher, data, selective=True, scorer=scorer, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("calls", "done", "halfway"), [(4, 0, 4), (6, 0, 6), (9, 3, 3)])
def test_a_cap_in_either_pass_ends_it_in_order(
    server: SimulatedTeacher, scoring: Toy, tmp_path: Path, calls: int, done: int, halfway: int
) -> None:
    teacher = config(server, concurrency=1)
    made = selective(tmp_path / "r", scoring, teacher, max_calls=calls)
    assert (made.stopped, len(made.rows), made.halfway, made.used.calls) == ("max_calls", done, halfway, calls)
    rows = read(tmp_path / "r" / "recycled.jsonl") + read(tmp_path / "r" / "dropped.jsonl")
    assert sorted(row["row"] for row in rows) == [1, 2, 3][:done]
    assert f"first pass alone: {halfway} rows; the second begins once all rows have had the first" in made.lines()
    assert made.lines()[-1].startswith("stopped: max_calls is reached")
    if calls < 6:
        assert len(scoring.prompts) == 1, "but for the first text nothing is scored that the next start scores again"
    made = selective(tmp_path / "r", scoring, teacher, max_calls=100)
    assert (made.stopped, len(made.rows), made.halfway, made.used.calls) == ("", 6, 0, 12)
    assert requests(server) == 12 and server.stats()["repeated"] == 0
    assert not [line for line in made.lines() if "first pass alone" in line]


@pytest.mark.slow
def test_a_cap_in_the_first_pass_keeps_the_rows_that_were_done(
    server: SimulatedTeacher, scoring: Toy, tmp_path: Path
) -> None:
    teacher = config(server, concurrency=1, malformed_retries=0)
    recycled(tmp_path / "r", teacher, references(20), size=1)
    server.control(fail_stage="better_response")
    first = selective(tmp_path / "r", scoring, teacher, references(20), size=4)
    reasons = {row["response_reason"].partition(":")[0] for row in [*first.kept(), *first.dropped()]}
    assert "malformed" in reasons, "a final failure counts as done"
    paid, prompts = requests(server), {tuple(prompt) for prompt in scoring.prompts}
    scoring.prompts.clear()
    made = selective(tmp_path / "r", scoring, teacher, references(20), max_calls=paid + 3)
    assert made.stopped == "max_calls" and requests(server) == paid + 3 and made.halfway == 3
    assert list(made.kept()) == list(first.kept()) and list(made.dropped()) == list(first.dropped())
    assert {tuple(prompt) for prompt in scoring.prompts} == prompts, "only what is done is scored"


@pytest.mark.slow
def test_selective_again_pays_nothing_and_writes_the_same(
    server: SimulatedTeacher, scoring: Toy, tmp_path: Path
) -> None:
    units: list[Progress] = []
    selective(tmp_path / "r", scoring, config(server), on_progress=units.append)
    assert [(one.unit, one.kept, one.size) for one in units] == [("instructions", 6, 6), ("responses", 6, 6)]
    assert requests(server) == 12
    before = {path.name: path.read_bytes() for path in (tmp_path / "r").glob("*.json*")}
    selective(tmp_path / "r", scoring, config(server))
    assert requests(server) == 12
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "r").glob("*.json*")}


@pytest.mark.slow
@pytest.mark.parametrize(("after", "refused"), [(0, TeacherRefused), (4, RunStopped), (6, RunStopped), (8, RunStopped)])
def test_a_teacher_that_is_refused_in_either_pass(
    server: SimulatedTeacher, scoring: Toy, tmp_path: Path, after: int, refused: type[Exception]
) -> None:
    server.control(auth_fails_after=after)
    with pytest.raises(refused, match="check the key") as told:
        selective(tmp_path / "r", scoring, config(server, concurrency=1))
    assert isinstance(told.value, TeacherRefused) == (after == 0)
    assert str(told.value).count("the same command goes on") == (after > 0)


@pytest.mark.slow
def test_selective_rows_say_what_they_are_made_of(server: SimulatedTeacher, scoring: Toy, tmp_path: Path) -> None:
    server.control(response_words=6)
    scorer = {"model": "toy", "api_base": scoring.url}
    data = references(12)
    made = recycled(tmp_path / "r", config(server), data, selective=True, scorer=scorer)
    kept, dropped = read(tmp_path / "r" / "recycled.jsonl"), read(tmp_path / "r" / "dropped.jsonl")
    assert sorted(row["row"] for row in kept + dropped) == list(range(1, 13)) and kept and dropped
    sources: set[tuple[str, str]] = set()
    for row in kept + dropped:
        assert list(row) == [*FIELDS, *BY_SCORE]
        original = row["instruction_from"] == ORIGINAL
        sources.add((row["instruction_from"], row["response_from"]))
        assert (row["instruction"] == row["original_instruction"]) == original
        assert (row["response"] == row["original_response"]) == (row["response_from"] == ORIGINAL)
        assert bool(row["instruction_reason"]) == original
        assert bool(row["response_reason"]) == (row["response_from"] != IMPROVED)
    assert (ORIGINAL, IMPROVED) in sources and len(sources) > 2
    assert requests(server) == made.used.calls == 24
    assert all(row["ifd"] < 1 and row["r_ifd"] < 1 for row in kept)
    assert all(row["selection_reason"] and max(row["ifd"], row["r_ifd"]) >= 1 for row in dropped)
    lines = made.lines()
    assert any(line.startswith(f"selected: {len(kept)} of 12 pairs") for line in lines)
    assert made.figures["new"]["rows"] == made.figures["old"]["rows"] == len(kept)
    assert made.figures["new"]["IFD, mean"] == pytest.approx(sum(row["ifd"] for row in kept) / len(kept))
    told = len(scoring.prompts)
    assert f"scorer: {told:,} calls" in "\n".join(lines)
    assert told == len({tuple(prompt) for prompt in scoring.prompts}), "a text is scored once"
    again = recycled(tmp_path / "r", config(server), data)
    assert not again.selected and not (tmp_path / "r" / "dropped.jsonl").exists(), "of another selection"


def test_a_scorer_alone_selects_nothing(server: SimulatedTeacher, scoring: Toy, tmp_path: Path) -> None:
    made = recycled(tmp_path / "r", config(server), scorer={"model": "toy", "api_base": scoring.url})
    assert [list(row) for row in read(tmp_path / "r" / "recycled.jsonl")] == [FIELDS] * 6
    assert made.selected is None and made.figures["new"]["IFD, mean"] is not None


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["401", "404", "500", "no tokenize", "no logprobs"])
def test_a_scorer_that_cannot_be_had_is_told_before_anything_is_paid(
    server: SimulatedTeacher, scoring: Toy, tmp_path: Path, fault: str
) -> None:
    scoring.fault = fault
    with pytest.raises(ConfigError, match=r"^scorer: ") as told:
        recycled(tmp_path / "r", config(server), scorer={"model": "toy", "api_base": scoring.url}, selective=True)
    assert "\n" not in str(told.value) and requests(server) == 0 and not (tmp_path / "r").exists()


def test_selective_without_a_scorer_is_refused(server: SimulatedTeacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"selective:? needs a scorer"):
        recycled(tmp_path / "r", config(server), selective=True)
    with pytest.raises(ConfigError, match="not set"):
        scorer = {"model": "toy", "api_base": "http://127.0.0.1:9/v1", "api_key_env": "NOWHERE_KEY"}
        recycled(tmp_path / "r", config(server), scorer=scorer)
    assert requests(server) == 0


@pytest.mark.slow
def test_a_scorer_that_fails_later_says_how_to_go_on(server: SimulatedTeacher, scoring: Toy, tmp_path: Path) -> None:
    writer = Reflecting()

    def then_broken(request: Request) -> None:
        scoring.fault = "no logprobs"

    writer.on_request = then_broken
    scorer = {"model": "toy", "api_base": scoring.url}
    with pytest.raises(RunStopped, match=r"^scorer: .*what was paid for is kept in .*the same command goes on"):
        recycled(tmp_path / "r", fake_lm(writer), scorer=scorer, selective=True)
    assert [_first(request) for request in writer.requests] == [True] * 6
    scoring.rest()
    again = Reflecting()
    assert recycled(tmp_path / "r", fake_lm(again), scorer=scorer, selective=True).selected
    assert [_first(request) for request in again.requests] == [False] * 6


# --- killed, and stopped by hand

REFED = [sys.executable, "-m", "refed_dspy.cli"]


@pytest.fixture
def home(server: SimulatedTeacher, tmp_path: Path) -> Path:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(one) + "\n" for one in references(80)))
    (tmp_path / "teacher.yaml").write_text(f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: 8\n")
    return tmp_path


COMMAND = [*REFED, "recycle", "data.jsonl", "--teacher", "teacher.yaml", "--out", "out"]


def heeding_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stopped(
    home: Path, number: signal.Signals, reached: Callable[[], bool], command: Sequence[str] = COMMAND
) -> tuple[int, str]:
    """A start that gets the signal once that much is reached: its exit code and what it said."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=home, stderr=subprocess.PIPE, text=True, preexec_fn=heeding_ctrl_c, env=env
    ) as process:
        try:
            while not reached() and process.poll() is None:
                time.sleep(0.01)
            process.send_signal(number)
            _, told = process.communicate(timeout=30)
        finally:
            process.kill()
    return process.returncode, told


def answers(server: SimulatedTeacher, count: int) -> Callable[[], bool]:
    """Whether the server has answered so often."""
    return lambda: bool(server.stats()["answered"] >= count)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_stopped_between_the_passes_it_goes_on_with_the_second(
    home: Path, server: SimulatedTeacher, scoring: Toy, number: signal.Signals, code: int
) -> None:
    (home / "job.yaml").write_text(f"scorer: {{model: toy, api_base: {scoring.url}}}\n")
    command = [*COMMAND, "--selective", "--config", "job.yaml", "--size", "24"]
    assert stopped(home, number, lambda: len(scoring.prompts) > 20, command)[0] == code
    assert requests(server) == 24 and not (home / "out" / "recycled.jsonl").exists()
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "24 of 24 rows recycled" in done.stdout
    assert requests(server) == 48 and server.stats()["repeated"] == 0


@pytest.mark.slow
def test_killed_in_the_second_pass_it_pays_no_answer_twice(home: Path, server: SimulatedTeacher, scoring: Toy) -> None:
    (home / "job.yaml").write_text(f"scorer: {{model: toy, api_base: {scoring.url}}}\n")
    command = [*COMMAND, "--selective", "--config", "job.yaml", "--size", "24"]
    server.control(latency=0.05)
    assert stopped(home, signal.SIGKILL, answers(server, 33), command)[0] == -signal.SIGKILL
    time.sleep(0.3)
    with Ledger.read(home / "out") as ledger:
        (kept,) = ledger.db.execute("SELECT count(*) FROM answers").fetchone()
    lost = requests(server) - kept
    assert kept >= 24 and lost <= 16, "at most what was in flight is lost"
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and requests(server) == 48 + lost


@pytest.mark.slow
def test_killed_it_goes_on_and_pays_no_answer_twice(home: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.05)
    lost = 0
    for after in (20, 70):
        assert stopped(home, signal.SIGKILL, answers(server, after))[0] == -signal.SIGKILL
        time.sleep(0.3)
        with Ledger.read(home / "out") as ledger:
            (kept,) = ledger.db.execute("SELECT count(*) FROM answers").fetchone()
        lost = requests(server) - kept
        assert kept >= after - 16 and lost <= 16, "at most what was in flight is lost"
    server.control(latency=0)
    done = subprocess.run(COMMAND, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "80 of 80 rows recycled" in done.stdout
    assert requests(server) == 160 + lost and len(read(home / "out" / "recycled.jsonl")) == 80


@pytest.mark.slow
def test_ctrl_c_ends_it_with_130_and_leaves_the_rows_so_far(home: Path, server: SimulatedTeacher) -> None:
    server.control(latency=0.05)
    before = (home / "data.jsonl").read_bytes()
    code, told = stopped(home, signal.SIGINT, answers(server, 60))
    assert code == 130 and "go on with: the same command" in told and "Traceback" not in told
    rows = read(home / "out" / "recycled.jsonl")
    assert 20 <= len(rows) < 80
    answered = requests(server)
    server.control(latency=0)
    done = subprocess.run(COMMAND, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert requests(server) <= 160 + 8 and server.stats()["repeated"] == 0 and answered < 160
    by_row = {row["row"]: row for row in read(home / "out" / "recycled.jsonl")}
    assert len(by_row) == 80 and all(by_row[row["row"]] == row for row in rows)
    assert (home / "data.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_cap_ends_the_command_with_1_and_bad_input_with_2(home: Path, server: SimulatedTeacher) -> None:
    capped = subprocess.run([*COMMAND, "--max-calls", "20"], cwd=home, capture_output=True, text=True, check=False)
    assert capped.returncode == 1 and "max_calls is reached" in capped.stderr and "Traceback" not in capped.stderr
    missing = [*REFED, "recycle", "no.jsonl", "--teacher", "teacher.yaml", "--out", "new"]
    told = subprocess.run(missing, cwd=home, capture_output=True, text=True, check=False)
    assert told.returncode == 2 and told.stderr.startswith("refed: no.jsonl: no such file")
    assert not (home / "new").exists() and len(told.stderr.splitlines()) == 1

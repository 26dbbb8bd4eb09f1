"""Edges of a run: stops, what is remembered for a resume, LMs and adapters of the caller."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, Usage

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, TeacherConfig
from refed_dspy.errors import ConfigError, RunDirError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import UNGATHERED
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers import open_teacher
from tests.support.clocks import settle_down
from tests.support.said import Said
from tests.support.scripted_engine import AsyncWriter, Writer, fake_lm, references


def run(folder: Path, writer: Writer, size: int = 6, **settings: Any) -> Synthesis:
    return refed_dspy.synthesize(
        None, references(4), **{"size": size, "teacher": fake_lm(writer), "run_dir": folder, **settings}
    )


class Held(AsyncWriter):
    """Answers with a first response once `gate` is open."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer)
        self.reached, self.gate = asyncio.Event(), asyncio.Event()

    async def complete(self, request: Request) -> Response:
        answer = self.writer.answer(request)
        if self.writer.fields(request) == ["response"]:
            self.reached.set()
            await self.gate.wait()
        return answer


async def test_a_stop_lets_calls_land_and_begins_none(tmp_path: Path) -> None:
    writer = Writer()
    held = Held(writer)
    lm = dspy.LM("fake/model", engine=writer, async_engine=held, num_retries=0, cache=False)
    work = asyncio.ensure_future(
        refed_dspy.asynthesize(None, references(4), size=8, teacher=lm, run_dir=tmp_path / "run")
    )
    await held.reached.wait()
    await settle_down()
    sent = len(writer.requests)
    work.cancel()
    await settle_down()
    held.gate.set()
    await asyncio.gather(work, return_exceptions=True)
    assert len(writer.requests) == sent, "an improvement was begun after the stop"
    with Ledger.read(tmp_path / "run") as ledger:
        answers = ledger.db.execute("SELECT key FROM answers").fetchall()
    assert len(answers) == sent, "what was in flight landed"


def test_a_resume_remembers_what_it_may_reuse(tmp_path: Path) -> None:
    run(tmp_path / "old", Writer(), teacher="simulated", size=8)
    run(tmp_path / "new", Writer(), teacher="simulated", size=3, reuse=tmp_path / "old")
    made = refed_dspy.resume(tmp_path / "new", size=8)
    assert len(made.samples) == 8 and sum(use["calls"] for use in made.usage.values()) == 0


def test_a_run_whose_shards_are_not_gathered_is_not_reused(said: Said, tmp_path: Path) -> None:
    """Its ledger lacks what its workers made: it would be paid for again."""
    run(tmp_path / "old", Writer(), size=2)
    with Ledger.create(tmp_path / "old") as ledger:
        ledger.set_meta(**{UNGATHERED: True})
    writer = Writer()
    with said.by(RunDirError):
        run(tmp_path / "new", writer, size=2, reuse=tmp_path / "old")
    assert not writer.requests and not (tmp_path / "new").exists()


def test_a_resume_goes_on_at_the_last_address(tmp_path: Path, server: SimulatedTeacher) -> None:
    here = TeacherConfig(model="sim/sim-model", api_base=server.base_url, concurrency=3)
    elsewhere = TeacherConfig(model="sim/sim-model", api_base="http://127.0.0.1:9/v1", retries=0)
    run(tmp_path / "run", Writer(), teacher=here, size=2)
    refed_dspy.resume(tmp_path / "run", size=2, teacher=elsewhere)  # complete: nothing is asked
    refed_dspy.resume(tmp_path / "run", size=3, teacher=here)
    assert len(refed_dspy.resume(tmp_path / "run", size=4).samples) == 4


def test_a_program_of_another_kind_is_not_resumed_as_ours(said: Said, tmp_path: Path) -> None:
    class Bolder(ReferenceLevelFeedback):
        pass

    refed_dspy.synthesize(Bolder(), references(2), size=1, teacher=fake_lm(Writer()), run_dir=tmp_path)
    with said.by(RunDirError):
        refed_dspy.resume(tmp_path, size=2, teacher=fake_lm(Writer()))


def test_no_setting_of_a_callers_lm_but_its_sampling_is_stored() -> None:
    lm = dspy.LM(
        "openai/x", api_key="sk-1", aws_secret_access_key="sk-2", api_base="https://u:sk-3@h.example/v1?k=sk-4"
    )
    teacher = open_teacher(lm)
    assert "sk-" not in json.dumps(teacher.identity) + teacher.endpoint
    assert teacher.endpoint == "https://h.example/v1"


def test_an_answer_longer_than_the_decoders_bound_is_kept_and_read_back(tmp_path: Path) -> None:
    writer = Writer()
    long = json.dumps({"response_feedback": "x" * 7_000})
    writer.on_request = lambda request: long if "response_feedback" in str(request.system) else None
    for adapter in (None, dspy.JSONAdapter()):
        folder = tmp_path / str(adapter is None)
        with dspy.context(adapter=adapter):
            assert len(run(folder, writer, size=2).samples) == 2
            made = run(folder, Writer(), size=3)
            assert len(made.samples) == 3 and not made.failures


def test_an_empty_answer_is_no_answer(said: Said, tmp_path: Path) -> None:
    writer, bad = Writer(), list[str]()

    def empty(request: Request) -> str | None:
        if writer.fields(request) == ["response"]:
            bad.append(str(request.messages[-1].text))
            return '{"response": " "}' if bad[-1] == bad[0] else None
        return None

    writer.on_request = empty
    made = run(tmp_path / "run", writer, size=4)
    assert made.complete
    said([(failure.kind, failure.reason) for failure in made.failures])


def test_settings_with_keys_that_are_numbers_are_the_same_settings(tmp_path: Path, server: SimulatedTeacher) -> None:
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url, params={"logit_bias": {50256: -100}})
    for size in (1, 2):
        assert len(run(tmp_path / "run", Writer(), teacher=teacher, size=size).samples) == size


def test_an_endpoint_that_reports_no_usage_is_recorded_as_unknown(tmp_path: Path) -> None:
    writer = Writer()
    writer.on_request = lambda r: Response(
        id="r", model="m", message=Message.assistant(writer.write(r)), finish_reason="stop", usage=Usage()
    )
    made = run(tmp_path / "run", writer, size=2)
    assert sum(stage["calls"] for stage in made.usage.values()) == len(writer.requests)
    assert sum(stage["unknown"] for stage in made.usage.values()) == len(writer.requests)


def test_a_teacher_of_a_wrong_type_is_refused(said: Said) -> None:
    with said.by(ConfigError):
        open_teacher(5)

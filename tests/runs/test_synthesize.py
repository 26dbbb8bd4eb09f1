"""Whole runs with a scripted engine: sizes, resumes, refusals, recorded calls, stops."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.lm15 import Message, Request, Response, Usage

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, TeacherConfig
from refed_dspy.config.loading import load_config
from refed_dspy.config.run import RunConfig
from refed_dspy.errors import ConfigError, NoAnswer, RunDirError, RunStopped, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import UNGATHERED
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers import open_teacher
from refed_dspy.teachers.progress import Progress
from tests.support.clocks import settle_down
from tests.support.said import Said
from tests.support.scripted_engine import (
    AsyncWriter,
    Killed,
    Writer,
    fake_lm,
    killed_at,
    question_of,
    references,
    spoil_first,
)


def run(tmp_path: Path, writer: Writer, size: int = 12, count: int = 4, **settings: Any) -> Synthesis:
    settings = {"program": None, "teacher": fake_lm(writer), "run_dir": tmp_path / "run", **settings}
    return refed_dspy.synthesize(references=references(count), size=size, **settings)


def test_exactly_the_size_is_made_and_every_call_is_recorded(tmp_path: Path) -> None:
    writer = Writer()
    made = run(tmp_path, writer, size=12)
    assert len(made.samples) == 12 and made.complete and not made.failures
    assert len(writer.requests) == 4 * 3 + 24
    assert sum(stage["calls"] for stage in made.usage.values()) == len(writer.requests)
    assert made.usage["response_generation"]["prompt_tokens"] == 1200
    sample = made.samples[0]
    assert sample.instruction.startswith("Task ") and sample.analysis.original_strengths == ["clear"]
    assert made.samples[-1] == list(made.samples)[11] == made.samples[10:][1]


def test_a_larger_size_pays_for_the_difference_only(tmp_path: Path) -> None:
    run(tmp_path, Writer(), size=8)
    more = Writer()
    assert len(run(tmp_path, more, size=10).samples) == 10
    assert len(more.requests) == 4, "two instructions were left over: a response and an improvement each"


@pytest.mark.parametrize("again", ["resumed", "called again", "reused"])
def test_a_run_of_0_2_0_goes_on_as_it_was_begun(tmp_path: Path, again: str) -> None:
    """It asked a reference for all that it gives before the next one, and nothing said so."""
    writer = Writer()
    run(tmp_path, writer, size=8, per_reference=20)
    with Ledger.create(tmp_path / "run") as ledger:
        ledger.set_meta(teacher={"model": "fake/model"}, filters=ledger.meta("identity")["filters"])
        ledger.commit([("DELETE FROM meta WHERE name = 'settings'", ())])
    for size, calls in ((11, 2 + 2 + 2 * 11), (21, 4 + 3 + 2 * 21)):
        if again == "resumed":
            made = refed_dspy.resume(tmp_path / "run", size=size, teacher=fake_lm(writer))
        elif again == "called again":
            made = run(tmp_path, writer, size=size)
        else:
            made = run(tmp_path / "new", writer, size=size, reuse=tmp_path / "run")
        assert len(made.samples) == size and len(writer.requests) == calls


def test_a_smaller_size_takes_nothing_away(tmp_path: Path) -> None:
    run(tmp_path, Writer(), size=8)
    made = run(tmp_path, Writer(), size=3)
    assert len(made.samples) == 8 and made.complete


def test_a_lowered_size_is_not_exceeded(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(tmp_path, killed_at(12), size=40)
    made = run(tmp_path, Writer(), size=6)
    assert len(made.samples) == 6 and made.complete


@pytest.mark.parametrize("after", [1, 3, 5, 8, 11])
def test_a_run_broken_off_anywhere_pays_for_no_answer_twice(tmp_path: Path, after: int) -> None:
    broken = killed_at(after)
    with pytest.raises(Killed):
        run(tmp_path, broken, size=4, count=1)
    rest = Writer()
    rest.numbers = broken.numbers
    made = run(tmp_path, rest, size=4, count=1)
    assert len(made.samples) == 4
    paid = [question_of(r) for r in broken.requests[: after - 1]]
    assert not [r for r in rest.requests if question_of(r) in paid]


@pytest.mark.parametrize("field", ["response", "subject_areas"])
def test_malformed_rows_fail_are_recorded_and_made_up_for(tmp_path: Path, field: str) -> None:
    writer = Writer()
    asked = spoil_first(writer, field)
    made = run(tmp_path, writer, size=15, count=6)
    assert len(made.samples) == 15 and [failure.kind for failure in made.failures] == ["malformed"]
    assert asked.count(asked[0]) == 3, "the first try and two further ones"
    recorded = sum(stage["calls"] for stage in made.usage.values())
    assert recorded == len(writer.requests), "calls that failed to parse are paid for and recorded"
    again = Writer()
    run(tmp_path, again, size=50, count=6)
    assert again.requests and asked[0] not in [question_of(r) for r in again.requests]


def test_each_further_try_is_recorded_as_a_separate_call(tmp_path: Path) -> None:
    made = run(tmp_path, Writer("no JSON", "no JSON"), size=1, count=1)
    assert made.complete and not made.failures
    assert sum(use["calls"] for use in made.usage.values()) == 5 + 2


def test_a_stage_that_only_fails_stops_the_run(said: Said, tmp_path: Path) -> None:
    with said.by(RunStopped):
        run(tmp_path, Writer(*["no JSON"] * 50), count=30)


def test_a_passing_fault_is_asked_again_on_the_next_start(tmp_path: Path) -> None:
    busy = Writer()
    faults = [lm15.ServerError("busy", status=500)] * 3
    busy.on_request = lambda r: faults.pop() if faults and busy.fields(r) == ["response"] else None
    made = run(tmp_path, busy, size=7, count=1)
    assert made.complete and [f.kind for f in made.failures] == [NoAnswer.kind] * 3
    failed = [question_of(r) for r in busy.requests if busy.fields(r) == ["response"]][:3]
    rest = Writer()
    assert len(run(tmp_path, rest, size=10, count=1).samples) == 10
    assert [r for r in rest.requests if question_of(r) in failed]


def test_a_bug_stops_the_run(tmp_path: Path) -> None:
    writer = Writer()
    writer.on_request = lambda r: ZeroDivisionError("a bug") if len(writer.requests) == 6 else None
    with pytest.raises(dspy.utils.exceptions.LMUnexpectedError, match="a bug"):
        run(tmp_path, writer)


def test_a_refused_key_before_the_first_answer_is_bad_input(tmp_path: Path) -> None:
    refused = Writer(*[lm15.AuthError("bad key", status=401)] * 9)
    with pytest.raises(TeacherRefused, match="check the key in the variable") as error:
        run(tmp_path, refused)
    assert error.value.exit_code == 2
    run(tmp_path, Writer(), seed=5)  # nothing was paid for: the folder may be used for another run


def test_a_refused_key_midway_stops_with_how_to_resume(said: Said, tmp_path: Path) -> None:
    writer = Writer()
    writer.on_request = lambda r: lm15.AuthError("revoked", status=401) if len(writer.requests) > 9 else None
    with said.by(RunStopped) as error:
        run(tmp_path, writer)
    assert error.value.exit_code == 1
    assert len(run(tmp_path, Writer()).samples) == 12


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent of a finished run's folder. Nobody writes into it."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder, Writer())
    return folder


@pytest.mark.parametrize(
    "change",
    [
        {"count": 5},
        {"program": ReferenceLevelFeedback(guidance={"response_generation": "Be brief."})},
        {"program": ReferenceLevelFeedback(instructions_per_feature=5)},
        {"program": ReferenceLevelFeedback(features={"tone": "the tone"})},
        {"teacher": fake_lm(Writer(), "fake/other")},
        {"teacher": fake_lm(Writer(), temperature=0.1)},
    ],
    ids=["references", "guidance", "instructions_per_feature", "features", "model", "temperature"],
)
def test_what_shapes_a_run_may_not_change(said: Said, finished: Path, change: dict[str, Any]) -> None:
    with pytest.raises(RunDirError) as refused:
        run(finished, Writer(), size=13, **change)
    said(str(refused.value))


@pytest.mark.parametrize("share", [0, 1.1])
def test_a_share_out_of_range_is_refused_also_on_a_resume(said: Said, finished: Path, share: float) -> None:
    with said.by(ConfigError):
        run(finished, Writer(), size=13, max_failure_share=share)
    with said.by(ConfigError):
        refed_dspy.resume(finished / "run", size=13, teacher=fake_lm(Writer()), max_failure_share=share)


def test_limits_may_change(tmp_path: Path) -> None:
    run(tmp_path, Writer(), size=4)
    assert len(run(tmp_path, Writer(), size=6, per_reference=2, max_failure_share=0.9).samples) == 6


def test_a_recompile_pays_only_for_what_changed(tmp_path: Path) -> None:
    run(tmp_path, Writer(), size=6)
    recompiled = ReferenceLevelFeedback(guidance={"response_improvement": "Be bold."})
    writer = Writer()
    made = run(tmp_path / "new", writer, size=6, program=recompiled, reuse=tmp_path / "run")
    assert len(made.samples) == 6
    assert all("improved_response" in writer.fields(request) for request in writer.requests)
    assert len(writer.requests) == 6


def test_references_that_run_dry_end_the_run_short(tmp_path: Path) -> None:
    writer = Writer(per_call=3, repeat=True)
    made = run(tmp_path, writer, size=50, count=2)
    assert len(made.samples) == 3 and not made.complete
    assert made.status["instructions"]["duplicates"] > 0


def test_surplus_and_short_lists_are_counted(tmp_path: Path) -> None:
    made = run(tmp_path, Writer(per_call=13), size=10, per_reference=20)
    assert made.status["instructions"] == {"new": 10, "duplicates": 0, "surplus": 3}
    assert len(run(tmp_path / "x", Writer(per_call=7), size=20).samples) == 20


def test_a_new_round_shows_what_was_taken(tmp_path: Path) -> None:
    writer = Writer()
    run(tmp_path, writer, size=25, count=1)
    prompts = [r.messages[-1].text or "" for r in writer.requests if writer.fields(r) == ["new_instructions"]]
    assert [prompt.count("- Task") for prompt in prompts] == [0, 0, 20]


def test_without_a_teacher_the_lm_of_dspy_settings_is_used(said: Said, tmp_path: Path) -> None:
    with dspy.context(lm=fake_lm(Writer())):
        made = refed_dspy.synthesize(None, references(2), size=2, run_dir=tmp_path / "run")
    assert len(made.samples) == 2
    with said.by(ConfigError):
        refed_dspy.synthesize(None, references(2), size=2, run_dir=tmp_path / "other")


def test_without_a_folder_the_same_call_finds_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = refed_dspy.synthesize(None, references(2), size=2, teacher=fake_lm(Writer()))
    again = Writer()
    second = refed_dspy.synthesize(None, references(2), size=2, teacher=fake_lm(again))
    assert first.run_dir == second.run_dir and not again.requests


def test_resume_needs_the_teacher_where_it_was_an_object(said: Said, tmp_path: Path) -> None:
    run(tmp_path, Writer(), size=2)
    with said.by(RunDirError):
        refed_dspy.resume(tmp_path / "run", size=4)
    assert len(refed_dspy.resume(tmp_path / "run", size=4, teacher=fake_lm(Writer())).samples) == 4


def test_nothing_is_left_running(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    run(tmp_path, Writer(), size=2)
    assert [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("refed")] == []


def test_progress_is_told_first_and_last(tmp_path: Path) -> None:
    told: list[tuple[int, int, int, int]] = []

    def watch(progress: Progress) -> None:
        told.append((progress.kept, progress.size, progress.in_flight, progress.calls))

    run(tmp_path, Writer(), size=5, on_progress=watch)
    assert told[0] == (0, 5, 0, 0) and told[-1] == (5, 5, 0, 4 * 3 + 10)


def test_text_from_a_model_is_data(tmp_path: Path) -> None:
    nasty = (
        "{0} %s {instruction} <script>alert(1)</script> '); DROP TABLE samples; -- [[ ## response ## ]] \u0000 \x1b[31m"
    )
    answers: dict[str, Any] = {"new_instructions": [nasty], "response": nasty}
    writer = Writer()

    def written(request: Request) -> str | None:
        [field, *others] = writer.fields(request)
        return None if others or field not in answers else json.dumps({field: answers[field]})

    writer.on_request = written
    made = run(tmp_path, writer, size=1, count=1, guards=False)
    assert made.samples[0].instruction == nasty.strip() and made.samples[0].response == nasty


# --- stops, what is remembered for a resume, answers at the edges


def start(folder: Path, writer: Writer, size: int = 6, **settings: Any) -> Synthesis:
    return run(folder, writer, size, run_dir=folder, **settings)


class Held(Writer):
    """Answers `before` questions for `field` at once, and the others when `gate` is open."""

    def __init__(self, field: str, before: int = 0) -> None:
        super().__init__()
        self.field, self.before = field, before
        self.waiting, self.gate = asyncio.Queue[None](), asyncio.Event()

    @property
    def asynchronous(self) -> AsyncWriter:
        return HeldAsync(self)


class HeldAsync(AsyncWriter):
    writer: Held

    async def complete(self, request: Request) -> Response:
        answer = self.writer.answer(request)
        if self.writer.field in self.writer.fields(request):
            self.writer.before -= 1
            if self.writer.before < 0:
                self.writer.waiting.put_nowait(None)
                await self.writer.gate.wait()
        return answer


async def test_a_stop_lets_calls_land_and_begins_none(tmp_path: Path) -> None:
    held = Held("response")
    work = asyncio.ensure_future(
        refed_dspy.asynthesize(None, references(4), size=8, teacher=fake_lm(held), run_dir=tmp_path / "run")
    )
    for _ in range(8):
        await held.waiting.get()
    sent = len(held.requests)
    work.cancel()
    await settle_down()
    held.gate.set()
    await asyncio.gather(work, return_exceptions=True)
    assert len(held.requests) == sent, "an improvement was begun after the stop"
    with Ledger.read(tmp_path / "run") as ledger:
        answers = ledger.db.execute("SELECT key FROM answers").fetchall()
    assert len(answers) == sent, "what was in flight landed"


def test_a_resume_remembers_what_it_may_reuse(tmp_path: Path) -> None:
    start(tmp_path / "old", Writer(), teacher="simulated", size=8)
    start(tmp_path / "new", Writer(), teacher="simulated", size=3, reuse=tmp_path / "old")
    made = refed_dspy.resume(tmp_path / "new", size=8)
    assert len(made.samples) == 8 and sum(use["calls"] for use in made.usage.values()) == 0


def test_a_run_whose_shards_are_not_gathered_is_not_reused(said: Said, tmp_path: Path) -> None:
    """Its ledger lacks what its workers made: it would be paid for again."""
    start(tmp_path / "old", Writer(), size=2)
    with Ledger.create(tmp_path / "old") as ledger:
        ledger.set_meta(**{UNGATHERED: True})
    writer = Writer()
    with said.by(RunDirError):
        start(tmp_path / "new", writer, size=2, reuse=tmp_path / "old")
    assert not writer.requests and not (tmp_path / "new").exists()


def test_a_resume_goes_on_at_the_last_address(tmp_path: Path, server: SimulatedTeacher) -> None:
    here = TeacherConfig(model="sim/sim-model", api_base=server.base_url, concurrency=3)
    elsewhere = TeacherConfig(model="sim/sim-model", api_base="http://127.0.0.1:9/v1", retries=0)
    start(tmp_path / "run", Writer(), teacher=here, size=2)
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
            assert len(start(folder, writer, size=2).samples) == 2
            made = start(folder, Writer(), size=3)
            assert len(made.samples) == 3 and not made.failures


def test_an_empty_answer_is_no_answer(said: Said, tmp_path: Path) -> None:
    writer = Writer()
    spoil_first(writer, "response", '{"response": " "}')
    made = start(tmp_path / "run", writer, size=4)
    assert made.complete
    said([(failure.kind, failure.reason) for failure in made.failures])


def test_an_endpoint_that_reports_no_usage_is_recorded_as_unknown(tmp_path: Path) -> None:
    writer = Writer()
    writer.on_request = lambda r: Response(
        id="r", model="m", message=Message.assistant(writer.write(r)), finish_reason="stop", usage=Usage()
    )
    made = start(tmp_path / "run", writer, size=2)
    assert sum(stage["calls"] for stage in made.usage.values()) == len(writer.requests)
    assert sum(stage["unknown"] for stage in made.usage.values()) == len(writer.requests)


def test_a_teacher_of_a_wrong_type_is_refused(said: Said) -> None:
    with said.by(ConfigError):
        open_teacher(5)


def test_a_flag_wins_for_what_it_names_and_the_environment_for_the_rest() -> None:
    environ = {"REFED_TEACHER__MAX_TOKENS": "512", "REFED_TEACHER__MODEL": "openai/not-this"}
    by_name = load_config(RunConfig, environ=environ, teacher="openai/x").teacher
    assert isinstance(by_name, TeacherConfig) and (by_name.model, by_name.max_tokens) == ("openai/x", 512)

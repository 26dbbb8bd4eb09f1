"""Whole runs with a scripted engine: sizes, resumes, refusals, recorded calls."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15

import refed_dspy
from refed_dspy import ReferenceLevelFeedback
from refed_dspy.errors import ConfigError, RunDirError, RunStopped, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers.progress import Progress
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references, response


def run(tmp_path: Path, writer: Writer, size: int = 12, count: int = 4, **settings: Any) -> Synthesis:
    settings.setdefault("program", None)
    program = settings.pop("program")
    return refed_dspy.synthesize(
        program, references(count), size=size, teacher=fake_lm(writer), run_dir=tmp_path / "run", **settings
    )


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


def test_the_same_call_again_pays_for_nothing(tmp_path: Path) -> None:
    run(tmp_path, Writer())
    again = Writer()
    assert len(run(tmp_path, again).samples) == 12
    assert not again.requests


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
    for size, calls in ((15, 2 + 2 + 2 * 15), (25, 4 + 3 + 2 * 25)):
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
    broken = Writer()
    broken.on_request = lambda request: _break(broken, 12)
    with pytest.raises(Killed):
        run(tmp_path, broken, size=40)
    made = run(tmp_path, Writer(), size=6)
    assert len(made.samples) == 6 and made.complete


def question_of(request: Any) -> tuple[Any, Any]:
    """What two requests share if they are the same question."""
    return request.system, request.messages


class Killed(BaseException):
    """Stands for the process going away in the middle of a call."""


@pytest.mark.parametrize("after", [1, 2, 3, 4, 5, 8, 11])
def test_a_run_broken_off_anywhere_pays_for_no_answer_twice(tmp_path: Path, after: int) -> None:
    broken = Writer()
    broken.on_request = lambda request: _break(broken, after)
    with pytest.raises(Killed):
        run(tmp_path, broken, size=4, count=1)
    rest = Writer()
    rest.numbers = broken.numbers
    made = run(tmp_path, rest, size=4, count=1)
    assert len(made.samples) == 4
    paid = [question_of(r) for r in broken.requests[: after - 1]]
    assert not [r for r in rest.requests if question_of(r) in paid]


def _break(writer: Writer, after: int) -> None:
    if len(writer.requests) >= after:
        raise Killed


def test_malformed_rows_fail_are_recorded_and_made_up_for(tmp_path: Path) -> None:
    writer, spoilt = Writer(), set[Any]()

    def spoil(request: Any) -> str | None:
        """No JSON for the first response, however often it is asked for."""
        if writer.fields(request) == ["response"] and not spoilt:
            spoilt.add(question_of(request))
        return "no JSON" if question_of(request) in spoilt else None

    writer.on_request = spoil
    made = run(tmp_path, writer, size=15, count=6)
    assert len(made.samples) == 15
    assert made.failures and {f.kind for f in made.failures} == {"malformed"}
    recorded = sum(stage["calls"] for stage in made.usage.values())
    assert recorded == len(writer.requests), "calls that failed to parse are paid for and recorded"


def test_a_failed_answer_is_not_asked_for_again_in_the_same_run(tmp_path: Path) -> None:
    failing = Writer()
    failing.on_request = lambda r: "no JSON" if question_of(r) == question_of(failing.requests[0]) else None
    made = run(tmp_path, failing, size=2, count=3)
    assert [f.kind for f in made.failures] == ["malformed"]
    bad = question_of(failing.requests[0])
    assert [question_of(r) for r in failing.requests].count(bad) == 3, "the first try and two further ones"
    again = Writer()
    run(tmp_path, again, size=50, count=3)
    assert again.requests and bad not in [question_of(r) for r in again.requests]


def test_each_further_try_is_recorded_as_a_separate_call(tmp_path: Path) -> None:
    made = run(tmp_path, Writer("no JSON", "no JSON"), size=1, count=1)
    assert made.complete and not made.failures
    assert sum(use["calls"] for use in made.usage.values()) == 5 + 2


def test_a_stage_that_only_fails_stops_the_run(said: Said, tmp_path: Path) -> None:
    with said.by(RunStopped):
        run(tmp_path, Writer(*["no JSON"] * 50), count=30)


def test_a_passing_fault_is_asked_again_on_the_next_start(said: Said, tmp_path: Path) -> None:
    busy = Writer()
    faults = [lm15.ServerError("busy", status=500)] * 3
    busy.on_request = lambda r: faults.pop() if faults and busy.fields(r) == ["response"] else None
    made = run(tmp_path, busy, size=7, count=1)
    assert made.complete
    said([f.kind for f in made.failures])
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
    with pytest.raises(TeacherRefused, match="api_key_env") as error:
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


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"seed": 1}, "seed was 0, is 1"),
    ({"count": 5}, "references was"),
    ({"program": ReferenceLevelFeedback(guidance={"response_generation": "Be brief."})}, "program.response_generation"),
    ({"program": ReferenceLevelFeedback(instructions_per_feature=5)}, "instructions_per_feature was 10, is 5"),
    ({"program": ReferenceLevelFeedback(features={"tone": "the tone"})}, "features was"),
]


@pytest.mark.parametrize(("change", "named"), CHANGES)
def test_what_shapes_a_run_may_not_change(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    run(tmp_path, Writer())
    with pytest.raises(RunDirError, match=named):
        run(tmp_path, Writer(), size=13, **change)


def test_another_model_or_temperature_is_refused(tmp_path: Path) -> None:
    run(tmp_path, Writer())
    for name, settings, named in (
        ("fake/other", {}, "teacher.model"),
        ("fake/model", {"temperature": 0.1}, "temperature"),
    ):
        lm = dspy.LM(name, engine=Writer(), async_engine=Writer().asynchronous, **settings)
        with pytest.raises(RunDirError, match=named):
            refed_dspy.synthesize(None, references(4), size=13, teacher=lm, run_dir=tmp_path / "run")


def test_limits_may_change(tmp_path: Path) -> None:
    run(tmp_path, Writer(), size=4)
    assert len(run(tmp_path, Writer(), size=6, per_reference=2, max_failure_share=0.9).samples) == 6


def test_a_recompile_pays_only_for_what_changed(tmp_path: Path) -> None:
    run(tmp_path, Writer(), size=6)
    recompiled = ReferenceLevelFeedback(guidance={"response_improvement": "Be bold."})
    writer = Writer()
    made = refed_dspy.synthesize(
        recompiled, references(4), size=6, teacher=fake_lm(writer), run_dir=tmp_path / "new", reuse=tmp_path / "run"
    )
    assert len(made.samples) == 6
    assert {tuple(writer.fields(r)) for r in writer.requests} == {
        ("analysis", "implementation_strategy", "improved_response")
    }
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


def test_works_inside_a_running_event_loop(tmp_path: Path) -> None:
    async def notebook_cell() -> Synthesis:
        return run(tmp_path, Writer(), size=3)

    assert len(asyncio.run(notebook_cell()).samples) == 3


async def test_asynthesize(tmp_path: Path) -> None:
    made = await refed_dspy.asynthesize(
        None, references(2), size=3, teacher=fake_lm(Writer()), run_dir=tmp_path / "run"
    )
    assert len(made.samples) == 3


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


def test_two_runs_in_one_folder_at_once_are_refused(said: Said, tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "run"), said.by(RunDirError):
        run(tmp_path, Writer())


def test_a_cut_answer_is_a_failure_whatever_the_engine(tmp_path: Path) -> None:
    cut, half = Writer(), response('{"subject_areas": "a"', finish_reason="length")
    cut.on_request = lambda r: half if question_of(r) == question_of(cut.requests[0]) else None
    made = run(tmp_path, cut, size=2)
    assert made.complete and [f.kind for f in made.failures] == ["cut"]
    assert [question_of(r) for r in cut.requests].count(question_of(cut.requests[0])) == 1, "it is not asked again"


def test_sizes_below_one_are_refused(said: Said, tmp_path: Path) -> None:
    for settings in ({"size": 0}, {"per_reference": 0}):
        with said.by(ConfigError):
            run(tmp_path, Writer(), **settings)


@pytest.mark.parametrize("share", [0, -0.1, 1.1])
def test_a_share_out_of_range_is_refused_also_on_a_resume(tmp_path: Path, share: float) -> None:
    run(tmp_path, Writer(), size=1)
    with pytest.raises(ConfigError, match="max_failure_share"):
        run(tmp_path, Writer(), size=2, max_failure_share=share)
    with pytest.raises(ConfigError, match="max_failure_share"):
        refed_dspy.resume(tmp_path / "run", size=2, teacher=fake_lm(Writer()), max_failure_share=share)


def test_nothing_is_left_running(tmp_path: Path) -> None:
    run(tmp_path, Writer(), size=2)
    gc.collect()
    assert [t.name for t in threading.enumerate() if t.name.startswith("refed")] == []


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
    writer = Writer()
    writer.on_request = lambda r: _answer_with(writer, r, nasty)
    made = run(tmp_path, writer, size=1, count=1, guards=False)
    assert made.samples[0].instruction == nasty.strip() and made.samples[0].response == nasty


def _answer_with(writer: Writer, request: Any, text: str) -> str | None:
    fields = writer.fields(request)
    if fields == ["new_instructions"]:
        return json.dumps({"new_instructions": [text]})
    return json.dumps({"response": text}) if fields == ["response"] else None

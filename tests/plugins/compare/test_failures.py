"""Programs that fail on some rows, judges that abstain, and references that run dry."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Request
from dspy.utils import exceptions as lm_errors
from typer.testing import CliRunner

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import ReferenceLevelFeedback, compare
from refed_dspy.cli.main import app
from refed_dspy.errors import MalformedAnswer, NoAnswer, RunStopped
from refed_dspy.plugins.compare.side_by_side import SideBySide
from refed_dspy.programs.reference_level import METHODS
from refed_dspy.records import Reference
from tests.plugins.compare.helpers import SMALL, Judge, config, facts, line, prompt, rows, run
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


@pytest.mark.parametrize(
    "failing",
    [
        "response_feedback",
        *(pytest.param(stage, marks=pytest.mark.slow) for stage in ("sample_feedback", "response_improvement")),
    ],
)
def test_one_programs_failures_lose_no_row_of_the_others(said: Said, tmp_path: Path, failing: str) -> None:
    """At every stage, also where one reference's feedback fails."""
    mark = {
        "sample_feedback": "<response>\nresponse number",
        "response_feedback": "Topic 1 is about",
        "response_improvement": "<reference_feedback>",
    }[failing]
    writer = Writer(per_call=3)
    size = 6  # three tries each: 18 failures of one stage in a row do not stop a run, 20 do

    def spoil(request: Request) -> str | None:
        shown = prompt(request)
        fields = writer.fields(request)
        wanted = ["response_feedback"] if failing.endswith("feedback") else ["analysis", "implementation_strategy"]
        return "no JSON" if fields[: len(wanted)] == wanted and mark in shown else None

    writer.on_request = spoil
    made = compare(
        None, references(3), teacher=fake_lm(writer), judge=fake_lm(Judge()), out=tmp_path / "c",
        **{**SMALL, "max_failure_share": 1, "size": size, "per_reference": 2},
    )  # fmt: skip
    lost = "sample-level" if failing == "sample_feedback" else "reference-level"
    other = "reference-level" if failing == "sample_feedback" else "sample-level"
    gone = 2 if failing == "response_feedback" else size
    assert made.instructions == size and made.references == 3 and line(made, other).rows == size
    assert line(made, lost).rows == size - gone and line(made, lost).failed == {"malformed": gone}
    said(made.lines())
    assert line(made, lost).feedback == {"sample_feedback": 0, "response_feedback": 2}.get(failing, 3)
    assert facts(tmp_path / "c")["programs"][2 if lost == "sample-level" else 3]["failed"] == {"malformed": gone}


@pytest.mark.slow
def test_an_answer_that_failed_in_passing_is_shown_as_that(said: Said, tmp_path: Path) -> None:
    writer = Writer(per_call=3)
    down = lm_errors.LMServerError("the endpoint is down", model="fake")
    writer.on_request = lambda request: down if "<reference_feedback>" in prompt(request) else None
    made = compare(
        None, references(3), teacher=fake_lm(writer), judge=fake_lm(Judge()), out=tmp_path / "c",
        **{**SMALL, "max_failure_share": 1},
    )  # fmt: skip
    assert line(made, "sample-level").rows == 9
    said(line(made, "reference-level").failed)


def test_a_row_whose_judge_did_not_answer_waits_for_the_next_start(tmp_path: Path) -> None:
    judge = Judge()
    judge.queue.extend([lm_errors.LMServerError("the endpoint is down", model="fake")] * 3)
    settings = {**SMALL, "max_failure_share": 1, "size": 4, "grades": True, "out": tmp_path / "c"}
    with pytest.raises(RunStopped):
        compare(None, references(3), teacher=fake_lm(Writer()), judge=fake_lm(judge), **settings)
    made = compare(None, references(3), teacher=fake_lm(Writer()), judge=fake_lm(judge), **settings)
    assert made.instructions == 4 and all(row["grade"] == 4 for row in rows(tmp_path / "c"))


def test_a_failure_in_passing_of_a_references_feedback_waits_for_the_next_start() -> None:
    class Silent(ReferenceLevelFeedback):
        error: Any = NoAnswer

        async def collect_response_feedback(self, reference: Reference) -> str:
            raise self.error("response_feedback", reference.id, "nothing")

    reference = Reference(instruction="a", response="b")
    side = SideBySide({"plain": METHODS["instruction-only"](), "ours": Silent()}, "plain")
    with pytest.raises(NoAnswer):
        asyncio.run(side.collect_response_feedback(reference))
    Silent.error = MalformedAnswer
    learned = asyncio.run(side.collect_response_feedback(reference))
    assert learned["plain"] == "" and isinstance(learned["ours"], MalformedAnswer)


@pytest.mark.slow
def test_a_judge_that_abstains_everywhere_is_a_clear_line_and_no_picture(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    made = run(server, tmp_path / "c", judge=fake_lm(Judge("cannot tell", "cannot tell")), grades=True)
    said([made.stopped, *made.notes()])
    assert line(made, "sample-level").judgements.asked == 9 and line(made, "sample-level").win_rate is None
    assert not (tmp_path / "c" / "win-rates.png").exists()
    assert line(made, "sample-level").feedback == 9, "what does not depend on a judge is there all the same"


@pytest.mark.slow
def test_a_failing_judge_ends_the_command_with_1(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    settings = {**SMALL, "size": 2, "out": str(tmp_path / "c"), "references": str(tmp_path / "refs.jsonl")}
    settings["teacher"] = config(server).model_dump(mode="json", exclude_unset=True)
    settings["judge"] = config(server, model="sim/other-model", max_tokens=16, malformed_retries=0).model_dump(
        mode="json", exclude_unset=True
    )
    (tmp_path / "refs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in references(3)))
    (tmp_path / "c.yaml").write_text(json.dumps(settings))
    done = CliRunner().invoke(app, ["compare", "--config", str(tmp_path / "c.yaml")])
    assert done.exit_code == 1
    said(done.output)
    good = {**settings, "judge": config(server, model="sim/other-model").model_dump(mode="json", exclude_unset=True)}
    (tmp_path / "c.yaml").write_text(json.dumps({**good, "out": str(tmp_path / "d")}))
    done = CliRunner().invoke(app, ["compare", "--config", str(tmp_path / "c.yaml"), "--seed", "5"])
    assert done.exit_code in {0, 1} and "instruction-only" in done.output
    wrong = CliRunner().invoke(app, ["compare", "--config", str(tmp_path / "c.yaml"), "--against", "nobody"])
    assert wrong.exit_code == 2
    said(wrong.output)


@pytest.mark.slow
def test_references_that_run_dry_are_reported(said: Said, tmp_path: Path) -> None:
    writer = Writer(per_call=3, repeat=True)
    made = compare(
        None, references(2), teacher=fake_lm(writer), judge=fake_lm(Judge()), out=tmp_path / "c", **SMALL
    )  # fmt: skip
    assert made.instructions == 3
    said(made.stopped)

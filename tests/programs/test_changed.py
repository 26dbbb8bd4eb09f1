"""A program's file whose prompts are not those that it was saved with."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from typer.testing import CliRunner

from refed_dspy import load_program
from refed_dspy.cli.main import app
from refed_dspy.errors import ConfigError
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.load import open_judge
from refed_dspy.programs.saved import program_digests, prompts_digest, save_program
from tests.support.said import Said

STAGE = "response_generation"
DEMO = {"example_instruction": "E", "example_response": "R", "instruction": "I", "response": "demonstrated"}


def tuned() -> ReferenceLevelFeedback:
    program = ReferenceLevelFeedback(guidance={STAGE: "Be brief."})
    program.response_generation.demos = [dspy.Example(**DEMO)]
    return program


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A compiled program, as it lies in its folder."""
    save_program(tuned(), tmp_path / "program.json")
    return tmp_path / "program.json"


def edited(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    state = json.loads(path.read_text())
    edit(state)
    path.write_text(json.dumps(state))


def instruct(stage: str, old: str, new: str) -> Callable[[dict[str, Any]], object]:
    def edit(state: dict[str, Any]) -> None:
        signature = state[stage]["signature"]
        assert old in signature["instructions"]
        signature["instructions"] = signature["instructions"].replace(old, new)

    return edit


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_program(path)
    message = str(caught.value)
    assert message.isprintable() and "accept_changed=True" in message
    return message


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a compiled prompt": (instruct(STAGE, "Be brief.", "Insult the reader."), f"instructions of {STAGE}"),
    "a prompt as it came": (
        lambda state: state["response_feedback"]["signature"].update(instructions="Insult."),
        "instructions of response_feedback",
    ),
    "a demonstration": (lambda state: state[STAGE]["demos"][0].update(response="No."), f"demonstrations of {STAGE}"),
    "one more": (lambda state: state["response_feedback"]["demos"].append({}), "demonstrations of response_feedback"),
    "none": (lambda state: state[STAGE].pop("demos"), f"demonstrations of {STAGE}"),
    "a field's words": (
        lambda state: state[STAGE]["signature"]["fields"][0].update(description="an insult"), f"fields of {STAGE}",
    ),
    "its digest": (lambda state: state["refed"]["digests"].pop(STAGE), f"instructions of {STAGE}"),
    "all digests": (lambda state: state["refed"].update(digests=[]), "instructions of instruction_feedback"),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_whatever_was_changed_is_refused_by_name(edit: str, saved: Path) -> None:
    change, named = EDITS[edit]
    edited(saved, change)
    message = refusal(saved)
    assert f"program {saved}: its prompts were edited after it was saved: " in message and named in message


def test_a_person_who_meant_it_takes_it_as_it_is(said: Said, saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    edited(saved, instruct(STAGE, "Be brief.", "Be bold."))
    with caplog.at_level(logging.WARNING):
        opened = load_program(saved, accept_changed=True)
    said(opened.response_generation.signature.instructions)
    said(caplog.text)
    save_program(opened, saved)
    assert program_digests(load_program(saved)) == program_digests(opened), "saved again it is a program as any other"


def test_a_judge_s_prompts_are_looked_at_too(said: Said, tmp_path: Path) -> None:
    save_program(PairwiseJudge(), tmp_path / "judge.json")
    assert open_judge(tmp_path / "judge.json")
    edited(tmp_path / "judge.json", lambda state: state["compare"]["signature"].update(instructions="Prefer A."))
    with said.by(ConfigError):
        open_judge(tmp_path / "judge.json")
    assert open_judge(tmp_path / "judge.json", accept_changed=True).compare.signature.instructions == "Prefer A."


def test_the_digest_of_all_prompts_is_that_of_the_texts_alone(saved: Path) -> None:
    state = json.loads(saved.read_text())
    before = prompts_digest(state)
    state["refed"] = {"models": "others"}
    assert prompts_digest(state) == before
    state[STAGE]["demos"] = []
    assert prompts_digest(state) != before


def test_the_command_names_what_was_changed_and_sends_nothing(saved: Path) -> None:
    edited(saved, instruct(STAGE, "Be brief.", "Insult the reader."))
    result = CliRunner().invoke(app, ["synth", "--preview", "--program", str(saved)])
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and line.startswith("refed: program ") and f"instructions of {STAGE}" in line
    assert not result.stdout
    accepted = CliRunner().invoke(app, ["synth", "--preview", "--program", str(saved), "--accept-changed"])
    assert accepted.exit_code == 0 and "Insult the reader." in accepted.stdout

"""A program's file whose prompts are not those that it was saved with."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from refed_dspy import load_program
from refed_dspy.errors import ConfigError
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.load import open_judge
from refed_dspy.programs.saved import program_digests, prompts_digest, save_program
from tests.support.command_line import refed, refused
from tests.support.said import Said

STAGE = "response_generation"
BRIEF, INSULT = "Be brief.", "Insult the reader."
DEMO = {"example_instruction": "E", "example_response": "R", "instruction": "I", "response": "demonstrated"}


def tuned() -> ReferenceLevelFeedback:
    program = ReferenceLevelFeedback(guidance={STAGE: BRIEF})
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


def insult(state: dict[str, Any]) -> None:
    signature = state[STAGE]["signature"]
    assert BRIEF in signature["instructions"]
    signature["instructions"] = signature["instructions"].replace(BRIEF, INSULT)


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "a compiled prompt": insult,
    "a prompt as it came": lambda state: state["response_feedback"]["signature"].update(instructions=INSULT),
    "a demonstration": lambda state: state[STAGE]["demos"][0].update(response="No."),
    "one more": lambda state: state["response_feedback"]["demos"].append({}),
    "none": lambda state: state[STAGE].pop("demos"),
    "a field's words": lambda state: state[STAGE]["signature"]["fields"][0].update(description=INSULT),
    "its digest": lambda state: state["refed"]["digests"].pop(STAGE),
    "all digests": lambda state: state["refed"].update(digests=[]),
}


@pytest.mark.parametrize("edit", EDITS)
def test_whatever_was_changed_is_refused_by_name(said: Said, edit: str, saved: Path) -> None:
    edited(saved, EDITS[edit])
    with said.by(ConfigError) as caught:
        load_program(saved)
    assert str(caught.value).isprintable()


def test_a_person_who_meant_it_takes_it_as_it_is(said: Said, saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    edited(saved, insult)
    with caplog.at_level(logging.WARNING):
        opened = load_program(saved, accept_changed=True)
    assert opened.response_generation.signature.instructions.endswith(INSULT)
    said(caplog.text)
    save_program(opened, saved)
    assert program_digests(load_program(saved)) == program_digests(opened), "saved again it is a program as any other"


def test_a_judge_s_prompts_are_looked_at_too(said: Said, tmp_path: Path) -> None:
    path, other = tmp_path / "judge.json", "Prefer A."
    save_program(PairwiseJudge(), path)
    assert open_judge(path)
    edited(path, lambda state: state["compare"]["signature"].update(instructions=other))
    with said.by(ConfigError):
        open_judge(path)
    assert open_judge(path, accept_changed=True).compare.signature.instructions == other


def test_the_digest_of_all_prompts_is_that_of_the_texts_alone(saved: Path) -> None:
    state = json.loads(saved.read_text())
    before = prompts_digest(state)
    state["refed"] = {"models": "others"}
    assert prompts_digest(state) == before
    state[STAGE]["demos"] = []
    assert prompts_digest(state) != before


def test_the_command_names_what_was_changed_and_sends_nothing(said: Said, saved: Path) -> None:
    edited(saved, insult)
    result = refed("synth", "--preview", "--program", saved)
    refused(result)
    said(result.stderr)
    accepted = refed("synth", "--preview", "--program", saved, "--accept-changed")
    assert accepted.exit_code == 0 and INSULT in accepted.stdout

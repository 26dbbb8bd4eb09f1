"""Programs on disk, and the digests that tell two prompts apart."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.utils.saving import get_dependency_versions

from refed_dspy import load_program
from refed_dspy.errors import ConfigError
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.load import load_into, open_judge
from refed_dspy.programs.reference_level import STAGES
from refed_dspy.programs.saved import program_digests, program_state, prompts_digest, save_program
from refed_dspy.records import Analysis, ImplementationStrategy
from refed_dspy.signatures import ResponseGeneration
from tests.support.command_line import refed, refused
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm

KEY = "sk-proj-4f9a0c55e1d27b"
STAGE = "response_generation"
REFERENCE = {"instruction": "Explain tides.", "response": "The moon pulls."}
DEMO = {
    "example_instruction": "E",
    "example_response": "R {x}",
    "instruction": "I",
    "response": "“Ü” 🐦\u2028 </response>",
}
RECORDS = {
    "reference_feedback": "F",
    "instruction": "I",
    "response": "R",
    "analysis": Analysis(original_strengths=["s"], improvement_opportunities=[], relevant_feedback=["f"]),
    "implementation_strategy": ImplementationStrategy(planned_changes=["c"], rationale="r"),
    "improved_response": "B",
}


def tuned() -> ReferenceLevelFeedback:
    """A program as an optimizer leaves one: other instructions, demos, an LM with a key."""
    program = ReferenceLevelFeedback({"tone": "How it sounds"}, guidance={STAGE: "Write for {children}."})
    improvement = program.response_improvement
    improvement.signature = improvement.signature.with_instructions("Improve «this».")
    improvement.demos = [dspy.Example(**RECORDS, augmented=True), dict(RECORDS)]
    program.response_generation.demos = [dspy.Example(**DEMO).with_inputs("instruction")]
    program.set_lm(dspy.LM("openai/secret-model", api_key=KEY, api_base="http://secret.example/v1"))
    return program


def like_tuned() -> ReferenceLevelFeedback:
    return ReferenceLevelFeedback({"tone": "How it sounds"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "program.json"


@pytest.fixture
def saved(file: Path) -> Path:
    save_program(tuned(), file)
    return file


def refusal(program: dspy.Module, source: Path | str) -> str:
    """The one line with which this file is refused. The program stays as it was."""
    before = program_digests(program)
    with pytest.raises(ConfigError) as caught:
        load_into(program, str(source))
    message = str(caught.value)
    assert message.isprintable(), f"not one plain line: {message!r}"
    assert message.startswith(f"program {source}: ")
    assert program_digests(program) == before
    return message


# --- there and back


def test_dspy_loads_what_is_saved_here_without_a_warning(saved: Path, tmp_path: Path) -> None:
    program = like_tuned()
    program.load(saved)
    assert program_digests(program) == program_digests(tuned()) and all(
        each.lm is None for each in program.predictors()
    )
    single, file = dspy.Predict("question -> answer"), tmp_path / "single.json"
    single.demos = [{"question": "Q", "answer": "A"}]
    save_program(single, file)
    loaded = dspy.Predict("question -> answer")
    loaded.load(file)
    ours = load_program(file, into=dspy.Predict("question -> answer"))
    assert loaded.demos == ours.demos == single.demos
    assert json.loads(file.read_text())["metadata"] == {"dependency_versions": get_dependency_versions()}, (
        "else it warns"
    )


def test_what_dspy_saved_loads_here(tmp_path: Path) -> None:
    for number, program in enumerate((dspy.Predict("question -> answer"), dspy.ChainOfThought("question -> answer"))):
        for predictor in program.predictors():
            predictor.demos = [{"question": "Q", "answer": "A"}]
        program.save(file := tmp_path / f"{number}.json")
        loaded = load_program(file, into=type(program)("question -> answer"))
        assert program_digests(loaded) == program_digests(program)


def test_a_single_predictor_that_an_earlier_version_saved_loads(tmp_path: Path) -> None:
    single, file = dspy.Predict("question -> answer"), tmp_path / "single.json"
    single.demos = [{"question": "Q", "answer": "A"}]
    file.write_text(json.dumps(program_state(single)))
    assert load_program(file, into=dspy.Predict("question -> answer")).demos == single.demos


def test_a_program_comes_back_as_it_was_saved_and_is_saved_the_same(saved: Path, tmp_path: Path) -> None:
    loaded = like_tuned()
    load_into(loaded, str(saved))
    assert program_digests(loaded) == program_digests(tuned())
    assert program_digests(loaded) != program_digests(like_tuned())
    assert [dict(demo) for demo in loaded.response_generation.demos] == [DEMO]
    improvement = tuned().response_improvement
    assert loaded.response_improvement.signature.instructions == improvement.signature.instructions
    save_program(loaded, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == saved.read_bytes()


def test_a_loaded_program_asks_what_the_saved_one_asked(saved: Path) -> None:
    loaded, program = like_tuned(), tuned()
    load_into(loaded, str(saved))
    program.set_lm(None)
    requests = []
    for asked in (program, loaded):
        writer = Writer(per_call=1)
        with dspy.context(lm=fake_lm(writer)):
            asked(REFERENCE)
        requests.append([(request.system, request.messages) for request in writer.requests])
    assert requests[0] == requests[1]


def test_the_file_holds_no_language_model_and_no_key_and_text_as_people_write_it(saved: Path) -> None:
    text = saved.read_text(encoding="utf-8")
    assert KEY not in text and "secret" not in text and "“Ü” 🐦" in text
    state = json.loads(text)
    assert set(state) == {*STAGES, "refed", "metadata"}
    assert all(state[stage]["lm"] is None for stage in STAGES)


def test_a_file_cannot_send_the_callers_key_elsewhere(saved: Path) -> None:
    elsewhere = {"api_base": "http://other.example/v1"}
    state = json.loads(saved.read_text(encoding="utf-8"))
    for stage in STAGES:
        state[stage].update(lm={"model": "openai/other", **elsewhere}, config=elsewhere)
    saved.write_text(json.dumps(state))
    loaded = like_tuned()
    with suppress(ConfigError):
        load_into(loaded, str(saved))
    assert all(predictor.lm is None and predictor.config == {} for predictor in loaded.predictors())


def test_a_saved_program_replaces_the_one_there_but_where_it_fails(saved: Path) -> None:
    save_program(ReferenceLevelFeedback(), saved)
    load_into(ReferenceLevelFeedback(), str(saved))
    before = saved.read_bytes()
    program = like_tuned()
    program.response_generation.demos = [{"instruction": "\ud800"}]
    with pytest.raises(UnicodeEncodeError):
        save_program(program, saved)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == before


def test_a_file_that_dspy_itself_saved_can_be_loaded(file: Path) -> None:
    program = tuned()
    program.set_lm(None)
    program.save(str(file))
    loaded = like_tuned()
    load_into(loaded, str(file))
    assert program_digests(loaded) == program_digests(program)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none"):
        save_program(ReferenceLevelFeedback(), tmp_path / "none" / "program.json")


# --- files that do not fit


@pytest.mark.parametrize(
    "features",
    [{"subject_areas": "x"}, {"tone": "How it sounds", "audience": "x"}],
    ids=lambda features: " ".join(features),
)
def test_a_program_made_for_other_features_is_refused_by_stage(
    said: Said, saved: Path, features: dict[str, str]
) -> None:
    said(refusal(ReferenceLevelFeedback(features), saved))


TEXT = ResponseGeneration.input_fields["instruction"]
OTHER_FIELDS: dict[str, Callable[[Any], Any]] = {
    "another bound": lambda made: made.delete("response").append("response", dspy.OutputField(), str),
    "an input less": lambda made: made.delete("example_response"),
    "inputs in another order": lambda made: made.delete("instruction").prepend("instruction", TEXT, str),
    "another output": lambda made: made.delete("response").append("answer", dspy.OutputField(), str),
}


@pytest.mark.parametrize("change", OTHER_FIELDS)
def test_a_program_made_for_other_fields_is_refused(said: Said, saved: Path, change: str) -> None:
    program = like_tuned()
    program.response_generation.signature = OTHER_FIELDS[change](program.response_generation.signature)
    said(refusal(program, saved))


def test_a_feature_described_in_other_words_is_the_same_field(saved: Path) -> None:
    loaded = ReferenceLevelFeedback({"tone": "In other words"})
    load_into(loaded, str(saved))
    assert program_digests(loaded) == program_digests(tuned())


# --- files that are broken


def test_a_missing_file_and_a_folder_are_refused(said: Said, file: Path, tmp_path: Path) -> None:
    said([refusal(like_tuned(), file), refusal(like_tuned(), tmp_path)])


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"program", b"\xef\xbb\xbf{}", b'{"a": 1}}'])
def test_a_file_that_is_not_json_is_refused(said: Said, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    said(refusal(like_tuned(), file))


@pytest.mark.parametrize("content", ["[]", "3", "null", "{}", '"response_generation"', '{"refed": {}}'])
def test_json_that_is_no_program_is_refused_with_what_it_lacks(file: Path, content: str) -> None:
    file.write_text(content)
    message = refusal(like_tuned(), file)
    assert all(stage in message for stage in STAGES)


def test_a_state_without_one_stage_is_refused_by_its_name(said: Said, saved: Path) -> None:
    state = json.loads(saved.read_text(encoding="utf-8"))
    del state[STAGE]
    saved.write_text(json.dumps(state))
    said(refusal(like_tuned(), saved))


WRONG: dict[str, list[Any]] = {
    "response_generation": [None, "text", [], {}],
    "response_generation.signature": [None, [], {}],
    "response_generation.signature.instructions": [5, None],
    "response_generation.demos": [None, "text", ["text"]],
    "refed": [[1], "text"],
    "refed.fields": [None, ["text"]],
}


@pytest.mark.parametrize(("place", "value"), [(place, value) for place, group in WRONG.items() for value in group])
def test_a_state_with_a_wrong_value_is_refused(saved: Path, place: str, value: Any) -> None:
    state = holder = json.loads(saved.read_text(encoding="utf-8"))
    *outer, last = place.split(".")
    for step in outer:
        holder = holder[step]
    holder[last] = value
    saved.write_text(json.dumps(state))
    refusal(like_tuned(), saved)


# --- prompts that are not those that were saved

BRIEF, INSULT = "Be brief.", "Insult the reader."


@pytest.fixture
def plain(file: Path) -> Path:
    """A program with the usual features, as a compile leaves it."""
    program = ReferenceLevelFeedback(guidance={STAGE: BRIEF})
    program.response_generation.demos = [dspy.Example(**DEMO)]
    save_program(program, file)
    return file


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
def test_whatever_was_changed_is_refused_by_name(
    said: Said, edit: str, plain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edited(plain, EDITS[edit])
    monkeypatch.chdir(plain.parent)
    with said.by(ConfigError) as caught:
        load_program(plain.name)
    assert str(caught.value).isprintable()


def test_a_person_who_meant_it_takes_it_as_it_is(said: Said, plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    edited(plain, insult)
    with caplog.at_level(logging.WARNING):
        opened = load_program(plain, accept_changed=True)
    assert opened.response_generation.signature.instructions.endswith(INSULT)
    said(caplog.text)
    save_program(opened, plain)
    assert program_digests(load_program(plain)) == program_digests(opened), "saved again it is a program as any other"


def test_a_judge_s_prompts_are_looked_at_too(said: Said, tmp_path: Path) -> None:
    path, other = tmp_path / "judge.json", "Prefer A."
    save_program(PairwiseJudge(), path)
    assert open_judge(path)
    edited(path, lambda state: state["compare"]["signature"].update(instructions=other))
    with said.by(ConfigError):
        open_judge(path)
    assert open_judge(path, accept_changed=True).compare.signature.instructions == other


def test_the_digest_of_all_prompts_is_that_of_the_texts_alone(plain: Path) -> None:
    state = json.loads(plain.read_text())
    before = prompts_digest(state)
    state["refed"] = {"models": "others"}
    assert prompts_digest(state) == before
    state[STAGE]["demos"] = []
    assert prompts_digest(state) != before


def test_the_command_names_what_was_changed_and_sends_nothing(said: Said, plain: Path) -> None:
    edited(plain, insult)
    result = refed("synth", "--preview", "--program", plain)
    refused(result)
    said(result.stderr)
    accepted = refed("synth", "--preview", "--program", plain, "--accept-changed")
    assert accepted.exit_code == 0 and INSULT in accepted.stdout

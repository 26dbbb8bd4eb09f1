"""The prompts: the page that shows them, prefixes that are shared, and what a kept sample took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from benchmarks.tokenizers import tokenizer
from refed_dspy import TeacherConfig
from refed_dspy.cli.lines import token_lines
from refed_dspy.ledger.account import tokens_a_sample
from refed_dspy.plugins.recycle.program import InstructionReflection, ResponseReflection
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.programs.adapter import SchemaAdapter, rendering
from refed_dspy.records import Analysis, ImplementationStrategy
from refed_dspy.signatures import (
    InstructionSynthesis,
    ResponseGeneration,
    ResponseImprovement,
)
from refed_dspy.signatures.stages import PlainAnswer, ReferenceCriteria, SampleFeedback, SampleImprovement
from tests.support.said import Said
from tests.support.scripted_engine import references

PAGE = Path(__file__).parents[2] / "docs" / "prompts.md"
STAGES = {name: predictor.signature for name, predictor in ReferenceLevelFeedback().named_predictors()} | {
    "plain_answer": PlainAnswer,
    "reference_criteria": ReferenceCriteria,
    "sample_feedback": SampleFeedback,
    "sample_improvement": SampleImprovement,
    "instruction_reflection": InstructionReflection,
    "response_reflection": ResponseReflection,
}


def prompt(signature: Any, **inputs: Any) -> tuple[str, str]:
    system, user = SchemaAdapter().format(signature, [], inputs)
    return system["content"], user["content"]


def shared(texts: list[str]) -> str:
    """What all of them begin with."""
    ends = (n for n, letters in enumerate(zip(*texts, strict=False)) if len(set(letters)) > 1)
    return texts[0][: next(ends)]


@pytest.mark.parametrize("stage", STAGES)
def test_the_page_shows_each_prompt_as_it_is_sent(stage: str) -> None:
    system, user = prompt(STAGES[stage], **dict.fromkeys(STAGES[stage].input_fields, "…"))
    assert f"### {stage}\n\n```text\n{system}\n```\n\n```text\n{user}\n```\n" in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", STAGES)
def test_what_stands_around_the_inputs_is_short(stage: str) -> None:
    _, frame = prompt(STAGES[stage], **dict.fromkeys(STAGES[stage].input_fields, ""))
    assert tokenizer("o200k_base").count(frame) <= 50


# --- the stable part first


def test_the_calls_of_one_reference_begin_alike() -> None:
    """What changes from call to call stands behind all that does not."""
    example = {"example_instruction": "Plan a trip.", "example_response": "Go by train. " * 20}
    first, second = (prompt(ResponseGeneration, **example, instruction=text)[1] for text in ("One", "Two"))
    assert shared([first, second]).endswith("</>\n\n<instruction>\n")
    better = [
        prompt(ResponseImprovement, reference_feedback="Be bold. " * 20, instruction=text, response=text)[1]
        for text in ("One", "Two")
    ]
    assert shared(better).endswith("</>\n\n<instruction>\n")


def test_a_round_s_calls_for_two_features_share_what_is_taken(said: Said) -> None:
    same = {"reference_instruction": "Plan a trip.", "taken": ["Plan a party.", "Plan a meal."], "how_many": 10}
    asked = [
        prompt(InstructionSynthesis, **same, feature_name=name, feature=text)[1]
        for name, text in (("subject areas", "Travel."), ("relevant skills", "Order."))
    ]
    said(shared(asked))


# --- bounded analyses


def test_a_longer_analysis_than_asked_for_is_accepted_and_a_decoder_is_bound() -> None:
    long = {name: ["x" * 2_000] * 30 for name in Analysis.model_fields}
    assert len(Analysis.model_validate(long).relevant_feedback) == 30
    strategy = {"planned_changes": ["y" * 2_000] * 30, "rationale": "z" * 5_000}
    assert ImplementationStrategy.model_validate_json(json.dumps(strategy)).rationale == "z" * 5_000
    schema = rendering(ResponseImprovement).response_format["json_schema"]["schema"]["$defs"]
    lists = [
        *schema["Analysis"]["properties"].values(),
        schema["ImplementationStrategy"]["properties"]["planned_changes"],
    ]
    assert all((part["maxItems"], part["items"]["maxLength"]) == (6, 400) for part in lists)


# --- what a kept sample took


def test_tokens_a_sample_are_everything_that_was_read_and_written(server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(cache_warm="answer")
    teacher = TeacherConfig(model="sim/sim-model", api_base=server.base_url, concurrency=8)
    long = [{"instruction": r["instruction"], "response": r["response"] * 60} for r in references(4)]
    made = refed_dspy.synthesize(None, long, size=10, teacher=teacher, run_dir=tmp_path / "run")
    tokens, stats = made.status["tokens_a_sample"], server.stats()
    assert list(tokens["stages"]) == list(made.usage)
    assert tokens["all"]["prompt"] == pytest.approx(stats["prompt_tokens"] / 10, abs=0.1)
    assert tokens["all"]["cached"] == pytest.approx(stats["cached_tokens"] / 10, abs=0.1) and stats["cached_tokens"]
    assert tokens["all"]["uncached"] == pytest.approx(tokens["all"]["prompt"] - tokens["all"]["cached"], abs=0.1)
    assert tokens["all"]["completion"] == pytest.approx(stats["completion_tokens"] / 10, abs=0.1)
    generation = tokens["stages"]["response_generation"]
    assert generation["cached"] > generation["uncached"] > 0
    _, *lines = token_lines({"usage": {}, "tokens_a_sample": tokens})
    assert len(lines) == len(tokens["stages"])
    assert all(f"{use['cached']:,.0f}" in line for use, line in zip(tokens["stages"].values(), lines, strict=True))


def test_where_nothing_is_kept_no_sample_took_anything() -> None:
    assert tokens_a_sample({"stage": {"prompt_tokens": 5, "cached_tokens": 0, "completion_tokens": 1}}, 0) is None
    assert token_lines({"usage": {}, "tokens_a_sample": None}) == []


def test_docstrings_that_other_adapters_send_are_prompts(said: Said) -> None:
    """DSPy's own adapters put these into the schema: a new word asks another question under an old key."""
    said(Analysis.model_json_schema()["description"])
    said(ImplementationStrategy.model_json_schema()["description"])

"""What endpoints refuse of a request, in their own words, and what is sent then."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import InvalidRequestError, LM15Error, ServerError

import refed_dspy
from benchmarks.model_rules import RULES
from benchmarks.simulated import RULES as NAMES
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers.route import Dialect
from tests.support.scripted_batches import simulated
from tests.support.scripted_engine import references


def refused(text: str, status: int | None = 400, kind: type[LM15Error] = InvalidRequestError) -> LM15Error:
    error = kind(text)
    error.status = status
    return error


@pytest.mark.parametrize(
    ("words", "then"),
    [
        (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens'.",
            {"tokens_field": "max_completion_tokens"},
        ),
        ("Unrecognized request argument supplied: max_completion_tokens", {"tokens_field": "max_tokens"}),
        (
            "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is …",
            {"temperature": False},
        ),
        ("`temperature` may only be set to 1: other values are not supported with thinking", {"temperature": False}),
        ("invalid temperature: only 1 is allowed for this model", {"temperature": False}),
        (
            "Invalid schema for response_format 'answer': In context=('properties',), 'maxLength' is not permitted.",
            {"schema": "strict"},
        ),
        ("output_config.format.schema: For 'array' type, 'maxItems' is not supported", {"schema": "strict"}),
        ("Unrecognized request argument supplied: reasoning_effort", {"reasoning": False}),
        ("This response_format type is unavailable now: not supported", {"schema": "none"}),
    ],
)
def test_a_refusal_says_what_to_leave_out(words: str, then: dict[str, Any]) -> None:
    assert Dialect().after(refused(words)) == Dialect(**then)


@pytest.mark.parametrize(
    "error",
    [
        refused("The prompt is too long: 9,000 tokens, and at most 8,192 are supported"),
        refused(
            "'max_tokens' or 'max_completion_tokens' is too large: 8000. This model's maximum context length is 4096 "
            "tokens and your request has 25 input tokens (invalid_request_error)"
        ),
        refused("Invalid value for temperature", status=500, kind=ServerError),
        refused("'temperature' is not supported", status=None),
        refused("The model `m` does not exist: invalid"),
    ],
)
def test_other_errors_are_not_about_a_parameter(error: LM15Error) -> None:
    assert Dialect().after(error) is None


def test_what_was_left_out_is_not_left_out_again() -> None:
    least = Dialect("max_tokens", temperature=False, reasoning=False, schema="none")
    for name in ("temperature", "reasoning_effort", "response_format", "maxLength"):
        error = refused(f"{name} is not supported")
        assert least.after(error) is None


# --- against an endpoint that refuses


def test_the_simulated_rules_have_the_names_that_settings_take() -> None:
    assert set(RULES) == NAMES


def run(folder: Path, server: SimulatedTeacher, **settings: Any) -> Synthesis:
    """A run of three, one request after another, so that a refusal is learned from once."""
    values = {"model": "sim/sim-model", "api_base": server.base_url, "concurrency": 1, **settings}
    teacher = refed_dspy.TeacherConfig.model_validate(values)
    return refed_dspy.synthesize(None, references(2), size=3, teacher=teacher, run_dir=folder, track=False)


def test_refusals_at_once_are_learned_from_once(
    tmp_path: Path, server: SimulatedTeacher, caplog: pytest.LogCaptureFixture
) -> None:
    server.control(rules=["no max_tokens"], latency=0.02)
    with caplog.at_level(logging.WARNING, "refed_dspy.teachers"):
        made = run(tmp_path, server, concurrency=8)
    assert made.complete and not made.status["failures"]
    assert len(caplog.messages) == 1


def test_a_batch_learns_too(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(rules=["no max_tokens", "no bounds"], batch_seconds=0)
    made = refed_dspy.synthesize(None, references(1), size=2, teacher=simulated(server), run_dir=tmp_path, track=False)
    assert made.complete and not made.status["failures"]


def test_an_endpoint_that_takes_neither_field_is_told_of(tmp_path: Path, server: SimulatedTeacher) -> None:
    server.control(rules=["no max_tokens", "no max_completion_tokens"])
    with pytest.raises(refed_dspy.errors.RefedError, match="max_tokens"):
        run(tmp_path, server)
    assert server.stats()["requests"] < 50

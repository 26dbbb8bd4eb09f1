"""A run on a caller's own `dspy.LM`: it is asked as it would ask by itself, and its calls are recorded and priced."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.runs.result import Synthesis
from refed_dspy.teachers.vendored import request_to_dict
from tests.support.scripted_engine import Writer, fake_lm, references, response, spoil_first

OWN_SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("fake/model", {}),
    "sampling": ("fake/model", {"temperature": 0.2, "max_tokens": 77, "top_p": 0.3, "stop": ["END"]}),
    "penalties": ("fake/model", {"presence_penalty": 0.5, "seed": 4, "logit_bias": {"50256": -100}}),
    "reasoning": ("openai/gpt-5-mini", {"temperature": 1.0, "max_tokens": 16_000, "reasoning_effort": "low"}),
}


def run(folder: Path, lm: dspy.LM, size: int = 2) -> Synthesis:
    return refed_dspy.synthesize(None, references(1), size=size, teacher=lm, run_dir=folder, track=False)


def as_json(request: Request) -> dict[str, Any]:
    return json.loads(json.dumps(request_to_dict(request)))  # type: ignore[no-any-return]


def by_itself(writer: Writer, lm: dspy.LM) -> dict[str, Any]:
    """The request of `lm` for the first stage of the first reference, outside of any run."""
    reference, predictor = references(1)[0], refed_dspy.ReferenceLevelFeedback().instruction_feedback
    inputs = {f"reference_{name}": value for name, value in reference.items()}
    with dspy.context(lm=lm, adapter=SchemaAdapter()):
        asyncio.run(predictor.acall(**inputs))
    return as_json(writer.requests[-1])


@pytest.mark.parametrize("own", OWN_SETTINGS)
def test_it_is_asked_what_it_would_ask_by_itself(tmp_path: Path, own: str) -> None:
    name, settings = OWN_SETTINGS[own]
    writer = Writer()
    lm = fake_lm(writer, name, **settings)
    run(tmp_path, lm)
    asked = [as_json(request) for request in writer.requests]
    assert by_itself(writer, lm) in asked


@pytest.mark.parametrize(("params", "sent"), [({"response_format"}, {"type": "json_object"}), (set(), None)])
def test_one_that_takes_no_schema_is_sent_none(tmp_path: Path, params: set[str], sent: Any) -> None:
    class Plain(Writer):
        supports_response_schema = False
        supported_params = frozenset(params)

        def fields(self, request: Request) -> list[str]:
            shape = str(request.system).partition("\nJSON:\n")[2].partition("\n")[0]
            return [name for name in NAMES if f'"{name}":' in shape]

    writer = Plain()
    assert len(run(tmp_path, fake_lm(writer)).samples) == 2
    assert all(request.config.response_format == sent for request in writer.requests)


NAMES = [
    "subject_areas", "relevant_skills", "response_feedback", "new_instructions", "analysis",
    "implementation_strategy", "improved_response", "response",
]  # fmt: skip


def costs(folder: Path) -> list[int | None]:
    with Ledger.read(folder) as ledger:
        return [cost for (cost,) in ledger.db.execute("SELECT cost FROM calls")]


@pytest.mark.parametrize(("name", "priced"), [("openai/gpt-4o-mini", True), ("openai/no-such-model", False)])
def test_its_calls_are_priced_where_its_price_is_known(tmp_path: Path, name: str, priced: bool) -> None:
    made = run(tmp_path, fake_lm(Writer(), name))
    # 100 tokens read at $0.15 a million, 20 written at $0.60
    assert set(costs(tmp_path)) == {100 * 150_000 + 20 * 600_000 if priced else None}
    unpriced = sum(stage["unpriced"] for stage in made.usage.values())
    assert unpriced == (0 if priced else len(costs(tmp_path)))


def test_at_an_endpoint_of_its_own_it_has_no_listed_price(server: SimulatedTeacher, tmp_path: Path) -> None:
    lm = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="sk-own-1234567", cache=False)
    assert len(run(tmp_path, lm).samples) == 2
    assert set(costs(tmp_path)) == {None} and server.stats()["repeated"] == 0
    assert b"sk-own-1234567" not in b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())


@pytest.mark.parametrize(("reason", "kind"), [("length", "cut"), ("content_filter", "refused")])
def test_an_answer_that_ended_early_is_that_failure_and_is_paid_for_once(
    tmp_path: Path, reason: str, kind: str
) -> None:
    writer = Writer()
    asked = spoil_first(writer, "response", response('{"response": "It beg', finish_reason=reason))
    made = run(tmp_path, fake_lm(writer), size=4)
    assert len(made.samples) == 4 and [failure.kind for failure in made.failures] == [kind]
    assert asked.count(asked[0]) == 1
    with Ledger.read(tmp_path) as ledger:
        (outcome, read, written) = ledger.db.execute(
            "SELECT outcome, prompt_tokens, completion_tokens FROM calls WHERE outcome != 'ok'"
        ).fetchone()
    assert (outcome, read, written) == (kind, 100, 20)

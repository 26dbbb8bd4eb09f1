"""One prompt: whoever calls a program, its predictors send the same requests, and their failures are the same."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy.lm15 import Request

import refed_dspy
from refed_dspy import SchemaAdapter
from refed_dspy.errors import MalformedAnswer, RowError
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.records import Reference, Sample, digest
from refed_dspy.teachers.vendored import request_to_dict
from tests.runs.test_any_program import Polished
from tests.support.scripted_engine import Writer, fake_lm, references, spoil_first

REFERENCE = references(1)[0]
EXAMPLE = dspy.Example(reference=REFERENCE).with_inputs("reference")


class ByContent(Writer):
    """Writes the same answer to the same request, however often and in whatever order they come."""

    def write(self, request: Request) -> str:
        self.numbers = iter(range(int(digest(sent(request)), 16), 1 << 70))
        return super().write(request)


def sent(request: Request) -> str:
    return json.dumps(request_to_dict(request), sort_keys=True)


class Flowing(ReferenceLevelFeedback):
    """A program with a flow of its own, which names no stage."""

    def __init__(self) -> None:
        super().__init__()
        self.polish = dspy.Predict("draft -> polished")

    async def aforward(self, reference: Any) -> dspy.Prediction:
        return await self.polish.acall(draft=reference["response"])


def requests_of(call: Callable[[Any, Any], Any]) -> list[str]:
    """What a program sends when it is called so, in order of its bytes."""
    writer = ByContent()
    with dspy.context(lm=fake_lm(writer)):
        call(Polished(), fake_lm(writer))
    return sorted(map(sent, writer.requests))


def evaluated(program: Any, lm: Any) -> None:
    del lm
    result = dspy.Evaluate(devset=[EXAMPLE], metric=lambda _, made: len(made.samples) == 20, num_threads=1)(program)
    assert result.score == 100


def bootstrapped(program: Any, lm: Any) -> None:
    del lm
    optimizer = dspy.BootstrapFewShot(metric=lambda *_: True, max_labeled_demos=0, max_bootstrapped_demos=1)
    assert optimizer.compile(program, trainset=[EXAMPLE]).polish.predict.demos


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "call": lambda program, _: program(REFERENCE),
    "acall": lambda program, _: asyncio.run(program.acall(REFERENCE)),
    "thread": lambda program, _: asyncio.run(dspy.asyncify(program)(REFERENCE)),
    "Evaluate": evaluated,
    "BootstrapFewShot": bootstrapped,
}


@pytest.fixture(scope="module")
def of_run(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    def run(program: Any, lm: Any) -> None:
        folder = tmp_path_factory.mktemp("run")
        made = refed_dspy.synthesize(
            program, [REFERENCE], size=20, per_reference=20, teacher=lm, run_dir=folder, track=False
        )
        assert len(made.samples) == 20

    return requests_of(run)


@pytest.mark.parametrize("call", CALLS)
def test_a_program_sends_what_it_sends_in_a_run(of_run: list[str], call: str) -> None:
    assert requests_of(CALLS[call]) == of_run
    assert len(of_run) == 1 + 1 + 2 + 3 * 20 and any("polished" in request for request in of_run)


@pytest.mark.parametrize(
    ("module", "settings", "in_chat_form"),
    [
        (Polished(), {}, False),
        (Polished(), {"adapter": dspy.JSONAdapter()}, True),
        (dspy.Predict("reference -> answer"), {}, True),
        (dspy.Predict("reference -> answer"), {"adapter": SchemaAdapter()}, False),
    ],
)
def test_the_callers_adapter_wins_and_a_plain_module_has_it_alone(
    module: dspy.Module, settings: dict[str, Any], in_chat_form: bool
) -> None:
    writer = Writer()
    writer.on_request = lambda request: None if request.config.response_format else "[[ ## answer ## ]]\nyes"
    with dspy.context(lm=fake_lm(writer), **settings):
        module(reference=REFERENCE)
    assert {"[[ ## " in str(request.system) for request in writer.requests} == {in_chat_form}


def test_a_language_model_that_cannot_be_awaited_is_asked_in_a_thread() -> None:
    class Forward(dspy.BaseLM):  # type: ignore[misc]
        def forward(self, prompt: Any = None, messages: Any = None, **settings: Any) -> Any:
            message = SimpleNamespace(content='{"polished": "bright"}', tool_calls=None)
            choice = SimpleNamespace(message=message, finish_reason="stop")
            return SimpleNamespace(choices=[choice], usage={}, model="forward")

    with dspy.context(lm=Forward("forward")):
        assert Flowing()(REFERENCE).polished == "bright"


# --- failures


def test_a_malformed_answer_is_a_failed_row_as_in_a_run(tmp_path: Path) -> None:
    direct, at_scale = ByContent(), ByContent()
    spoil_first(direct, "polished")
    spoil_first(at_scale, "polished")
    with dspy.context(lm=fake_lm(direct)):
        made = Polished()(REFERENCE)
    run = refed_dspy.synthesize(
        Polished(), [REFERENCE], size=19, per_reference=20, teacher=fake_lm(at_scale), run_dir=tmp_path, track=False
    )
    (failed,), (failed_there,) = made.failures, run.failures
    assert (failed.stage, failed.kind, failed.reason) == (failed_there.stage, failed_there.kind, failed_there.reason)
    assert failed.stage == "polish" and failed.kind == "malformed"
    assert failed.item.startswith(f"{Reference(**REFERENCE).id}/Task ") and len(made.samples) == 19


def test_a_row_that_the_program_gives_up_is_a_failed_row_of_any_stage() -> None:
    class GivingUp(ReferenceLevelFeedback):
        async def respond(self, reference: Reference, *inputs: Any, **named: Any) -> Sample:
            raise RowError("weighing", reference.id, "too light")

    with dspy.context(lm=fake_lm(Writer(per_call=1))):
        made = GivingUp()(REFERENCE)
    assert [failed.stage for failed in made.failures] == ["weighing"] * 2


@pytest.mark.parametrize("call", ["call", "acall"])
def test_a_program_with_a_flow_of_its_own_raises_what_a_stage_raises(call: str) -> None:
    with dspy.context(lm=fake_lm(Writer("no JSON"))), pytest.raises(MalformedAnswer) as caught:
        CALLS[call](Flowing(), None)
    assert caught.value.stage == "polish"

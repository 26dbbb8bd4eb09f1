"""The direct way to a teacher sends what DSPy's usual way sends, gives what it gives, and steps aside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy._vendor.lm15.serde import request_to_dict
from dspy.lm15 import Request, Response
from dspy.utils.callback import BaseCallback

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import CutAnswer, MalformedAnswer, RefedError, TeacherError
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import about, again
from refed_dspy.programs.question import current_repetition
from refed_dspy.records import Analysis
from refed_dspy.signatures import (
    InstructionSynthesis,
    ResponseFeedback,
    ResponseGeneration,
    ResponseImprovement,
    instruction_feedback,
)
from refed_dspy.teachers.engine import BlockingTeacherEngine, TeacherEngine
from refed_dspy.teachers.recorded_lm import recorded_lm
from refed_dspy.teachers.route import resolve
from refed_dspy.teachers.teacher import TeacherLM, open_teacher
from tests.support.scripted_engine import SAMPLE_FIELDS, Writer

UNWATCHED = {"disable_history": True, "trace": None, "max_trace_size": 0, "track_usage": False}
"""As a run sets it."""
WATCHED = UNWATCHED | {"disable_history": False}
SIGNATURES = [
    instruction_feedback(),
    ResponseFeedback,
    InstructionSynthesis,
    ResponseGeneration,
    ResponseImprovement,
    ResponseGeneration.with_instructions('Say "hello" — «naïvely» {not} {{a}} template.'),
]
TEACHERS: dict[str, dict[str, Any]] = {
    "external": {"model": "sim/sim-model", "api_base": "http://127.0.0.1:9/v1", "temperature": 0.3, "max_tokens": 777},
    "params": {"model": "sim/sim-model", "api_base": "http://127.0.0.1:9/v1", "params": {"top_p": 0.5}},
    "anthropic": {"model": "anthropic/sim-model", "api_base": "http://127.0.0.1:9/v1"},
    "azure": {"model": "azure/sim-model", "api_base": "http://127.0.0.1:9"},
    "gpt-4o-mini": {"model": "openai/gpt-4o-mini"},
    "gpt-5-mini": {"model": "openai/gpt-5-mini", "max_tokens": 16_000},
}


class Recording(TeacherEngine):
    """A teacher's engine that keeps each request, as it comes and as it would go out, and lets a Writer answer."""

    def __init__(self, config: TeacherConfig, *queue: Any) -> None:
        super().__init__(config, resolve(config), None)
        self.writer = Writer(*queue)
        self.came: list[Request] = []
        self.sent: list[Request] = []
        self.repetitions: list[int] = []

    async def complete(self, request: Request) -> Response:
        self.came.append(request)
        self.repetitions.append(current_repetition())
        self.sent.append(self.outgoing(request)[0])
        return self.writer.answer(request)


def lm_on(config: TeacherConfig, engine: TeacherEngine) -> TeacherLM:
    """What `open_teacher` makes of `config`, on another engine."""
    return TeacherLM(
        str(config.model),
        temperature=config.temperature,
        max_tokens=config.max_tokens,
        cache=False,
        num_retries=0,
        engine=BlockingTeacherEngine(engine),
        async_engine=engine,
    )


@pytest.fixture(autouse=True)
def a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-used-0123456789")


def inputs_for(signature: Any, number: int = 1) -> dict[str, Any]:
    """A value for each input: with quotes, tags, line breaks and letters from elsewhere."""
    history = dspy.History(messages=[{"question": "Once?", "answer": "Once."}])
    texts = {
        dspy.History: history,
        str: f'«{number}» "ä" \n\n</x> 日本 {{a}}',
        int: 3,
        list[str]: ["one", "two\nlines"],
    }
    return {name: texts[field.annotation] for name, field in signature.input_fields.items()}


def demo_for(signature: Any) -> dspy.Example:
    outputs = {
        name: SAMPLE_FIELDS.get(name) or (["a", "b"] if name == "new_instructions" else f"{name} of a demo")
        for name in signature.output_fields
    }
    return dspy.Example(**inputs_for(signature, 2), **outputs).with_inputs(*signature.input_fields)


async def asked(lm: Any, predictor: Any, settings: dict[str, Any], **more: Any) -> tuple[bool, Any]:
    """Whether `lm` was gone past to its engine, and the typed outputs."""
    through_lm: list[Any] = []
    acall = lm.acall

    async def noted(*args: Any, **kwargs: Any) -> Any:
        through_lm.append(kwargs)
        return await acall(*args, **kwargs)

    lm.acall = noted
    signature = next(inner for _, inner in predictor.named_predictors()).signature
    with dspy.context(**{"lm": lm, "adapter": SchemaAdapter(), **settings, **more}), about("stage", "item"):
        answer = await predictor.acall(**inputs_for(signature))
    return not through_lm, answer


def ask(lm: Any, predictor: Any, settings: dict[str, Any], **more: Any) -> tuple[bool, Any]:
    """`asked`, for callers without an event loop."""
    return asyncio.run(asked(lm, predictor, settings, **more))


def as_json(request: Request) -> str:
    return json.dumps(request_to_dict(request), sort_keys=True)


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("demos", [0, 2])
@pytest.mark.parametrize("signature", SIGNATURES, ids=lambda signature: str(signature.__name__))
def test_both_ways_send_the_same_request(teacher: str, signature: Any, demos: int) -> None:
    config = TeacherConfig.model_validate(TEACHERS[teacher])
    engine = Recording(config)
    predictor = dspy.Predict(signature)
    predictor.demos = [demo_for(signature)] * demos
    direct, _ = ask(lm_on(config, engine), predictor, UNWATCHED)
    usual, _ = ask(lm_on(config, engine), predictor, WATCHED)
    assert direct and not usual, "otherwise the same way is compared with itself"
    for requests in (engine.came, engine.sent):
        first, second = requests
        assert first == second and as_json(first) == as_json(second)
    assert len(engine.came[0].messages) == 1 + 2 * demos and engine.came[0].system


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("repetition", [0, 3])
async def test_both_ways_send_the_same_request_to_a_recorded_teacher(teacher: str, repetition: int) -> None:
    config = TeacherConfig.model_validate(TEACHERS[teacher])
    engine = Recording(config)
    for settings, is_direct in ((UNWATCHED, True), (WATCHED, False)):
        predictor = dspy.Predict(ResponseImprovement, **again(repetition))
        direct, answer = await asked(recorded_lm(open_teacher(config), engine), predictor, settings)
        assert direct == is_direct and answer.improved_response
    first, second = engine.came
    assert first == second and as_json(first) == as_json(second)
    assert engine.repetitions == [repetition] * 2


def test_a_chain_of_thought_sends_the_same_request_either_way() -> None:
    engine = Recording(config := TeacherConfig.model_validate(TEACHERS["external"]))
    ways = [ask(lm_on(config, engine), dspy.ChainOfThought(ResponseFeedback), way) for way in (UNWATCHED, WATCHED)]
    assert [direct for direct, _ in ways] == [True, False]
    assert all(answer.reasoning and answer.response_feedback for _, answer in ways)
    assert engine.came[0] == engine.came[1]


def test_what_is_sent_over_the_wire_is_the_same(server: SimulatedTeacher) -> None:
    """With temperature 0 the server answers the same messages alike, and counts the ones it has seen before."""
    config = TeacherConfig(model="sim/sim-model", api_base=server.base_url, temperature=0, retries=0)
    teacher = open_teacher(config)
    answers = [ask(teacher.start(), dspy.Predict(ResponseImprovement), way)[1] for way in (UNWATCHED, WATCHED)]
    assert answers[0].improved_response == answers[1].improved_response
    assert server.stats()["repeated"] == 1


class Callback(BaseCallback):  # type: ignore[misc]
    pass


class OtherAdapter(SchemaAdapter):
    def format_system_message(self, signature: Any) -> str:
        return f"{super().format_system_message(signature)}\n\nBe brief."


class OtherPredict(dspy.Predict):  # type: ignore[misc]
    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        return await super().aforward(**{**inputs, "instruction": "Another task."})


class Conversing(dspy.Signature):  # type: ignore[misc]
    """Answer."""

    history: dspy.History = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def _with_config(predictor: Any, lm: Any) -> None:
    predictor.config = {"temperature": 0.1}


def _with_callback(predictor: Any, lm: Any) -> None:
    lm.callbacks = [Callback()]


Change = Callable[[Any, Any], None]
WATCHERS: dict[str, tuple[dict[str, Any], Change | None]] = {
    "history": ({"disable_history": False}, None),
    "a callback": ({"callbacks": [Callback()]}, None),
    "usage": ({"track_usage": True}, None),
    "another adapter": ({"adapter": dspy.JSONAdapter()}, None),
    "settings of the predictor": ({}, _with_config),
    "a callback of the model": ({}, _with_callback),
}


@pytest.mark.parametrize("watcher", WATCHERS)
def test_whoever_watches_gets_the_usual_way(watcher: str) -> None:
    settings, change = WATCHERS[watcher]
    config = TeacherConfig.model_validate(TEACHERS["external"])
    predictor = dspy.Predict(ResponseGeneration)
    assert ask(lm_on(config, Recording(config)), predictor, UNWATCHED)[0]
    lm = lm_on(config, Recording(config))
    if change is not None:
        change(predictor, lm)
    direct, answer = ask(lm, predictor, UNWATCHED, **settings)
    assert not direct and answer.response


def test_a_usage_tracker_around_it_sees_the_call() -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    with dspy.track_usage() as tracker:
        ask(lm_on(config, Recording(config)), dspy.Predict(ResponseGeneration), UNWATCHED)
    assert tracker.get_total_tokens()["sim/sim-model"]["prompt_tokens"] == 100


def test_a_trace_sees_the_call() -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    trace: list[Any] = []
    lm = lm_on(config, Recording(config))
    direct, _ = ask(lm, dspy.Predict(ResponseGeneration), UNWATCHED, trace=trace, max_trace_size=9)
    assert direct and len(trace) == 1


def test_a_callback_of_the_predictor_sees_the_call() -> None:
    seen: list[Any] = []

    class Watching(BaseCallback):  # type: ignore[misc]
        def on_module_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            seen.append(outputs)

    config = TeacherConfig.model_validate(TEACHERS["external"])
    predictor = dspy.Predict(ResponseGeneration)
    predictor.callbacks = [Watching()]
    direct, answer = ask(lm_on(config, Recording(config)), predictor, UNWATCHED)
    assert direct and seen == [answer]


@pytest.mark.parametrize("settings", [UNWATCHED, WATCHED], ids=["direct", "usual"])
def test_a_predictor_or_an_adapter_of_the_callers_keeps_its_own_code_either_way(settings: dict[str, Any]) -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    engine = Recording(config)
    ask(lm_on(config, engine), OtherPredict(ResponseGeneration), settings, adapter=OtherAdapter())
    assert str(engine.came[0].system).endswith("Be brief.")
    assert "Another task." in as_json(engine.came[0])


def test_types_of_dspys_own_get_the_usual_way() -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    engine = Recording(config)
    direct, answer = ask(lm_on(config, engine), dspy.Predict(Conversing), UNWATCHED)
    assert not direct and answer.answer
    assert [message.role for message in engine.came[0].messages] == ["user", "assistant", "user"]


def test_a_predictors_own_settings_reach_the_endpoint() -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    engine = Recording(config)
    predictor = dspy.Predict(ResponseGeneration)
    predictor.config = {"temperature": 0.1}
    ask(lm_on(config, engine), predictor, UNWATCHED)
    assert engine.came[0].config.temperature == 0.1


def test_another_kind_of_lm_or_a_cache_gets_the_usual_way() -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    writer = Writer()
    plain = dspy.LM("fake/model", engine=writer, async_engine=writer.asynchronous, num_retries=0, cache=False)
    assert not ask(plain, dspy.Predict(ResponseGeneration), UNWATCHED)[0]
    cached = lm_on(config, Recording(config)).copy(cache=True)
    assert not ask(cached, dspy.Predict(ResponseGeneration), UNWATCHED)[0]


def test_a_predictors_own_lm_is_the_one_asked() -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    engines = Recording(config), Recording(config)
    predictor = dspy.Predict(ResponseGeneration)
    predictor.lm = lm_on(config, engines[0])
    ask(lm_on(config, engines[1]), predictor, UNWATCHED)
    assert len(engines[0].came) == 1 and not engines[1].came


@pytest.mark.parametrize("settings", [UNWATCHED, WATCHED], ids=["direct", "usual"])
def test_typed_outputs_either_way(settings: dict[str, Any]) -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    _, answer = ask(lm_on(config, Recording(config)), dspy.Predict(ResponseImprovement), settings)
    assert isinstance(answer, dspy.Prediction) and isinstance(answer.analysis, Analysis)
    assert list(answer.keys()) == ["analysis", "implementation_strategy", "improved_response"]
    assert answer.analysis.original_strengths == ["clear"]


def _error(settings: dict[str, Any], server: SimulatedTeacher) -> BaseException:
    config = TeacherConfig(model="sim/sim-model", api_base=server.base_url, retries=0, timeout=0.3)
    lm = lm_on(config, TeacherEngine(config, resolve(config), None))
    with pytest.raises(RefedError) as error:
        ask(lm, dspy.Predict(ResponseImprovement), settings)
    return error.value


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ({"faults": {"malformed": 1}}, MalformedAnswer),
        ({"faults": {"cut": 1}}, CutAnswer),
        ({"faults": {"500": 1}}, None),
        ({"faults": {"refusal": 1}}, None),
        ({"faults": {"filtered": 1}}, None),
        ({"faults": {"drop": 1}}, None),
        ({"faults": {"hang": 1}}, None),
        ({"faults": {"html": 1}}, TeacherError),
        ({"auth_fails_after": 0}, TeacherError),
    ],
    ids=repr,
)
def test_the_same_errors_either_way(
    server: SimulatedTeacher, fault: dict[str, Any], expected: type[BaseException] | None
) -> None:
    server.control(**fault)
    direct, usual = _error(UNWATCHED, server), _error(WATCHED, server)
    assert type(direct) is type(usual) and str(direct) == str(usual)
    assert expected is None or isinstance(direct, expected)


def test_an_empty_answer_is_malformed_either_way(server: SimulatedTeacher) -> None:
    server.control(faults={"empty": 1})
    assert {type(_error(way, server)) for way in (UNWATCHED, WATCHED)} == {MalformedAnswer}


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), TypeError("of ours")])
def test_a_bug_in_an_engine_ends_both_ways(error: Exception) -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    for settings in (UNWATCHED, WATCHED):
        with pytest.raises(Exception, match=str(error)) as raised:
            ask(lm_on(config, Recording(config, error)), dspy.Predict(ResponseGeneration), settings)
        assert not isinstance(raised.value, RefedError), "a bug is not told as a person's mistake"


@pytest.mark.parametrize("settings", [UNWATCHED, WATCHED], ids=["direct", "usual"])
def test_a_copy_with_other_settings_sends_them_either_way(settings: dict[str, Any]) -> None:
    """Optimizers copy a language model to ask it in another way."""
    config = TeacherConfig.model_validate(TEACHERS["external"])
    engine = Recording(config)
    lm = lm_on(config, engine)
    for changed in ({"temperature": 0.9}, {"top_p": 0.4}, {"max_tokens": 55}):
        ask(lm.copy(**changed), dspy.Predict(ResponseGeneration), settings)
    sent = [request.config for request in engine.came]
    assert [config.temperature for config in sent] == [0.9, 0.3, 0.3]
    assert [config.top_p for config in sent] == [None, 0.4, None] and sent[2].max_tokens == 55

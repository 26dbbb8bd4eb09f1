"""Both ways to a teacher send and give the same; who watches a call, or changes how it is made, gets the usual one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy.lm15 import AuthError
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import LMAuthError, LMServerError, LMTimeoutError

from benchmarks.simulated import SimulatedTeacher
from refed_dspy import TeacherConfig
from refed_dspy.errors import (
    CutAnswer,
    EndpointBusy,
    MalformedAnswer,
    NoAnswer,
    NoConnection,
    RefedError,
    RefusedAnswer,
    RunStopped,
    TeacherError,
)
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.asking import about, again
from refed_dspy.programs.lm_errors import (
    AnswerCut,
    AnswerRefused,
    InTransit,
    NotAnApi,
    NotReached,
    StillLimited,
    WorkEnds,
)
from refed_dspy.records import Analysis
from refed_dspy.signatures import (
    InstructionSynthesis,
    ResponseFeedback,
    ResponseGeneration,
    ResponseImprovement,
    instruction_feedback,
)
from refed_dspy.teachers.engine import TeacherEngine
from refed_dspy.teachers.recorded import recorded_lm
from refed_dspy.teachers.route import resolve
from refed_dspy.teachers.teacher import open_teacher
from tests.support.scripted_engine import SAMPLE_FIELDS, Answer, Writer, response
from tests.support.two_ways import (
    TEACHERS,
    UNWATCHED,
    WATCHED,
    EngineLM,
    Recording,
    as_json,
    ask,
    asked,
    inputs_for,
    lm_on,
)

SIGNATURES = [
    instruction_feedback(),
    ResponseFeedback,
    InstructionSynthesis,
    ResponseGeneration,
    ResponseImprovement,
    ResponseGeneration.with_instructions('Say "hello" — «naïvely» {not} {{a}} template.'),
]


@pytest.fixture(autouse=True)
def a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-never-used-0123456789")


def demo_for(signature: Any) -> dspy.Example:
    outputs = {
        name: SAMPLE_FIELDS.get(name) or (["a", "b"] if name == "new_instructions" else f"{name} of a demo")
        for name in signature.output_fields
    }
    return dspy.Example(**inputs_for(signature, 2), **outputs).with_inputs(*signature.input_fields)


@pytest.mark.parametrize(
    ("teacher", "signature"),
    [*((teacher, SIGNATURES[0]) for teacher in TEACHERS), *(("external", signature) for signature in SIGNATURES[1:])],
    ids=str,
)
@pytest.mark.parametrize("demos", [0, 2])
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


THROUGH: list[Any] = []


class Counting(EngineLM):
    """Notes the calls that come through DSPy's layers."""

    def __call__(self, *args: Any, **more: Any) -> Any:
        THROUGH.append(more)
        return super().__call__(*args, **more)


def test_without_an_event_loop_the_same_request_is_sent_either_way() -> None:
    engine, through = Recording(CONFIG), list[int]()
    THROUGH.clear()
    ways: list[dict[str, Any]] = [UNWATCHED, WATCHED]
    for settings in ways:
        lm = lm_on(CONFIG, engine, Counting)
        with dspy.context(lm=lm, adapter=SchemaAdapter(), **settings), about("stage", "item"):
            assert dspy.Predict(ResponseGeneration)(**inputs_for(ResponseGeneration)).response
        through.append(len(THROUGH))
    assert through == [0, 1] and engine.came[0] == engine.came[1] and engine.sent[0] == engine.sent[1]


@pytest.mark.parametrize("settings", [UNWATCHED, WATCHED], ids=["direct", "usual"])
def test_typed_outputs_either_way(settings: dict[str, Any]) -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    _, answer = ask(lm_on(config, Recording(config)), dspy.Predict(ResponseImprovement), settings)
    assert isinstance(answer, dspy.Prediction) and isinstance(answer.analysis, Analysis)
    assert list(answer.keys()) == ["analysis", "implementation_strategy", "improved_response"]
    assert answer.analysis.original_strengths == ["clear"]


FAULTS: list[tuple[Answer, type[RefedError]]] = [
    ("no JSON", MalformedAnswer),
    (response(""), MalformedAnswer),
    (AnswerCut("cut at max_tokens=777"), CutAnswer),
    (AnswerRefused("declined"), RefusedAnswer),
    (NotReached("no connection in 0.3 s"), NoConnection),
    (NotAnApi("a web page"), TeacherError),
    (StillLimited("refused for minutes"), EndpointBusy),
    (WorkEnds("a person decides"), RunStopped),
    (InTransit(CutAnswer("stage", "item", "cut")), CutAnswer),
    (LMServerError("failed on purpose"), NoAnswer),
    (LMTimeoutError("no answer in 0.3 s"), NoAnswer),
    (LMAuthError("wrong key"), TeacherError),
    (AuthError("wrong key", status=401), TeacherError),
]


@pytest.mark.parametrize(("fault", "raised"), FAULTS)
def test_the_same_errors_either_way(fault: Answer, raised: type[RefedError]) -> None:
    config = TeacherConfig.model_validate(TEACHERS["external"])
    told = []
    for settings in (UNWATCHED, WATCHED):
        with pytest.raises(raised) as error:
            ask(lm_on(config, Recording(config, fault)), dspy.Predict(ResponseImprovement), settings)
        assert type(error.value) is raised
        told.append(str(error.value))
    assert told[0] == told[1]


@pytest.mark.parametrize(("fault", "raised"), [("cut", CutAnswer), ("refusal", RefusedAnswer), ("500", NoAnswer)])
def test_the_same_errors_over_the_wire(server: SimulatedTeacher, fault: str, raised: type[RefedError]) -> None:
    server.control(faults={fault: 1})
    config = TeacherConfig(model="sim/sim-model", api_base=server.base_url, retries=0)
    for settings in (UNWATCHED, WATCHED):
        with pytest.raises(raised):
            ask(
                lm_on(config, TeacherEngine(config, resolve(config), None)), dspy.Predict(ResponseImprovement), settings
            )


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


# --- who watches gets the usual way

CONFIG = TeacherConfig.model_validate(TEACHERS["external"])
BRIEF, TASK = "Be brief.", "Another task."


class Callback(BaseCallback):  # type: ignore[misc]
    pass


class OtherAdapter(SchemaAdapter):
    def format_system_message(self, signature: Any) -> str:
        return f"{super().format_system_message(signature)}\n\n{BRIEF}"


class OtherPredict(dspy.Predict):  # type: ignore[misc]
    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        return await super().aforward(**{**inputs, "instruction": TASK})


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
    "a callback": ({"callbacks": [Callback()]}, None),
    "usage": ({"track_usage": True}, None),
    "another adapter": ({"adapter": dspy.JSONAdapter()}, None),
    "settings of the predictor": ({}, _with_config),
    "a callback of the model": ({}, _with_callback),
}


@pytest.mark.parametrize("watcher", WATCHERS)
def test_whoever_watches_gets_the_usual_way(watcher: str) -> None:
    settings, change = WATCHERS[watcher]
    predictor = dspy.Predict(ResponseGeneration)
    assert ask(lm_on(CONFIG, Recording(CONFIG)), predictor, UNWATCHED)[0]
    engine = Recording(CONFIG)
    lm = lm_on(CONFIG, engine)
    if change is not None:
        change(predictor, lm)
    direct, answer = ask(lm, predictor, UNWATCHED, **settings)
    assert not direct and answer.response
    if change is _with_config:
        assert engine.came[0].config.temperature == 0.1


def test_a_usage_tracker_around_it_sees_the_call() -> None:
    with dspy.track_usage() as tracker:
        ask(lm_on(CONFIG, Recording(CONFIG)), dspy.Predict(ResponseGeneration), UNWATCHED)
    assert tracker.get_total_tokens()["sim/sim-model"]["prompt_tokens"] == 100


def test_dspys_history_has_the_same_entry_either_way() -> None:
    entries = []
    for settings, is_direct in ((UNWATCHED, True), (WATCHED, False)):
        lm = lm_on(CONFIG, Recording(CONFIG))
        direct, _ = ask(lm, dspy.Predict(ResponseGeneration), settings, disable_history=False)
        assert direct == is_direct
        [entry] = lm.history
        entries.append({name: entry[name] for name in ("prompt", "messages", "outputs", "model", "model_type")})
    assert entries[0] == entries[1]


def test_a_trace_sees_the_call() -> None:
    trace: list[Any] = []
    lm = lm_on(CONFIG, Recording(CONFIG))
    direct, _ = ask(lm, dspy.Predict(ResponseGeneration), UNWATCHED, trace=trace, max_trace_size=9)
    assert direct and len(trace) == 1


def test_a_callback_of_the_predictor_sees_the_call() -> None:
    seen: list[Any] = []

    class Watching(BaseCallback):  # type: ignore[misc]
        def on_module_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            seen.append(outputs)

    predictor = dspy.Predict(ResponseGeneration)
    predictor.callbacks = [Watching()]
    direct, answer = ask(lm_on(CONFIG, Recording(CONFIG)), predictor, UNWATCHED)
    assert direct and seen == [answer]


@pytest.mark.parametrize("settings", [UNWATCHED, WATCHED], ids=["direct", "usual"])
def test_a_predictor_or_an_adapter_of_the_callers_keeps_its_own_code_either_way(settings: dict[str, Any]) -> None:
    engine = Recording(CONFIG)
    ask(lm_on(CONFIG, engine), OtherPredict(ResponseGeneration), settings, adapter=OtherAdapter())
    assert str(engine.came[0].system).endswith(BRIEF)
    assert f"<instruction>\\n{TASK}\\n</>" in as_json(engine.came[0])


def test_types_of_dspys_own_get_the_usual_way() -> None:
    engine = Recording(CONFIG)
    direct, answer = ask(lm_on(CONFIG, engine), dspy.Predict(Conversing), UNWATCHED)
    assert not direct and answer.answer
    assert [message.role for message in engine.came[0].messages] == ["user", "assistant", "user"]


def test_another_kind_of_lm_or_a_cache_gets_the_usual_way() -> None:
    writer = Writer()
    plain = dspy.LM("fake/model", engine=writer, async_engine=writer.asynchronous, num_retries=0, cache=False)
    assert not ask(plain, dspy.Predict(ResponseGeneration), UNWATCHED)[0]
    cached = lm_on(CONFIG, Recording(CONFIG)).copy(cache=True)
    assert not ask(cached, dspy.Predict(ResponseGeneration), UNWATCHED)[0]


def test_a_predictors_own_lm_is_the_one_asked() -> None:
    engines = Recording(CONFIG), Recording(CONFIG)
    predictor = dspy.Predict(ResponseGeneration)
    predictor.lm = lm_on(CONFIG, engines[0])
    ask(lm_on(CONFIG, engines[1]), predictor, UNWATCHED)
    assert len(engines[0].came) == 1 and not engines[1].came

"""The direct way to a teacher sends what DSPy's usual way sends, and gives what it gives."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import LMAuthError, LMServerError, LMTimeoutError

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
from refed_dspy.programs.asking import again
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
from refed_dspy.teachers.recorded import recorded_lm
from refed_dspy.teachers.teacher import open_teacher
from tests.support.scripted_engine import SAMPLE_FIELDS, Answer, response
from tests.support.two_ways import TEACHERS, UNWATCHED, WATCHED, Recording, as_json, ask, asked, inputs_for, lm_on

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

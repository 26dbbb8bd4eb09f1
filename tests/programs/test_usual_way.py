"""Whoever watches a call, or changes how it is made, gets DSPy's usual way, and what they asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy.utils.callback import BaseCallback

from refed_dspy import TeacherConfig
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.signatures import ResponseGeneration
from tests.support.scripted_engine import Writer
from tests.support.two_ways import TEACHERS, UNWATCHED, WATCHED, Recording, as_json, ask, lm_on

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

"""The language model that DSPy holds for a teacher, on an engine of ours."""

from __future__ import annotations

from typing import Any

import dspy
from dspy.utils.exceptions import LMError

from refed_dspy.config.teacher import LEAST_TO_REASON, TeacherConfig, takes_temperature
from refed_dspy.errors import ModelError, one_line
from refed_dspy.teachers.balance import BalancedEngine
from refed_dspy.teachers.blocking import BlockingTeacherEngine
from refed_dspy.teachers.engine import TeacherEngine
from refed_dspy.teachers.prices import Price
from refed_dspy.teachers.route import Route

NO_BATCHES = {"anthropic", "gemini", "vertex", "vertex-express", "xai"}
"""Providers whose Batch API, if they have one, is not like OpenAI's."""


class TeacherLM(dspy.LM):
    """A `dspy.LM` on an engine of ours, which may also be asked without it (programs/fast_path.py)."""

    @property
    def direct_engine(self) -> TeacherEngine | BalancedEngine:
        engine: TeacherEngine | BalancedEngine = self._async_engine_spec
        return engine


def batch_model(config: TeacherConfig, route: Route, price: Price | None, plain: Price | None) -> TeacherLM:
    """A model behind its provider's batches. `plain`: the price of a call outside a batch."""
    from refed_dspy.teachers.batch.engine import BatchEngine

    if route.provider in NO_BATCHES:
        raise ModelError(
            f"mode: {config.mode} needs a Batch API like OpenAI's, which {config.model} does not have; set "
            "mode: interactive"
        )
    at_once = TeacherEngine(config, route, plain)
    return language_model_on(config, at_once, BatchEngine(config, route, price, plain))


def language_model(config: TeacherConfig, route: Route, price: Price | None, label: str | None = None) -> TeacherLM:
    engine = TeacherEngine(config, route, price, label)
    return language_model_on(config, engine, engine)


def language_model_on(
    config: TeacherConfig, at_once: TeacherEngine | BalancedEngine, engine: TeacherEngine | BalancedEngine
) -> TeacherLM:
    """`at_once`: what answers a caller without an event loop."""
    try:
        return TeacherLM(
            str(config.model or f"gguf/{config.gguf}"),
            **request_settings(config),
            cache=False,
            num_retries=0,
            engine=BlockingTeacherEngine(at_once),
            async_engine=engine,
        )
    except LMError as error:
        raise ModelError(one_line(error)) from None


def request_settings(config: TeacherConfig) -> dict[str, Any]:
    """What every request asks for. DSPy wants a model that reasons to be asked for so many tokens; the engine sends the
    config's number where that is lower."""
    least = LEAST_TO_REASON if not config.without_endpoint and not takes_temperature(str(config.model)) else 0
    return {"temperature": config.temperature, "max_tokens": max(config.max_tokens, least)}

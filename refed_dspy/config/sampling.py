"""Which sampling settings a model takes, as far as its name tells. Its endpoint has the last word."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

DEFAULT_TEMPERATURE = 1.0
"""Every provider's own default, and ours: to send it or to leave it out is the same."""
# Claude Opus 4.7 and all later families (opus-5, sonnet-5, other names).
_CLAUDE_WITHOUT = (
    r"claude-(?:opus-4[-.](?:[7-9]|\d\d)|(?:opus|sonnet|haiku)-(?:[5-9]|\d\d)"
    r"|(?!opus|sonnet|haiku|instant)[a-z]+-\d)(?!\d)"
)
_OPENAI_WITHOUT = r"(?:o\d|gpt-5)(?![a-z0-9])(?!(?:\.\d+)*-chat)"
_THINKS = re.compile(
    r"deepseek-(?:r\d|reasoner)|\br1\b|qwq|qwen-?3|magistral|gpt-oss|gemini-(?:2\.5|[3-9])|grok-[4-9]"
    r"|glm-(?:4\.[5-9]|[5-9])|minimax-m\d|think|reason"
)
LEAST_TO_REASON = 16_000
"""Tokens of an answer that leave room for reasoning, which counts as a part of it."""
_WITHOUT = re.compile(rf"(?:.*[./])?{_CLAUDE_WITHOUT}|{_OPENAI_WITHOUT}")
# From Claude Opus 4.1, Sonnet 4.5 and Haiku 4.5 on.
_EITHER = re.compile(rf"claude-(?:opus|sonnet|haiku)-4[-.](?:[1-9]|\d\d)(?!\d)|{_CLAUDE_WITHOUT}")


def is_reasoning_deployment(deployment: str) -> bool:
    """Whether an Azure deployment, whose name is free text, seems to be of one of OpenAI's reasoning models."""
    return re.search(rf"(?:^|[^a-z0-9]){_OPENAI_WITHOUT}", deployment.lower()) is not None


def reasons(model: str) -> bool:
    """Whether PROVIDER/NAME seems to reason before it answers, where nothing says how much."""
    name = model.lower().rpartition("/")[2]
    return is_reasoning_deployment(name) or _THINKS.search(name) is not None


def takes_temperature(model: str) -> bool:
    """Whether PROVIDER/NAME takes a temperature other than its default."""
    return _WITHOUT.match(model.lower().rpartition("/")[2]) is None


def takes_zero(model: str, params: Mapping[str, Any]) -> bool:
    """Whether PROVIDER/NAME takes temperature 0 beside `params`. A doubtful one is taken not to."""
    wire, _, name = model.partition("/")
    return not (wire == "azure" and is_reasoning_deployment(name)) and not fault(model, 0.0, params)


def on_anthropic_wire(model: str) -> bool:
    """Whether PROVIDER/NAME is asked in the format of Anthropic's Messages API."""
    wire = model.partition("/")[0]
    return "anthropic" in wire or wire == "claude-code"


def is_unsent(temperature: float, model: str, params: Mapping[str, Any]) -> bool:
    """Whether a request goes without its `temperature`: where that is the default of a model that takes no other, or of
    Anthropic's, which take none any more; and where the model takes the `top_p` in `params` in its place."""
    if temperature == DEFAULT_TEMPERATURE and (on_anthropic_wire(model) or not takes_temperature(model)):
        return True
    return params.get("top_p") is not None and _is_either_or(model)


def fault(model: str, temperature: float, params: Mapping[str, Any]) -> str:
    """Why PROVIDER/NAME does not take these settings, and what to do; "" where it may take them."""
    if temperature == DEFAULT_TEMPERATURE:
        return ""
    if on_anthropic_wire(model) and temperature > 1:
        return f"temperature {temperature:g}: Anthropic's API takes 0 to 1"
    if not takes_temperature(model):
        return f"temperature {temperature:g}: {model} only takes its default, 1; remove it"
    if params.get("top_p") is not None and _is_either_or(model):
        return f"temperature {temperature:g}: {model} takes either it or top_p, not both; remove one"
    return ""


def _is_either_or(model: str) -> bool:
    """Whether PROVIDER/NAME refuses a request with both a temperature and a `top_p`."""
    return on_anthropic_wire(model) and _EITHER.search(model.lower()) is not None

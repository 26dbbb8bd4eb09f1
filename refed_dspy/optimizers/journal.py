"""How an answered request is kept in a compile's ledger, and how it is given back."""

from __future__ import annotations

import json
from typing import TypeAlias

from dspy.lm15 import Message, Response, Usage
from dspy.utils import exceptions as lm_errors

from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused

Paid: TypeAlias = tuple[Response, int]
"""An answer, and what it cost in picodollars."""
FINAL: dict[str, type[lm_errors.LMError]] = {
    "cut": AnswerCut,
    "refused": AnswerRefused,
    "too long": lm_errors.ContextWindowExceededError,
    "unfit": lm_errors.LMInvalidRequestError,
}
"""The kinds of failure that asking the same again would only repeat, and what each is raised as."""


def final_kind(error: BaseException) -> str:
    """The kind of a failure that asking the same again would only repeat, or nothing."""
    if getattr(error, "status", None) == 404:
        return ""
    return next((kind for kind, known in FINAL.items() if isinstance(error, known)), "")


def to_ledger(response: Response, cost: int) -> str:
    """An answer as it is written down. Half a character, which no database and no endpoint takes, becomes a `?`."""
    usage = response.usage
    tokens = [usage.input_tokens, usage.output_tokens] if usage else [None, None]
    text = (response.text or "").encode("utf-8", "replace").decode()
    return json.dumps({"text": text, "tokens": tokens, "cost": cost}, ensure_ascii=False)


def from_ledger(model: str, paid: str) -> Paid:
    """An answer that was written down, as its endpoint would give it."""
    said = json.loads(paid)
    read, written = said["tokens"]
    response = Response(
        id="journal",
        model=model,
        message=Message.assistant(said["text"] or " "),
        finish_reason="stop",
        usage=Usage(input_tokens=read, output_tokens=written),
    )
    return response, int(said["cost"])

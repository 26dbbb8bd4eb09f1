"""How a model's response is stored in a compile's ledger and read back, and which failures are final."""

from __future__ import annotations

import json
from typing import TypeAlias

from dspy.lm15 import Message, Response, Usage
from dspy.utils import exceptions as lm_errors

from refed_dspy.programs.lm_errors import AnswerCut, AnswerRefused

PaidResponse: TypeAlias = tuple[Response, int]
"""A response, and what it cost in picodollars."""
FINAL_ERRORS: dict[str, type[lm_errors.LMError]] = {
    "cut": AnswerCut,
    "refused": AnswerRefused,
    "too long": lm_errors.ContextWindowExceededError,
    "unfit": lm_errors.LMInvalidRequestError,
}
"""Kind of failure → the error it is raised as. The same request would fail in the same way again."""


def final_kind(error: BaseException) -> str:
    """The kind of `error` where the same request would fail in the same way again; else an empty text."""
    if getattr(error, "status", None) == 404:
        return ""
    return next((kind for kind, error_class in FINAL_ERRORS.items() if isinstance(error, error_class)), "")


def to_ledger(response: Response, cost: int) -> str:
    """A response as the ledger stores it. Half a surrogate pair, which no database or endpoint takes, becomes `?`."""
    usage = response.usage
    tokens = [usage.input_tokens, usage.output_tokens] if usage else [None, None]
    text = (response.text or "").encode("utf-8", "replace").decode()
    return json.dumps({"text": text, "tokens": tokens, "cost": cost}, ensure_ascii=False)


def from_ledger(model: str, stored: str) -> PaidResponse:
    """A stored response as its endpoint would return it, and its cost."""
    fields = json.loads(stored)
    prompt_tokens, completion_tokens = fields["tokens"]
    response = Response(
        id="ledger",
        model=model,
        message=Message.assistant(fields["text"] or " "),
        finish_reason="stop",
        usage=Usage(input_tokens=prompt_tokens, output_tokens=completion_tokens),
    )
    return response, int(fields["cost"])

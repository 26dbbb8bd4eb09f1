"""What an endpoint accepts in a request: at first judged by its address and the model's name, then by its own errors.

Gateways and free deployment names hide which model is behind them. One that refuses a parameter says so in its error,
which costs nothing; the request is then sent again without that parameter, and so are all later ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from dspy.lm15 import LM15Error

Schema: TypeAlias = Literal["bounded", "strict", "none"]
"""The JSON schema of an answer: with bounds on the lengths of texts and lists, without, or not sent at all."""
Field: TypeAlias = Literal["max_tokens", "max_completion_tokens"]
OLD_FIELD: Field = "max_tokens"
NEW_FIELD: Field = "max_completion_tokens"
_REFUSED = re.compile(
    r"unsupported|not support|unrecognized|not permitted|not allowed|extra inputs|unknown|invalid|only the default"
    r"|only 1|only be set to 1|deprecated|unexpected|must be 1"
)
_TOO_MUCH = re.compile(r"too (?:large|long|many|big)|exceed|context (?:length|window)|at most \d")
"""A refusal of how much was sent, or asked for, whatever parameters it names."""
_BOUND = re.compile(r"(?:max|min)(?:length|items)")
_SCHEMA = re.compile(r"response_format|json_schema|output_config|output_format|\bschema\b")


@dataclass(frozen=True)
class Dialect:
    """`tokens_field`: the parameter that bounds an answer's length; None: the one that the wire format has."""

    tokens_field: Field | None = None
    temperature: bool = True
    """Whether a temperature is sent."""
    reasoning: bool = True
    """Whether it is sent how much to reason, where that is set."""
    schema: Schema = "bounded"

    def after(self, error: LM15Error) -> Dialect | None:
        """What to try after this refusal; None where it is about something else.

        Only the endpoint's words are looked at, since gateways lose the code and the name of the parameter.
        """
        said = str(error.message).lower()
        if error.status not in {400, 422} or not _REFUSED.search(said) or _TOO_MUCH.search(said):
            return None
        if NEW_FIELD in said and OLD_FIELD in said.replace(NEW_FIELD, ""):  # "… Use 'max_completion_tokens' instead."
            return replace(self, tokens_field=NEW_FIELD)
        if NEW_FIELD in said:
            return replace(self, tokens_field=OLD_FIELD)
        if "temperature" in said and self.temperature:
            return replace(self, temperature=False)
        if "reasoning_effort" in said and self.reasoning:
            return replace(self, reasoning=False)
        if _BOUND.search(said) and self.schema == "bounded":
            return replace(self, schema="strict")
        if _SCHEMA.search(said) and self.schema != "none":
            return replace(self, schema="none")
        return None

    def told(self, before: Dialect) -> str:
        """What changed, for people."""
        if self.tokens_field != before.tokens_field:
            return f"{self.tokens_field} is sent instead"
        if self.temperature != before.temperature:
            return "temperature is no longer sent"
        if self.reasoning != before.reasoning:
            return "the reasoning effort is no longer sent"
        if self.schema == "strict":
            return "schemas are sent without bounds from now on"
        return "no schema is sent from now on: answers may fit their fields less often"

    def bounds(self, params: Mapping[str, Any], most: int) -> dict[str, Any]:
        """The fields of a request's settings that say how long an answer may be, `most` tokens, and the user's
        `params`."""
        if self.tokens_field is None:
            return {"max_tokens": most, "extensions": dict(params) or None}
        return {"max_tokens": None, "extensions": {**params, self.tokens_field: most}}

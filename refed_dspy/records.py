"""Frozen records of the whole package: references, feedback, samples, failures, calls, data rows; money; digests."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from refed_dspy.text import counted, html_table, record_repr

TAKEN_SHOWN = 60
"""How many of a reference's instructions, the newest, the prompt shows as taken: enough to steer, few enough to fit."""
PICO = 10**12
"""Picodollars in a dollar. Money is counted in whole picodollars: a token's price is a whole number of them, so sums
are exact."""


@dataclass(frozen=True)
class AtMost:
    """Bounds a text's characters or a list's items in the schema that is sent to the decoder, and nowhere else.

    It keeps a small model from writing without end. A longer answer of a teacher without such a decoder is paid for
    and complete, so reading it back must not refuse it.
    """

    count: int

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        schema = handler(core)
        return {**schema, "maxItems" if schema.get("type") == "array" else "maxLength": self.count}


# llama.cpp enforces bounds up to 1,999 characters and ignores larger ones (teachers/requests.py).
Prose = Annotated[str, AtMost(24_000)]
Note = Annotated[str, AtMost(1_500)]
Notes = Annotated[list[Note], AtMost(24)]
# At most five short notes are asked for. A bound cuts in the middle of a word if it must: these bounds stop a list that
# does not end, and do not touch what was asked for.
ShortNote = Annotated[str, AtMost(400)]
ShortNotes = Annotated[list[ShortNote], AtMost(6)]


class Record(BaseModel):
    """Base of the records: frozen, without further fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __repr__(self) -> str:
        return record_repr(type(self).__name__, dict(self))

    def _repr_html_(self) -> str:
        return html_table(type(self).__name__, ("field", "value"), dict(self).items())


# The docstrings of the next two are in the schema that adapters other than ours show to the teacher: they are prompts.
class Analysis(Record):
    """What the improvement stage saw in the first response (paper, section 3.2)."""

    original_strengths: ShortNotes
    improvement_opportunities: ShortNotes
    relevant_feedback: ShortNotes


class ImplementationStrategy(Record):
    """What it decided to change, and why."""

    planned_changes: ShortNotes
    rationale: ShortNote


NO_ANALYSIS = Analysis(original_strengths=[], improvement_opportunities=[], relevant_feedback=[])
NO_STRATEGY = ImplementationStrategy(planned_changes=[], rationale="")
"""The analysis and the strategy of a sample whose program improves nothing."""


class Reference(Record):
    """One excellent pair to learn from. `source`: the file and row it was read from. `system`: its system prompt,
    which its samples inherit; `earlier`: the turns before it in its conversation."""

    instruction: str = Field(min_length=1)
    response: str = Field(min_length=1)
    source: str = ""
    system: str = ""
    earlier: str = ""

    @property
    def id(self) -> str:
        """Twelve hex digits of the pair's digest: the same pair has the same id in every run."""
        texts = [self.instruction, self.response, *([self.system, self.earlier] if self.system or self.earlier else [])]
        return sha256("\0".join(texts).encode()).hexdigest()[:12]

    @property
    def shown(self) -> str:
        """The instruction as prompts show it: with what it stands under."""
        return _under(self.instruction, {"System prompt": self.system, "Earlier in the conversation": self.earlier})

    def posed(self, instruction: str) -> str:
        """A new `instruction` as prompts show it: under the system prompt that it inherits."""
        return under_system(instruction, self.system)


def under_system(instruction: str, system: str) -> str:
    """`instruction` as prompts show it: under its `system` prompt, if it has one."""
    return _under(instruction, {"System prompt": system})


def _under(instruction: str, sections: Mapping[str, str]) -> str:
    """`instruction` after those `sections` that have a text; alone where none has."""
    given = [f"{name}:\n{text}" for name, text in sections.items() if text]
    return "\n\n".join([*given, f"Instruction:\n{instruction}"]) if given else instruction


class WeightedCriterion(Record):
    """A question about an answer, to be answered with yes or no, and its weight, from 1 to 5."""

    criterion: Annotated[str, AtMost(300)]
    weight: int


Criteria = tuple[WeightedCriterion, ...]


class Feedback(Record):
    """The feedback on one reference.

    `features` maps a feature's name (`subject_areas`, `relevant_skills`) to its description;
    `response` is the feedback on the reference's response; `criteria` is what it says an answer of its kind must do.
    """

    features: Mapping[str, str]
    response: str
    criteria: Criteria = ()


class Sample(Record):
    """One row of the data set, under the paper's names. `extra`: what its program's stages wrote in other fields, by
    column, in samples read from a run."""

    instruction: str
    response: str
    analysis: Analysis
    implementation_strategy: ImplementationStrategy
    improved_response: str
    extra: Mapping[str, Any] = Field(default_factory=dict, exclude=True)

    @classmethod
    def of(cls, instruction: str, response: str, improved_response: str | None = None) -> Self:
        """A sample without an analysis. `improved_response`: by default the response, which no stage improves."""
        return cls(
            instruction=instruction,
            response=response,
            analysis=NO_ANALYSIS,
            implementation_strategy=NO_STRATEGY,
            improved_response=response if improved_response is None else improved_response,
        )


class Failure(Record):
    """One row that failed: at which stage, for which item, the kind of failure, and the reason."""

    stage: str
    item: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Compared:
    """The verdicts behind one score. `weight`: by how much the score rises if all of them turn from lost to won.
    `verdicts`: (win from 0 to 1, log of the answer's length over that of the uncompiled program's) of each answer."""

    weight: float
    verdicts: Sequence[tuple[float, float]]


def dollars(cost: float) -> str:
    """Picodollars as text: dollars and cents from a dollar on, two significant digits below."""
    amount = cost / PICO
    if amount == 0:
        return "$0"
    if amount >= 0.995:
        return f"${amount:,.2f}"
    places = max(2, 1 - math.floor(math.log10(amount)))
    return f"${amount:.{min(places, 8)}f}" if amount >= 1e-8 else "less than $0.00000001"


def money(amount: float | None, unpriced: int = 0, unknown: str = "price unknown") -> str:
    """`amount` dollars as text, and how many calls are not in it since their price is unknown; `unknown` where none is
    known."""
    if amount is None or (unpriced and not amount):
        return unknown
    return dollars(amount * PICO) + (f" and {counted(unpriced, 'call')} at an unknown price" if unpriced else "")


@dataclass(frozen=True)
class Rates:
    """Picodollars per token: of the prompt, read from the provider's cache, written to that cache, and generated."""

    prompt: int
    cached: int
    written: int
    completion: int

    def cost(self, prompt: float, cached: float, written: float, completion: float) -> float:
        """Picodollars for these tokens. `prompt` includes `cached` and `written`. Whole for whole numbers of tokens."""
        plain = max(0, prompt - cached - written)
        return plain * self.prompt + cached * self.cached + written * self.written + completion * self.completion

    @property
    def dearest_prompt(self) -> int:
        """The most that a token of the prompt can cost."""
        return max(self.prompt, self.cached, self.written)


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt that reached a teacher. A token count of None was not reported: unknown, not zero.

    `prompt_tokens` includes `cached_tokens`, and `completion_tokens` `reasoning_tokens`. `outcome` is `ok`, the kind of
    a failure, or `cancelled`. `cost` is what it is charged, in picodollars: computed from its tokens, or its whole
    reservation where it may have been billed without an answer; None where the model's price is unknown. `number` is
    its row in the ledger, 0 if none was reserved.
    """

    model: str
    endpoint: str
    outcome: str
    seconds: float
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    cost: int | None = None
    number: int = 0
    reasoning_tokens: int | None = None


def digest(value: Any) -> str:
    """Sixteen hex digits of `value` as JSON with sorted keys."""
    return sha256(_as_json(value)).hexdigest()[:16]


def digest_of(values: Iterable[Any], *others: Any) -> str:
    """`digest([*values])`, or with `others` `digest([[*values], *others])`; one value at a time is in memory."""
    found = sha256(b"[[" if others else b"[")
    for place, value in enumerate(values):
        found.update((b", " if place else b"") + _as_json(value))
    found.update(b"]" + b"".join(b", " + _as_json(value) for value in others) + (b"]" if others else b""))
    return found.hexdigest()[:16]


def _as_json(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=json_default)
    return text.encode("utf-8", "surrogatepass")


def json_default(value: Any) -> Any:
    """`value` as something that `json.dumps` can write: its hook for values it does not know."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    as_dict = getattr(value, "toDict", None)  # a DSPy Example has it; records import no DSPy
    if callable(as_dict) and not isinstance(value, type):
        return as_dict()
    return repr(value)


@dataclass(frozen=True, slots=True)
class DataRow:
    """One row of a data set. `number` counts from 1, as a person would; `response` is what a model is trained on;
    `plain` is the response before it was improved, None where the data set has none; `fields` is the row as it was
    read; `reference` is what it was made from, None where that is not known; `system` is the system prompt that it
    stands under; `criteria` are those of its reference."""

    number: int
    instruction: str
    response: str
    plain: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    reference: Reference | None = None
    system: str = ""
    criteria: Criteria = ()

    @property
    def stands_under(self) -> str:
        """Its system prompt, or the one that it inherits; "" for none."""
        return self.system or ("" if self.reference is None else self.reference.system)

    @property
    def posed(self) -> str:
        """The instruction as a judge sees it."""
        return under_system(self.instruction, self.stands_under)

"""What a ledger remembers of its work, value by value: the shapes that this package writes into the table `meta`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, NotRequired

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, with_config
from typing_extensions import TypedDict


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value  # JSON has lists only


_AS_TUPLE = BeforeValidator(_tuple)
_MORE = ConfigDict(extra="allow")


@with_config(_MORE)
class _Model(TypedDict):
    model: str
    endpoint: NotRequired[str | None]
    config: NotRequired[dict[str, Any] | None]
    weight: NotRequired[float]


@with_config(_MORE)
class _Settings(TypedDict, total=False):
    seed: int
    per_reference: int | None
    filters: list[dict[str, Any]]
    teacher: list[_Model]
    teachers: dict[str, list[_Model]]
    judge: _Model | None
    reuse: str | None
    judge_program: str | None


class _End(TypedDict):
    state: str
    reason: str
    at: float


class _First(TypedDict):
    cost: float
    calls: float
    spent: float
    all_calls: float


@with_config(_MORE)
class _OfRun(TypedDict):
    kind: str
    references: str
    program: dict[str, str]
    instructions_per_feature: int
    features: list[str]
    seed: int


@with_config(_MORE)
class _OfOthers(TypedDict, total=False):
    program: dict[str, str] | str | None
    judge: dict[str, Any] | None


@with_config(_MORE)
class _About(TypedDict, total=False):
    name: str
    models: dict[str, _Model]
    options: dict[str, Any]
    examples: str
    source: str
    sets: dict[str, Annotated[tuple[str, int], _AS_TUPLE]]
    clusters: dict[str, dict[str, str]]


@with_config(_MORE)
class _Interval(TypedDict):
    mean: float
    low: float | None
    high: float | None
    n: int


@with_config(_MORE)
class _Scored(TypedDict):
    score: _Interval
    parts: dict[str, float | None]
    each: float | None


@with_config(_MORE)
class _Proof(TypedDict):
    baseline: _Scored
    compiled: _Scored
    gain: _Interval
    over_champion: _Interval | None
    equal_length: NotRequired[_Interval | None]
    over_champion_equal_length: NotRequired[_Interval | None]
    proved: bool
    unit: str
    doubts: NotRequired[list[str]]


class _Failed(TypedDict):
    stage: str
    kind: str
    count: int


@with_config(_MORE)
class _Outcome(TypedDict):
    models: dict[str, _Model]
    candidate: str
    baseline: str
    abstained: int
    failures: list[_Failed]
    proof: _Proof | None
    validation: dict[str, float | None]
    agreement: NotRequired[dict[str, Any] | None]
    cost: float | None
    calls: int


_SHAPES: Mapping[str, Any] = {
    "identity": _OfOthers,
    "work": str,
    "size": int | None,
    "settings": _Settings,
    "teacher": _Model | None,
    "judge": _Model | None,
    "pools": dict[str, list[_Model]] | None,
    "asked_teachers": list[_Model] | None,
    "rates": list[int] | None,
    "program": dict[str, Any] | None,
    "program_source": dict[str, Any] | None,
    "features": dict[str, str] | None,
    "filters": list[Annotated[tuple[str, dict[str, Any]], _AS_TUPLE]] | None,
    "left_out": dict[str, int] | None,
    "final_stage": str | None,
    "extra_outputs": dict[str, dict[str, str]] | None,
    "price_source": str | None,
    "last_end": _End,
    "judge_program": str | None,
    "reuse": str | None,
    "track": bool | None,
    "seed": int | None,
    "per_reference": int | None,
    "spread": bool | None,
    "max_failure_share": float | None,
    "max_cost": float | None,
    "max_calls": int | None,
    "max_minutes": float | None,
    "about": _About | None,
    "outcome": _Outcome | None,
    "first": _First | None,
}
_RUNS = {'"run"', '"comparison"'}
"""As JSON, the kinds of work that a plan hands out: what shows them reads their whole identity."""


def damaged_name(values: Mapping[str, str]) -> str | None:
    """The first of `values` (name → JSON) that is not what is written under this name; None where all are. Names that
    are not known here may hold anything."""
    runs = values.get("work") in _RUNS
    for name, value in values.items():
        shape = _OfRun if runs and name == "identity" else _SHAPES.get(name, Any)
        try:
            adapter_of(shape).validate_python(json.loads(value), strict=True)
        except (ValueError, RecursionError):
            return name
    return None


@cache
def adapter_of(shape: Any) -> TypeAdapter[Any]:
    """What validates values of this type; made once, since making it takes longer than most validations."""
    return TypeAdapter(shape)

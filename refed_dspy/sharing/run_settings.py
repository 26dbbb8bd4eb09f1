"""How a run was set up, as far as everyone may know it: what a reader needs to explain the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.sharing.redact import public_model

_SAMPLING = (
    *("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"),
    "repeat_penalty",
    "reasoning_effort",
)
"""Of the parameters these are told; others may hold anything."""
_CAP = re.compile(r"(max_cost|max_calls|max_minutes) [^:/\\]{1,40} is reached after [^:/\\]{1,40}(?=:)")
"""How a run that ended at a cap says so (`stopping.end_at_cap`); what comes behind names its folder."""
_NOT_TOLD = "not told"


@dataclass(frozen=True)
class StageText:
    """What one stage was told to do. `origin`: `package` (refed-dspy's own words), `guided` (these and `added`),
    `other` (compiled, or the author's), empty where it is not known. `examples` shown to the model beside it."""

    stage: str
    instructions: str
    origin: str = ""
    added: str = ""
    examples: int = 0


@dataclass(frozen=True)
class SharedSettings:
    """`rows`: (setting, value), in order. `filters`: (name, settings as JSON). `features`: name → description.
    `stopped`: the cap that the run ended at, without its folder; empty where it ended at none."""

    rows: Sequence[tuple[str, str]] = ()
    filters: Sequence[tuple[str, str]] = ()
    features: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[StageText] = ()
    stopped: str = ""


def settings_of(ledger: Ledger) -> SharedSettings:
    """Those of the run in `ledger`. No address, no folder, and of a file only its name."""
    meta = {name: ledger.meta(name) for name in (
        *("identity", "teacher", "asked_teachers", "pools", "judge", "judge_program", "size", "per_reference", "seed"),
        *("filters", "features", "program", "stopped"),
    )}  # fmt: skip
    identity = meta["identity"] or {}
    stopped = _CAP.match(str(meta["stopped"] or ""))
    return SharedSettings(
        rows=list(_rows(meta, identity)),
        filters=[(str(name), _filter(settings)) for name, settings in meta["filters"] or ()],
        features={str(name): str(told) for name, told in (meta["features"] or {}).items()},
        stages=_stages(meta["program"] or {}, str(identity.get("kind", ""))),
        stopped=stopped[0] if stopped else "",
    )


def _rows(meta: Mapping[str, Any], identity: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    bound = meta["per_reference"]
    yield "rows asked for", f"{meta['size'] or 0:,}"
    yield "instructions asked for at a time, by each feature", str(identity.get("instructions_per_feature", _NOT_TOLD))
    yield "rows of a reference before the next one", "no bound was set" if bound is None else f"at most {bound:,}"
    yield "seed", str(meta["seed"])
    yield from _teachers(meta)
    if (judge := meta["judge"]) is not None:
        prompts = ", compiled prompts" if meta["judge_program"] else ""
        told = _sampling(judge.get("config"), identity.get("judge") or {})
        yield "judge", f"{public_model(judge.get('model'))}: {told}{prompts}"


def _teachers(meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    taught = [one for one in meta["asked_teachers"] or () if isinstance(one, dict)]
    by_stage = meta["pools"] or {"": [meta["teacher"] or {}]}
    several = meta["pools"] is not None
    for stage, pool in by_stage.items():
        told = [
            f"{public_model(one.get('model'))}: "
            + _sampling(one.get("config"), next((t for t in taught if t.get("model") == one.get("model")), {}))
            for one in pool
        ]
        where = f" of {stage}" if stage else " of other stages" if several else ""
        yield f"teacher{where}", "; ".join(dict.fromkeys(told))
    now = {
        (one.get("model"), json.dumps(one.get("config"), sort_keys=True)) for pool in by_stage.values() for one in pool
    }
    if len(taught) > len(now):
        yield "teachers of earlier starts", f"{len(taught) - len(now)}; their sampling is not told here"


def _sampling(config: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> str:
    """Of a model's settings, or of the identity that an LM object gave, whose values are Python's."""
    given = config or identity
    params = dict(given.get("params") or {}) if config else {**(given.get("params") or {}), **identity}
    temperature, most = given.get("temperature"), given.get("max_tokens") or given.get("max_completion_tokens")
    told = [f"temperature {_NOT_TOLD if temperature is None else temperature}"]
    told.append(f"max_tokens {_NOT_TOLD if most is None else most}")
    told += [f"{name} {params[name]}" for name in _SAMPLING if isinstance(params.get(name), int | float | str)]
    known = {*_SAMPLING, "model", "temperature", "max_tokens", "max_completion_tokens", "params"}
    if others := len(set(params) - known):
        told.append(f"other parameters, not told: {others}")
    return ", ".join(told)


def _filter(settings: Any) -> str:
    told = {}
    for name, value in (settings if isinstance(settings, dict) else {}).items():
        if name == "against":  # a file
            told[name] = re.split(r"[/\\]", str(value))[-1]
        elif name == "class":  # a caller's own filter: its module may name anything
            told["own filter"] = str(value).rpartition(".")[2]
        elif name == "prompts":
            told[name] = "compiled"
        elif value not in (None, "", []):
            told[name] = value
    return json.dumps(told, ensure_ascii=False)


def _stages(state: Mapping[str, Any], kind: str) -> list[StageText]:
    own = _own_words(kind)
    return [
        _stage(str(name), one, own.get(str(name)))
        for name, one in state.items()
        if isinstance(one, dict) and isinstance(one.get("signature"), dict)
    ]


def _stage(name: str, state: Mapping[str, Any], own: str | None) -> StageText:
    text, examples = str(state["signature"].get("instructions", "")), len(state.get("demos") or ())
    if own is None:
        return StageText(name, text, examples=examples)
    if text == own:
        return StageText(name, text, "package", examples=examples)
    if text.startswith(f"{own}\n\n"):
        return StageText(name, text, "guided", text[len(own) :].strip(), examples)
    return StageText(name, text, "other", examples=examples)


def _own_words(kind: str) -> dict[str, str]:
    """Stage → the instructions that this version of the package gives it; empty for a program that is not its own."""
    from refed_dspy import programs

    made = {
        one.__name__: one
        for one in (programs.ReferenceLevelFeedback, programs.SampleLevelFeedback, programs.InstructionFeedbackOnly)
    }
    if kind not in made:
        return {}
    return {name: predictor.signature.instructions for name, predictor in made[kind]().named_predictors()}

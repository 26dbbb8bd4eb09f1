"""How a run was set up, as far as it may be published: what a reader needs to explain the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import RunSettings, settings_of
from refed_dspy.ledger.states import CAPPED, last_end
from refed_dspy.plugins.share.redact import public_model
from refed_dspy.records import digest

_SAMPLING = (
    "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty", "repeat_penalty",
    "reasoning_effort",
)  # fmt: skip
"""The parameters that are published; others may hold anything."""
_CAP = re.compile(r"(max_cost|max_calls|max_minutes) [^:/\\]{1,40} is reached after [^:/\\]{1,40}(?=:)")
"""How `runs.result.end_at_cap` begins its message; the rest names the run's folder."""
_UNKNOWN = "not stated"


@dataclass(frozen=True)
class StageText:
    """The instructions of a stage. `origin`: `package` (those of refed-dspy), `guided` (those and `added`), `other`
    (compiled, or the author's), empty where it is unknown. `examples`: how many demonstrations come with them."""

    stage: str
    instructions: str
    origin: str = ""
    added: str = ""
    examples: int = 0


@dataclass(frozen=True)
class SharedSettings:
    """`rows`: (setting, value), in order. `filters`: (name, settings as JSON). `features`: name → description.
    `stopped`: the cap at which the run ended, without its folder; empty where it did not end at one."""

    rows: Sequence[tuple[str, str]] = ()
    filters: Sequence[tuple[str, str]] = ()
    features: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[StageText] = ()
    stopped: str = ""


def shared_settings(ledger: Ledger) -> SharedSettings:
    """The settings of the run in `ledger`, without addresses and folders; of a file only its name."""
    identity = ledger.meta("identity") or {}
    end = last_end(ledger)
    stopped = _CAP.match(end.reason) if end.state == CAPPED else None
    return SharedSettings(
        rows=list(_rows(ledger, identity)),
        filters=[(str(name), public_settings(settings)) for name, settings in identity.get("filters", ())],
        features={str(name): str(text) for name, text in (ledger.meta("features") or {}).items()},
        stages=_stages(ledger.meta("program") or {}, str(identity.get("kind", ""))),
        stopped=stopped[0] if stopped else "",
    )


def _rows(ledger: Ledger, identity: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    settings = settings_of(ledger)
    bound = settings.values.get("per_reference")
    yield "rows requested", f"{ledger.meta('size') or 0:,}"
    yield "instructions per call, for each feature", str(identity.get("instructions_per_feature", _UNKNOWN))
    yield "rows of a reference before the next one", "an even share" if bound is None else f"at most {bound:,}"
    yield "seed", str(identity.get("seed"))
    yield from _teachers(settings, ledger.meta("asked_teachers") or ())
    if settings.judge:
        prompts = ", compiled prompts" if settings.values.get("judge_program") else ""
        yield "judge", _model(settings.judge, identity.get("judge") or {}) + prompts


def _teachers(settings: RunSettings, ever_asked: Sequence[Any]) -> Iterator[tuple[str, str]]:
    """A row for each stage that has teachers of its own, and one for those that only earlier starts asked."""
    asked = [teacher for teacher in ever_asked if isinstance(teacher, dict)]
    identities = {teacher.get("model"): teacher for teacher in reversed(asked)}
    others = "teacher of other stages" if settings.several else "teacher"
    current = set()
    for stage, pool in settings.pools.items():
        members = [_model(member, identities.get(member.get("model"), {})) for member in pool]
        yield f"teacher of {stage}" if stage else others, "; ".join(dict.fromkeys(members))
        current |= {digest([member.get("model"), member.get("config")]) for member in pool}
    if len(asked) > len(current):
        yield "teachers of earlier starts", f"{len(asked) - len(current)}; their sampling is not listed here"


def _model(model: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """A model's public name with its sampling. `identity`: an LM object's own, where it has no config."""
    return f"{public_model(model.get('model'))}: {_sampling(model.get('config'), identity)}"


def _sampling(config: Mapping[str, Any] | None, identity: Mapping[str, Any]) -> str:
    """A model's sampling parameters as text: from its settings, or from the identity of an LM object, whose values are
    Python's `repr`."""
    settings = config or identity
    params = dict(settings.get("params") or {})
    if not config:
        params |= identity
    max_tokens = settings.get("max_tokens") or settings.get("max_completion_tokens")
    stated = {"temperature": settings.get("temperature"), "max_tokens": max_tokens}
    texts = [f"{name} {_UNKNOWN if value is None else value}" for name, value in stated.items()]
    texts += [f"{name} {params[name]}" for name in _SAMPLING if isinstance(params.get(name), int | float | str)]
    if others := params.keys() - {*_SAMPLING, *stated, "model", "max_completion_tokens", "params"}:
        texts.append(f"other parameters, not listed: {len(others)}")
    return ", ".join(texts)


def public_settings(settings: Any) -> str:
    """A filter's settings as JSON, without folders and what a caller's own filter holds."""
    published = {}
    for name, value in (settings if isinstance(settings, dict) else {}).items():
        if name == "against":  # a file
            published[name] = re.split(r"[/\\]", str(value))[-1]
        elif name in {"class", "named"}:  # a caller's own filter: its module may name anything
            published["own filter"] = re.split("[.:]", str(value))[-1]
        elif name == "settings":  # of a caller's own filter: they may hold anything
            continue
        elif name == "prompts":
            published[name] = "compiled"
        elif value not in (None, "", []):
            published[name] = value
    return json.dumps(published, ensure_ascii=False)


def _stages(state: Mapping[str, Any], kind: str) -> list[StageText]:
    defaults = _package_instructions(kind)
    return [
        _stage(str(name), predictor, defaults.get(str(name)))
        for name, predictor in state.items()
        if isinstance(predictor, dict) and isinstance(predictor.get("signature"), dict)
    ]


def _stage(name: str, state: Mapping[str, Any], default: str | None) -> StageText:
    text, examples = str(state["signature"].get("instructions", "")), len(state.get("demos") or ())
    if default is None:
        return StageText(name, text, examples=examples)
    if text == default:
        return StageText(name, text, "package", examples=examples)
    if text.startswith(f"{default}\n\n"):
        return StageText(name, text, "guided", text[len(default) :].strip(), examples)
    return StageText(name, text, "other", examples=examples)


def _package_instructions(kind: str) -> dict[str, str]:
    """Stage → its instructions in this version of the package; empty for a program that is not the package's."""
    from refed_dspy.programs.reference_level import METHODS

    program = next((method() for method in METHODS.values() if method.__name__ == kind), None)
    predictors = program.named_predictors() if program else ()
    return {name: predictor.signature.instructions for name, predictor in predictors}

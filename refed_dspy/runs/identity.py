"""What of a run must stay the same for it to go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refed_dspy.allowance import has_begun
from refed_dspy.engine.ledger import Ledger
from refed_dspy.errors import RunDirError
from refed_dspy.parts import Parts
from refed_dspy.pools import Assignment
from refed_dspy.programs.saved import is_address, program_state
from refed_dspy.staff import ANY, rates_of

log = logging.getLogger("refed_dspy.teachers")


def begin_or_continue(ledger: Ledger, parts: Parts, size: int) -> int:
    """Write a new run's facts, or check that these are the same. Returns the size to reach. Who is asked may be others
    than before, as long as one of them is still there: what the others answered counts.

    That is the size asked for now, larger or smaller than before; what is kept already stays.

    Raises:
        RunDirError: the folder holds another run; the differences are named.
    """
    identity = _identity(parts)
    target = max(size, ledger.kept())
    current = _current(parts, target)
    stored = ledger.meta("identity")
    refuse_other_work(ledger, parts.work)
    if stored != identity and not has_begun(ledger):  # new, or refused before its first answer
        ledger.begin(
            parts.references.items,
            identity=identity,
            program=program_state(parts.program),
            features=dict(parts.stages.features),
            left_out=dict(parts.references.left_out),
            seed=parts.seed,
            final_stage=getattr(parts.program, "final_stage", None),
            filters=parts.screening.identity(),
            taught=_listed(identity["teacher"]),
            **({} if parts.work == "run" else {"work": parts.work}),
            **current,
        )
    else:
        check_same(ledger, parts)
        _tell_of_others(ledger, parts)
        known = _taught(ledger)
        new = [one for one in _listed(identity["teacher"]) if one not in known]
        ledger.set_meta(**current, taught=[*known, *new])
    return target


def assigned(ledger: Ledger, parts: Parts) -> Assignment | None:
    """Who is asked at which stage, and who was before; None where it is one teacher, and always was."""
    now = _listed(_identity(parts)["teacher"])
    former = [one for one in _taught(ledger) if one not in now]
    return Assignment(parts.staff, former) if parts.staff.several or former else None


def _taught(ledger: Ledger) -> list[Any]:
    """The identities of all teachers that were asked in any start."""
    return list(ledger.meta("taught") or _listed((ledger.meta("identity") or {}).get("teacher") or []))


def _listed(identity: Any) -> list[Any]:
    """A teacher's identity, or those of several, as a list of different ones: a model may stand in two places."""
    each = identity if isinstance(identity, list) else [identity]
    return [one for place, one in enumerate(each) if one not in each[:place]]


def _tell_of_others(ledger: Ledger, parts: Parts) -> None:
    """Say so where a stage asks others than at the last start: what comes next costs another price."""
    before = ledger.meta("staff") or {ANY: [ledger.meta("teacher") or {}]}
    now = parts.staff.facts() or {ANY: [{"model": parts.teacher.model, "endpoint": parts.teacher.endpoint}]}
    for stage in sorted({*before, *now}):
        was, is_ = (_shares(facts.get(stage, facts[ANY])) for facts in (before, now))
        if was != is_:
            log.warning("%s: was %s, is now %s; what is answered stays", stage or "teacher", was, is_)


def _shares(members: Sequence[Mapping[str, Any]]) -> str:
    if len(members) == 1:
        return str(members[0].get("model"))
    several = len({one["model"] for one in members}) < len(members)
    names = [f"{one['model']} at {one['endpoint']}" if several else one["model"] for one in members]
    return ", ".join(f"{name} (weight {one['weight']:g})" for name, one in zip(names, members, strict=True))


def refuse_other_work(ledger: Ledger, work: str) -> None:
    """Raises RunDirError where the folder was made for anything else than `work`."""
    if (holds := ledger.holds()) not in {"", work}:
        raise RunDirError(f"{ledger.path.parent}: holds {named(holds)}, not {named(work)}; name another folder")


def named(work: str) -> str:
    """What a folder is for (`Ledger.holds`), as it stands in a sentence."""
    if work == "statistics":
        return work
    return f"an {work}" if work[:1] in "aeio" else f"a {work}"


def check_same(ledger: Ledger, parts: Parts) -> None:
    """Raises RunDirError where the folder holds another run; the differences are named."""
    stored, given = ledger.meta("identity"), _identity(parts)
    if any(isinstance(one["teacher"], list) for one in (stored, given)) or len(_taught(ledger)) > 1:
        known, now = _taught(ledger), _listed(given["teacher"])
        stored["teacher"] = given["teacher"] = ""
        if not any(one in known for one in now):
            stored["teacher"], given["teacher"] = (", ".join(str(one["model"]) for one in who) for who in (known, now))
    if found := differences(stored, given):
        raise RunDirError(
            f"{ledger.path.parent}: holds another run: {'; '.join(found)}; set these back, or use a new --run-dir"
        )


def _identity(parts: Parts) -> dict[str, Any]:
    """As it is stored: keys are text, tuples are lists."""
    return dict(json.loads(json.dumps(parts.identity())))


def _current(parts: Parts, size: int) -> dict[str, Any]:
    """What may change between starts. It is stored as it is now, so that a resume from the folder goes on with it."""
    config, judge = parts.teacher.config, parts.judge
    return {
        "size": size,
        "per_reference": parts.per_reference,
        "max_failure_share": parts.max_failure_share,
        "rates": rates_of(parts.teacher),
        "price_source": parts.staff.price_source,
        "stopped": None,
        **parts.limits,
        "track": parts.track,
        "program_source": getattr(parts.program, "source", None) or None,
        "reuse": str(parts.reuse.absolute()) if parts.reuse else None,
        "teacher": {"model": parts.teacher.model, "config": config and config.model_dump(mode="json")},
        "staff": parts.staff.facts(),
        "judge_program": _found_again(parts.judge_program),
        "judge": judge
        and {
            "model": judge.model,
            "config": judge.config and judge.config.model_dump(mode="json"),
            "rates": rates_of(judge),
        },
    }


def _found_again(source: str | None) -> str | None:
    """A program's file by its whole path, so that it is found from any folder; an MLflow address as it is."""
    return source if source is None or is_address(source) else str(Path(source).absolute())


def differences(stored: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What is not the same, a text each."""
    found = []
    for key in sorted({*stored, *given}):
        old, new = stored.get(key), given.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} was {old}, is {new}")
    return found

"""What of a run must stay the same for it to go on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refed_dspy.engine.ledger import Ledger
from refed_dspy.errors import RunDirError
from refed_dspy.parts import Parts
from refed_dspy.programs.saved import is_address, program_state


def begin_or_continue(ledger: Ledger, parts: Parts, size: int) -> int:
    """Write a new run's facts, or check that these are the same. Returns the size to reach.

    That is the size asked for now, larger or smaller than before; what is kept already stays.

    Raises:
        RunDirError: the folder holds another run; the differences are named.
    """
    identity = _identity(parts)
    target = max(size, ledger.kept())
    current = _current(parts, target)
    stored = ledger.meta("identity")
    refuse_other_work(ledger, parts.work)
    if stored != identity and not ledger.has_answers():  # new, or refused before its first answer
        ledger.begin(
            parts.references.items,
            identity=identity,
            program=program_state(parts.program),
            features=dict(parts.stages.features),
            left_out=dict(parts.references.left_out),
            seed=parts.seed,
            final_stage=getattr(parts.program, "final_stage", None),
            filters=parts.screening.identity(),
            **({} if parts.work == "run" else {"work": parts.work}),
            **current,
        )
    else:
        check_same(ledger, parts)
        ledger.set_meta(**current)
    return target


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
    if found := differences(ledger.meta("identity"), _identity(parts)):
        raise RunDirError(
            f"{ledger.path.parent}: holds another run: {'; '.join(found)}; set these back, or use a new --run-dir"
        )


def _identity(parts: Parts) -> dict[str, Any]:
    """As it is stored: keys are text, tuples are lists."""
    return dict(json.loads(json.dumps(parts.identity())))


def _current(parts: Parts, size: int) -> dict[str, Any]:
    """What may change between starts. It is stored as it is now, so that a resume from the folder goes on with it."""
    config, price, judge = parts.teacher.config, parts.teacher.price, parts.judge
    return {
        "size": size,
        "per_reference": parts.per_reference,
        "max_failure_share": parts.max_failure_share,
        "rates": price and [price.rates.prompt, price.rates.cached, price.rates.written, price.rates.completion],
        "price_source": price and price.source,
        "stopped": None,
        **parts.limits,
        "track": parts.track,
        "program_source": getattr(parts.program, "source", None) or None,
        "reuse": str(parts.reuse.absolute()) if parts.reuse else None,
        "teacher": {"model": parts.teacher.model, "config": config and config.model_dump(mode="json")},
        "judge_program": _found_again(parts.judge_program),
        "judge": judge and {"model": judge.model, "config": judge.config and judge.config.model_dump(mode="json")},
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

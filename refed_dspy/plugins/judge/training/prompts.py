"""The judge's prompts, compiled on the training pairs first where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from refed_dspy.data.pairs import Pair
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.optimizers.compile import compile as tune
from refed_dspy.plugins.judge.training.spec import TrainingSpec
from refed_dspy.programs import PairwiseJudge
from refed_dspy.records import PICO, digest
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.work import CapSettings, lasting_caps
from refed_dspy.text import counted

COMPILE = "compile"
"""The folder inside the training's that holds the compile of the prompts."""
_NOTHING = Spent(0, 0, 0, 0.0)
_SHARES = {"train": (0.25, 24), "validation": (0.125, 12), "test": (0.125, 16)}
"""The share of the training's instructions that each set of the compile gets, and the most. What it sees of them (the
first two) is lost to the correction: of its own demonstrations a judge is too sure."""


@dataclass(frozen=True)
class Prompts:
    """The judge with its prompts. `caps`: what is left of the training's; `seen`: digests of the instructions that they
    were compiled on; `used`: what that took; `stopped`: what ended it early."""

    judge: PairwiseJudge
    caps: CapSettings
    changed: bool = False
    seen: frozenset[str] = frozenset()
    used: Spent = _NOTHING
    stopped: str = ""

    def unseen(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those of `pairs` that the prompts were not compiled on: a correction can be fitted and measured with them."""
        return [pair for pair in pairs if digest(pair.instruction) not in self.seen]

    def notes(self) -> list[str]:
        if not self.seen:
            return []
        outcome = "compiled" if self.changed else "compiled, but no candidate was better, so they stay as they were"
        return [f"prompts: {outcome}; the {counted(len(self.seen), 'instruction')} for that are used for nothing else"]


def compiled_prompts(spec: TrainingSpec, folder: Path) -> Prompts:
    """The prompts to train with, compiled in the training's `folder`. Raises as `compile`."""
    settings = spec.settings
    if settings.optimizer is None:
        return Prompts(spec.began_as, spec.caps)
    train = spec.held_out.train(spec.pairs)
    instructions = len({pair.instruction for pair in train})
    sizes = {name: max(1, min(most, int(share * instructions))) for name, (share, most) in _SHARES.items()}
    tuned = tune(
        spec.began_as,
        train,
        teacher=spec.teacher,
        judge=spec.teacher,
        out=folder / COMPILE,
        progress=False,
        optimizer=settings.optimizer,
        evaluations=settings.evaluations,
        train=sizes["train"],
        validation=sizes["validation"],
        test=sizes["test"],
        seed=settings.seed,
        track=False,
        prove=False,  # the training measures what it is worth, on pairs that neither saw
        max_cost=settings.max_cost,
        max_calls=settings.max_calls,
        max_minutes=settings.max_minutes,
    )
    with Ledger.read(folder / COMPILE) as ledger:
        used, whole = spent(ledger), lasting_caps(ledger, spec.caps)
    left = CapSettings(
        max_cost=_less(whole["max_cost"], used.cost),
        max_calls=cast("int | None", _less(whole["max_calls"], used.calls)),
        max_minutes=_less(whole["max_minutes"], used.seconds / 60),
    )
    stopped = tuned.stopped or _used_up(left, spec.teacher)
    assert isinstance(tuned.program, PairwiseJudge)
    return Prompts(tuned.program, left, tuned.changed, frozenset(tuned.manifest["seen"]), used, stopped)


def _less(cap: float | None, used: float) -> float | None:
    """What is left of `cap`."""
    return cap if cap is None or math.isinf(cap) else cap - used


def _used_up(left: CapSettings, judge: Teacher) -> str:
    """The name of a cap of which not even one call's worst case is left; "" where all leave one."""
    needed = {"max_cost": (judge.least or 0) / PICO, "max_calls": 1, "max_minutes": 0.01}
    caps = cast("dict[str, float | None]", left)
    return next((name for name, least in needed.items() if (cap := caps[name]) is not None and cap < least), "")

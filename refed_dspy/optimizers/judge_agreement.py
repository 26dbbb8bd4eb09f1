"""Measure how well a judge agrees with people. Verdicts are recorded in a folder; a second start continues."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from refed_dspy.concurrency import run_blocking
from refed_dspy.config.base import Capped
from refed_dspy.config.loading import check_config
from refed_dspy.data.pairs import Pair, load_pairs, sample_pairs
from refed_dspy.errors import CapReached, RefedError, RunDirError
from refed_dspy.ledger.identity import differences, has_begun, refuse_other_work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start, spent
from refed_dspy.optimizers.agreement import Agreement, agreement, judge_pairs
from refed_dspy.optimizers.gateway import Gateway, open_gateway
from refed_dspy.optimizers.result import why_stopped
from refed_dspy.programs import PairwiseJudge, Verdict
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.load import warn_of_another_teacher
from refed_dspy.programs.saved import load_into, program_digests
from refed_dspy.records import digest, dollars
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.caps import CapSettings, CapsLeft, caps_of, check_caps, lasting_caps
from refed_dspy.teachers.judge import open_judge_model


@dataclass(frozen=True)
class Measurement:
    """How a judge agrees with people: a row for each criterion, and what it cost. `stopped`: the cap that ended it."""

    rows: Sequence[Agreement]
    judged: int
    pairs: int
    cost: int
    calls: int
    stopped: str

    def lines(self) -> list[str]:
        """What it took, for a terminal."""
        lines = [f"{self.judged} of {self.pairs} pairs judged, {dollars(self.cost)}, {self.calls} calls"]
        return [*lines, f"stopped: {why_stopped(self.stopped, '; raise it to go on')}"] if self.stopped else lines


def measure_agreement(
    pairs: str | Path | Sequence[Pair],
    judge: Any,
    out: str | Path | None = None,
    *,
    program: PairwiseJudge | str | Path | None = None,
    count: int | None = None,
    seed: int = 0,
    max_cost: float | None = None,
    max_calls: int | None = None,
    max_minutes: float | None = None,
) -> Measurement:
    """Have `judge` (what `synthesize` takes as teacher) judge pairs that people have judged.

    Args:
        pairs: a file that `load_pairs` reads, or pairs; `count` of them are drawn with `seed`, or all are used.
        out: the folder that keeps the verdicts; None: `refed-verdicts/` and a name made from pairs, judge and program.
            The same call continues from them.
        program: a compiled judge, or its file or MLflow address; None: the judge with its own prompts.
        max_cost, max_calls, max_minutes: caps over all starts; at a cap, the result so far is returned.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
    """
    capped = check_config(Capped, {"max_cost": max_cost, "max_calls": max_calls, "max_minutes": max_minutes})
    judge_program = _judge_program(program)
    chosen = load_pairs(pairs) if isinstance(pairs, str | Path) else list(pairs)
    if count is not None:
        chosen = sample_pairs(chosen, count, seed)
    teacher = open_judge_model(judge)
    warn_of_another_teacher(judge_program, teacher.model)
    identity = {"pairs": digest([pair.id for pair in chosen]), "program": program_digests(judge_program)}
    folder = Path(out) if out is not None else Path("refed-verdicts") / digest([identity, teacher.identity])
    with Ledger.create(folder) as ledger:
        caps = lasting_caps(ledger, caps_of(capped))
        remaining = check_caps(ledger, {"judge": teacher}, caps)
        _begin_or_continue(ledger, {**identity, "judge": teacher.identity}, caps)
        with _asking(ledger, teacher, remaining, seed) as gateway:
            verdicts = _judge_all(judge_program, chosen, gateway, teacher.concurrency)
            stopped = gateway.cap_reached
        spending = spent(ledger)
    judged_pairs = [pair for pair in chosen if pair.id in verdicts]
    rows = agreement(judged_pairs, [verdicts[pair.id] for pair in judged_pairs], seed)
    return Measurement(rows, len(judged_pairs), len(chosen), spending.cost, spending.calls, stopped)


def _judge_program(program: PairwiseJudge | str | Path | None) -> PairwiseJudge:
    if program is not None and not isinstance(program, str | Path):
        return program
    judge = PairwiseJudge()
    if program is not None:
        load_into(judge, program)
    return judge


@contextmanager
def _asking(ledger: Ledger, judge: Teacher, remaining: CapsLeft, seed: int) -> Iterator[Gateway]:
    """A gateway to the judge, under what is left of the caps."""
    begin_start(ledger)
    recorder = RunRecorder(ledger, remaining.caps, remaining.before)
    with open_gateway(ledger, recorder, {"judge": judge}, seed) as gateway:
        gateway.allow(remaining.caps, remaining.seconds)
        yield gateway


def _judge_all(judge: PairwiseJudge, pairs: Sequence[Pair], gateway: Gateway, concurrency: int) -> dict[str, Verdict]:
    """Pair's id → verdict, for the pairs that were judged before a cap was reached."""
    verdicts: dict[str, Verdict] = {}

    def keep(pair: Pair, verdict: Verdict) -> None:
        verdicts[pair.id] = verdict

    quiet: dict[str, Any] = {"disable_history": True, "trace": None, "max_trace_size": 0, "callbacks": []}
    with dspy.context(lm=gateway.lm("judge"), adapter=SchemaAdapter(), **quiet):
        try:
            run_blocking(judge_pairs(judge, pairs, max(1, concurrency // 2), keep))
        except CapReached:
            return verdicts  # the gateway holds which cap it was
        except RefedError as error:
            raise (gateway.stop_error or error) from None
    return verdicts


def _begin_or_continue(ledger: Ledger, identity: dict[str, Any], caps: CapSettings) -> None:
    stored = ledger.meta("agreement")
    refuse_other_work(ledger, "agreement")
    if stored is not None and has_begun(ledger) and (changes := differences(stored, identity)):
        raise RunDirError(
            f"{ledger.path.parent}: holds other verdicts: {'; '.join(changes)}; set these back, or use a new --out"
        )
    ledger.set_meta(agreement=identity, **caps)

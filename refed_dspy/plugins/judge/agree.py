"""Measure how well a judge agrees with people. Verdicts are recorded in a folder; a second start continues."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from refed_dspy.config.base import Capped
from refed_dspy.config.keywords import Seed, checked
from refed_dspy.config.loading import check_config
from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.config.teacher import WithJudge
from refed_dspy.data.pairs import Pair, load_pairs, merged, sample_pairs
from refed_dspy.errors import OUT, NothingKept, briefly
from refed_dspy.jobs.job import Job, folder_of, job
from refed_dspy.jobs.work import Work, caps_of
from refed_dspy.ledger.spending import spent
from refed_dspy.optimizers.agreement import Agreement, agreement, agreement_lines, criterion_of
from refed_dspy.optimizers.result import why_stopped
from refed_dspy.plugins.judge.people import People, people_of, shared
from refed_dspy.programs import PairwiseJudge, Verdict
from refed_dspy.programs.judges import Judgements
from refed_dspy.programs.load import warn_of_another_teacher
from refed_dspy.programs.saved import program_digests
from refed_dspy.records import PICO, digest, dollars
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.judge import open_judge_model, open_judge_program
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.text import Shown

log = logging.getLogger("refed_dspy.optimizers")


@dataclass(frozen=True, repr=False)
class Measurement(Shown):
    """How a judge agrees with people: a row for each criterion, and what it cost. `stopped`: the cap that ended it;
    `people`: how the annotators agree with each other and each with the judge, None where no two judged a pair; `seen`:
    how many of the pairs are of instructions that the judge was tuned on."""

    rows: Sequence[Agreement]
    judgements: Judgements
    pairs: int
    cost: float
    """Dollars."""
    calls: int
    stopped: str
    people: People | None = None
    seen: int = 0

    def _describe(self) -> str:
        return f"{self.judgements.decided} of {self.pairs} pairs judged, {dollars(self.cost * PICO)}"

    def lines(self) -> list[str]:
        """The table and what it took, for a terminal."""
        judged = self.judgements
        counts = f"{judged.decided} of {self.pairs} pairs judged, {judged}"
        people = self.people.lines() if self.people else []
        lines = [*agreement_lines(self.rows), *people, f"{counts}, {dollars(self.cost * PICO)}, {self.calls} calls"]
        if self.seen:
            lines.insert(0, _flattered(self.seen, self.pairs))
        if warning := judged.warning():
            lines.insert(0, warning)
        return [*lines, f"stopped: {why_stopped(self.stopped, '; raise it to continue')}"] if self.stopped else lines


@briefly
@checked
def measure_agreement(
    pairs: str | Path | Sequence[Pair],
    judge: Any,
    out: str | Path | None = None,
    *,
    program: PairwiseJudge | str | Path | None = None,
    accept_changed: bool = False,
    judge_scorer: ScorerConfig | Mapping[str, Any] | None = None,
    criteria: Sequence[str] | None = None,
    count: Annotated[int, Field(ge=1)] | None = None,
    seed: Seed = 0,
    max_cost: float | None = None,
    max_calls: float | None = None,
    max_minutes: float | None = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
) -> Measurement:
    """Have `judge` (what `synthesize` takes as teacher) judge pairs that people have judged.

    Args:
        pairs: a file or a folder of pages that `load_pairs` reads, with `criteria` as it takes them; or pairs. Equal
            ones count once (`merged`); `count` of them are drawn with `seed`, or all are used.
        out: the folder that keeps the verdicts; None: a folder in `refed-verdicts/`, named after pairs, judge and
            program. The same call continues from them.
        program: a compiled or trained judge, or its file or MLflow address; None: the judge with its own prompts.
        accept_changed: accept such a file even if its prompts were edited after it was saved.
        judge_scorer: the model that computes perplexities, where `program` is a file of a judge trained with them.
        max_cost, max_calls, max_minutes: caps over all starts; at a cap, the result so far is returned.
        progress, on_progress: as `synthesize`.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: the judge failed, or decided no pairs; verdicts are kept.
    """
    capped = check_config(Capped, {"max_cost": max_cost, "max_calls": max_calls, "max_minutes": max_minutes})
    opened = program if isinstance(program, PairwiseJudge) else _opened(program, judge_scorer, accept_changed)
    chosen = merged(load_pairs(pairs, criteria) if isinstance(pairs, str | Path) else list(pairs))
    if count is not None:
        chosen = sample_pairs(chosen, count, seed)
    teacher = open_judge_model(judge)
    warn_of_another_teacher(opened, teacher.model)
    tuned_on = set(getattr(opened, "tuned_on", ()))
    if seen := len({pair.id for pair in chosen if digest(pair.instruction) in tuned_on}):
        log.warning("%s", _flattered(seen, len(chosen)))
    identity = {"pairs": digest([pair.id for pair in chosen]), "program": program_digests(opened)}
    folder = folder_of(out, "refed-verdicts", [identity, teacher.identity])
    with job(folder, _work(identity, teacher, len(chosen), capped, seed), Watch(on_progress, progress)) as at:
        verdicts = judge_pairs(opened, chosen, at)
        judgements, used = Judgements.of(verdicts.values()), spent(at.ledger)
        if judgements.asked and not judgements.decided and not at.stopped:
            raise NothingKept(judgements.none_decided("pairs"))
    judged_pairs = [pair for pair in chosen if pair.id in verdicts]
    rows = agreement(judged_pairs, [verdicts[pair.id] for pair in judged_pairs], seed)
    people = people_of(judged_pairs, verdicts, seed=seed) if shared(judged_pairs) else None
    return Measurement(rows, judgements, len(chosen), used.cost, used.calls, at.stopped, people, seen)


def _work(identity: Mapping[str, Any], judge: Teacher, size: int, capped: Capped, seed: int) -> Work:
    return Work(
        kind="agreement",
        identity={**identity, "judge": judge.identity},
        models={"judge": judge},
        size=size,
        caps=caps_of(capped),
        policy=CallPolicy(seed),
        other="other verdicts",
        way_out="choose another folder with " + OUT,
    )


def _flattered(seen: int, pairs: int) -> str:
    tuned_on = f"{seen} of {pairs} pairs are of instructions that the judge was tuned on"
    return f"{tuned_on}: the figures flatter it; measure it on others"


def _opened(
    source: str | Path | None, scorer: ScorerConfig | Mapping[str, Any] | None, accept_changed: bool
) -> PairwiseJudge:
    named = {"judge_program": source, "judge_scorer": scorer, "accept_changed": accept_changed}
    return open_judge_program(check_config(WithJudge, named)) or PairwiseJudge()


def judge_pairs(judge: PairwiseJudge, pairs: Sequence[Pair], at: Job) -> dict[str, Verdict]:
    """Pair's id → verdict, of the pairs that a cap left time and money for. Raises as `Job.ask`."""
    verdicts: dict[str, Verdict] = {}

    async def judge_pair(pair: Pair) -> None:
        criterion = criterion_of(pair)
        verdicts[pair.id] = await judge.judge(pair.instruction, pair.answer_a, pair.answer_b, criterion, pair.id)

    at.ask(pairs, judge_pair)
    return verdicts

"""A compile that has ended: its outcome is read from its ledger and folder again, and nothing is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from refed_dspy.ledger.candidates import load_candidates
from refed_dspy.ledger.connection import damaged
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.agreement import JudgeReport
from refed_dspy.optimizers.proof import Proof
from refed_dspy.optimizers.result import Compiled, best_program, compiled, files_of, write_files
from refed_dspy.optimizers.spec import CompileSpec
from refed_dspy.optimizers.steps import CompileOutcome
from refed_dspy.records import PICO


@dataclass(frozen=True)
class Ended:
    """A compile's outcome as its ledger keeps it: candidates by their digests."""

    baseline: str
    best: str
    estimate: dict[str, int | float | None]
    proof: Proof
    champion: str | None = None
    judge: JudgeReport | None = None
    format: int = 1


def ended_outcome(folder: Path, ledger: Ledger, spec: CompileSpec) -> Compiled | None:
    """The outcome of the compile in `folder`; None where it has not ended, or where another name or
    `accept_longer` is asked for now: then it is gone over again, from its recorded answers.

    A file that is missing in the folder is written again. Raises RunStopped where it cannot be written, RunDirError
    where the outcome is damaged.
    """
    manifest, facts = ledger.meta("outcome") or {}, ledger.meta("ended")
    if facts is None:
        return None
    candidates = {candidate.digest: candidate for candidate in load_candidates(ledger)}
    try:
        ended = TypeAdapter(Ended).validate_python(facts)
        if (manifest["name"], ended.proof.accept_longer) != (spec.settings.name, spec.settings.accept_longer):
            return None
        baseline, best = candidates[ended.baseline], candidates[ended.best]
    except (ValidationError, KeyError):
        raise damaged(ledger.path, "the compile's outcome is damaged") from None
    proof = ended.proof if ended.format > 1 else _of_format_1(ended.proof)
    outcome = CompileOutcome(baseline, best, ended.estimate, proof, champion=ended.champion, judge=ended.judge)
    made = compiled(folder, outcome, best_program(folder, spec, outcome), manifest)
    write_files(folder, {name: text for name, text in files_of(spec, made).items() if not (folder / name).exists()})
    return made


def _of_format_1(proof: Proof) -> Proof:
    """A proof as an earlier version stored it, with its money in dollars."""
    baseline, best, champion = (
        program and replace(program, unit_cost=program.unit_cost and program.unit_cost / PICO)
        for program in (proof.baseline, proof.compiled, proof.champion)
    )
    assert baseline is not None and best is not None
    return replace(proof, baseline=baseline, compiled=best, champion=champion)

"""A compile that has ended: its outcome is read from its ledger and folder again, and nothing is asked."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter

from refed_dspy.ledger.candidates import load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.agreement import JudgeReport
from refed_dspy.optimizers.proof import Proof
from refed_dspy.optimizers.result import Compiled, best_program, compiled, files_of, write_files
from refed_dspy.optimizers.spec import CompileSpec
from refed_dspy.optimizers.steps import CompileOutcome


def ended_outcome(folder: Path, ledger: Ledger, spec: CompileSpec) -> Compiled | None:
    """The outcome of the compile in `folder`; None where it has not ended, or where another name or
    `accept_longer` is asked for now: then it is gone over again, from its recorded answers.

    A file that is missing in the folder is written again. Raises RunStopped where it cannot be written.
    """
    manifest, facts = ledger.meta("outcome") or {}, ledger.meta("ended")
    settings = spec.settings
    if facts is None or (manifest["name"], facts["proof"]["accept_longer"]) != (settings.name, settings.accept_longer):
        return None
    candidates = {candidate.digest: candidate for candidate in load_candidates(ledger)}
    outcome = CompileOutcome(
        baseline=candidates[facts["baseline"]],
        best=candidates[facts["best"]],
        estimate=facts["estimate"],
        proof=TypeAdapter(Proof).validate_python(facts["proof"]),
        champion=facts["champion"],
        judge=TypeAdapter(JudgeReport | None).validate_python(facts["judge"]),
    )
    made = compiled(folder, outcome, best_program(folder, spec, outcome), manifest)
    write_files(folder, {name: text for name, text in files_of(spec, made).items() if not (folder / name).exists()})
    return made

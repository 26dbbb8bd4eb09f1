"""A compile's outcome in its folder: the program, its manifest and proof; and a compile's status for `refed status`."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import TypeAdapter, ValidationError

from refed_dspy.errors import CAPS, RunStopped, one_line, setting
from refed_dspy.files import whole_file
from refed_dspy.jobs.job import Job
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.candidates import ABSTAINED, Candidate, baseline_and_best, count_abstentions, load_candidates
from refed_dspy.ledger.connection import damaged
from refed_dspy.ledger.history import count_reused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.states import state_in
from refed_dspy.ledger.summary import failure_counts, usage_by_stage
from refed_dspy.measures.intervals import Interval
from refed_dspy.optimizers.agreement import JudgeReport
from refed_dspy.optimizers.by_people import PAIRS, JudgedPair
from refed_dspy.optimizers.proof import FORMAT, UNCHANGED, Proof, finite
from refed_dspy.optimizers.race import race_lines
from refed_dspy.optimizers.spec import SECOND, CompileSpec
from refed_dspy.programs.changes import prompt_diff
from refed_dspy.programs.saved import (
    MANIFEST,
    in_dspys_form,
    load_state,
    program_digests,
    program_state,
)
from refed_dspy.records import PICO, money
from refed_dspy.text import Shown, counted, format_number
from refed_dspy.tracking.store import noted_run

if TYPE_CHECKING:
    import pandas as pd

    from refed_dspy.optimizers.learned import Tried

PROGRAM, PROOF = "program.json", "proof.txt"
DIFF = "prompts.diff"
"""How the program's prompts differ from the uncompiled program's."""
OUTPUTS = (PROGRAM, PROOF, DIFF, PAIRS)


@dataclass(frozen=True)
class CompileOutcome:
    """What a compile came to. `stopped`: what ended it early, a cap's name or missing scores; else an empty text."""

    baseline: Candidate
    best: Candidate
    estimate: dict[str, Any]
    proof: Proof | None = None
    stopped: str = ""
    champion: str | None = None
    """The version of the champion that the proof compares with."""
    judge: JudgeReport | None = None
    """Where the program is a judge."""
    why: str = ""
    """How far it came, where a cap ended it."""
    race: Sequence[Mapping[str, Any]] = ()
    """Each optimizer's `Runner.facts`."""
    answers: Mapping[str, Any] | None = None
    """An `example` of the test set, and what each stage made of it `before` and `after` (`answers_by_stage`)."""
    pairs: Sequence[JudgedPair] = ()
    """What the judge compared in the proof, for people; written once."""

    def facts(self) -> dict[str, Any] | None:
        """What `ended_outcome` makes it of again, in JSON's types; None where it has not ended: a cap stopped it,
        or too little of the test set could be scored, which another start may mend."""
        if self.stopped or self.proof is None or not self.proof.whole:
            return None
        named = {"format": FORMAT, "baseline": self.baseline.digest, "best": self.best.digest}
        return {**asdict(replace(self, pairs=())), **named}


@dataclass(frozen=True, repr=False)
class Compiled(Shown):
    """A compile's outcome. `program` is ready to run; `folder` holds it as `program.json`, with its manifest in it."""

    program: dspy.Module
    folder: Path
    manifest: Mapping[str, Any]
    proof: Proof | None
    """None where a cap was reached before the proof, or only an estimate was asked for."""
    stopped: str
    """What ended it early: a cap's name, "no answer to N requests", or that none of the test set could be scored. Else
    an empty text."""
    changed: bool
    """False where no candidate was better than the uncompiled program: then `program` is the uncompiled one."""
    estimate: Mapping[str, Any]
    """What the whole takes: `cost` and what else is money in dollars, `calls`, `evaluations`, …"""
    judge: JudgeReport | None = None
    """Where the program is a judge: its agreement with people, before and after."""

    def _describe(self) -> str:
        proved = "no proof" if self.proof is None else "proved better" if self.proof.proved else "not proved better"
        proved = "unchanged" if not self.changed else proved
        return f"a {type(self.program).__name__}, {proved}, {money(self.manifest['cost'])}, in {self.path}"

    @property
    def state(self) -> str:
        """How the work stands now: running, stopped, killed, ended short, at its cap or done."""
        return state_in(self.folder)

    @property
    def proved(self) -> bool:
        """Whether there is a proof, and it says that `program` is better."""
        return self.proof is not None and self.proof.proved

    @property
    def cost(self) -> float | None:
        """Dollars, over all starts; None where a price is unknown."""
        return None if self.manifest["cost"] is None else float(self.manifest["cost"])

    @property
    def gain(self) -> Interval | None:
        """Over the uncompiled program, from -1 to 1, with its 98.5% interval; None where there is no proof."""
        return None if self.proof is None else self.proof.gain.raw

    @property
    def candidates(self) -> list[Tried]:
        """Every program that was tried, the uncompiled one first: who tried it, its scores, gain and dollars."""
        from refed_dspy.optimizers.learned import learned_in  # it shows outcomes, so it knows them

        return learned_in(self.folder).tried()

    def to_pandas(self) -> pd.DataFrame:
        """The candidates as a data frame, one a row, without their prompts."""
        import pandas as pd

        return pd.DataFrame([asdict(each) for each in self.candidates]).drop(columns="program", errors="ignore")

    @property
    def why(self) -> str:
        """What ended it early, in figures, and how to continue; else an empty text."""
        return how_to_continue(self.stopped, self.manifest.get("why", "")) if self.stopped else ""

    @property
    def path(self) -> Path:
        """The program's file."""
        return self.folder / PROGRAM

    def lines(self) -> list[str]:
        """The outcome in a few lines: what it cost, what was gained, where it is."""
        manifest, proof, scores = self.manifest, self.proof, self.manifest["validation"]
        before, after = format_number(scores["uncompiled"]), format_number(scores["compiled"])
        lines = [warning] if proof is not None and (warning := proof.warning()) else []
        lines += race_lines(manifest.get("race", ()))  # an earlier version had none
        lines.append(f"validation: {before} uncompiled, {after} compiled")
        if proof is None:
            lines.append("no proof: the test set was not scored, or only in part")
        else:
            lines += [*proof.lines(), *(self.judge.lines() if self.judge is not None else [])]
            lines += proof.doubts() or ["proved better"]
            if manifest["champion"]:
                lines.append(f"the champion is models:/{manifest['name']}/{manifest['champion']}")
        lines.append(f"cost: {money(manifest['cost'])}, {counted(manifest['calls'], 'call')}{self._of_optimizers()}")
        if manifest.get("reused"):
            lines.append(f"reused: {counted(manifest['reused'], 'answer')}, at no cost")
        lines += _failure_lines(manifest)
        if not self.changed and (proof is None or proof.champion is not None):
            lines.append(UNCHANGED)
        if self.stopped:
            lines.append(f"stopped: {self.why}; this is the best program so far")
        return [*lines, f"program: {self.path}"]

    def _of_optimizers(self) -> str:
        """How many of the calls the optimizers made, where there were several; the others were the uncompiled
        program's and the proof's."""
        race = self.manifest.get("race", ())
        return f", {sum(each['calls'] for each in race):,} of them the optimizers'" if len(race) > 1 else ""

    def estimate_lines(self) -> list[str]:
        """What the whole compile would take, judging by the uncompiled program's evaluations."""
        estimate = self.estimate
        proof = " and the proof" if estimate["proof_calls"] else ""
        dear, calls = estimate.get("enough_cost"), estimate.get("enough_calls") or 0
        room = f"max_cost: {money(dear)}" if dear else f"max_calls: {calls:,.0f}"
        go_on = "to continue, run the same command without " + setting("estimate", True)
        return [
            f"uncompiled program on the validation set: {format_number(self.manifest['validation']['uncompiled'])}",
            f"whole compile: {self._whole()}, for about {estimate['evaluations']} evaluations{proof}; "
            f"{room} leaves room for it",
            f"so far: {money(estimate['spent'])}; " + go_on,
        ]

    def _whole(self) -> str:
        cost = "dollars unknown" if self.estimate["cost"] is None else f"about {money(self.estimate['cost'])}"
        return f"{cost}, {self.estimate['calls']:,.0f} calls"

    def diff(self) -> str:
        """What changed in the prompts: a diff of the instructions, and demonstrations whole."""
        return (self.folder / DIFF).read_text(encoding="utf-8")


class CompileEstimate(Compiled):
    """The outcome where only an estimate was asked for: what it shows is the estimate."""

    def _describe(self) -> str:
        return f"the whole compile takes {self._whole()}; so far {money(self.estimate['spent'])}, in {self.folder}"

    def lines(self) -> list[str]:
        """The estimate for people."""
        return self.estimate_lines()


@dataclass(frozen=True)
class KeptOutcome:
    """A `CompileOutcome` as its ledger keeps it: candidates by their digests."""

    baseline: str
    best: str
    estimate: dict[str, int | float | None]
    proof: Proof
    champion: str | None = None
    judge: JudgeReport | None = None
    race: Sequence[Mapping[str, Any]] = ()
    answers: Mapping[str, Any] | None = None
    format: int = 1


def ended_outcome(at: Job, program: dspy.Module, spec: CompileSpec) -> Compiled | None:
    """The outcome of the compile that is opened; None where it has not ended, or where another name, `accept_longer` or
    second judge is asked for now: then it is gone over again, from its recorded answers.

    A file that is missing in the folder is written again. Raises RunStopped where it cannot be written, RunDirError
    where the outcome is damaged.
    """
    folder, manifest, facts = at.folder, at.ledger.meta("outcome") or {}, at.ledger.meta("ended")
    if facts is None:
        return None
    candidates = {candidate.digest: candidate for candidate in load_candidates(at.ledger)}
    try:
        ended = TypeAdapter(KeptOutcome).validate_python(facts)
        settings, second = spec.settings, _models(spec).get(SECOND)
        if (manifest["name"], ended.proof.accept_longer) != (settings.name, settings.accept_longer):
            return None
        if manifest["models"].get(SECOND) != second:
            return None
        baseline, best = candidates[ended.baseline], candidates[ended.best]
    except (ValidationError, KeyError):
        raise damaged(at.ledger.path, "the compile's outcome is damaged") from None
    proof = ended.proof if ended.format > 1 else _of_format_1(ended.proof)
    outcome = CompileOutcome(
        baseline,
        best,
        ended.estimate,
        proof,
        champion=ended.champion,
        judge=ended.judge,
        race=ended.race,
        answers=ended.answers,
    )
    made = compiled(folder, outcome, best_program(folder, program, outcome), manifest)
    write_files(folder, {name: text for name, text in files_of(program, made).items() if not (folder / name).exists()})
    return made


def _of_format_1(proof: Proof) -> Proof:
    """A proof as an earlier version stored it, with its money in dollars."""
    baseline, best, champion = (
        program and replace(program, unit_cost=program.unit_cost and program.unit_cost / PICO)
        for program in (proof.baseline, proof.compiled, proof.champion)
    )
    assert baseline is not None and best is not None
    return replace(proof, baseline=baseline, compiled=best, champion=champion)


def write_outcome(
    at: Job, program: dspy.Module, spec: CompileSpec, outcome: CompileOutcome, keep: bool = True
) -> Compiled:
    """The outcome. With `keep`, the best program so far is written to the folder: each file whole, or not at all.

    Raises RunStopped where the folder cannot be written.
    """
    best = best_program(at.folder, program, outcome)
    made = compiled(at.folder, outcome, best, _manifest(at, spec, outcome, best))
    if keep:
        pairs = "".join(f"{pair.model_dump_json()}\n" for pair in outcome.pairs)
        write_files(at.folder, files_of(program, made) | ({PAIRS: pairs} if pairs else {}))
        at.ledger.set_meta(outcome=made.manifest, ended=outcome.facts())
        return made
    return CompileEstimate(**vars(made))


def best_program(folder: Path, program: dspy.Module, outcome: CompileOutcome) -> dspy.Module:
    """A copy of `program` with the prompts of the outcome's best candidate."""
    best = program.deepcopy()
    load_state(best, outcome.best.state, str(folder))
    best._compiled = False  # DSPy's mark would freeze it inside another optimizer
    return best


def compiled(folder: Path, outcome: CompileOutcome, program: dspy.Module, manifest: dict[str, Any]) -> Compiled:
    """The outcome as a caller gets it. `program` remembers what it was tuned on."""
    program.tuned_on = manifest["seen"]
    changed = outcome.best.digest != outcome.baseline.digest
    estimate = {name: _in_dollars(name, value) for name, value in outcome.estimate.items()}
    return Compiled(program, folder, manifest, outcome.proof, outcome.stopped, changed, estimate, outcome.judge)


def files_of(program: dspy.Module, made: Compiled) -> dict[str, str]:
    """Name → text of what the compile's folder holds besides its ledger."""
    state = program_state(made.program)
    state[MANIFEST] = {**state[MANIFEST], **made.manifest}
    files = {
        PROGRAM: json.dumps(in_dspys_form(state), ensure_ascii=False, indent=1),
        DIFF: prompt_diff(program_state(program), state),
    }
    if made.proof is not None:
        report = made.judge.lines() if made.judge is not None else []
        files[PROOF] = "\n".join([*made.proof.lines(), *report, ""])
    return files


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Write `files` to `folder`. Raises RunStopped where it cannot be written."""
    try:
        for name, text in files.items():
            with whole_file(folder / name) as file:
                file.write(text.encode("utf-8", "surrogatepass"))
    except OSError as error:
        raise RunStopped(f"{folder}: cannot be written ({one_line(error.strerror or error)}); make room") from None


def _manifest(at: Job, spec: CompileSpec, outcome: CompileOutcome, program: dspy.Module) -> dict[str, Any]:
    """How a program came about, in JSON types. It holds no API key: of a teacher only model and endpoint."""
    settings, ledger, spending = spec.settings, at.ledger, spent(at.ledger)
    facts = {
        "format": FORMAT,
        "kind": type(program).__name__,
        "prompts": program_digests(program),
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {name: version(name) for name in ("refed-dspy", "dspy")} | {"python": platform.python_version()},
        "models": _models(spec),
        "optimizer": settings.optimizer,
        "race": outcome.race,
        "answers": outcome.answers,
        "options": spec.recorded().values["options"],
        "evaluations": settings.evaluations,
        "metric": at.work.identity["metric"],
        "seed": settings.seed,
        "seen": sorted({*spec.split.seen(), *getattr(program, "tuned_on", ())}),
        "sets": {name: len(examples) for name, examples in spec.split.sets.items()},
        "validation": {"uncompiled": outcome.baseline.mean("validation"), "compiled": outcome.best.mean("validation")},
        "abstained": count_abstentions(ledger),
        "failures": failure_counts(ledger, but=ABSTAINED),
        "candidate": outcome.best.digest,
        "baseline": outcome.baseline.digest,
        "champion": outcome.champion,
        "name": settings.name,
        "run_id": noted_run(at.folder),
        "proof": outcome.proof and outcome.proof.facts(),
        "agreement": outcome.judge and outcome.judge.facts(),
        "cost": None if spending.unpriced else spending.cost,
        "calls": spending.calls,
        "reused": count_reused(ledger),
        "usage": usage_by_stage(ledger),
        "stopped": outcome.stopped,
        "why": outcome.why,
        "features": dict(getattr(program, "features", {})),
        "instructions_per_feature": getattr(program, "instructions_per_feature", None),
    }
    return dict(json.loads(json.dumps(finite(facts))))


def _models(spec: CompileSpec) -> dict[str, dict[str, Any]]:
    """Role → its model and endpoint."""
    return {role: {"model": each.model, "endpoint": each.endpoint} for role, each in spec.teachers.items()}


def _in_dollars(name: str, value: Any) -> Any:
    """A figure of `estimate_compile`, which counts money in picodollars."""
    return value / PICO if value is not None and ("cost" in name or "spent" in name) else value


def compile_status(ledger: Ledger) -> dict[str, Any]:
    """A compile's status, in JSON types: `status_of`, with `failures` by role and kind, and

    `optimizer`; `candidates` tried, `evaluations` scored, and those that could not be scored (`abstained`);
    `uncompiled` and `best` mean scores on the validation set, None before there are some; `proved`: None before the
    proof; `unchanged`: whether it kept the uncompiled program, so that there is nothing to prove; `calls`.
    """
    candidates, status = load_candidates(ledger), status_of(ledger)
    proof = (ledger.meta("outcome") or {}).get("proof") or {}
    uncompiled, best = baseline_and_best(candidates)
    return {
        **status,
        "optimizer": (ledger.meta("identity") or {}).get("optimizer"),
        "candidates": len(candidates),
        "evaluations": sum(len(scores) for candidate in candidates for scores in candidate.scores.values()),
        "abstained": count_abstentions(ledger),
        "failures": failure_counts(ledger, but=ABSTAINED),
        "uncompiled": uncompiled,
        "best": best,
        "proved": proof.get("proved"),
        "unchanged": bool(proof.get("same")) and not proof.get("over_champion"),
        "calls": status["used"]["calls"],
    }


def _failure_lines(facts: Mapping[str, Any]) -> list[str]:
    """A line about evaluations that could not be scored, and one about each kind of failed calls."""
    abstained = facts["abstained"]
    uncounted = f"not judged: {abstained} more evaluations; they count neither for nor against a candidate"
    failed = (f"failed: {each['count']} {each['kind']} in {each['stage']}" for each in facts.get("failures", ()))
    return [*([uncounted] if abstained else []), *failed]


def how_to_continue(stopped: str, why: str = "") -> str:
    """What ended a compile early, in figures where there are some (`why`), and how to continue it."""
    if stopped in CAPS:
        return f"{why or why_stopped(stopped)}; to continue, raise it and run the same command"
    return f"{stopped}; run the same command to continue"


def why_stopped(stopped: str, remedy: str = "") -> str:
    """What ended a compile early, in words: a cap, with its `remedy`, or missing scores."""
    return f"{stopped} is reached{remedy}" if stopped in CAPS else stopped

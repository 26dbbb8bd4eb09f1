"""One start of a compile, step by step: baseline, estimate, optimizer, choice, proof; and the champion to beat."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dspy

from refed_dspy.config.named import raised
from refed_dspy.errors import CAPS, ConfigError, RunStopped, one_line
from refed_dspy.jobs.traces import callbacks_but_mlflows
from refed_dspy.jobs.work import CapsLeft
from refed_dspy.ledger.candidates import Candidate, baseline_and_best, enough, load_candidates
from refed_dspy.optimizers.agreement import JudgeReport, agreement_of_results
from refed_dspy.optimizers.beats_baseline import BeatsBaseline
from refed_dspy.optimizers.dspy_optimizers import DOES, NO_ERROR_LIMIT, Optimizer
from refed_dspy.optimizers.estimate import (
    Tuned,
    at_cap,
    caps_before_proof,
    estimate_compile,
    note_proof,
    spent_so_far,
    taken_by_proofs,
    warn_of_small_caps,
)
from refed_dspy.optimizers.gateway import CompileGateway, current_candidate
from refed_dspy.optimizers.metrics import is_recoverable
from refed_dspy.optimizers.proof import Proof, proof_of
from refed_dspy.optimizers.prove import evaluator, in_turns
from refed_dspy.optimizers.recorder import CandidateCallback, ScoreRecorder
from refed_dspy.optimizers.result import CompileOutcome
from refed_dspy.optimizers.spec import CompileSpec
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.own_code import has_own_code
from refed_dspy.programs.saved import load_state, program_state
from refed_dspy.records import PICO
from refed_dspy.teachers.progress import CompileProgress, Teller
from refed_dspy.tracking.registry import Registered, champion
from refed_dspy.tracking.store import NotTracked, noted_run

log = logging.getLogger("refed_dspy.optimizers")


class CompileSteps:
    """Runs one start of a compile."""

    def __init__(
        self,
        student: dspy.Module,
        spec: CompileSpec,
        gateway: CompileGateway,
        caps_left: CapsLeft,
        champion: Registered | None,
        teller: Teller[CompileProgress],
    ) -> None:
        self.spec, self.gateway, self.champion = spec, gateway, champion
        self.caps, self.seconds = caps_left.caps, caps_left.seconds
        self.teacher, self.judge, self.reflection = (gateway.lm(role) for role in ("teacher", "judge", "reflection"))
        self.student = student
        self.candidates = CandidateCallback(gateway, self.student, spec.split)
        self._teller, self.progress = teller, teller.progress
        metric = spec.metric_with(student, self.teacher, self.judge)
        self.recorder = ScoreRecorder(metric, gateway, spec.split.subsets(), self._on_evaluation)
        self.clusters = spec.split.clusters()
        self.tuning_ended_at = ""
        """The cap that ended the optimizer early, or an empty text."""
        self.test_results: dict[str, list[Any]] = {}
        """Candidate → the results of `dspy.Evaluate` on the test set: (example, prediction, score)."""
        self.unit_costs: dict[str, float] = {}
        """Candidate → dollars a sample (or an example) on the test set."""
        self.of_proofs = taken_by_proofs(gateway)
        """What the proofs of earlier starts took."""
        self.tuned: Tuned | None = None
        """How far the optimizer came."""

    def run(self, estimate_only: bool = False) -> CompileOutcome:
        """Baseline, estimate, optimizer, choice, proof. Raises the error that ended it, unless that was a cap."""
        settings = dspy.context(
            lm=self.teacher,
            adapter=dspy.settings.adapter or SchemaAdapter(),
            callbacks=[*callbacks_but_mlflows(), self.candidates],
            disable_history=True,
            track_usage=False,
            max_errors=NO_ERROR_LIMIT,
            refed_failing_rows=has_own_code(self.student),
        )
        with settings:
            # First, so that options that it does not take cost nothing.
            optimizer = self.spec.optimizer(self.recorder, self.teacher, self.reflection, self._stopping)
            baseline = self.candidates.note(self.student)
            self.gateway.allow(self.caps, self.seconds)
            self._evaluate("uncompiled program on the validation set", self.student, self.spec.split.validation)
            uncompiled = self._candidates()[baseline]
            self._raise_if_nothing_scored(uncompiled)
            self.recorder.uncompiled = uncompiled.scores.get("validation", {})
            estimate = estimate_compile(self.spec, self.gateway, uncompiled, self.champion is not None)
            sets, prove = self.spec.split, self.spec.settings.prove
            self.progress.expected = optimizer.expected + 2 * len(sets.validation + sets.test * prove)
            if not estimate_only and not self.gateway.cap_reached:
                warn_of_small_caps(self.caps, estimate)
                self._tune(optimizer, estimate)
                return self._outcome(baseline, self._best(baseline), estimate)
            why = self._why(self.gateway.cap_reached, estimate)
            return CompileOutcome(uncompiled, uncompiled, estimate, stopped=self.gateway.cap_reached, why=why)

    def _outcome(self, baseline: str, best: str, estimate: dict[str, Any]) -> CompileOutcome:
        """What came of the tuning, with its proof where one is wanted."""
        prove = self.spec.settings.prove
        proof, report = (self._prove(baseline, best), self._judge_report(baseline, best)) if prove else (None, None)
        stopped = self.tuning_ended_at or self.gateway.cap_reached
        if prove and proof is None and not stopped:
            lost = self.gateway.unanswered
            unscored = "none of the test set could be scored for both programs"
            stopped = f"no answer to {lost} requests" if lost else unscored
        candidates, version = self._candidates(), self.champion.version if self.champion else None
        why = self._why(stopped, estimate)
        return CompileOutcome(candidates[baseline], candidates[best], estimate, proof, stopped, version, report, why)

    # --- the steps

    def _tune(self, optimizer: Optimizer, estimate: Mapping[str, Any]) -> None:
        """Run the optimizer under what the proof leaves of the caps."""
        self._begin(f"{optimizer.name}: {DOES.get(optimizer.name, 'tuning')}")
        self.gateway.allow(*caps_before_proof(self.caps, self.seconds, estimate))
        before = self.recorder.evaluations
        try:
            tuned = optimizer.tune(self.student, list(self.spec.split.train), list(self.spec.split.validation))
        except Exception as error:
            self.gateway.raise_if_stopped()
            if not self.gateway.cap_reached and not is_recoverable(error):
                why = f"optimizer {optimizer.name}: failed after paid work: {raised(error)}"
                raise RunStopped(f"{why}; its answers are kept; choose other options, or another one") from error
            if not self.gateway.cap_reached:
                log.warning("the optimizer ended early (%s); continuing with what it found", one_line(error, 200))
            tuned = None
        self.gateway.raise_if_stopped()
        spent = spent_so_far(self.gateway) - self.of_proofs
        self.tuned = Tuned(optimizer.name, self.recorder.evaluations - before, optimizer.expected, spent)
        if tuned is not None:
            tuned = self._with_prompts(program_state(tuned))
            self._evaluate("tuned program on the validation set", tuned, self.spec.split.validation)
        self.tuning_ended_at = self.gateway.cap_reached
        self.gateway.allow(self.caps, self.seconds)
        if len(self._candidates()) == 1 and not self.tuning_ended_at:
            log.warning(
                "%s made no candidate: a demonstration takes a score of %s or more; set accept under metric",
                optimizer.name, self.recorder.metric.accept,
            )  # fmt: skip

    def _prove(self, baseline: str, best: str) -> Proof | None:
        """Compare the programs on the test set, the champion included. None where a cap was reached before."""
        names = {"uncompiled": baseline, "compiled": best}
        if self.champion is not None:
            names["champion"] = self.candidates.note(self._with_prompts(self.champion.state))
        note_proof(self.gateway, self.of_proofs)
        self._evaluate_in_turns("programs on the test set, in turns", list(dict.fromkeys(names.values())))
        if self.gateway.cap_reached:
            return None
        candidates = self._candidates()
        return proof_of(
            {label: candidates[name] for label, name in names.items()},
            self.clusters,
            self.spec.topics,
            size=len(self.spec.split.test),
            unit=self.spec.unit,
            seed=self.spec.settings.seed,
            accept_longer=self.spec.settings.accept_longer,
            same=best == baseline,
            unit_costs={label: self.unit_costs.get(name) for label, name in names.items()},
            seen=() if self.champion is None else self.champion.seen,
        )

    def _why(self, stopped: str, estimate: Mapping[str, Any]) -> str:
        """How far it came, where a cap ended it; else an empty text."""
        if stopped not in CAPS:
            return ""
        return at_cap(stopped, self.gateway, self.caps, estimate, self.tuned)

    def _judge_report(self, baseline: str, best: str) -> JudgeReport | None:
        """How a judge agrees with people, before and after the compile."""
        if self.spec.unit != "instructions" or self.gateway.cap_reached:
            return None
        seed, held_out = self.spec.settings.seed, self.spec.settings.held_out_criteria
        before, after = (agreement_of_results(self.test_results[name], seed) for name in (baseline, best))
        return JudgeReport(before, after, held_out)

    def _evaluate(self, phase: str, program: dspy.Module, examples: Sequence[dspy.Example]) -> None:
        """Score `program` on `examples`."""
        self._begin(phase)
        token = current_candidate.set(self.candidates.note(program))
        try:
            evaluator(examples, self.recorder, self.spec.settings.threads)(program)
        finally:
            current_candidate.reset(token)
        self.gateway.raise_if_stopped()

    def _evaluate_in_turns(self, phase: str, names: Sequence[str]) -> None:
        """Score these candidates on the test set, example by example (`in_turns`)."""
        self._begin(phase)
        before = {name: self.gateway.candidate_costs[name] for name in names}
        programs = {name: self._with_prompts(self._candidates()[name].state) for name in names}
        results = in_turns(programs, self.spec.split.test, self.recorder, self.spec.settings.threads)
        self.gateway.raise_if_stopped()
        self.test_results |= results
        if self.spec.teachers["teacher"].price is not None:
            for name in names:
                units = sum(_samples(prediction) for _, prediction, _ in results[name])
                self.unit_costs[name] = (self.gateway.candidate_costs[name] - before[name]) / PICO / max(1, units)

    def _best(self, baseline: str) -> str:
        """The candidate that gains most over the uncompiled program on the validation set, or that program."""
        candidates = self._candidates()
        baseline_scores = candidates[baseline].scores.get("validation", {})
        gains = {baseline: 0.0}
        for name, candidate in candidates.items():
            shared = [e for e in candidate.scores.get("validation", {}) if e in baseline_scores]
            if enough(len(shared), len(baseline_scores)):
                scores = candidate.scores["validation"]
                gains[name] = sum(scores[e] - baseline_scores[e] for e in shared) / max(1, len(shared))
        return max(gains, key=lambda name: (gains[name], -candidates[name].seq))

    # --- candidates and progress

    def _candidates(self) -> dict[str, Candidate]:
        return {candidate.digest: candidate for candidate in self.gateway.read(load_candidates)}

    def _with_prompts(self, state: Mapping[str, Any]) -> dspy.Module:
        """The student with another candidate's prompts."""
        program = self.student.deepcopy()
        load_state(program, dict(state), "candidate")
        return program

    def _begin(self, phase: str) -> None:
        self.progress.phase = phase
        self._look_at_scores()
        self._teller.tell_now()

    def _look_at_scores(self) -> None:
        candidates = self.gateway.read(load_candidates)
        self.progress.candidates = len(candidates)
        self.progress.baseline, self.progress.best = baseline_and_best(candidates)

    def _on_evaluation(self) -> None:
        budget = self.gateway.recorder.budget
        self.progress.evaluations = self.recorder.evaluations
        self.progress.picodollars, self.progress.calls = budget.spent, budget.calls
        if self.recorder.evaluations % 10 == 0:
            self._look_at_scores()
        self._teller.tell()

    def _raise_if_nothing_scored(self, uncompiled: Candidate) -> None:
        """Raises RunStopped where the uncompiled program scored nothing: no optimizer is worth its cost then."""
        scores = uncompiled.scores.get("validation", {})
        custom = not isinstance(self.recorder.metric, BeatsBaseline)
        if self.gateway.cap_reached or any(scores.values()) or (custom and scores):
            return
        failures = ", ".join(f"{count} {kind}" for kind, count in self.recorder.failures.most_common(2))
        why = failures or self.recorder.unscored
        remedy = "repair your own code" if self.recorder.code_failed else "check the models and their max_tokens first"
        raise RunStopped(
            f"the uncompiled program scored {'0 on' if scores else 'nothing on'} every validation example"
            f"{f' ({why})' if why else ''}; {remedy}; paid "
            "answers are kept"
        )

    def _stopping(self) -> bool:
        return bool(self.gateway.cap_reached or self.gateway.stop_error)


def _samples(prediction: Any) -> int:
    """How many samples a prediction holds; 1 for programs that make none."""
    made = prediction.get("samples") if isinstance(prediction, dspy.Prediction) else None
    return len(made) if isinstance(made, list) else 1


def champion_for(student: dspy.Module, name: str, folder: Path) -> Registered | None:
    """The champion of the registered model `name`, if it is a program of the student's kind. None also if an earlier
    start of the compile in `folder` made it."""
    try:
        registered = champion(name)
        if registered is not None:
            run_id, manifest = noted_run(folder), registered.manifest
            if run_id is not None and manifest.get("run_id") == run_id:
                return None
            kind, of = type(student).__name__, manifest.get("kind")
            if of not in {None, kind}:
                raise ConfigError(f"champion of {name}: a {one_line(of, 80)}, not a {kind}")
            load_state(student.deepcopy(), dict(registered.state), f"champion of {name}")
    except NotTracked as error:
        log.warning("MLflow cannot tell which program is champion (%s): this compile will promote nothing", error)
        return None
    except ConfigError as error:
        log.warning("%s: not compared with it", error)
        return None
    return registered

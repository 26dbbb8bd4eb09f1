"""One start of a compile, step by step: baseline, estimate, optimizer, choice, proof."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from refed_dspy.errors import ConfigError, RunStopped, one_line
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.candidates import Trial, enough, trials, validation_means
from refed_dspy.optimizers.agreement import JudgeReport, agreement_of
from refed_dspy.optimizers.dspy_optimizers import MANY, Optimizer, OptimizerInputs, choose
from refed_dspy.optimizers.estimate import estimated, without_the_proof
from refed_dspy.optimizers.gateway import Gateway, evaluating
from refed_dspy.optimizers.progress import CompileProgress
from refed_dspy.optimizers.proof import Proof, gain, measured
from refed_dspy.optimizers.recorder import Candidates, ScoreRecorder, bearable
from refed_dspy.optimizers.reference_metric import ReferenceMetric
from refed_dspy.optimizers.spec import CompileSpec
from refed_dspy.programs import PairwiseJudge
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.saved import MANIFEST, load_state, program_state
from refed_dspy.tracking.background import wanted
from refed_dspy.tracking.registry import Registered, champion
from refed_dspy.tracking.store import NotTracked, noted_run

log = logging.getLogger("refed_dspy.optimizers")


@dataclass
class CompileOutcome:
    """What a compile came to. `best` and `baseline` are candidates; `stopped` says which limit ended it early."""

    baseline: Trial
    best: Trial
    estimate: dict[str, Any]
    proof: Proof | None = None
    stopped: str = ""
    champion: str | None = None
    """The champion's version that the proof compares with."""
    judge: JudgeReport | None = None
    """Where the program is a judge."""


class CompileSteps:
    """One start of a compile."""

    def __init__(
        self,
        job: CompileSpec,
        gateway: Gateway,
        caps: Caps,
        seconds: float | None,
        on_progress: Callable[[CompileProgress], None] | None,
    ) -> None:
        self.job, self.gateway, self.caps, self.seconds = job, gateway, caps, seconds
        self.teacher, self.judge, self.reflection = (gateway.lm(role) for role in ("teacher", "judge", "reflection"))
        self.student = job.student
        self.candidates = Candidates(gateway, self.student, job.split)
        self.progress = CompileProgress()
        metric = job.metric_with(self.teacher, self.judge)
        self.recorder = ScoreRecorder(metric, gateway, job.split.subsets(), self._note)
        self.clusters = job.split.clusters()
        self.champion = champion_for(job, gateway.ledger.path.parent)
        self.ended_at = ""
        self.said: dict[str, list[Any]] = {}
        """Candidate → (example, prediction, score) on the test set."""
        self.each: dict[str, float] = {}
        """Candidate → picodollars a sample (or an example), measured on the test set."""
        if on_progress is not None:
            on_progress(self.progress)

    def run(self, estimate_only: bool = False) -> CompileOutcome:
        """Baseline, estimate, optimizer, choice, proof. Raises what ended it, unless that was a cap."""
        settings = dspy.context(
            lm=self.teacher,
            adapter=dspy.settings.adapter or SchemaAdapter(),
            callbacks=[*(dspy.settings.callbacks or []), self.candidates],
            disable_history=True,
            track_usage=False,
            max_errors=MANY,
        )
        with settings, _hushed(self.gateway):
            optimizer = self._optimizer()  # first: options that it does not take cost nothing then
            baseline = self.candidates.note(self.student)
            self.gateway.allow(self.caps, self.seconds)
            self._evaluate("uncompiled program on the validation set", self.student, self.job.split.validation)
            self._raise_if_barren(baseline)
            uncompiled = self._trials()[baseline]
            if (mean := uncompiled.mean("validation")) is not None:
                self.recorder.neutral = mean
            estimate = estimated(self.job, self.gateway, uncompiled, optimizer, self.champion is not None)
            self.progress.expected = int(optimizer.expected) + 2 * len(self.job.split.validation + self.job.split.test)
            if estimate_only or self.gateway.reached:
                return self._found(baseline, baseline, estimate)
            self._tune(optimizer, estimate)
            best = self._best(baseline)
            found = self._found(baseline, best, estimate)
            found.proof = self._prove(baseline, best)
            found.judge = self._judge_report(baseline, best)
            found.stopped = found.stopped or self.gateway.reached
            if found.proof is None and not found.stopped:
                found.stopped = f"no answer to {self.gateway.lost} requests"
            found.champion = self.champion.version if self.champion else None
            return found

    # --- the steps

    def _optimizer(self) -> Optimizer:
        settings, split = self.job.settings, self.job.split
        means = OptimizerInputs(
            metric=self.recorder,
            teacher=self.teacher,
            reflection=self.reflection,
            evaluations=settings.evaluations,
            threads=settings.threads,
            seed=settings.seed,
            stopping=lambda: bool(self.gateway.reached or self.gateway.stopped),
            train=len(split.train),
            validation=len(split.validation),
        )
        return choose(settings.optimizer, settings.options, means)

    def _tune(self, optimizer: Optimizer, estimate: Mapping[str, Any]) -> None:
        """Let the optimizer work under what the proof does not need."""
        self.progress.phase = optimizer.name
        self.gateway.allow(*without_the_proof(self.caps, self.seconds, estimate))
        try:
            tuned = optimizer.tune(self.student, list(self.job.split.train), list(self.job.split.validation))
        except Exception as error:
            self._raise_if_stopped()
            if not self.gateway.reached and not bearable(error):
                raise
            if not self.gateway.reached:
                log.warning("the optimizer ended early (%s): going on with what it found", one_line(error, 200))
            tuned = None
        self._raise_if_stopped()
        self.ended_at = self.gateway.reached
        self.gateway.allow(self.caps, self.seconds)
        if tuned is not None:
            tuned = self._plain(program_state(tuned))
            self._evaluate("tuned program on the validation set", tuned, self.job.split.validation)

    def _prove(self, baseline: str, best: str) -> Proof | None:
        """The programs on the test set, the champion among them. None where the cap came first."""
        names = {"uncompiled": baseline, "compiled": best}
        if self.champion is not None:
            names["champion"] = self.candidates.note(self._plain(self.champion.state))
        for name in dict.fromkeys(names.values()):
            what = next(what for what in names if names[what] == name)
            self._evaluate(f"{what} program on the test set", name)
        known, seed = self._trials(), self.job.settings.seed
        told = {what: measured(known[name], self.clusters, self.each.get(name), seed) for what, name in names.items()}
        difference = gain(known[best], known[baseline], self.clusters, seed)
        one, two = told["uncompiled"], told["compiled"]
        if one is None or two is None or difference is None or self.gateway.reached:
            return None
        size = len(self.job.split.test)
        whole = all(enough(len(known[name].scores.get("test", {})), size) for name in names.values())
        if self.champion is None:
            return Proof(one, two, difference, unit=self.job.unit, whole=whole)
        unseen = frozenset(self.clusters.values()) - set(self.champion.state.get(MANIFEST, {}).get("seen", []))
        over = gain(known[best], known[names["champion"]], self.clusters, seed, unseen)
        return Proof(one, two, difference, told["champion"], over, self.job.unit, whole)

    def _judge_report(self, baseline: str, best: str) -> JudgeReport | None:
        """How a tuned judge agrees with people, before and after."""
        if not isinstance(self.job.program, PairwiseJudge) or self.gateway.reached:
            return None
        seed, apart = self.job.settings.seed, self.job.settings.held_out_criteria
        before, after = (agreement_of(self.said[name], seed) for name in (baseline, best))
        return JudgeReport(before, after, apart)

    def _evaluate(self, phase: str, program: dspy.Module | str, examples: Sequence[dspy.Example] | None = None) -> None:
        """Score `program` (or the candidate of that id) on `examples` (or the test set)."""
        self.progress.phase = phase
        of_test = examples is None
        if isinstance(program, str):
            program = self._plain(self._trials()[program].state)
        name = self.candidates.note(program)
        evaluator = dspy.Evaluate(
            devset=list(self.job.split.test if examples is None else examples),
            metric=self.recorder,
            num_threads=self.job.settings.threads,
            display_progress=False,
            max_errors=MANY,
            failure_score=0.0,
            provide_traceback=False,
        )
        token = evaluating.set(name)
        before = self.gateway.worth[name]
        try:
            said = evaluator(program)
        finally:
            evaluating.reset(token)
        self._raise_if_stopped()
        if of_test:
            self.said[name] = said.results
        if of_test and self.job.teachers["teacher"].price is not None:
            made = sum(_samples(prediction) for _, prediction, _ in said.results)
            self.each[name] = (self.gateway.worth[name] - before) / max(1, made)

    def _best(self, baseline: str) -> str:
        """The candidate that gains most over the uncompiled program on the validation set, or that program."""
        known = self._trials()
        reference = known[baseline].scores.get("validation", {})
        gains = {baseline: 0.0}
        for name, trial in known.items():
            shared = [e for e in trial.scores.get("validation", {}) if e in reference]
            if enough(len(shared), len(reference)):
                scores = trial.scores["validation"]
                gains[name] = sum(scores[e] - reference[e] for e in shared) / max(1, len(shared))
        return max(gains, key=lambda name: (gains[name], -known[name].seq))

    # --- looking at the books

    def _trials(self) -> dict[str, Trial]:
        return {trial.digest: trial for trial in self.gateway.read(trials)}

    def _plain(self, state: Mapping[str, Any]) -> dspy.Module:
        """The student with another candidate's prompts."""
        program = self.student.deepcopy()
        load_state(program, dict(state), "candidate")
        return program

    def _found(self, baseline: str, best: str, estimate: dict[str, Any]) -> CompileOutcome:
        known = self._trials()
        stopped = self.ended_at or self.gateway.reached
        return CompileOutcome(known[baseline], known[best], estimate, stopped=stopped)

    def _note(self) -> None:
        budget = self.gateway.recorder.budget
        self.progress.evaluations = self.recorder.evaluations
        self.progress.cost, self.progress.calls = budget.spent, budget.calls
        if self.recorder.evaluations % 10 == 0:
            self._tell_best()

    def _raise_if_barren(self, baseline: str) -> None:
        """Raises RunStopped where the uncompiled program makes nothing: no optimizer is worth its money then."""
        scores = self._trials()[baseline].scores.get("validation", {})
        own = not isinstance(self.recorder.metric, ReferenceMetric)
        if self.gateway.reached or any(scores.values()) or (own and scores):
            return
        why = ", ".join(f"{count} {what}" for what, count in self.recorder.failures.most_common(2))
        raise RunStopped(
            f"the uncompiled program scored {'0 on' if scores else 'nothing on'} every validation example"
            f"{f' ({why})' if why else ''}: see to the models and their max_tokens first; what was asked is kept"
        )

    def _tell_best(self) -> None:
        """Renew what the progress says of candidates: between phases, and now and then within one."""
        known = list(self._trials().values())
        self.progress.candidates = len(known)
        self.progress.baseline, self.progress.best = validation_means(known)

    def _raise_if_stopped(self) -> None:
        if (error := self.gateway.stopped) is not None:
            raise error


def _samples(prediction: Any) -> int:
    """How many samples a prediction holds; 1 for programs that make none."""
    made = prediction.get("samples") if isinstance(prediction, dspy.Prediction) else None
    return len(made) if isinstance(made, list) else 1


@contextmanager
def _hushed(gateway: Gateway) -> Iterator[None]:
    """DSPy logs each example that fails, whole. Once a compile is ending those lines say nothing new."""
    dspy_log = logging.getLogger("dspy")
    before = dspy_log.level
    gateway.on_ending = lambda ending: dspy_log.setLevel(logging.CRITICAL if ending else before)
    try:
        yield
    finally:
        gateway.on_ending = lambda _: None
        dspy_log.setLevel(before)


def champion_for(job: CompileSpec, folder: Path) -> Registered | None:
    """The registered champion, where this compile is tracked and it is a program of the same kind.

    None also where this very compile made it, on an earlier start.
    """
    if not wanted(job.settings.track):
        return None
    try:
        found = champion(job.settings.name)
        own = noted_run(folder)
        if found is not None and own is not None and found.state.get(MANIFEST, {}).get("run_id") == own:
            return None
        if found is not None:
            load_state(job.student, dict(found.state), f"champion of {job.settings.name}")
    except NotTracked as error:
        log.warning("MLflow cannot say which program is champion (%s): nothing will be promoted by this compile", error)
        return None
    except ConfigError as error:
        log.warning("%s: not compared with it", error)
        return None
    return found

"""One start of a compile, step by step: baseline, estimate, optimizer, choice, proof; and the champion to beat."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy

from refed_dspy.config.named import raised
from refed_dspy.errors import CAPS, ConfigError, RunStopped, one_line
from refed_dspy.jobs.traces import callbacks_but_mlflows
from refed_dspy.jobs.work import CapsLeft
from refed_dspy.ledger.budget import Caps
from refed_dspy.ledger.candidates import Candidate, baseline_and_best, load_candidates
from refed_dspy.optimizers.agreement import JudgeReport, agreement_of_results
from refed_dspy.optimizers.beats_baseline import BeatsBaseline, clipped
from refed_dspy.optimizers.by_people import proof_pairs
from refed_dspy.optimizers.dspy_optimizers import DOES, NO_ERROR_LIMIT
from refed_dspy.optimizers.estimate import Amount, by_candidate, estimate_compile
from refed_dspy.optimizers.examples import example_id, instruction_of
from refed_dspy.optimizers.gateway import CompileGateway, current_candidate, in_metric
from refed_dspy.optimizers.limits import (
    Limits,
    Tuned,
    at_cap,
    leaves_room,
    note_proof,
    settle_turn,
    spent_so_far,
    taken_by_proofs,
    warn_of_small_caps,
)
from refed_dspy.optimizers.metrics import is_recoverable
from refed_dspy.optimizers.proof import Proof, SecondOpinion, apart, proof_of
from refed_dspy.optimizers.prove import Noted, evaluator, in_turns, scores_of
from refed_dspy.optimizers.race import CONVERGED, FAILED, Race, SearchTurn, gains_over
from refed_dspy.optimizers.recorder import CandidateCallback, ScoreRecorder, TurnScores
from refed_dspy.optimizers.result import CompileOutcome
from refed_dspy.optimizers.spec import SECOND, CompileSpec
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.changes import answers_by_stage, fields_text
from refed_dspy.programs.own_code import has_own_code
from refed_dspy.programs.saved import load_state, program_state
from refed_dspy.records import PICO
from refed_dspy.teachers.progress import CompileProgress, Teller
from refed_dspy.tracking.registry import Registered, champion
from refed_dspy.tracking.store import NotTracked, noted_run

log = logging.getLogger("refed_dspy.optimizers")
MOST_ATTEMPTS = 4
"""So often the last optimizer goes on with what turns out not to be needed for the proof."""


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
        """The cap that ended the tuning early, or an empty text."""
        self.test_results: dict[str, list[Any]] = {}
        """Candidate → the results of `dspy.Evaluate` on the test set: (example, prediction, score)."""
        self.unit_costs: dict[str, float] = {}
        """Candidate → dollars a sample (or an example) on the test set."""
        self.of_proofs = taken_by_proofs(gateway)
        """What the proofs of earlier starts took."""
        settle_turn(gateway)
        self.tuned: Tuned | None = None
        """How far the optimizers came."""
        self.race = Race(spec.sizes, lambda name: gains_over(self._candidates()[name], self._candidates()[self.first]))
        self.first = ""
        """The uncompiled program, as a candidate."""

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
            self.first = baseline = self.candidates.note(self.student)
            self.gateway.allow(self.caps, self.seconds)
            self._evaluate("uncompiled program on the validation set", self.student, self.spec.split.validation)
            uncompiled = self._candidates()[baseline]
            self._raise_if_nothing_scored(uncompiled)
            self.recorder.uncompiled = uncompiled.scores.get("validation", {})
            estimate = estimate_compile(self.spec, self.gateway, uncompiled, self.champion is not None)
            sets, prove = self.spec.split, self.spec.settings.prove
            self.progress.expected = self.spec.expected_evaluations + 2 * len(sets.validation + sets.test * prove)
            if not estimate_only and not self.gateway.cap_reached:
                warn_of_small_caps(self.caps, estimate)
                estimate = self._search(estimate)
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
        why, race = self._why(stopped, estimate), [each.facts() for each in self.race.runners]
        made = (candidates[baseline], candidates[best], estimate, proof, stopped, version, report, why, race)
        if proof is None or best == baseline:
            return CompileOutcome(*made)
        pairs = tuple(proof_pairs(self.test_results[best], self.spec.topics))
        return CompileOutcome(*made, answers=self._answers(baseline, best), pairs=pairs)

    def _answers(self, *names: str) -> dict[str, Any] | None:
        """What both programs were given and answered in each stage, for one example of the test set: all of it was
        asked for the proof. None where something is not there any more: nothing is paid for what is only shown."""
        self.gateway.allow(Caps(0, 0))
        example, programs = self.spec.split.test[0], self._programs(names)
        try:
            before, after = (answers_by_stage(programs[name], example) for name in names)
        except Exception as error:  # noqa: BLE001 — a program's own code may raise anything, and the proof is done
            log.debug("answers before and after: %s", one_line(error))
            return None
        return {"example": fields_text(example.inputs()), "before": before, "after": after}

    # --- the steps

    def _search(self, estimate: dict[str, Any]) -> dict[str, Any]:
        """Run the optimizers under what the proof leaves of the caps. The estimate, with the proof as it is foreseen
        after it."""
        for turn in self.race.turns():
            estimate = self._turn(turn, estimate)
        runners = self.race.runners
        spent = spent_so_far(self.gateway) - self.of_proofs
        done, expected = (sum(getattr(each, name) for each in runners) for name in ("evaluations", "expected"))
        self.tuned = Tuned(" and ".join(self.spec.tuned_by), done, expected, spent)
        self.tuning_ended_at = next((each.ended for each in runners if each.cut), "")
        self.gateway.allow(self.caps, self.seconds)
        return estimate

    def _turn(self, turn: SearchTurn, estimate: dict[str, Any]) -> dict[str, Any]:
        """One optimizer's turn. In the last one what turns out not to be needed for the proof is spent as well: the
        optimizer goes on, with what it did replayed."""
        paid, longest = Amount(0, 0), max(turn.runner.sizes)
        for attempt in range(MOST_ATTEMPTS if turn.last else 1):
            limits = Limits(f"{turn.name} {attempt}", turn.share, self.caps, self.seconds)
            self.gateway.allow(*limits.of(self.gateway, estimate))
            failed = self._tune(turn)
            paid += limits.spent_by(self.gateway)
            scored = self.recorder.turn
            stopped = turn.runner.name == "gepa" and scored.evaluations < longest  # no other one asks whether to stop
            converged = scored.converged and (stopped or turn.size < longest)
            ended = self.gateway.cap_reached or (FAILED if failed else CONVERGED if converged else "")
            foreseen = self._with_proof_of_best(estimate)
            if ended not in CAPS or not leaves_room(self.gateway, self.caps, foreseen):
                break
            estimate = foreseen
        foreseen = self._with_proof_of_best(estimate)
        if foreseen["proof_cost"] > estimate["proof_cost"]:
            estimate = foreseen
        self.race.note(turn, self.recorder.turn, self.first, (paid.cost, paid.calls), ended)
        if not turn.runner.candidates and not turn.runner.cut:
            log.warning(
                "%s made no candidate: a demonstration takes a score of %s or more; set accept under metric",
                turn.runner.name, self.recorder.metric.accept,
            )  # fmt: skip
        race = [each.facts() for each in self.race.runners]
        self.gateway.read(lambda ledger: ledger.set_meta(race=race))
        return estimate

    def _with_proof_of_best(self, estimate: dict[str, Any]) -> dict[str, Any]:
        """The estimate with what the best candidate's proof takes, judging by that candidate; as it is where there is
        none, or a champion to compare with."""
        best = self._candidates()[self._best(self.first)]
        if best.digest == self.first or self.champion is not None:
            return estimate
        return by_candidate(estimate, self.spec, self.gateway, best)

    def _tune(self, turn: SearchTurn) -> bool:
        """Run an optimizer, and score what it makes on the validation set. Whether it failed: one of several does so
        alone."""
        name, size = turn.runner.name, turn.size
        self._begin(f"{name}: {DOES.get(name, 'tuning')}")
        self.recorder.turn = TurnScores(len(self.spec.split.validation), size)
        asked = (self.recorder, self.teacher, self.reflection, self._stopping)
        optimizer = self.spec.optimizer(name, size, *asked)
        try:
            tuned = optimizer.tune(self.student, list(self.spec.split.train), list(self.spec.split.validation))
        except Exception as error:
            self.gateway.raise_if_stopped()
            if not self.gateway.cap_reached and not is_recoverable(error):
                why = f"optimizer {name}: failed after paid work: {raised(error)}"
                if len(self.race.runners) == 1:
                    raise RunStopped(f"{why}; its answers are kept; choose other options, or another one") from error
                log.warning("%s; the others go on", why)
                return True
            if not self.gateway.cap_reached:
                log.warning("the optimizer ended early (%s); continuing with what it found", one_line(error, 200))
            tuned = None
        self.gateway.raise_if_stopped()
        if tuned is not None:
            tuned = self._with_prompts(program_state(tuned))
            self._evaluate("tuned program on the validation set", tuned, self.spec.split.validation)
        return False

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
        scores = {label: candidates[name] for label, name in names.items()}
        unit_costs = {label: self.unit_costs.get(name) for label, name in names.items()}
        proof = self._proof_by(scores, best == baseline, unit_costs)
        if proof is None:
            return None
        chosen_from = sum(1 for each in candidates.values() if gains_over(each, candidates[baseline])) - 1
        second = self._second_opinion(names, scores) if SECOND in self.spec.teachers and not proof.same else None
        return None if self.gateway.cap_reached else replace(proof, second=second, chosen_from=chosen_from)

    def _proof_by(
        self, scores: Mapping[str, Candidate], same: bool, unit_costs: Mapping[str, float | None] = {}
    ) -> Proof | None:
        return proof_of(
            scores,
            self.clusters,
            self.spec.topics,
            size=len(self.spec.split.test),
            unit=self.spec.unit,
            seed=self.spec.settings.seed,
            accept_longer=self.spec.settings.accept_longer,
            same=same,
            unit_costs=unit_costs,
            seen=() if self.champion is None else self.champion.seen,
        )

    def _second_opinion(self, names: Mapping[str, str], by_first: Mapping[str, Candidate]) -> SecondOpinion | None:
        """What the second judge makes of the same answers, which are recorded by now; None where too few of its scores
        are there."""
        self._begin("the same answers, by the second judge")
        metric = Noted(self.spec.metric_with(self.student, self.teacher, self.gateway.lm(SECOND)))
        test, programs = self.spec.split.test, self._programs(names.values())

        def judged(example: dspy.Example, prediction: Any) -> Any:
            token = in_metric.set(True)
            try:
                return metric(example, prediction)
            finally:
                in_metric.reset(token)

        results = in_turns(programs, test, judged, self.spec.settings.threads)
        self.gateway.raise_if_stopped()
        scores = {label: scores_of(results[name]) for label, name in names.items()}
        if (proof := self._proof_by(scores, same=False)) is None:
            return None
        shown = {example_id(each): clipped(instruction_of(each)[1] or "") for each in test}
        return SecondOpinion(self.spec.teachers[SECOND].model, proof, apart(by_first, scores, shown))

    def _programs(self, names: Iterable[str]) -> dict[str, dspy.Module]:
        """Candidate → the student with its prompts."""
        candidates = self._candidates()
        return {name: self._with_prompts(candidates[name].state) for name in dict.fromkeys(names)}

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
        results = in_turns(self._programs(names), self.spec.split.test, self.recorder, self.spec.settings.threads)
        self.gateway.raise_if_stopped()
        self.test_results |= results
        if self.spec.teachers["teacher"].price is not None:
            for name in names:
                units = sum(_samples(prediction) for _, prediction, _ in results[name])
                self.unit_costs[name] = (self.gateway.candidate_costs[name] - before[name]) / PICO / max(1, units)

    def _best(self, baseline: str) -> str:
        """The candidate that gains most over the uncompiled program on the validation set, or that program."""
        candidates = self._candidates()
        gains = {baseline: 0.0}
        for name, candidate in candidates.items():
            if gained := gains_over(candidate, candidates[baseline]):
                gains[name] = fmean(gained.values())
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
        return bool(self.gateway.cap_reached or self.gateway.stop_error or self.recorder.turn.converged)


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

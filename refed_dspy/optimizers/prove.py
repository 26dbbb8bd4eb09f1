"""A proof by itself: two programs on examples that nothing was tuned on, asked in turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, cast

import dspy
from pydantic import Field

from refed_dspy.config.keywords import Seed, checked
from refed_dspy.errors import ConfigError, RunStopped, briefly, one_line, setting
from refed_dspy.ledger.candidates import Candidate
from refed_dspy.measures.intervals import MIN_CLUSTERS
from refed_dspy.optimizers.dspy_optimizers import NO_ERROR_LIMIT
from refed_dspy.optimizers.examples import Split, cluster_of, distinct, example_id, unit_of
from refed_dspy.optimizers.metrics import (
    CustomMetric,
    ExampleScore,
    Metric,
    MetricScore,
    NotScored,
    is_programs_fault,
    is_recoverable,
)
from refed_dspy.optimizers.proof import Proof, basis, find_topics, proof_of
from refed_dspy.programs.program import synchronous


@briefly
@checked
def prove(
    program: dspy.Module,
    *,
    over: dspy.Module,
    on: Sequence[dspy.Example],
    metric: Callable[..., Any],
    threads: Annotated[int, Field(ge=1)] = 4,
    seed: Seed = 0,
    accept_longer: bool = False,
) -> Proof:
    """Whether `program` scores higher than `over`, on examples that neither was tuned on.

        train, val, test = refed_dspy.split("builtin", 24, 12, 16)
        with refed_dspy.recording("work/a", teacher=teacher, judge=judge, max_cost=2.00) as lms:
            metric = refed_dspy.BeatsBaseline(program, lms["teacher"], lms["judge"])
            tuned = dspy.GEPA(metric=metric, …).compile(program, trainset=train, valset=val)
            print(refed_dspy.prove(tuned, over=program, on=test, metric=metric))

    Both are asked about each example in turn, so that a model that changes meanwhile favours neither; examples on one
    topic count as one witness; and where the metric compares answers, the gain must hold at equal length, too.

    Args:
        on: what `split` held out; for other programs any `dspy.Example`s with their inputs named.
        metric: a `BeatsBaseline`, or any DSPy metric that scores from 0 to 1.
        threads: examples scored at once.
        accept_longer: accept a gain that rests on longer answers.

    Raises:
        ConfigError: `on` holds too few references or topics for any proof, or no model is set; nothing was asked.
        RunStopped: no example could be scored for both programs, or your metric raised. An error of a program's own
            code is raised as it is.
    """
    examples, unit = distinct(on), unit_of(over)
    _refuse_unasked(examples, program, over)
    clusters = {example_id(each): cluster_of(each) for each in examples}
    topics = find_topics(Split((), (), tuple(examples)))
    independent = {(topics or {}).get(cluster, cluster) for cluster in clusters.values()}
    if len(independent) < MIN_CLUSTERS:
        there = basis(len(set(clusters.values())), len(independent), unit)
        raise ConfigError(f"on: only {there}, and a proof needs {MIN_CLUSTERS} or more")
    noted = Noted(
        cast(Metric, metric) if hasattr(metric, "accept") and hasattr(metric, "score") else CustomMetric(metric)
    )
    programs = {"uncompiled": synchronous(over), "compiled": synchronous(program)}
    results = in_turns(programs, examples, noted, threads)
    proof = proof_of(
        {name: scores_of(of_program) for name, of_program in results.items()},
        clusters,
        topics,
        size=len(examples),
        unit=unit,
        seed=seed,
        accept_longer=accept_longer,
        same=False,
    )
    if proof is None:
        raise RunStopped(f"prove: none of the {len(examples)} examples could be scored for both programs: {noted.why}")
    return proof


def _refuse_unasked(examples: Sequence[dspy.Example], *programs: dspy.Module) -> None:
    """Raises ConfigError where nothing could be asked."""
    if not all(example.keys() and example._input_keys for example in examples):
        raise ConfigError("on: an example has no inputs; name them: example.with_inputs(…)")
    if dspy.settings.lm is None and any(each.lm is None for program in programs for each in program.predictors()):
        way = setting("teacher") + ", or set one with dspy.configure(lm=dspy.LM(…))"
        raise ConfigError("no teacher: prove in a block of refed_dspy.recording with " + way)


class Noted:
    """The metric, whose scores keep what they are made of (`scores_of`). What could not be scored counts for neither
    program."""

    def __init__(self, metric: Metric) -> None:
        self._metric, self.why = metric, "see the log"

    def __call__(self, example: dspy.Example, prediction: Any) -> MetricScore:
        try:
            evaluation = self._metric.score(example, prediction)
        except NotScored as error:
            self.why = one_line(error)
            return MetricScore(0.0, self.why, self._metric.accept)
        return MetricScore.of(evaluation, "", self._metric.accept)


def scores_of(results: Sequence[tuple[dspy.Example, Any, Any]]) -> Candidate:
    """What `in_turns` found of one program, as a candidate's scores on the test set. An example whose program or metric
    raised has none."""
    made: dict[str, ExampleScore] = {
        example_id(example): score.evaluation
        for example, _, score in results
        if isinstance(score, MetricScore) and score.evaluation is not None
    }
    return Candidate(
        digest="", seq=0, state={}, created=0.0, cost=0, spent=0,
        scores={"test": {each: one.score for each, one in made.items()}},
        components={"test": {each: one.components for each, one in made.items()}},
        compared={"test": {each: one.compared for each, one in made.items() if one.compared is not None}},
    )  # fmt: skip


def in_turns(
    programs: Mapping[str, dspy.Module],
    examples: Sequence[dspy.Example],
    metric: Callable[[dspy.Example, Any], Any],
    threads: int,
) -> dict[str, list[Any]]:
    """Program's name → (example, prediction, score) of each of `examples`, each program asked about one in turn.

    Raises an error of the programs' or the metric's own code: DSPy's evaluation makes a score of 0 of it.
    """
    turns = _InTurns(programs, metric)
    evaluation = evaluator(turns.of(examples), turns.score, threads)(turns)
    if turns.error is not None:
        raise turns.error
    return {
        name: [(turn.example, prediction, score) for turn, prediction, score in evaluation.results if turn.turn == name]
        for name in programs
    }


def evaluator(examples: Sequence[dspy.Example], metric: Callable[..., Any], threads: int) -> dspy.Evaluate:
    """DSPy's evaluation, which no number of failed examples ends."""
    return dspy.Evaluate(
        devset=list(examples),
        metric=metric,
        num_threads=threads,
        display_progress=False,
        max_errors=NO_ERROR_LIMIT,
        failure_score=0.0,
        provide_traceback=False,
    )


class _InTurns:
    """`programs` by name as one program, whose devset is `of(examples)`: each example once for each program, and
    another program first each time.

    A hosted model may change while a gain is being proved, or a judge grow stricter. If one program were scored after
    the other, such a drift would be taken for a gain: in up to 22% of comparisons without one.
    """

    def __init__(self, programs: Mapping[str, dspy.Module], metric: Callable[[dspy.Example, Any], Any]) -> None:
        self.programs, self.metric = programs, metric
        self.error: Exception | None = None
        """The first error that is a mistake in somebody's code."""

    def of(self, examples: Sequence[dspy.Example]) -> list[dspy.Example]:
        names = list(self.programs)
        return [
            dspy.Example(turn=names[(index + at) % len(names)], example=example).with_inputs("turn", "example")
            for index, example in enumerate(examples)
            for at in range(len(names))
        ]

    def __call__(self, turn: str, example: dspy.Example) -> Any:
        try:
            return self.programs[turn](**example.inputs())
        except Exception as error:
            if not is_programs_fault(error):
                self._note(error)
                raise
            return _Fault(one_line(error))

    def score(self, turn: dspy.Example, prediction: Any) -> Any:
        if isinstance(prediction, _Fault):
            return MetricScore.of(ExampleScore(0.0, {"failed": 1.0}), str(prediction), accept=1.0)
        try:
            return self.metric(turn.example, prediction)
        except Exception as error:
            self._note(error)
            raise

    def _note(self, error: Exception) -> None:
        if not is_recoverable(error):
            self.error = self.error or error


class _Fault(str):
    """In a prediction's place: why there is none, where that is the program's own fault."""

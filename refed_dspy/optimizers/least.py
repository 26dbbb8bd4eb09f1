"""What is known before any call: that nothing could be proved, or that a cap cannot hold the compile."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from statistics import fmean

from refed_dspy.errors import ConfigError
from refed_dspy.metrics.gains import MIN_CLUSTERS
from refed_dspy.optimizers.estimate import PAID, Work, proposals, with_room
from refed_dspy.optimizers.examples import cluster_of, set_sizes
from refed_dspy.optimizers.proof import basis
from refed_dspy.optimizers.spec import CompileSpec
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.programs.judges import INSTRUCTION_CRITERIA
from refed_dspy.records import PICO, Reference, dollars
from refed_dspy.teachers.work import budget_caps, caps_of

GO_ON = "go on without a proof with prove=False"
FEW_TOKENS = 250, 40
"""Tokens that a call of a program of unknown kind is taken to read and write: few, so that no cap is refused that would
do."""


@dataclass(frozen=True)
class Calls:
    """Calls of one evaluation by the role that answers them."""

    teacher: int
    judge: int = 0

    @property
    def total(self) -> int:
        return self.teacher + self.judge


def refuse_unprovable(spec: CompileSpec, seen: Collection[str] = ()) -> None:
    """Raises ConfigError where so few references or topics are held out that no gain could be proved, unless no proof
    is wanted. `seen`: the clusters that the champion was tuned on, which prove nothing over it."""
    if not spec.settings.prove:
        return
    clusters = {cluster_of(example) for example in spec.split.test} - {*seen}
    topics = {(spec.topics or {}).get(cluster, cluster) for cluster in clusters}
    if len(topics) < MIN_CLUSTERS:
        there = basis(len(clusters), len(topics), spec.unit)
        remedy = f"add {spec.unit} on other subjects" if len(clusters) >= MIN_CLUSTERS else _more_held_out(spec)
        if seen:
            there += " that the champion has not seen"
            remedy = f"use the champion's seed, other {spec.unit} or another name"
        raise ConfigError(f"test: only {there}, and a proof needs {MIN_CLUSTERS} or more; {remedy}, or {GO_ON}")


def _more_held_out(spec: CompileSpec) -> str:
    """How MIN_CLUSTERS can be held out."""
    settings, available = spec.settings, len({cluster_of(example) for _, example in spec.split.named_examples()})
    sizes = settings.train, settings.validation, settings.test
    if settings.test < MIN_CLUSTERS:
        return f"set test to {MIN_CLUSTERS} or more"
    wanted = next(count for count in range(available, sum(sizes) + 1) if set_sizes(count, sizes)[2] >= MIN_CLUSTERS)
    remedy = f"give {wanted} {spec.unit} or more in all"
    if (left := available - MIN_CLUSTERS) < 2:
        return remedy
    validation = max(1, min(settings.validation, left // 3))
    train = min(settings.train, left - validation)
    return f"{remedy}, or set train, validation and test to {train}, {validation} and {MIN_CLUSTERS}"


def refuse_small_caps(spec: CompileSpec) -> None:
    """Raises ConfigError for a cap in calls or dollars below what the compile is expected to take with its proof. Of an
    optimizer of unknown size: with one candidate. Also as `budget_caps`."""
    settings, foreseen = spec.settings, expected(spec)
    budget_caps(spec.teachers, caps_of(settings))
    what = f"{settings.optimizer} with evaluations: {settings.evaluations}"
    what = f"{what if settings.optimizer in PAID else 'one candidate'}{' and its proof' * settings.prove}"
    if settings.max_calls is not None and settings.max_calls < foreseen.calls:
        raise ConfigError(
            f"max_calls: {settings.max_calls:,} is too few: {what} take about {foreseen.calls:,.0f}; "
            f"raise it to {with_room(foreseen.calls):,.0f}{_or_fewer(spec)}"
        )
    if settings.max_cost is not None and settings.max_cost * PICO < foreseen.cost:
        raise ConfigError(
            f"max_cost: {dollars(settings.max_cost * PICO)} is too little: {what} take about {dollars(foreseen.cost)}; "
            f"raise it to {dollars(with_room(foreseen.cost))}{_or_fewer(spec)}"
        )


@dataclass(frozen=True)
class Expected:
    """Of a whole compile: picodollars and calls."""

    cost: float
    calls: float


def expected(spec: CompileSpec) -> Expected:
    """By the program's stages and the references' lengths. A model whose price is unknown counts for nothing."""
    evaluations = spec.expected_evaluations if spec.settings.optimizer in PAID else len(spec.split.validation)
    whole, calls, tokens = Work.of(spec, evaluations).whole, _calls(spec), _tokens(spec)
    cost = sum(
        count * model.price.cost(tokens[role][0], 0, 0, min(tokens[role][1], model.max_tokens))
        for role, count in (("teacher", calls.teacher), ("judge", calls.judge))
        if (model := spec.teachers[role]).price is not None
    )
    begun_with = proposals(spec)
    return Expected(whole.cost * cost + begun_with.cost, whole.calls * calls.total + begun_with.calls)


def _or_fewer(spec: CompileSpec) -> str:
    """How many evaluations the caps hold, where it is enough for the optimizer."""
    settings = spec.settings
    most = (settings.evaluations - 1) // 10 * 10
    for evaluations in range(most, 2 * len(spec.split.validation), -10):
        fewer = replace(spec, settings=settings.model_copy(update={"evaluations": evaluations}))
        try:
            foreseen = expected(fewer)
        except ConfigError:
            break
        cost, calls = settings.max_cost, settings.max_calls
        if (cost is None or foreseen.cost * 1.1 <= cost * PICO) and (calls is None or foreseen.calls * 1.1 <= calls):
            return f", or set evaluations to {evaluations}"
    return ", or lower validation and test"


def _calls(spec: CompileSpec) -> Calls:
    """Calls of one evaluation of the uncompiled program."""
    program, metric = spec.student, spec.settings.metric
    if not isinstance(program, ReferenceLevelFeedback):
        return Calls(2 if isinstance(program, PairwiseJudge) else 1)
    samples = len(program.features) * program.instructions_per_feature
    each_reference = 1 + len(program.features) + ("response_feedback" in program.stage_names)
    criteria = len(INSTRUCTION_CRITERIA if metric.criteria is None else metric.criteria)
    return Calls(each_reference + samples * int(program.calls_a_sample), samples * criteria if spec.compares else 0)


def _tokens(spec: CompileSpec) -> dict[str, tuple[int, int]]:
    """Role → tokens that its calls read, at full price, and write on average: of references of 600 tokens, 1,150 and
    470 for the teacher, 350 and 50 for the judge, who grades several short texts of one prompt."""
    if not isinstance(spec.program, ReferenceLevelFeedback):
        return {"teacher": FEW_TOKENS, "judge": FEW_TOKENS}
    length = fmean(_length(example.reference) for _, example in spec.split.named_examples())
    return {"teacher": (int(550 + length), int(50 + 0.7 * length)), "judge": (int(200 + 0.25 * length), 50)}


def _length(reference: Reference) -> float:
    """Its tokens, at four bytes each."""
    return len(f"{reference.instruction}{reference.response}".encode()) / 4

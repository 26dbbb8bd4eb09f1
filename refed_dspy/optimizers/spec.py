"""What a compile works on and with, checked before anything is written or paid for."""

from __future__ import annotations

import logging
import math
import tempfile
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import dspy

from refed_dspy.config.compile import CompileConfig, MetricConfig, refuse_reserved
from refed_dspy.config.loading import check_config
from refed_dspy.config.named import code_of
from refed_dspy.data.read import BUILTIN, refuse_references
from refed_dspy.errors import OUT, ConfigError, Wording, one_line
from refed_dspy.jobs.work import Work, caps_of
from refed_dspy.ledger.settings import WorkSettings
from refed_dspy.measures.intervals import MIN_CLUSTERS
from refed_dspy.optimizers.beats_baseline import BeatsBaseline
from refed_dspy.optimizers.dspy_optimizers import (
    SHORT,
    Optimizer,
    OptimizerInputs,
    choose,
    described,
    held_by,
    name_of_optimizer,
    own_attribute,
)
from refed_dspy.optimizers.examples import (
    Split,
    as_examples,
    cluster_of,
    example_id,
    own_split,
    set_sizes,
    split_examples,
    unit_of,
)
from refed_dspy.optimizers.metrics import CustomMetric, HumanAgreement, Metric, named_metric
from refed_dspy.optimizers.optimizer_log import printed_to_file
from refed_dspy.optimizers.proof import basis, find_topics
from refed_dspy.programs import PairwiseJudge, SynthesisProgram
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.load import open_tunable, warn_of_another_teacher
from refed_dspy.programs.reference_level import CRITERIA_STAGES, FEEDBACK_STAGES
from refed_dspy.programs.saved import program_digests
from refed_dspy.records import digest
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.by_stage import PoolShare, recorded
from refed_dspy.teachers.judge import in_role, judge_beside, open_judge_model, open_judge_program, warn_of_one_model

log = logging.getLogger("refed_dspy.optimizers")
ROLES = ("teacher", "judge", "reflection")
SECOND = "proof_judge"
"""The role of the judge that only the proof asks. It may be named, or another, once the tuning is done."""


@dataclass(frozen=True)
class CompileSpec:
    """One compile: its examples, models, settings and metric. The program goes beside it, to whoever works on it."""

    program_identity: Mapping[str, Any]
    """What tells the uncompiled program from others."""
    unit: str
    """What the examples are clustered by: as `unit_of` the program."""
    calls: int
    """How many an evaluation of the student takes, beside those of its metric."""
    samples: int
    """How many it makes, if those are what it makes."""
    split: Split
    teachers: Mapping[str, Teacher]
    """Role → model. Equal configs share one."""
    settings: CompileConfig
    metric: Callable[..., Any] | None
    """The caller's metric; None: this package's for the program's kind."""
    judge_program: PairwiseJudge
    """The judge's prompts: its own, or compiled ones."""
    tuned_by: Mapping[str, Any]
    """Name → optimizer, as `choose` takes it: its name, a class, or an object of the caller's."""

    @property
    def compares(self) -> bool:
        """Whether the metric compares answers with the uncompiled program's."""
        return self.metric is None and self.unit == "references"

    @cached_property
    def topics(self) -> Mapping[str, str] | None:
        """As `find_topics`."""
        return find_topics(self.split)

    def metric_with(self, student: dspy.Module, teacher: dspy.LM, judge: dspy.LM) -> Metric:
        """The metric, asking these models. What it compares with is a copy of the uncompiled `student`."""
        if self.metric is not None:
            return CustomMetric(self.metric, self.settings.metric.accept)
        if not self.compares:
            return HumanAgreement()
        return BeatsBaseline(student, teacher, judge, self.settings.metric, self.judge_program)

    def optimizer(
        self,
        name: str,
        evaluations: int,
        metric: Callable[..., Any],
        teacher: dspy.LM,
        reflection: dspy.LM,
        stopping: Callable[[], bool],
    ) -> Optimizer:
        """One of the optimizers, set up for so many evaluations: nothing is asked yet. `stopping`: whether no further
        call is wanted.

        Raises ConfigError for an unknown optimizer, or options that it does not take.
        """
        settings = self.settings
        inputs = OptimizerInputs(
            metric=metric,
            teacher=teacher,
            reflection=reflection,
            evaluations=evaluations,
            threads=settings.threads,
            seed=settings.seed,
            stopping=stopping,
            train=len(self.split.train),
            validation=len(self.split.validation),
        )
        return choose(self.tuned_by[name], self.options_of(name), inputs)

    def options_of(self, name: str) -> Mapping[str, Any]:
        """The options of one of the optimizers: all that are set, and of several those under its name."""
        options = self.settings.options
        return options if len(self.tuned_by) == 1 else options.get(name, {})

    @cached_property
    def sizes(self) -> Mapping[str, Mapping[int, int]]:
        """Optimizer → for each of its rounds the evaluations it is set up for, and about how many it will ask for.

        One by itself has a single round. Of several each begins with half the evaluations, or what is fair: what it did
        is replayed for nothing in the second round. Raises ConfigError as `optimizer`.
        """
        whole = self.settings.evaluations
        sizes = {}
        for name in self.tuned_by:
            made = {whole: self._asked_by(name, whole)}
            if len(self.tuned_by) > 1 and name in SHORT and whole > 1:
                first = min(whole, max(whole // 2, self._fair if name == "gepa" else 0))
                with suppress(ConfigError):  # too few for it to begin with
                    asked = self._asked_by(name, first)
                    made = {first: asked} | (made if asked < made[whole] else {})
            sizes[name] = made
        return sizes

    @property
    def _fair(self) -> int:
        """In so many evaluations GEPA has rewritten each predictor's prompt once, and half of these were worth scoring
        on the validation set."""
        validation, predictors = len(self.split.validation), len(self.program_identity["program"])
        return validation + predictors * (6 + validation // 2)

    def _asked_by(self, name: str, evaluations: int) -> int:
        no_model: Any = object()  # stands for a model: setting up an optimizer asks nothing
        return self.optimizer(name, evaluations, no_metric, no_model, no_model, stopping=lambda: False).expected

    @property
    def expected(self) -> Mapping[str, float]:
        """Optimizer → about how many evaluations it will ask for. Of several, about half get a second round."""
        second = math.ceil(len(self.tuned_by) / 2) / len(self.tuned_by)
        ends = {name: (min(asked.values()), max(asked.values())) for name, asked in self.sizes.items()}
        return {name: first + (most - first) * second for name, (first, most) in ends.items()}

    @property
    def expected_evaluations(self) -> int:
        """The same of all optimizers together."""
        return round(sum(self.expected.values()))

    def identity(self) -> dict[str, Any]:
        """What must be the same on every start, in JSON types. A refusal quotes these names."""
        settings, rules = self.settings, self.settings.metric
        own = None if self.metric is None else CustomMetric(self.metric, rules.accept).identity()
        return {
            **self.program_identity,
            "examples": self._set_digests,
            "optimizer": settings.optimizer,
            "options": digest(described(self.held_options)),
            "evaluations": settings.evaluations,
            "instructions_per_feature": settings.instructions_per_feature,
            "metric": own or rules.model_dump(mode="json", exclude={"function"}),
            "judge_program": program_digests(self.judge_program),
            "seed": settings.seed,
            **{role: self.teachers[role].identity for role in ROLES},
        }

    @property
    def held_options(self) -> Mapping[str, Any]:
        """What the optimizers are set up with: of an object, what it holds."""
        held = {name: held_by(each) for name, each in self.tuned_by.items() if not isinstance(each, str | type)}
        only = next(iter(held.values()), None) if len(self.tuned_by) == 1 else None
        return only or {**self.settings.options, **held}

    @property
    def _set_digests(self) -> dict[str, str]:
        return {name: digest([example_id(each) for each in examples]) for name, examples in self.split.sets.items()}

    def work(self) -> Work:
        """The compile as paid work."""
        return Work(
            kind="compile",
            identity=self.identity(),
            models=self.teachers,
            size=self.settings.evaluations,
            caps=caps_of(self.settings),
            facts={"settings": self.recorded().values, "examples": self._examples()},
            reuse=self.settings.reuse,
            way_out="choose another folder with " + OUT,
        )

    def recorded(self) -> WorkSettings:
        """What the ledger records of the settings and models."""
        options = {name: one_line(value, 100) for name, value in self.settings.options.items()}
        models: dict[str, Any] = {role: recorded(PoolShare(model)) for role, model in self.teachers.items()}
        return WorkSettings.of(self.settings, **(models | {"teacher": [models["teacher"]], "options": options}))

    def _examples(self) -> dict[str, Any]:
        """What the ledger records of the examples: their `unit`; set → digest and size; set → example → cluster."""
        digests, measured = self._set_digests, {"validation": self.split.validation, "test": self.split.test}
        return {
            "unit": self.unit,
            "sets": {name: [digests[name], len(examples)] for name, examples in self.split.sets.items()},
            "clusters": {name: {example_id(each): cluster_of(each) for each in of} for name, of in measured.items()},
        }


def prepare(
    program: Any,
    references: Any,
    metric: Any = None,
    pairs: Any = None,
    teacher: Any = None,
    judge: Any = None,
    reflection: Any = None,
    optimizer: Any = "gepa",
    sets: Mapping[str, Any] | None = None,
    proof_judge: Any = None,
    **settings: Any,
) -> tuple[dspy.Module, CompileSpec]:
    """The uncompiled program, and what a compile of it is: what it is called with, checked. Nothing is written or paid
    for. `sets`: the caller's own trainset, valset and testset. Raises InputError."""
    tuned_by = by_name(optimizer)
    metric = _held_by_any(tuned_by, "metric", "metric_fn") if metric is None else metric
    if isinstance(metric, BeatsBaseline):
        if type(metric) is not BeatsBaseline:
            raise ConfigError("metric: a compile makes a BeatsBaseline of its own; pass a function instead")
        metric = metric.config
    if isinstance(metric, MetricConfig | Mapping | str):
        settings, metric = {**settings, "metric": metric}, None
    own_sets = {name: value for name, value in (sets or {}).items() if value is not None}
    _refuse_two_sources({"references": references, "pairs": pairs, **own_sets})
    sources = {"references": references, "pairs": pairs}
    named = {name: str(source) if isinstance(source, str | Path) else None for name, source in sources.items()}
    config = check_config(CompileConfig, {**settings, **named, "optimizer": [*tuned_by]})
    _refuse_misplaced(config.options, tuned_by)
    if metric is None and config.metric.function is not None:
        metric = named_metric(config.metric.function)
    refuse_references(program, "program")
    module = open_tunable(config.program if program is None else program, config, judge=pairs is not None)
    teacher = _held_by_any(tuned_by, "task_model") if teacher is None else teacher
    reflection = _held_by_any(tuned_by, "reflection_lm", "prompt_model") if reflection is None else reflection
    teachers = open_teachers(teacher, judge, reflection)
    warn_of_another_teacher(module, teachers["teacher"].model)
    kind = type(module)
    program_identity = {"kind": f"{kind.__name__} {code_of(kind)}".rstrip(), "program": program_digests(module)}
    calls, samples = _calls_and_samples(module, _instructions_asked(module, config))
    unit = unit_of(module)
    source = pairs if pairs is not None else BUILTIN if references is None else references
    split = _split(module, config, source, own_sets, teachers["teacher"])
    if metric is None and unit == "references":
        warn_of_one_model(teachers["judge"], teachers["teacher"])
    elif metric is None and unit == "examples":
        raise ConfigError(f"metric: {kind.__name__} needs one; pass a function of example and prediction")
    judge_program = open_judge_program(config) or PairwiseJudge()
    made = (calls, samples, split, teachers, config, metric, judge_program, tuned_by)
    spec = CompileSpec(program_identity, unit, *made)
    if proof_judge is not None:
        teachers[SECOND] = _second_judge(proof_judge, spec)
    _warn_of_sizes(spec)
    warn_of_another_teacher(judge_program, teachers["judge"].model)
    return module, spec


def by_name(optimizer: Any) -> dict[str, Any]:
    """Name → each optimizer of one, of a list, or of a text with commas between. Raises ConfigError."""
    if isinstance(optimizer, str):
        optimizer = [name.strip() for name in optimizer.split(",")]
    listed = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    named = {name_of_optimizer(each): each for each in listed}
    if not named:
        raise ConfigError("optimizer: the list is empty; name one or more")
    if len(named) < len(listed):
        raise ConfigError("optimizer: one is listed twice; of one optimizer with other options make another compile")
    return named


def _held_by_any(tuned_by: Mapping[str, Any], *attributes: str) -> Any:
    """As `own_attribute`, of the first optimizer that has one."""
    return next((held for each in tuned_by.values() if (held := own_attribute(each, *attributes)) is not None), None)


def _refuse_misplaced(options: Mapping[str, Any], tuned_by: Mapping[str, Any]) -> None:
    """Raises ConfigError where the options of several optimizers are not under their names."""
    for name, value in options.items() if len(tuned_by) > 1 else ():
        if name not in tuned_by or not isinstance(value, Mapping):
            raise ConfigError(
                f"options: {one_line(name, 40)}: with several optimizers, put options under the name of the one they "
                f"are for: {', '.join(tuned_by)}"
            )
        try:
            refuse_reserved(value)
        except ValueError as error:
            raise ConfigError(f"options: {name}: {error}") from None


def _second_judge(asked: Any, spec: CompileSpec) -> Teacher:
    """The judge that only the proof asks. Raises ConfigError where it could tell nothing."""
    if not spec.compares:
        raise ConfigError("proof_judge: only the package's metric asks a judge; remove it")
    if not spec.settings.prove:
        raise ConfigError("proof_judge: there is no proof to ask it for; remove it, or prove the gain")
    second = open_judge_model(asked, spec.teachers["teacher"], "proof_judge")
    if second.model == spec.teachers["judge"].model:
        raise ConfigError(f"proof_judge: {second.model} is the judge itself; name another model")
    warn_of_one_model(second, spec.teachers["teacher"])
    return second


def _warn_of_sizes(spec: CompileSpec) -> None:
    whole = spec.settings.evaluations
    if spec.settings.prove and len({cluster_of(example) for example in spec.split.test}) == MIN_CLUSTERS:
        log.warning(
            "test: with only %d held-out %s nothing can be proved if one of them has no score, as where the judge "
            "cannot decide; hold out more", MIN_CLUSTERS, spec.unit,
        )  # fmt: skip
    for name, asked in spec.sizes.items():
        if max(asked.values()) > whole:
            log.warning(
                "evaluations: %d is too few: with these sets %s takes about %d, besides those of the uncompiled "
                "program and the proof; raise it or lower train and validation",
                whole, name, max(asked.values()),
            )  # fmt: skip


def _refuse_two_sources(sources: Mapping[str, Any]) -> None:
    """Raises ConfigError for more than one source of examples."""
    given = [name for name, source in sources.items() if source is not None]
    if {"references", "pairs"} <= {*given}:
        raise ConfigError(
            "pairs: references are given, too; keep one: a judge learns from pairs, all else from references"
        )
    if len(given) > 1 and (both := {"references", "pairs"} & {*given}):
        raise ConfigError(f"{given[-1]}: {min(both)} are given, too; keep the sets of your own, or leave them out")


def _split(
    program: dspy.Module, config: CompileConfig, source: Any, own_sets: Mapping[str, Any], teacher: Teacher
) -> Split:
    """The examples in three sets: those of `source`, or the caller's own sets. Raises InputError."""
    unit = unit_of(program)
    if own_sets:
        return own_split(unit, own_sets, config.prove)
    items = as_examples(unit, source, config.columns or None, config.turns, teacher)
    sizes = (config.train, config.validation, config.test)
    return split_examples(items, sizes, config.seed, config.held_out_criteria, getattr(program, "tuned_on", ()))


def _calls_and_samples(program: dspy.Module, instructions_per_feature: int) -> tuple[int, int]:
    """How many an evaluation of a program's student takes and makes."""
    if not isinstance(program, SynthesisProgram):
        return 2 if isinstance(program, PairwiseJudge) else 1, 0
    samples = len(program.features) * instructions_per_feature
    feedback = sum(stage in program.stage_names for stage in (*FEEDBACK_STAGES, *CRITERIA_STAGES))
    return feedback + len(program.features) + samples * program.calls_a_sample, samples


def _instructions_asked(program: dspy.Module, config: CompileConfig) -> int:
    """How many instructions of a feature the student asks for at a time: no more than the program unless it is set."""
    number = config.instructions_per_feature
    said = "instructions_per_feature" in config.model_fields_set or not isinstance(program, SynthesisProgram)
    return number if said else min(number, program.instructions_per_feature)


def student_of(program: dspy.Module, spec: CompileSpec) -> dspy.Module:
    """A copy to tune, which asks for few instructions at a time."""
    student = program.deepcopy()
    if isinstance(student, SynthesisProgram):
        student.instructions_per_feature = _instructions_asked(program, spec.settings)
    return student


def no_metric(example: Any, prediction: Any, trace: Any = None, name: Any = None, pred_trace: Any = None) -> float:  # noqa: ARG001
    """Stands for a metric, with the arguments that GEPA looks for."""
    return 0.0


def open_teachers(teacher: Any, judge: Any = None, reflection: Any = None) -> dict[str, Teacher]:
    """Teacher, judge and reflection model. The judge defaults to the teacher's model, the reflection to the judge's."""
    answers = open_teacher(teacher)
    judges = judge_beside(answers, judge)
    with in_role("reflection"):
        reflects = judges if reflection is None else open_teacher(reflection, answers, "reflection")
    opened: dict[str, Teacher] = {}
    for role, model in zip(ROLES, (answers, judges, reflects), strict=True):
        equal = (other for other in opened.values() if other.config is not None and other.config == model.config)
        opened[role] = next(equal, model)
    return opened


# --- known before anything is paid for


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
        go_on = "go on without a proof with " + Wording("prove=False", "--no-prove")
        raise ConfigError(f"test: only {there}, and a proof needs {MIN_CLUSTERS} or more; {remedy}, or " + go_on)


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


class _Begun(BaseException):
    """Ends a rehearsal. No `Exception`: optimizers, programs and DSPy's evaluation let those of a row pass."""


class _Listener(dspy.LM):
    """A language model that ends the rehearsal as soon as it is asked."""

    def __init__(self) -> None:
        super().__init__("rehearsal/none")
        self.begun = threading.Event()

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        self.begun.set()
        raise _Begun

    async def acall(self, *_: Any, **__: Any) -> NoReturn:
        self()

    def copy(self, **_: Any) -> _Listener:
        return self

    def __deepcopy__(self, _: Any) -> _Listener:
        return self


def rehearse(student: dspy.Module, spec: CompileSpec) -> None:
    """Raises ConfigError where an optimizer refuses its options or its sets: each runs on a copy up to the first thing
    that it asks. Nothing is asked or written."""
    for name in spec.tuned_by:
        _rehearse(name, student, spec)


def _rehearse(name: str, student: dspy.Module, spec: CompileSpec) -> None:
    listener = _Listener()
    size = min(spec.sizes[name])
    optimizer = spec.optimizer(name, size, no_metric, listener, listener, stopping=lambda: False)
    adapter = dspy.settings.adapter or SchemaAdapter()
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            printed_to_file(Path(folder)),
            dspy.context(lm=listener, adapter=adapter, callbacks=[], disable_history=True),
        ):
            optimizer.tune(student.deepcopy(), list(spec.split.train), list(spec.split.validation))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if not listener.begun.is_set():
            raise ConfigError(f"optimizer {optimizer.name}: {one_line(error) or type(error).__name__}") from error

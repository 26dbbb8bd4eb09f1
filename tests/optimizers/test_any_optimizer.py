"""Every optimizer of DSPy's that tunes prompts: by name, as a class, as an object. The others are refused unpaid."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest

from benchmarks.preference import model
from refed_dspy.errors import ConfigError, RunDirError, RunStopped
from refed_dspy.optimizers.dspy_optimizers import OptimizerInputs, choose, name_of_optimizer
from refed_dspy.optimizers.spec import no_metric
from tests.support.said import Said
from tests.support.simulated_compiles import PREFERENCE, Watched, answerer, compiled, marks, refed

EXAMPLES = [
    dspy.Example(question=f"question number {n}", response=f"answer {n}").with_inputs("question") for n in range(12)
]
SIZES = {"train": 4, "validation": 3, "test": 5, "evaluations": 30}


def in_gepas_form(example: Any, prediction: Any, trace: Any = None, name: Any = None, calls: Any = None) -> float:
    return marks(example, prediction, trace)


def tuned(folder: Path, optimizer: Any, world: Watched | None = None, **more: Any) -> Any:
    own: dict[str, Any] = {"metric": marks, **SIZES, **more}
    return compiled(folder, answerer(), EXAMPLES, world, optimizer=optimizer, **own)


TUNING = ("LabeledFewShot", "BootstrapFewShot", "BootstrapFewShotWithRandomSearch", "COPRO", "MIPROv2", "SIMBA", "GEPA",
          "InferRules", "BetterTogether")  # fmt: skip


@pytest.mark.parametrize("name", TUNING)
def test_each_runs_as_a_class_and_is_the_same_by_any_of_its_names(tmp_path: Path, name: str) -> None:
    kind, world = getattr(dspy, name), Watched()
    made = tuned(tmp_path, kind, world)
    assert made.proof is not None and not made.stopped
    asked = len(world.asked)
    for spelling in (name, name.lower(), f"dspy.{name}"):
        assert tuned(tmp_path, spelling, world).manifest == made.manifest
        assert name_of_optimizer(spelling) == made.manifest["optimizer"]
    assert len(world.asked) == asked, "it is the same compile, and was made"


OBJECTS: dict[str, Callable[[], Any]] = {
    "GEPA": lambda: dspy.GEPA(metric=in_gepas_form, reflection_lm=model(Watched()), max_metric_calls=20),
    "MIPROv2": lambda: dspy.MIPROv2(
        metric=marks, prompt_model=model(Watched()), task_model=model(Watched()), auto="light", max_labeled_demos=0
    ),
    "SIMBA": lambda: dspy.SIMBA(metric=marks, bsize=2, num_candidates=2, max_steps=1),
    "COPRO": lambda: dspy.COPRO(metric=marks, breadth=2, depth=1),
    "BootstrapFewShot": lambda: dspy.BootstrapFewShot(metric=marks, max_labeled_demos=0),
    "BetterTogether": lambda: dspy.BetterTogether(metric=marks, p=dspy.BootstrapFewShot(metric=marks)),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_an_object_keeps_its_sizes_and_asks_and_scores_through_the_ledger(tmp_path: Path, name: str) -> None:
    world, given = Watched(), OBJECTS[name]()
    before = {key: value for key, value in vars(given).items() if isinstance(value, int | str | float)}
    made = tuned(tmp_path, given, world, metric=None)
    assert made.proof is not None and made.manifest["calls"] == len(world.asked)
    assert before == {key: value for key, value in vars(given).items() if key in before}, "the caller's stays as it is"
    asked = len(world.asked)
    tuned(tmp_path, OBJECTS[name](), world, metric=None)
    assert len(world.asked) == asked


def test_an_object_with_another_part_is_another_compile(said: Said, tmp_path: Path) -> None:
    tuned(tmp_path, dspy.BetterTogether(metric=marks, p=dspy.BootstrapFewShot(metric=marks)))
    with said.by(RunDirError):
        tuned(tmp_path, dspy.BetterTogether(metric=marks, p=dspy.COPRO(metric=marks, breadth=2, depth=1)))


def test_whose_models_an_object_was_made_with_reflect_and_its_seed_stays(tmp_path: Path) -> None:
    reflecting, world = Watched(), Watched()
    gepa = dspy.GEPA(metric=in_gepas_form, reflection_lm=model(reflecting), max_metric_calls=20, seed=7)
    made = tuned(tmp_path, dspy.BetterTogether(metric=marks, p=gepa), world, reflection=None)
    assert reflecting.asked and made.manifest["calls"] == len(world.asked) + len(reflecting.asked)
    assert set_up(gepa).kind.seed == 7


@pytest.mark.parametrize("name", [*TUNING, "BootstrapFewShotWithOptuna"])
def test_each_scores_by_the_metric_of_the_compile(name: str) -> None:
    if name != "LabeledFewShot":
        kind = set_up(getattr(dspy, name)).kind
        assert no_metric in (getattr(kind, "metric", None), getattr(kind, "metric_fn", None))


def set_up(optimizer: Any) -> Any:
    lm = model(Watched())
    inputs = OptimizerInputs(no_metric, lm, lm, evaluations=60, threads=2, seed=3, stopping=bool, train=6, validation=3)
    return choose(optimizer, {}, inputs)


class Wrapping(dspy.BootstrapFewShot):  # type: ignore[misc]
    def __init__(self, metric: Any) -> None:
        super().__init__(metric=metric)
        self.inner = dspy.COPRO(metric=metric, prompt_model=model(Watched()))


class WithAMistake(dspy.BootstrapFewShot):  # type: ignore[misc]
    def compile(self, student: Any, *, trainset: Any) -> Any:
        super().compile(student, trainset=trainset)
        raise AssertionError("what a library says after paid calls")


NOT_TUNING: dict[str, Any] = {
    "by name": "bootstrapfinetune",
    "a class": dspy.KNNFewShot,
    "an object": dspy.Ensemble(),
    "agents": "AvatarOptimizer",
    "no optimizer": dspy.Predict,
    "an object with a teacher's settings": dspy.BootstrapFewShot(metric=marks, teacher_settings={"lm": "other"}),
    "an object with options beside it": dspy.LabeledFewShot(),
    "an object with a model inside": Wrapping(marks),
    "a teacher with a model, in options": dspy.BootstrapFewShot,
    "GEPA too small": dspy.GEPA(metric=in_gepas_form, reflection_lm=model(Watched()), max_metric_calls=2),
}


@pytest.mark.parametrize("case", NOT_TUNING)
def test_the_others_are_refused_before_any_call(said: Said, tmp_path: Path, case: str) -> None:
    world = Watched()
    options: dict[str, Any] = {"options": {"k": 3}} if "options beside" in case else {}
    if "in options" in case:
        (own := answerer()).set_lm(model(Watched()))
        options = {"options": {"teacher": own}}
    with said.by(ConfigError):
        tuned(tmp_path / "c", NOT_TUNING[case], world, **options)
    assert not world.asked and not (tmp_path / "c").exists()


def test_a_librarys_mistake_after_paid_calls_is_one_line(said: Said, tmp_path: Path) -> None:
    with said.by(RunStopped):
        tuned(tmp_path, WithAMistake(metric=marks))


def test_sets_of_ones_own_are_used_as_they_are(tmp_path: Path) -> None:
    sets: dict[str, Any] = {"trainset": EXAMPLES[:3], "valset": EXAMPLES[3:6], "testset": EXAMPLES[6:]}
    made = compiled(tmp_path / "a", answerer(), None, optimizer="bootstrap", metric=marks, **sets)
    assert made.manifest["sets"] == {"train": 3, "validation": 3, "test": 6}
    references = [dspy.Example(reference=each).with_inputs("reference") for each in PREFERENCE.references(9)]
    own: dict[str, Any] = {"trainset": references[:2], "valset": references[2:4], "testset": references[4:]}
    made = compiled(tmp_path / "b", refed(1), None, optimizer="bootstrap", **own)
    assert made.manifest["sets"] == {"train": 2, "validation": 2, "test": 5}


@pytest.mark.parametrize("case", ["one is missing", "one is shared", "references, too", "no inputs"])
def test_sets_that_prove_nothing_are_refused(said: Said, tmp_path: Path, case: str) -> None:
    sets: dict[str, Any] = {"trainset": EXAMPLES[:3], "valset": EXAMPLES[3:6], "testset": EXAMPLES[6:]}
    changes: dict[str, dict[str, Any]] = {
        "one is missing": {"valset": None},
        "one is shared": {"testset": EXAMPLES[5:]},
        "no inputs": {"trainset": [dspy.Example(question="x")]},
    }
    sets |= changes.get(case, {})
    with said.by(ConfigError):
        examples = EXAMPLES if case == "references, too" else None
        compiled(
            tmp_path, answerer(), examples, optimizer="bootstrap", metric=marks, **{**sets, **changes.get(case, {})}
        )

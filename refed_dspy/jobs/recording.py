"""Any DSPy code in the engine: inside the block its calls are recorded, capped and resumed like those of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy

from refed_dspy.config.base import Capped
from refed_dspy.config.keywords import Seed, checked
from refed_dspy.config.loading import check_config
from refed_dspy.errors import CapReached, InputError, RunStopped
from refed_dspy.files import path_of
from refed_dspy.jobs.gateway import Gateway, open_gateway
from refed_dspy.jobs.job import job
from refed_dspy.jobs.work import Work, caps_of, refuse_small_cap
from refed_dspy.programs.adapter import checked_adapter
from refed_dspy.programs.asking import predictor_names, with_roles
from refed_dspy.programs.question import Question, UnnamedStage, asking_about
from refed_dspy.teachers import Teacher, open_teacher
from refed_dspy.teachers.judge import in_role, open_judge_model
from refed_dspy.teachers.recorded import RecordedLM


@checked
@contextmanager
def recording(
    folder: str | Path,
    *,
    teacher: Any = None,
    judge: Any = None,
    reflection: Any = None,
    seed: Seed = 0,
    max_cost: float | None = None,
    max_calls: float | None = None,
    max_minutes: float | None = None,
) -> Iterator[dict[str, RecordedLM]]:
    """Run any DSPy code on models whose answers are recorded in `folder`: none is paid for twice, and caps hold.

        with refed_dspy.recording("work/a", teacher="openai/gpt-4o-mini", max_cost=2.00) as lms:
            dspy.Evaluate(devset=devset, metric=metric)(program)

    Inside the block `dspy.settings.lm` is the teacher; the models are in `lms` by role. Modules, `dspy.Evaluate`,
    `Parallel`, optimizers, threads and event loops may ask them, and each call has the engine's retries and rate
    limits. Where you set no adapter of your own, answers have the form of `SchemaAdapter`, as in a run; one that does
    not fit is asked for again. Run the same code again, after a kill too: what was asked is answered from the folder.
    `refed status FOLDER --tokens` shows what each predictor used.

    The folder belongs to these models with their sampling; code and caps may change. At a cap the calls in flight end,
    no other begins, and the block raises CapReached as it ends, whatever its code made of that. Blocks may be nested,
    each in a folder of its own. A predictor with another language model of its own ends the block; what you ask such a
    model yourself, or through an adapter that you set in the block, is not seen.

    Args:
        folder: where answers, failures and costs are kept.
        teacher: the model of the block; None: `dspy.settings.lm`. It is named as for `synthesize`: by its name, a
            TeacherConfig or its settings, a teacher file, or a `dspy.LM`.
        judge: the model of `lms["judge"]`, at temperature 0 unless its settings name another.
        reflection: the model of `lms["reflection"]`.
        seed: of the seeds that calls are sent with.
        max_cost, max_calls, max_minutes: caps over all models, for as long as the folder is used; None: as they were.

    Raises:
        InputError: a model or a cap cannot be used, or the folder holds other work; nothing was paid for.
        CapReached: a cap is reached; raise it and run the same code to go on.
        TeacherError, RunStopped: a model failed too often; the block's own error otherwise. Answers are kept.
    """
    capped = check_config(Capped, {"max_cost": max_cost, "max_calls": max_calls, "max_minutes": max_minutes})
    models = _models(teacher, judge, reflection)
    work = Work(
        kind="recording",
        identity={role: model.identity for role, model in models.items()},
        models=models,
        size=0,
        caps=caps_of(capped),
    )
    with job(path_of(folder, "folder"), work) as at:
        start = at.begin()
        with open_gateway(Gateway, start.ledger, start.recorder, models, seed) as gateway:
            gateway.allow(start.caps_left.caps, start.caps_left.seconds)
            lms = {role: gateway.lm(role) for role in models}
            asked = dspy.context(lm=lms["teacher"], adapter=checked_adapter(), refed_stop=gateway.stop)
            with _ending(gateway), asking_about(_AnyStage()), asked, with_roles(lms):
                yield lms


def _models(teacher: Any, judge: Any, reflection: Any) -> dict[str, Teacher]:
    """Role → model, of those that are named."""
    models = {"teacher": open_teacher(teacher)}
    if judge is not None:
        models["judge"] = open_judge_model(judge, models["teacher"])
    if reflection is not None:
        with in_role("reflection"):
            models["reflection"] = open_teacher(reflection, models["teacher"], "reflection")
    return models


@contextmanager
def _ending(gateway: Gateway) -> Iterator[None]:
    """Raises what ended the work of the block where something did: code that asks may have caught it, and gone on with
    scores of 0."""
    try:
        yield
    except Exception:
        _raise_end(gateway)
        raise
    _raise_end(gateway)


def _raise_end(gateway: Gateway) -> None:
    if cap := gateway.cap_reached:
        refuse_small_cap(gateway.recorder.budget)
        kept = f"what was paid for is kept in {gateway.ledger.path.parent}"
        raise CapReached(cap, reason=f"{cap} is reached; {kept}; raise it and run the same code to go on")
    if isinstance(gateway.stop_error, InputError) and gateway.ledger.has_answers():
        raise RunStopped(str(gateway.stop_error))
    gateway.raise_if_stopped()


class _AnyStage(UnnamedStage):
    """What calls are made for by code that may run any program: a call's stage is the name of the predictor that makes
    it, and the model's role where none does."""

    def __init__(self) -> None:
        super().__init__("", {})
        self._named = dict[str, str]()

    def called_by(self, modules: Iterable[object]) -> Question:
        """As `UnnamedStage`."""
        inner_first = list(modules)
        predictor = next((each for each in inner_first if isinstance(each, dspy.Predict)), None)
        if predictor is None:
            return Question("", "", self.lm)
        if predictor.stage not in self._named:
            found = predictor_names(inner_first[-1])
            self._named[predictor.stage] = found.get(predictor.stage, predictor.signature.__name__)
        return Question(self._named[predictor.stage], "", self.lm)

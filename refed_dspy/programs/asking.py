"""How a program asks: `about` names the stage and the item, and its predictors are called as DSPy's are.

Inside a run the language model of the DSPy context is a recorded teacher: it returns recorded answers, and asks and
records the rest. A role (`as_role`) is another such model. Outside a run it is whatever the caller set.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import dspy
from dspy.utils.exceptions import AdapterParseError, LMError

from refed_dspy.errors import ConfigError, RowError, setting
from refed_dspy.programs.adapter import SchemaAdapter
from refed_dspy.programs.lm_errors import translated
from refed_dspy.programs.question import PROGRAM, Question, UnnamedStage, asking_about, current_question

T = TypeVar("T")
_DEAF = (
    "a StreamListener hears nothing where the adapter is not set: set "
    "dspy.configure(adapter=refed_dspy.SchemaAdapter()), or take whole samples as they are made from refed_dspy.stream"
)


def about(stage: str, item: str) -> AbstractContextManager[None]:
    """The calls inside the block are made for `stage` of `item`, under which the ledger keeps them.

    They go through the adapter of the context: of the program's call, or of the run. Where a stage is called by itself,
    outside of both, and the caller set no adapter, that is `SchemaAdapter`.

    Raises:
        RowError: an answer is missing or unusable.
        TeacherError: no answer can be had at all: key, account, model or endpoint.
        RunStopped: the work ends; CapReached where a cap ends it.
        ConfigError: no language model is set.
    """
    return _answering(Question(stage, item))


def predictor_names(program: Any) -> dict[str, str]:
    """`Predict.stage`, a mark that copies keep, of each predictor of `program` → its name there (`name_of`)."""
    named = program.named_predictors() if isinstance(program, dspy.Module) else []
    return {predictor.stage: name_of(path) for path, predictor in named}


def stages_of(program: Any) -> list[str]:
    """The stages of a program, those it names first. Any other predictor is a stage, too."""
    return list(dict.fromkeys([*getattr(program, "stage_names", ()), *predictor_names(program).values()]))


def without_models(program: dspy.Module) -> tuple[dspy.Module, dict[str, Any]]:
    """A program without the language models that its predictors hold, and these by stage: they answer there, through
    the ledger. A program that holds none is returned as it is, another one as a copy."""
    names, bound = predictor_names(program), dict[str, Any]()
    for predictor in program.predictors():
        name = names[predictor.stage]
        if predictor.lm is not None and bound.setdefault(name, predictor.lm) is not predictor.lm:
            raise ConfigError(
                f"program: predictors called {name} have different language models; give them different names"
            )
    if not bound:
        return program, {}
    copied = program.deepcopy()
    copied.set_lm(None)
    return copied, bound


def name_of(path: str) -> str:
    """The last name in a predictor's `path` in its program; of one inside a ChainOfThought, that one's."""
    return path.removesuffix(".predict").rpartition(".")[2]


def about_unnamed(question: UnnamedStage) -> AbstractContextManager[None]:
    """As `about`, for the calls that a program makes without it: the name of the predictor is the stage."""
    return _answering(question)


def about_call(program: Any) -> AbstractContextManager[None]:
    """The block is a call of the whole `program`: its predictors ask as they do in a run, with the caller's adapter or
    else `SchemaAdapter`. What they raise is of this package, whether the program names its stages or not.

    Within a unit of work it is a part of that, and nothing changes.
    """
    if current_question() is not None:
        return nullcontext()
    return about_unnamed(UnnamedStage("", predictor_names(program)))


async def ask(module: Any, **inputs: Any) -> Any:
    """The answer of a predictor, or of any module in its place, to `inputs`. One that has no `aforward`, such as
    `dspy.BestOfN`, is called in a thread.

    Raises TypeError where it returns something else, as `dspy.BestOfN` does where its reward raised an error each time.
    """
    made = await (module.acall(**inputs) if hasattr(module, "aforward") else dspy.asyncify(module)(**inputs))
    return returned(made, dspy.Prediction, type(module).__name__)


def returned(value: Any, kind: type[T], method: str) -> T:
    """`value`, which `method` of a program returned. Raises TypeError where it is no `kind`."""
    if isinstance(value, kind):
        return value
    raise TypeError(f"{method} returned a {type(value).__name__}, not a {kind.__name__}")


@contextmanager
def _answering(question: Question) -> Iterator[None]:
    with _some_adapter(), _stage_of_unit(question), asking_about(question), _own_errors(question):
        yield


def _some_adapter() -> AbstractContextManager[Any]:
    """The caller's adapter, or `SchemaAdapter` where there is none."""
    if dspy.settings.adapter is not None:
        return nullcontext()
    if dspy.settings.get("stream_listeners"):
        warnings.warn(_DEAF, stacklevel=2)
    context: AbstractContextManager[Any] = dspy.context(adapter=SchemaAdapter())
    return context


@contextmanager
def _stage_of_unit(question: Question) -> Iterator[None]:
    """Have the unit whose code asks `question` know the stage. Where the block fails, the unit failed in that stage."""
    unit = current_question()
    if not isinstance(unit, UnnamedStage) or unit is question:
        yield
        return
    unit.stage = question.stage
    yield
    unit.stage = PROGRAM


@contextmanager
def _own_errors(question: Question) -> Iterator[None]:
    """Raises this package's errors in place of DSPy's."""
    try:
        yield
    except (AdapterParseError, LMError) as error:
        raised = translated(error, question)
        if isinstance(raised, RowError):
            raised.recorded = isinstance(error, LMError)  # by the recorded teacher, which raised it
        raise raised from None
    except ValueError as error:
        if not str(error).startswith("No LM is loaded"):
            raise
        way = setting("teacher") + ", or set one with dspy.configure(lm=dspy.LM('openai/gpt-4o-mini'))"
        raise ConfigError("no teacher: pass " + way) from None


def again(repetition: int) -> dict[str, int]:
    """A predictor's `config` for the answer of this number to the same inputs: 0 is the first."""
    return {"rollout_id": repetition} if repetition else {}


def with_roles(roles: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Set the models that `as_role` uses inside the block: role → language model."""
    context: AbstractContextManager[None] = dspy.context(refed_roles=roles)
    return context


@contextmanager
def as_role(role: str) -> Iterator[None]:
    """Have the stages inside the block ask the model of `role`; if none is set (`with_roles`), the context's."""
    if (lm := (dspy.settings.get("refed_roles") or {}).get(role)) is None:
        yield
        return
    with dspy.context(lm=lm):
        yield


@dataclass
class SampleInProgress:
    """A sample being written in several answers, all by the same teacher where a pool has several."""

    about: str
    """The item; the teacher is drawn by it."""
    writer: object | None = None
    """The teacher that gave the first of the answers."""


def same_teacher(about: str) -> AbstractContextManager[None]:
    """Have the same teacher of a pool give all answers inside the block, as long as it answers: so a response and its
    improvement differ by the improvement, and not by the writer."""
    context: AbstractContextManager[None] = dspy.context(refed_sample=SampleInProgress(about))
    return context


def current_sample() -> SampleInProgress | None:
    """The sample that one teacher is writing in this context, or None."""
    sample: SampleInProgress | None = dspy.settings.get("refed_sample")
    return sample

"""Generates `refed_dspy/keywords.pyi`: the settings that each public function takes as keywords, for type checkers,
editors and the site. `python docs/site/hooks.py` (`make docs`) renews it."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import refed_dspy
from refed_dspy.config.base import PLACES
from refed_dspy.config.keywords import TAKES

FILE = Path(__file__).parent.parent.parent / "refed_dspy" / "keywords.pyi"
_DOORS: Mapping[str, str] = {
    "RunKeywords": "synthesize",
    "ResumeKeywords": "resume",
    "FilterKeywords": "filter_data",
    "CompileKeywords": "compile",
    "PlanKeywords": "plan_compile",
    "CompareKeywords": "compare",
    "RecycleKeywords": "recycle",
    "StatsKeywords": "measure",
    "AnswersKeywords": "answer_prompts",
    "AlpacaEvalKeywords": "alpaca_eval",
    "ArenaHardKeywords": "arena_hard",
    "IFEvalKeywords": "ifeval",
    "JudgeTrainingKeywords": "train_judge",
}
"""Name of the keywords → the function that takes them."""
_IN_PYTHON = {
    "TeachersConfig | None": "TeacherLike | Sequence[TeacherLike] | None",
    "dict[str, TeachersConfig]": "Mapping[str, TeacherLike | Sequence[TeacherLike]] | None",
    "TeacherConfig | None": "TeacherLike | None",
    "Filters": "Sequence[FilterConfig | Mapping[str, Any] | str | Filter]",
    "GuardSettings | Literal[False]": "GuardSettings | Mapping[str, Any] | bool",
    "ScorerConfig | None": "ScorerConfig | Mapping[str, Any] | None",
    **dict.fromkeys(("PairColumns", "RowColumns", "PromptColumns"), "Mapping[str, str] | None"),
    "dict[str, str]": "Mapping[str, str] | None",
    "dict[str, Any]": "Mapping[str, Any]",
    "list[Annotated[int, Field(ge=1)]] | None": "Sequence[int] | None",
}
"""A setting's type → what Python's callers may pass."""
_HEAD = """# Made from the classes of settings by docs/site/stubs.py: do not edit, run `make docs`.
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from refed_dspy.config.base import Turns
from refed_dspy.config.filters import FilterConfig, GuardSettings
from refed_dspy.config.scorer import ScorerConfig
from refed_dspy.filters.base import Filter
from refed_dspy.plugins.evaluate.settings import AnswerFormat
from refed_dspy.teachers import TeacherLike
"""


def stub() -> str:
    """The file's text."""
    return _HEAD + "".join(_keywords(name, getattr(refed_dspy, door)) for name, door in _DOORS.items())


def _keywords(name: str, door: Callable[..., Any]) -> str:
    kind, names = getattr(door, TAKES)
    lines = [f"\nclass {name}(TypedDict, total=False):", f'    """Settings of `{kind.__name__}`."""', ""]
    for key in names:
        lines += [f"    {key}: {_type(key, annotation_of(kind, key))}", *_documented(sentence_of(kind, key))]
    return "\n".join(lines) + "\n"


def _type(key: str, annotation: str) -> str:
    if annotation in _IN_PYTHON:
        return _IN_PYTHON[annotation]
    if key == "max_calls":  # `math.inf` lifts it
        return "float | None"
    if key in PLACES and annotation == "str | None":
        return "str | Path | None"
    for plain, wide in (("Path", "str | Path"), ("dict[", "Mapping["), ("list[", "Sequence[")):
        annotation = re.sub(rf"\b{re.escape(plain)}", wide, annotation)
    return annotation


def _documented(sentence: str) -> Iterator[str]:
    text = textwrap.fill(sentence, 116, initial_indent='    """', subsequent_indent="    ")
    yield f'{text}"""'


def annotation_of(kind: type[BaseModel], key: str) -> str:
    """A setting's type, as its class has it."""
    found = next(found[key] for base in kind.__mro__ if key in (found := inspect.get_annotations(base)))
    return str(found).replace("'", '"')


def sentence_of(kind: type[BaseModel], key: str) -> str:
    """What is said of a setting below it."""
    return " ".join((kind.model_fields[key].description or "").split())

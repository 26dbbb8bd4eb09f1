"""No public function accepts a keyword that it does not use, or a value that it cannot use: every keyword of every
function is given what is impossible, and is refused by name before anything is paid for or written."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from refed_dspy.errors import RefedError
from refed_dspy.programs import ReferenceLevelFeedback
from refed_dspy.runs.estimate import aestimate
from tests.support.refusals import refusal
from tests.support.said import Said
from tests.support.toy_arena_hard import make_clone, write_answers

MISSING, WORD = "no-such-file.jsonl", "no-such-word"
WORDS = {"method", "turns", "optimizer", "unimproved", "format", "category", "benchmark", "cluster", "metric"}
"""Parameters that stand for one of a few words."""
NEW = {"out", "path", "run_dir"}
"""Parameters that name what need not exist yet."""
NAMED = {"name", "repo", "branch", "message", "version", "system", "generator", "reference_license", "api_base"}
"""Parameters of any text."""
ALSO = {"source": ("references",), "folder": ("run_dir",)}
"""A parameter → what a message may call it."""


class Answering(dspy.Module):  # type: ignore[misc]
    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=question)


_RUN = {"references": "refs.jsonl", "size": 1, "teacher": "simulated"}
CALLS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("synthesize", "asynthesize", "stream", "estimate", "aestimate"), _RUN),
    "compile": {"references": "refs.jsonl", "teacher": "simulated"},
    "plan_compile": {"references": "refs.jsonl", "teacher": "simulated"},
    "compare": {"references": "refs.jsonl", "teacher": "simulated", "judge": "simulated"},
    "filter_data": {"data": "rows.jsonl", "filters": ["rubric"], "judge": "simulated"},
    "recycle": {"data": "rows.jsonl", "teacher": "simulated"},
    "measure": {"data": "rows.jsonl", "judge": "simulated", "embeddings": False},
    "answer_prompts": {"prompts": "rows.jsonl", "teacher": "simulated"},
    "alpaca_eval": {"outputs": "mine.json", "baseline": "theirs.json", "judge": "simulated"},
    "arena_hard": {"clone": "clone", "answers": "arm.jsonl", "judge": "simulated"},
    "ifeval": {"prompts": "ifeval.jsonl", "answers": "responses.jsonl", "out": "new"},
    "measure_agreement": {"pairs": "pairs.jsonl", "judge": "simulated"},
    "train_judge": {"pairs": "pairs.jsonl", "judge": "simulated"},
    "annotate": {"source": "rows.jsonl", "out": "new", "pairs": 1},
    "load_references": {"source": "refs.jsonl"},
    "load_program": {"source": "program.json"},
    "save_program": {"program": ReferenceLevelFeedback(), "path": "new.json"},
    "read_run": {"run_dir": "run"},
    "resume": {"run_dir": "run"},
    "report": {"run_dir": "run"},
    "share": {"run_dir": "run", "out": "new"},
    "push": {"folder": "shared", "repo": "owner/name"},
    "promote": {"name": "refed"},
    "track": {"folder": "run"},
    "recording": {"folder": "new", "teacher": "simulated"},
    "split": {"references": "refs.jsonl"},
    "prove": {
        "program": Answering(),
        "over": Answering(),
        "on": [dspy.Example(question=str(n)).with_inputs("question") for n in range(8)],
        "metric": lambda example, prediction: 0.5,
    },
}
"""A function's name → what it is called with besides the impossible value."""
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    name: value for name in refed_dspy.__all__ if inspect.isroutine(value := getattr(refed_dspy, name))
} | {"aestimate": aestimate}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder, with what every function can be called with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp("home"))
        numbers = range(40)
        made: dict[str, Callable[[int], Any]] = {
            "rows": lambda n: {"instruction": f"Say {n}.", "response": f"{n}.", "improved_response": f"So: {n}."},
            "refs": lambda n: {"instruction": f"Say {n}.", "response": f"So: {n}."},
            "pairs": lambda n: {"instruction": f"Say {n}.", "answer_a": "!", "answer_b": "?", "preferred": "ab"[n % 2]},
            "ifeval": lambda n: {"key": n, "prompt": f"{n}", "instruction_id_list": ["x:y"], "kwargs": [{}]},
            "responses": lambda n: {"prompt": f"{n}", "response": "1"},
        }
        for name, row in made.items():
            rows = "".join(json.dumps(row(n)) + "\n" for n in numbers)
            (folder / f"{name}.jsonl").write_text(rows, "utf-8")
        for name in ("mine", "theirs"):
            output = {"instruction": "Say 1.", "output": name, "generator": name, "dataset": "d"}
            (folder / f"{name}.json").write_text(json.dumps([output]), "utf-8")
        make_clone(folder / "clone", 1)
        write_answers(folder / "arm.jsonl", 1)
        refed_dspy.save_program(ReferenceLevelFeedback(), folder / "program.json")
        refed_dspy.synthesize(references="refs.jsonl", size=2, teacher="simulated", run_dir="run", progress=False)
        refed_dspy.share("run", "shared", license="mit")
        yield folder


def impossible(name: str, annotation: str) -> Iterator[Any]:
    """What no function can use as its parameter of this name, whose type is written `annotation`."""
    yield object()
    types = set(re.findall(r"\w+", annotation))
    if types & {"int", "float"}:
        yield from ("7", -1, math.nan, True)
    if "int" in types:
        yield 1.5
    if "bool" in types:
        yield from ("perhaps", 7)
    if types & {"Sequence", "Iterable"}:
        yield [object()]
    if "Mapping" in types:
        yield from ({WORD: object()}, {7: WORD})
    if name in WORDS:
        yield WORD
    elif types & {"str", "Path", "Any", "PathLike", "TeacherLike"} and name not in {*NAMED, *NEW, "metric"}:
        yield MISSING if name not in {"teacher", "judge", "reflection"} else MISSING.replace("jsonl", "yaml")
    if "str" in types:
        yield 7
    if name in NEW or types & {"Path", "PathLike"}:
        yield ""


def parameters_of(name: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(FUNCTIONS[name]).parameters


def called(function: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    made = function(**keywords)
    if isinstance(made, AbstractContextManager):
        with made:
            return
    if inspect.isasyncgen(made):
        made = anext(made)
    if inspect.isawaitable(made):
        asyncio.run(_awaited(made))


async def _awaited(made: Any) -> Any:
    return await made


def outcome(name: str, keyword: str, value: Any) -> str:
    """What is wrong with how the function takes that value; nothing where it is refused as it should be."""
    shown, function = f"{name}({keyword}={value!r})", FUNCTIONS[name]
    quiet = {"progress": False} if "progress" in parameters_of(name) else {}
    try:
        called(function, {**CALLS[name], **quiet, keyword: value})
    except RefedError as error:
        words = [keyword, *ALSO.get(keyword, ()), *(value if isinstance(value, Mapping) else ())]
        words += [value] if isinstance(value, str) and value else []
        return "" if any(str(word) in str(error) for word in words) else f"{shown}: {error}"
    except Exception as error:  # noqa: BLE001 — whatever else it raises is what is wrong
        return f"{shown}: {type(error).__name__}: {str(error)[:200]}"
    return f"{shown}: accepted"


def files(folder: Path) -> set[Path]:
    return {*folder.rglob("*")}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_impossible_is_refused_by_name_and_nothing_is_written(home: Path, name: str) -> None:
    before, wrong = files(home), []
    for parameter in parameters_of(name).values():
        new = name == "recording" and parameter.name == "folder"
        for value in impossible("out" if new else parameter.name, str(parameter.annotation)):
            if said := outcome(name, parameter.name, value):
                wrong.append(said)
            if written := files(home) - before:
                wrong.append(f"{name}({parameter.name}={value!r}): writes {sorted(written)[0].name}")
                for path in sorted(written):
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in CALLS if "on_progress" in parameters_of(name)])
def test_an_unknown_keyword_is_refused_and_the_right_one_named(said: Said, home: Path, name: str) -> None:
    for keyword in sorted({"examples", "run_dir", "out", "sise", "settings"} - {*parameters_of(name)}):
        with pytest.raises((RefedError, TypeError), match=keyword) as raised:
            called(FUNCTIONS[name], {**CALLS[name], keyword: "x"})
        if keyword in {"run_dir", "out"} and isinstance(raised.value, RefedError):
            said(str(raised.value))


@pytest.mark.parametrize("name", [name for name in CALLS if [*parameters_of(name)][1:2] == ["references"]])
def test_references_in_the_first_place_are_told_where_they_go(said: Said, home: Path, name: str) -> None:
    rows = [{"instruction": "Say 1.", "response": "1."}]
    (home / "refs.json").write_text(json.dumps(rows), "utf-8")
    given = ["refs.jsonl", "refs.json", "builtin", "a/b", Path("refs.jsonl"), refed_dspy.load_references(rows), rows]
    said([refusal(RefedError, called, partial(FUNCTIONS[name], first), {"teacher": "simulated"}) for first in given])


def test_a_setting_of_another_is_refused_without_it(said: Said, home: Path) -> None:
    loaded = refed_dspy.load_references()
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("synthesize", {"shards": 4}),
        ("recycle", {"unimproved": "keep"}),
        ("measure", {"judge": None, "out": "new"}),
        ("load_references", {"source": loaded, "turns": "last"}),
        ("load_references", {"source": loaded, "columns": {"input": "a"}}),
    ]
    for name, keywords in wrong:
        said(refusal(RefedError, called, FUNCTIONS[name], {**CALLS[name], **keywords}))


def test_a_compile_refuses_what_its_program_does_not_use(said: Said, home: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"references": "refs.jsonl", "pairs": "pairs.jsonl"},
        {"pairs": "no-such-file.jsonl"},
        {"pairs": "pairs.jsonl", "program": ReferenceLevelFeedback()},
        {"pairs": "pairs.jsonl", "turns": "first"},
        {"references": "refs.jsonl", "held_out_criteria": ["depth"]},
        {"program": ReferenceLevelFeedback(), "guidance": {"x": "y"}},
    ]
    for keywords in wrong:
        said(refusal(RefedError, refed_dspy.compile, **keywords, teacher="simulated", out="never"))
    assert not (home / "never").exists()

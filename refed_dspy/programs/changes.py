"""What changed between two programs' prompts, and what a program answers stage by stage, as text for people."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import dspy

from refed_dspy.programs.program import synchronous
from refed_dspy.programs.saved import OUTPUTS, manifest_of
from refed_dspy.records import json_default

LONGEST = 8_000
"""Characters of what a stage is given, and of what it answers, that `answers_by_stage` keeps."""


@dataclass(frozen=True)
class Demonstration:
    """A demonstration's fields. `given` is empty where the program's state does not tell inputs from outputs, as that
    of an earlier version; then all of them are in `answer`."""

    given: Mapping[str, Any]
    answer: Mapping[str, Any]

    def __str__(self) -> str:
        parts = {"demonstration, given": self.given, "answer": self.answer}
        return as_text(parts if self.given else {"demonstration": self.answer})


@dataclass(frozen=True)
class PromptChange:
    """What changed in the prompt of one predictor. `before` and `after`: its instructions, and below them its fields
    where these changed, too. Of the demonstrations only those that both programs have not are here."""

    name: str
    before: str
    after: str
    added: tuple[Demonstration, ...]
    removed: tuple[Demonstration, ...]

    def lines(self) -> list[str]:
        """A diff: of the instructions the lines around a change, demonstrations whole."""
        before, after = self.before.split("\n"), self.after.split("\n")
        # The first two lines name files. A line of text begins with a space, + or -, so one with @@ is a hunk's header.
        diff = list(difflib.unified_diff(before, after, lineterm="", n=3))[3:]
        lines = ["…" if line.startswith("@@") else line for line in diff]
        for sign, demos in (("-", self.removed), ("+", self.added)):
            for demo in demos:
                lines += [*[""][: len(lines)], *(sign + line for line in str(demo).split("\n"))]
        return lines or ["the same demonstrations in another order or number"]


def prompt_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[PromptChange]:
    """What changed between two programs' states, by predictor, in the order of `after`. A predictor that one of them
    lacks is passed over."""
    changes = []
    for name, old, new in _predictors_of_both(before, after):
        if any(old.get(key) != new.get(key) for key in ("signature", "demos")):
            fields = old["signature"].get("fields") != new["signature"].get("fields")
            had, has = old.get("demos", []), new.get("demos", [])
            added = tuple(_demonstration(demo, name, after) for demo in has if demo not in had)
            removed = tuple(_demonstration(demo, name, before) for demo in had if demo not in has)
            changes.append(PromptChange(name, _said(old, fields), _said(new, fields), added, removed))
    return changes


def changed_predictors(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The predictors whose instructions, fields or demonstrations differ."""
    return [change.name for change in prompt_changes(before, after)]


def prompt_diff(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The same as text: a diff for each predictor, under its name."""
    blocks = ["\n".join([f"### {change.name}", *change.lines()]) for change in prompt_changes(before, after)]
    return "\n\n".join(blocks or ["no prompts changed"]) + "\n"


def _predictors_of_both(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, old state and new state of each predictor in both states."""
    for name, new in after.items():
        if isinstance(old := before.get(name), dict) and isinstance(new, dict) and "signature" in new:
            yield name, old, new


def _said(predictor: Mapping[str, Any], fields: bool) -> str:
    """A predictor's instructions; with `fields`, also what its prompt says of these."""
    signature = predictor["signature"]
    told = [f"{each.get('prefix')} {each.get('description')}" for each in signature.get("fields", ())] if fields else []
    return "\n".join([str(signature.get("instructions", "")), *told])


def _demonstration(demo: Mapping[str, Any], name: str, state: Mapping[str, Any]) -> Demonstration:
    """`demo` of the predictor `name`, without the mark that DSPy leaves on those that it collected."""
    fields = {key: value for key, value in demo.items() if key != "augmented"}
    outputs = manifest_of(state).get(OUTPUTS, {}).get(name) or list(fields)
    given = {key: value for key, value in fields.items() if key not in outputs}
    return Demonstration(given, {key: value for key, value in fields.items() if key in outputs})


def as_text(value: Any) -> str:
    """A value of JSON as people read it: a text as it is, a list as bullets, an object as `name: text` lines, with what
    is longer indented below its name."""
    if isinstance(value, Mapping):
        return "\n".join(_entry(f"{name}:", each) for name, each in value.items()) or "(none)"
    if isinstance(value, list | tuple):
        return "\n".join(f"- {_indented(as_text(each))}" for each in value) or "(none)"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=json_default)


def _entry(head: str, value: Any) -> str:
    text = as_text(value)
    below = "\n" in text or (isinstance(value, Mapping | list | tuple) and value)
    return f"{head}\n  {_indented(text)}" if below else f"{head} {text}".rstrip(" ")


def _indented(text: str) -> str:
    return text.replace("\n", "\n  ")


def answers_by_stage(program: dspy.Module, example: dspy.Example) -> dict[str, dict[str, str]]:
    """What `program` asks and answers for `example`: predictor's name → what its first call was "given", and its
    "answer", each as text of up to LONGEST characters. A stage that asked nothing is left out.

    It asks the language model of the DSPy context, and raises what the program raises.
    """
    predictors = program.named_predictors()
    names = {key: path for path, predictor in predictors for key in (id(predictor), predictor.stage)}  # or its copy's
    answers: dict[str, dict[str, str]] = {}
    with dspy.context(trace=[]):
        synchronous(program)(**example.inputs())
        for predictor, inputs, prediction in dspy.settings.trace:  # `trace_in_order`, where calls are made at once
            name = names.get(id(predictor)) or names.get(predictor.stage)
            if name is not None and name not in answers:
                answers[name] = {"given": _bounded(fields_text(inputs)), "answer": _bounded(fields_text(prediction))}
    return answers


def fields_text(fields: Any) -> str:
    """The fields of an example, or of a call's inputs or outputs, as text: objects of Python as JSON has them."""
    return as_text(json.loads(json.dumps(dict(fields.items()), default=json_default)))


def _bounded(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… (cut: {len(text):,} characters in all)"

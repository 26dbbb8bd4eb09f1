"""IFEval's files: the prompts with their instructions, and a model's responses to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.read import read_rows
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.text import counted

RESPONSES = "responses.jsonl"
"""The file that `refed evaluate answers --format ifeval` writes into its folder."""
_INPUT = "the official one is input_data.jsonl of google-research's instruction_following_eval"


@dataclass(frozen=True)
class Arm:
    """A model's `responses`, one for each prompt, in their order."""

    name: str
    responses: Sequence[str]


def load_instructions(path: Path) -> list[Mapping[str, Any]]:
    """The prompts, each with `key`, `prompt`, `instruction_id_list`, and `kwargs` for each instruction.

    Raises:
        ReferencesError: the file cannot be read.
        ConfigError: a row is no such prompt, or a prompt comes twice.
    """
    prompts: dict[str, Mapping[str, Any]] = {}
    for number, row in read_rows(path):
        where = f"{one_line(path, 120)} row {number}"
        if wrong := _wrong(row):
            raise ConfigError(f"{where}: {wrong}; {_INPUT}")
        if row["prompt"] in prompts:
            raise ConfigError(f"{where}: the prompt was there before; remove one, since responses are found by prompt")
        prompts[row["prompt"]] = {name: row[name] for name in ("key", "prompt", "instruction_id_list", "kwargs")}
    if not prompts:
        raise ConfigError(f"{one_line(path, 120)}: no prompts; {_INPUT}")
    return [*prompts.values()]


def _wrong(row: Mapping[str, Any]) -> str:
    """What is wrong with a prompt's row; empty where nothing is."""
    named, settings = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(row.get("prompt"), str) or "key" not in row:
        return "has no key and prompt"
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        return "has no instruction_id_list"
    if (
        not isinstance(settings, list)
        or len(settings) != len(named)
        or not all(isinstance(one, dict) for one in settings)
    ):
        return "has no kwargs for each of its instructions"
    return ""


def load_responses(prompts: Sequence[Mapping[str, Any]], source: Path) -> Arm:
    """The responses in `source`: rows with `prompt` and `response`, or a folder of `refed evaluate answers`. The arm is
    named after the file or the folder.

    Raises:
        ReferencesError: it cannot be read.
        ConfigError: a row is no response to one of the `prompts`, one comes twice, or some have none.
    """
    path = source / RESPONSES if source.is_dir() else source
    if source.is_dir() and not path.is_file():
        raise ConfigError(f"answers: {one_line(source, 120)} has no {RESPONSES}; write it with --format ifeval")
    wanted = {row["prompt"] for row in prompts}
    found: dict[str, str] = {}
    for number, row in read_rows(path):
        where = f"{one_line(path, 120)} row {number}"
        prompt, response = row.get("prompt"), row.get("response")
        if not isinstance(prompt, str) or not isinstance(response, str):
            raise ConfigError(f"{where}: has no prompt and response; write it with --format ifeval")
        if prompt not in wanted:
            raise ConfigError(f"{where}: answers {one_line(prompt, 60)!r}, which is none of the prompts")
        if prompt in found:
            raise ConfigError(f"{where}: a second response to {one_line(prompt, 60)!r}; remove one")
        found[prompt] = response
    if missing := [row["key"] for row in prompts if row["prompt"] not in found]:
        raise ConfigError(
            f"{one_line(path, 120)}: {len(missing)} of {counted(len(prompts), 'prompt')} have no response, key "
            f"{one_line(missing[0], 40)} first; answer them, or pass a prompt file without them"
        )
    name = source.resolve().name if source.is_dir() else source.stem
    return Arm(name, [found[row["prompt"]] for row in prompts])

"""Arms: files of answers to a benchmark's questions, as `refed evaluate answers --format arena_hard` writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.read import read_rows
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.plugins.evaluate.arena_hard.clone import Clone
from refed_dspy.text import counted

STYLE = ("token_len", "header_count", "list_count", "bold_count")
"""The style metadata of an answer, in the order in which the benchmark's code reads it."""


@dataclass(frozen=True)
class Arm:
    """A model's answers, by the uids of the questions that are judged, in their order. Rows are as the benchmark's
    code reads them, with the arm's name for the model's: two files may be of one model."""

    name: str
    answers: Mapping[str, Mapping[str, Any]]
    unstyled: int
    """How many of the answers have no style metadata."""


def load_arms(clone: Clone, files: Sequence[Path]) -> list[Arm]:
    """An arm for each file, which is named after it, in the order of their names.

    Raises:
        ConfigError: two files of one name, a name that the benchmark's code cannot take, answers to other questions, or
            to fewer.
        ReferencesError: a file cannot be read.
    """
    names = [file.stem for file in files]
    if not names:
        raise ConfigError("answers: none are named; name a file with --answers")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"answers: two files are named {one_line(twice[0], 60)}; arms are told apart by name: rename one"
        )
    for name in names:
        _check_name(name, clone)
    return [_arm(clone, file.stem, file) for file in sorted(files, key=lambda file: file.stem)]


def load_baseline(clone: Clone) -> Arm:
    """The answers that arms are compared with, from the clone. Raises as `load_arms`."""
    return _arm(clone, clone.baseline, clone.baseline_answers, others_allowed=True)


def check_styled(arms: Sequence[Arm], baseline: Arm) -> None:
    """Raises ConfigError where an answer lacks the metadata that style control needs."""
    without = "or leave style control out with --no-style-control"
    if baseline.unstyled:
        raise ConfigError(f"clone: its answers of {baseline.name} have no style metadata; update the clone, {without}")
    for arm in arms:
        if arm.unstyled:
            raise ConfigError(
                f"answers: {arm.name} has no style metadata for {arm.unstyled} of "
                f"{counted(len(arm.answers), 'question')}; write them with --format arena_hard, {without}"
            )


def _check_name(name: str, clone: Clone) -> None:
    """Raises ConfigError for a name that would be lost or changed on the way through the benchmark's code."""
    shown = one_line(name, 60)
    if name == clone.baseline:
        raise ConfigError(f"answers: {shown} is the name of the baseline; rename the file")
    if not name.isprintable() or name.startswith(".") or name != name.strip() or _is_number(name):
        raise ConfigError(f"answers: {shown!r} is no name for an arm: it needs words; rename the file")


def _is_number(name: str) -> bool:
    """Whether pandas, by which the code reads names, may take it for one."""
    try:
        float(name)
    except ValueError:
        return not any(map(str.isalpha, name))  # a date, say
    return True


def _arm(clone: Clone, name: str, path: Path, *, others_allowed: bool = False) -> Arm:
    wanted = {str(question["uid"]) for question in clone.questions}
    found: dict[str, Mapping[str, Any]] = {}
    for number, row in read_rows(path):
        where = f"{one_line(path, 120)} row {number}"
        uid = row.get("uid")
        if uid not in wanted and (others_allowed or uid in clone.others):
            continue
        if uid not in wanted:
            raise ConfigError(
                f"{where}: its uid {one_line(uid, 40)!r} is no question of {clone.benchmark}; answer that benchmark's "
                f"{clone.folder / 'data' / clone.benchmark / 'question.jsonl'}"
            )
        if uid in found:
            raise ConfigError(f"{where}: a second answer to {one_line(uid, 40)}; remove one")
        found[str(uid)] = _as_read(row, name, where)
    uids = [str(question["uid"]) for question in clone.questions]
    if missing := [uid for uid in uids if uid not in found]:
        raise ConfigError(
            f"{one_line(path, 120)}: {len(missing)} of {counted(len(uids), 'question')} of {clone.category} have no "
            f"answer, {missing[0]} first; answer them, or judge fewer with --questions"
        )
    styled = sum("metadata" in row for row in found.values())
    return Arm(name, {uid: found[uid] for uid in uids}, len(uids) - styled)


def _as_read(row: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    """The row as the benchmark's code needs it; without metadata where they are not whole. Raises ConfigError."""
    try:
        text = row["messages"][-1]["content"]["answer"]
    except (KeyError, IndexError, TypeError):
        text = None
    if not isinstance(text, str):
        raise ConfigError(f"{where}: has no answer at messages[-1].content.answer; write it with --format arena_hard")
    styled = {"metadata": style} if (style := _style(row.get("metadata"))) else {}
    return {**{key: value for key, value in row.items() if key != "metadata"}, "model": name, **styled}


def _style(metadata: Any) -> dict[str, Any]:
    """The metadata in the order of STYLE; empty where one is missing or is no count."""
    if not isinstance(metadata, Mapping):
        return {}
    style = {name: metadata.get(name) for name in STYLE}
    counts = [
        count for value in style.values() for count in (value.values() if isinstance(value, Mapping) else (value,))
    ]
    whole = all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts)
    return style if whole and isinstance(style["token_len"], int) else {}

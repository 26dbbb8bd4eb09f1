"""A clone of lmarena/arena-hard-auto, and the arms that are compared with its baseline: files of answers. Both are
checked and read here; nothing is run, and nothing is written into the clone."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from refed_dspy.data.read import read_rows
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.files import parse_yaml, read_bytes
from refed_dspy.plugins.evaluate.prompts import answers_by, check_told_apart
from refed_dspy.records import digest_of
from refed_dspy.text import counted

REPOSITORY = "https://github.com/lmarena/arena-hard-auto"
BENCHMARKS = {"arena-hard-v2.0": "hard_prompt", "arena-hard-v0.1": "arena-hard-v0.1"}
"""Each benchmark in the repository, with the category that is judged unless another is named."""
SCRIPTS = ("gen_judgment.py", "show_result.py")
MODULES = ("utils/completion.py", "utils/judge_utils.py", "utils/math_utils.py")
"""What the scripts import; they may import more from the same folder."""
STYLE = ("token_len", "header_count", "list_count", "bold_count")
"""The style metadata of an answer, in the order in which the benchmark's code reads it."""
_POINTER = b"version https://git-lfs"
_ASKED = ("prompt_template", "regex_patterns", "temperature", "max_tokens")
"""What of a benchmark's settings file shapes the judge's requests and how its verdicts are read."""


@dataclass(frozen=True)
class Clone:
    """A clone that has what a `benchmark` needs: its questions of one `category`, and the answers they are compared
    with."""

    folder: Path
    benchmark: str
    category: str
    baseline: str
    """The model whose answers are compared with."""
    questions: Sequence[Mapping[str, Any]]
    """The category's, in the file's order."""
    settings: Mapping[str, Any]
    """The keys of `_ASKED`, as the benchmark's settings file has them."""

    @property
    def baseline_answers(self) -> Path:
        return self.folder / answers_file(self.benchmark, self.baseline)

    @property
    def code(self) -> Sequence[Path]:
        """The files that are run, relative to the folder."""
        modules = sorted(path.relative_to(self.folder) for path in (self.folder / "utils").glob("*.py"))
        return [*map(Path, SCRIPTS), *modules]

    def digest(self) -> str:
        """Another wherever a request or a figure may be another: of code, settings and baseline's answers."""
        files = [*(self.folder / path for path in self.code), self.baseline_answers]
        return digest_of([dict(self.settings), *(sha256(read_bytes(file)).hexdigest() for file in files)])


def answers_file(benchmark: str, model: str) -> Path:
    """Where the code looks for a model's answers."""
    return Path("data") / benchmark / "model_answer" / f"{model}.jsonl"


def question_file(benchmark: str) -> Path:
    """Where it looks for the questions."""
    return Path("data") / benchmark / "question.jsonl"


def open_clone(folder: Path, benchmark: str, category: str | None = None, count: int | None = None) -> Clone:
    """The clone in `folder`, with the first `count` questions of the category (None: all of the usual one).

    Raises:
        ConfigError: it is no clone of the repository, or lacks what this benchmark needs: the line says what.
        ReferencesError: a file of it cannot be read.
    """
    if benchmark not in BENCHMARKS:
        raise ConfigError(f"benchmark: no {one_line(benchmark, 40)!r}; choose {' or '.join(BENCHMARKS)}")
    _check_there(folder, [*SCRIPTS, *MODULES, f"config/{benchmark}.yaml", str(question_file(benchmark))])
    questions = [row for _, row in read_rows(folder / question_file(benchmark))]
    if not all(question.keys() >= {"uid", "category", "prompt"} for question in questions):
        raise ConfigError(f"clone: {folder / question_file(benchmark)} is not the repository's own; restore it")
    chosen = category or BENCHMARKS[benchmark]
    of_category = [question for question in questions if question["category"] == chosen]
    if not of_category:
        there = ", ".join(dict.fromkeys(one_line(question["category"], 40) for question in questions))
        raise ConfigError(f"category: {benchmark} has no {one_line(chosen, 40)!r}; choose one of {there}")
    baseline = _baselines(folder / "utils/judge_utils.py").get(chosen)
    if baseline is None:
        raise ConfigError(f"clone: {folder}/utils/judge_utils.py names no baseline for {chosen}; update the clone")
    _check_there(folder, [str(answers_file(benchmark, baseline))])
    settings = _settings(folder / f"config/{benchmark}.yaml")
    return Clone(folder, benchmark, chosen, baseline, of_category[:count], settings)


def _check_there(folder: Path, files: Sequence[str]) -> None:
    """Raises ConfigError, naming every one of the `files` that is missing, or that Git LFS has not fetched."""
    if not folder.is_dir():
        raise ConfigError(f"clone: {one_line(folder, 200)}: no such folder; name your clone of {REPOSITORY}")
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise ConfigError(
            f"clone: {one_line(folder, 200)} is not a whole clone of {REPOSITORY}: it lacks {', '.join(missing)}"
        )
    for name in files:
        with (folder / name).open("rb") as file:
            if file.read(len(_POINTER)) == _POINTER:
                raise ConfigError(
                    f"clone: {folder / name} is a pointer of Git LFS, not the file; run git lfs pull there"
                )


def _baselines(path: Path) -> dict[str, str]:
    """Category → the model its answers are compared with, as the literals in the code say it."""
    found: dict[str, str] = {}
    try:
        tree = ast.parse(read_bytes(path))
    except (SyntaxError, ValueError):
        raise ConfigError(f"clone: {path} is no Python; update the clone") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for category, settings in zip(node.keys, node.values, strict=True):
                if isinstance(category, ast.Constant) and isinstance(settings, ast.Dict):
                    named = dict(zip(map(_text, settings.keys), map(_text, settings.values), strict=True))
                    found |= {str(category.value): named["baseline"]} if named.get("baseline") else {}
    return found


def _text(node: ast.expr | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _settings(path: Path) -> dict[str, Any]:
    """Raises ConfigError where the file is no YAML, or lacks a setting."""
    try:
        written = parse_yaml(read_bytes(path).decode())
        return {**{name: written[name] for name in _ASKED}, "max_tokens": int(written["max_tokens"])}
    except (yaml.YAMLError, ValueError, TypeError, KeyError):
        raise ConfigError(f"clone: {path} has no {', '.join(_ASKED)}; restore the repository's own") from None


# --- arms


@dataclass(frozen=True)
class ArenaArm:
    """A model's answers, by the uids of the questions that are judged, in their order. Rows are as the benchmark's
    code reads them, with the arm's name for the model's: two files may be of one model."""

    name: str
    answers: Mapping[str, Mapping[str, Any]]

    @property
    def unstyled(self) -> int:
        """How many of the answers have no style metadata."""
        return sum("metadata" not in row for row in self.answers.values())


def load_arms(clone: Clone, files: Sequence[Path]) -> list[ArenaArm]:
    """An arm for each file, which is named after it, in the order of their names.

    Raises:
        ConfigError: two files of one name, a name that the benchmark's code cannot take, answers to other questions, or
            to fewer.
        ReferencesError: a file cannot be read.
    """
    check_told_apart(names := [file.stem for file in files])
    for name in names:
        _check_name(name, clone)
    return [_arm(clone, file.stem, file) for file in sorted(files, key=lambda file: file.stem)]


def load_baseline(clone: Clone) -> ArenaArm:
    """The answers that arms are compared with, from the clone. Raises as `load_arms`."""
    return _arm(clone, clone.baseline, clone.baseline_answers)


def check_styled(arms: Sequence[ArenaArm], baseline: ArenaArm) -> None:
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


def _arm(clone: Clone, name: str, path: Path) -> ArenaArm:
    uids = [str(question["uid"]) for question in clone.questions]
    rows = answers_by("uid", path, uids, "judge fewer with --questions")
    answers = {uid: _as_read(row, name, where) for uid, (where, row) in rows.items()}
    return ArenaArm(name, answers)


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
    """The metadata in the order of STYLE; empty where one is missing."""
    whole = isinstance(metadata, Mapping) and metadata.keys() >= {*STYLE}
    return {name: metadata[name] for name in STYLE} if whole else {}

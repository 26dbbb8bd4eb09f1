"""Answers as the code of benchmarks reads them: AlpacaEval, Arena-Hard, IFEval.

An answer's style is counted as Arena-Hard counts it for its style control: tokens, and marks of Markdown outside code.
The counts are those of the benchmark's own `utils/add_markdown_info.py`, to the digit: a fit over answers of several
models compares them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from refed_dspy.data.stored import ROWS
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.files import write_json, write_lines
from refed_dspy.plugins.evaluate.prompts import Prompt, PromptFile
from refed_dspy.plugins.evaluate.settings import AnswerFormat
from refed_dspy.records import digest

if TYPE_CHECKING:
    import tiktoken

OWN, UNANSWERED = ROWS["answers"], "unanswered.jsonl"
"""What is written in any format."""
ENCODING = "o200k_base"
"""The tokens that Arena-Hard counts: GPT-4o's."""
_CACHE = "TIKTOKEN_CACHE_DIR"
_PIECE = 100_000
_CODE = re.compile(r"```([^`]*)```")
_HEADER = re.compile(r"^(#{1,6})\s", re.MULTILINE)
_LISTS = {
    "ordered": re.compile(r"^[^\S\n]*\d+\.\s", re.MULTILINE),
    "unordered": re.compile(r"^[^\S\n]*[-*+]\s", re.MULTILINE),
}
r"""The benchmark's `^\s*` also begins on empty lines before, which counts the same, but is slow where they are many."""
_BOLD = {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")}


@dataclass(frozen=True)
class Answered:
    """A prompt's answer, when it came (seconds since 1970), and whether it was cut at the model's `max_tokens`."""

    prompt: Prompt
    text: str
    created: float
    cut: bool


@dataclass(frozen=True)
class Benchmark:
    """What a benchmark's code reads: a `row` for each answer and its generator, in a `file` named so, in which `{}` is
    the generator. `needs`: a column that the prompts must have, or empty."""

    file: str
    row: Callable[[Answered, str], dict[str, Any]]
    needs: str = ""


def file_of(format_: AnswerFormat, generator: str) -> str:
    """The name of the file for a format."""
    return OWN if format_ == "jsonl" else BENCHMARKS[format_].file.format(generator)


def check_format(format_: AnswerFormat, prompts: PromptFile, generator: str) -> None:
    """Raises ConfigError where answers to `prompts` cannot be written so."""
    if format_ == "jsonl":
        return
    if file_of(format_, generator) in {OWN, UNANSWERED}:
        raise ConfigError(f"generator: {generator} names a file that is written anyway; choose another name")
    needs = BENCHMARKS[format_].needs
    if needs and (row := next((row for row in prompts.rows if needs not in row.fields), None)):
        raise ConfigError(
            f"format: {format_} needs the column {needs}, which {prompts.name} row {row.number} lacks; pass the "
            "benchmark's own file or choose another format"
        )
    if format_ == "arena_hard":
        style_of("")  # its tokenizer is there, or nothing is paid for


def write_for(format_: AnswerFormat, answers: Sequence[Answered], generator: str, folder: Path) -> None:
    """Write what a benchmark's code reads into `folder`, whole or not at all. Raises ExportError."""
    if format_ == "jsonl":
        return
    path, row = folder / file_of(format_, generator), BENCHMARKS[format_].row
    rows = (row(answered, generator) for answered in answers)
    if path.suffix == ".json":
        write_json(path, [*rows])
    else:
        write_lines(path, rows)


def _alpaca_eval(answered: Answered, generator: str) -> dict[str, Any]:
    return {
        "instruction": answered.prompt.text,
        "output": answered.text,
        "generator": generator,
        "dataset": answered.prompt.fields.get("dataset", ""),
    }


def _arena_hard(answered: Answered, generator: str) -> dict[str, Any]:
    prompt, uid = answered.prompt, answered.prompt.fields["uid"]
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    asked = {"role": "user", "content": prompt.text}
    return {
        "uid": uid,
        "ans_id": digest([generator, uid, answered.text]),
        "model": generator,
        "messages": [*system, asked, {"role": "assistant", "content": {"answer": answered.text}}],
        "tstamp": answered.created,
        "metadata": style_of(answered.text),
    }


def _ifeval(answered: Answered, generator: str) -> dict[str, Any]:  # noqa: ARG001
    return {"prompt": answered.prompt.text, "response": answered.text}


BENCHMARKS = {
    "alpaca_eval": Benchmark("model_outputs.json", _alpaca_eval),
    "arena_hard": Benchmark("{}.jsonl", _arena_hard, needs="uid"),
    "ifeval": Benchmark("responses.jsonl", _ifeval),
}


# --- an answer's style


def style_of(answer: str) -> dict[str, Any]:
    """`token_len`; `header_count` by level (`h1` to `h6`), `list_count` (`ordered`, `unordered`) and `bold_count`
    (`**`, `__`). Raises as `encoding`."""
    text = _without_code(answer)
    levels = [len(header) for header in _HEADER.findall(text)]
    return {
        "token_len": _token_count(answer),
        "header_count": {f"h{level}": levels.count(level) for level in range(1, 7)},
        "list_count": _counts(_LISTS, text),
        "bold_count": _counts(_BOLD, text),
    }


def _token_count(text: str) -> int:
    """How many tokens `text` has. tiktoken's own search gives up on a million blanks: that is counted in pieces."""

    def count(part: str) -> int:
        return len(encoding(ENCODING).encode(part, disallowed_special=()))

    try:
        return count(text)
    except ValueError:
        return sum(count(text[at : at + _PIECE]) for at in range(0, len(text), _PIECE))


def _counts(patterns: Mapping[str, re.Pattern[str]], text: str) -> dict[str, int]:
    return {name: len(pattern.findall(text)) for name, pattern in patterns.items()}


def _without_code(text: str) -> str:
    """`text` without what stands in its fences. The fences stay, and the same words go wherever else they stand (all
    line feeds, say, where a fence holds one alone), since that is how the benchmark counts."""
    left: dict[str, int] = {}
    for block in _CODE.findall(text):
        if left.get(block) != len(text):  # else it is gone, and nothing was taken out since
            text = text.replace(block, "")
            left[block] = len(text)
    return text


@lru_cache
def encoding(name: str) -> tiktoken.Encoding:
    """An encoding of tiktoken's, from the files that LiteLLM ships, so that nothing is downloaded, or from the folder
    in TIKTOKEN_CACHE_DIR. Raises ConfigError where it cannot be had."""
    import tiktoken

    with _shipped_files():
        try:
            return tiktoken.get_encoding(name)
        except (OSError, ValueError) as error:  # what its download raises is an OSError
            raise ConfigError(
                f"tiktoken's {name} cannot be read ({one_line(error, 120)}); put its file into a folder and name that "
                f"in {_CACHE}"
            ) from None


@contextmanager
def _shipped_files() -> Iterator[None]:
    """tiktoken looks into LiteLLM's files inside the block, unless the user named a folder."""
    spec = find_spec("litellm")
    if _CACHE in os.environ or spec is None or spec.origin is None:
        yield
        return
    os.environ[_CACHE] = str(Path(spec.origin).parent / "litellm_core_utils" / "tokenizers")
    try:
        yield
    finally:
        del os.environ[_CACHE]

"""Runs the blocks of a page of docs/ in their order, as its reader would.

What stands before a fence, in a comment that the site does not show:

    <!-- skip: next "why" -->     the block is not run: it needs a key, a GPU, minutes
    <!-- hidden: bash             commands that a reader does not see (`python`: statements), to the end of the comment

A block with a title is a file that the reader writes: it is written. A `console` block holds commands behind `$ `, and
below each what it prints, if that is to be compared: words must be equal, figures may differ, and … stands for
anything. A `bash` or `python` block is run whole; a `text` block titled "prints" below the latter is what it prints.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import SkipTest

import yaml
from sybil import Document, Example, Region
from sybil.parsers.markdown import SkipParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer, RawFencedCodeBlockLexer

from tests.support import ROOT

DOCS = ROOT / "docs"
ONLY_SHOWN = {"text", "json", "jsonl", "csv", "diff", "markdown", "jinja", "sql"}
"""Languages that nothing runs; with a title they are files all the same."""
LANGUAGES = ONLY_SHOWN | {"console", "bash", "python", "yaml"}
LONGEST = 600
"""Seconds a command may take; on a busy machine an embedded model is slow."""
_FENCE = RawFencedCodeBlockLexer(re.compile(r"(?P<language>[\w-]*)(?P<options>[^\n]*)\n"))
_HIDDEN = DirectiveInHTMLCommentLexer("hidden", r"\w+")
_SNIPPET = re.compile(r'^--8<-- "(?P<file>[^"]+)"$', re.MULTILINE)
_TITLE = re.compile(r'title="(?P<title>[^"]+)"')
_FIGURE = re.compile(r"batch_[0-9a-f]{32}|\d[\d,.]*(?:e-?\d+)?")
_INDENTED = re.compile(r"^(?: {4}|\t)\s*(?:\$ |(?:refed|python|make|pip|\.venv\S*) ).*$", re.MULTILINE)
_PROGRESS = re.compile(
    r" in flight · | evaluations · |^[\d,]+ (more )?(sample|instruction)s? from .*\d calls?(, \$|, less|$)"
)
"""A line that comes first, or every ten seconds, where the output is no terminal."""
_SHELL_WORDS = {"|", "||", "&&", ";", ">", ">>", "2>", "&"}


@dataclass(frozen=True)
class Block:
    """One fence, or one hidden comment."""

    language: str
    title: str
    source: str
    line: int
    skipped: bool


def pages() -> list[Path]:
    """Every page there is, but for the one that a model wrote: its code is data."""
    return sorted(path for path in DOCS.rglob("*.md") if path.name != "demo-samples.md")


def page_name(path: Path) -> str:
    return str(path.relative_to(DOCS))


def blocks(path: Path) -> list[Block]:
    """The blocks of a page, those that are skipped too. Raises ValueError for a skip without a reason."""
    listed, skipping = [], False
    for example in _parsed(path):
        if isinstance(example.parsed, tuple):  # SkipParser's action and reason
            if example.parsed[0] != "next" or not example.parsed[1]:
                raise ValueError(f'{path.name}:{example.line}: write <!-- skip: next "why" -->')
            skipping = True
            continue
        listed.append(_block(example, skipping))
        skipping = False
    return listed


def _block(example: Example, skipped: bool = False) -> Block:
    language, title = example.parsed["language"], _TITLE.search(example.parsed["options"])
    source = _SNIPPET.sub(_file_text, example.parsed["source"])
    return Block(language, title["title"] if title else "", source, example.line, skipped)


def _file_text(snippet: re.Match[str]) -> str:
    return (DOCS.parent / snippet["file"]).read_text(encoding="utf-8")


def _parsed(path: Path) -> Document:
    return Document.parse(str(path), SkipParser(), _fences, _hidden)


def _fences(document: Document) -> Iterable[Region]:
    for region in _FENCE(document):
        yield Region(region.start, region.end, dict(region.lexemes), _evaluate)


def _hidden(document: Document) -> Iterable[Region]:
    for region in _HIDDEN(document):
        parsed = {
            "language": region.lexemes["arguments"],
            "options": "",
            "source": region.lexemes["source"],
            "hidden": True,
        }
        yield Region(region.start, region.end, parsed, _evaluate)


def run_page(path: Path, folder: Path, api_base: str = "", until: str = "") -> int:
    """Run a page's blocks in `folder`, the working folder; teacher files without an address get `api_base`.

    Ends before the first block that holds `until`, if that is given. Returns how many blocks ran. Raises AssertionError
    (Sybil's) for a block that does not come out as shown, with the page's line.
    """
    document, ran = _parsed(path), 0
    document.namespace.update(__name__="__main__", _page=_Page(folder, api_base))
    for example in document:
        shown = isinstance(example.parsed, dict) and not example.parsed.get("hidden")
        if until and shown and until in example.parsed["source"]:
            break
        with contextlib.suppress(SkipTest):
            example.evaluate()
            ran += isinstance(example.parsed, dict)
    return ran


@dataclass
class _Page:
    """Where a page's blocks run, and what the last of them printed."""

    folder: Path
    api_base: str
    printed: str = ""


def _evaluate(example: Example) -> str | None:
    """What is wrong with a block, or None. It is what Sybil calls."""
    page, block = example.namespace["_page"], _block(example)
    if block.language == "text" and block.title == "prints":
        return _unlike(block.source, page.printed)
    if block.title:
        target = page.folder / block.title
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_with_address(block, page.api_base), encoding="utf-8")
        return None
    if block.language in ONLY_SHOWN:
        return None
    if block.language == "python":
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block.source, f"{example.path}:{example.line}", "exec"), example.namespace)
        page.printed = printed.getvalue()
        return None
    if block.language == "bash":
        return _run(block.source, "", page.folder)
    if block.language == "console":
        problems = (_run(command, expected, page.folder) for command, expected in commands(block.source))
        return next(filter(None, problems), None)
    return f"a block in {block.language or 'no language'!r}: nothing runs it; give it a title or a known language"


def commands(source: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with what it is said to print ("" where nothing is said)."""
    command, printed = "", ""
    for line in source.splitlines():
        if command.endswith("\\"):
            command += "\n" + line
        elif line.startswith("$ "):
            if command:
                yield command, printed
            command, printed = line.removeprefix("$ "), ""
        else:
            printed += line + "\n"
    if command:
        yield command, printed.strip("\n")


def _run(command: str, expected: str, folder: Path) -> str | None:
    done = subprocess.run(
        ["bash", "-eo", "pipefail", "-c", command],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LONGEST,
    )  # fmt: skip
    printed = "".join(line for line in done.stdout.splitlines(keepends=True) if not _PROGRESS.search(line))
    if done.returncode:
        return f"$ {command}\nexit code {done.returncode}\n{printed}"
    return expected and _unlike(expected, printed, f"$ {command}\n")


def _unlike(expected: str, printed: str, command: str = "") -> str | None:
    """How `printed` differs from `expected`; None where it does not. Figures are not compared."""
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    left, right = (_FIGURE.sub("0", text.replace("…", "...")).strip() + "\n" for text in (expected, printed))
    if doctest.OutputChecker().check_output(left, right, options):
        return None
    return f"{command}is said to print\n{expected}\nbut prints\n{printed}"


def _with_address(block: Block, api_base: str) -> str:
    """A file's text; teachers of a teacher file that names no address are those of the simulated server."""
    if not api_base or block.language != "yaml" or not is_teacher_file(block.title):
        return block.source
    settings = yaml.safe_load(block.source)
    for teacher in settings if isinstance(settings, list) else [settings]:
        teacher.setdefault("price", teacher["model"])
        teacher.setdefault("api_base", api_base)
        teacher.pop("api_key_env", None)
    return yaml.safe_dump(settings)


def unfenced_commands(path: Path) -> list[str]:
    """Commands in blocks that are indented, not fenced: those could carry no mark, and nothing would run them."""
    document = _parsed(path)
    text = document.text
    for _, region in reversed(document.regions):
        text = text[: region.start] + text[region.end :]
    return [line.strip() for line in _INDENTED.findall(text)]


def is_teacher_file(title: str) -> bool:
    """Whether a file of this name holds a teacher's settings."""
    path = Path(title)
    return path.parent.name == "teachers" or path.stem.split("-")[0] in {"teacher", "judge", "reflection", "pool"}


def refed_commands(path: Path) -> Iterator[list[str]]:
    """The words of every `refed` command line of a page: of its blocks and of its inline code, without `refed`."""
    text = path.read_text(encoding="utf-8")
    lines = re.findall(r"`(refed [^`\n]+)`", text)
    for block in blocks(path):
        if block.language == "console":
            lines += [command for command, _ in commands(block.source)]
        elif block.language == "bash":
            lines += block.source.replace("\\\n", " ").splitlines()
    for line in lines:
        yield from _refed_words(line.replace("\\\n", " "))


def _refed_words(line: str) -> Iterator[list[str]]:
    words: list[str] | None = None
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split, lexer.commenters = True, "#"
    for word in [*lexer, ";"]:
        if word in _SHELL_WORDS or word == ";":
            if words:
                yield words
            words = None
        elif words is not None:
            words.append(word)
        elif word == "refed":
            words = []


def unknown_option(command: Any, words: list[str]) -> str:
    """The first command or option of a `refed` command line that typer's `command` does not have; "" if it has all."""
    rest = list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name.isupper() or name == "…":
            return ""
        if name not in command.commands:
            return f"refed {' '.join(words)}: no command {name}"
        command = command.commands[name]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    options.add("--help")
    unknown = [word for word in rest if word.startswith("-") and word != "-" and word.partition("=")[0] not in options]
    return f"refed {' '.join(words)}: no option {unknown[0]}" if unknown else ""

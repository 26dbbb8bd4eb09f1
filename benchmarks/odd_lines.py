"""Odd command lines: options without values, twice, unknown, in odd places, non-ASCII, endless, half characters,
folders for files: how each ends.

`python -m benchmarks.odd_lines [SEED] [LINES] [ONE]`; ONE runs a single line of them, and prints it.

Commands and options are read from the command line itself, so a new one joins unasked. Each line runs in a process and
a folder of its own, without keys. A connection is refused and reported, whatever asks for it.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

import refed_dspy
from benchmarks.runs import REFERENCES
from refed_dspy.cli import main as console_script  # the function, before a module of that name is imported

LINES, PATIENCE = 2_000, 90.0
CODES = {0, 1, 2}
LONGEST = 1_000
"""Characters of the longest line that tells of a mistake."""
VARIABLES = {
    "REFED_EMBEDDINGS": "false",
    "REFED_MAX_CALLS": "40",  # a line that happens to be right should not take minutes
    "REFED_TRACK": "false",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "true",  # the package sets it as it is imported, which is over
    "PIP_NO_INDEX": "1",
    "PATH": "/nowhere",
    "LANG": "C.UTF-8",
}
PLAUSIBLE = {
    "DIR": ("run", "made", "nowhere", "filtered"),
    "FOLDER": ("run", "made", "new"),
    "FILE": ("references.jsonl", "run.yaml", "made.jsonl", "nowhere.yaml", "run/ledger.sqlite"),
    "FILE_OR_NAME": ("simulated", "openai/gpt-4o-mini", "teacher.yaml", "embedded", "m.gguf"),
    "FILE_OR_DIR": ("references.jsonl", "run"),
    "DIR_OR_FILE": ("references.jsonl", "run"),
    "FILE_OR_HUB_NAME": ("references.jsonl", "builtin", "builtin-short", "owner/name"),
    "FILE_OR_URI": ("program.json", "models:/refed@champion", "own:Program"),
    "DATA": ("references.jsonl", "run", "filtered", "owner/name"),
    "PATH": ("references.jsonl", "run"),
    "N": ("3", "1", "2", "5"),
    "DOLLARS": ("0.01", "1"),
    "G": ("0.1",),
    "NAME": ("jsonl", "kto", "gepa", "simulated", "reference-level", "x"),
    "NAME_OR_YAML": ("refusals", "length: {max_words: 3}", "judge"),
    "NAME_OR_FILE": ("simulated", "teacher.yaml", "openai/gpt-4o-mini"),
    "OWNER/NAME": ("owner/name",),
    "MODULE:NAME": ("json:loads", "os:path"),
    "ADDRESS": ("nowhere:1", "x"),
}
"""Metavar → values that may well be right."""
ODD = (
    "", " ", "-", "--", "---", "-1", "-0.5", "0", "1e999", "nan", "inf", "-inf", "1e-400", "99999999999999999999999",
    "3.5", "0x10", "१२", "½", "1_000", "true", "null", "~", "[]", "{}", "{a: 1}", "[1, 2", "a: b: c", "&a [*a]",
    "ünïcödé", "漢字", "\u202eabc", "\u200b", "🙂" * 3, "\x1b[31mred\x1b[0m", "\x01", "a\nb", "a\rb", "\t", "%00",
    "\\0",
    "'", '"', "`id`", "$HOME", "*", "?", "@references.jsonl", "@", "@nowhere", ".", "..", "/", "run", "../x.jsonl",
    "/nowhere/x.jsonl", "references.jsonl/x", "file:///etc/passwd", "models:/", "runs:/x", ":", "a:b", "a:", ":b",
    "x" * 300, "x" * 5_000, "é" * 200, "a/" * 2_000, "a/b", "a/b/c", "openai/", "/openai", "opnai/gpt-4o", "http://[",
    "https://user@:99999/v1", "localhost", "--help", "-h", "--version", "--no-such", "--=x", "-=", "-Z", "--size",
    "=", "==", "a=b", ",", ",,", "a,b", "a,,b", "null:null", "__main__:x", "os:", "con.gguf", ".gguf", ".yaml", "- a",
    "\udcff", "run\udc80", "references\udcfe.jsonl", "\udced\udca0\udc80", "pipe", "/dev/null", "/dev/full", "loop",
)  # fmt: skip
"""Words that nobody means; `\\udcXX` stands for a byte that is no UTF-8."""
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Ended:
    """How a line ended. `asked`: connections that were tried and programs that were started."""

    code: int
    out: str
    err: str
    asked: str
    seconds: float

    def wrong(self) -> str:
        """What is not as promised; empty: nothing."""
        told = self.err.splitlines()
        if "Traceback" in self.out + self.err:
            return f"traceback: {told[-1][:200] if told else ''}"
        if self.code not in CODES and not (self.code == 130 and self.seconds >= PATIENCE):
            return f"exit code {self.code}"
        if "socket" in self.asked:
            return f"asked the network: {self.asked[:200]}"
        if found := _STEERING.search(self.out + self.err):
            return f"steers the terminal: {found[0]!r}"
        if self.code == 0 or (self.code == 2 and "\nOptions:" in self.out + self.err):  # the help of a group
            return ""
        if self.code == 1 and (self.out + self.err).startswith("Shell "):  # Typer's line where it finds no shell
            return ""
        if not told or not told[-1].startswith(("refed: ", "Error: ")) or len(told[-1]) > LONGEST:
            return f"no line that tells why: {self.err[-200:]!r}"
        short = len(told) <= (8 if told[0].startswith("Usage: ") else 2)  # before the line: a usage, or what was begun
        return "" if self.code == 1 or short else f"{len(told)} lines: {self.err[:200]!r}"


# --- the lines


def commands() -> list[tuple[list[str], Any]]:
    """(words, command) of every command there is, groups too."""
    from refed_dspy.cli.main import app

    def below(words: list[str], command: Any) -> Iterator[tuple[list[str], Any]]:
        yield words, command
        for name, inner in sorted(getattr(command, "commands", {}).items()):
            yield from below([*words, name], inner)

    return list(below([], typer.main.get_command(app)))


def _value(parameter: Any, rng: random.Random, odd: float) -> str:
    if rng.random() < odd:
        return rng.choice(ODD)
    return rng.choice(PLAUSIBLE.get(str(parameter.metavar).upper(), ("x", "simulated", "3")))


def _option(parameter: Any, rng: random.Random, odd: float) -> list[str]:
    name = rng.choice([*parameter.opts, *parameter.secondary_opts])
    if getattr(parameter, "is_flag", False):
        return [name]
    value = _value(parameter, rng, odd)
    return [f"{name}={value}"] if rng.random() < 0.25 else [name, value]


def _oddly(words: list[str], parameters: Sequence[Any], rng: random.Random) -> list[str]:
    """`words` with one mistake more."""
    options = [one for one in parameters if one.param_type_name == "option"]
    place = rng.randrange(len(words) + 1)
    name = rng.choice(options).opts[0] if options else "--size"
    kind = rng.randrange(10)
    if kind == 0:  # its value is missing
        return [*words, name]
    if kind == 1 and options:  # twice
        one = rng.choice(options)
        return [*words, *_option(one, rng, 0.3), *_option(one, rng, 0.3)]
    if kind == 2:  # unknown, or misspelt
        return [*words, rng.choice(("--no-such", "-q", "--temprature", name[:-1] or "-", name + "x", name.upper()))]
    if kind == 3:
        return [*words[:place], name, *words[place:]]
    if kind == 4:
        return [*words, f"{name}=" + rng.choice(("", " ", "=", rng.choice(ODD)))]
    if kind == 5:
        return rng.sample(words, len(words))
    if kind == 6 and words:
        return words[: rng.randrange(len(words))]
    if kind == 7 and words:
        return [*words[:place], rng.choice(words), *words[place:]]
    return [*words[:place], rng.choice(ODD), *words[place:]]


def drawn(rng: random.Random) -> list[str]:
    """A line: a command with a few arguments and options, and up to two mistakes."""
    words, command = rng.choice(commands())
    parameters, line = command.params, list(words)
    for one in parameters:
        needed = one.required or one.name in {"teacher", "out", "data", "references"}
        if rng.random() < (0.85 if needed else 0.12):
            line += [_value(one, rng, 0.3)] if one.param_type_name == "argument" else _option(one, rng, 0.3)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        line = _oddly(line, parameters, rng)
    return line


# --- running them


def _make_home(home: Path) -> None:
    """The folder of which each line gets a copy: references, settings, a run, a filtering, and what is no file."""
    os.chdir(home)
    Path("references.jsonl").write_text("".join(json.dumps(row) + "\n" for row in REFERENCES[:4]))
    Path("run.yaml").write_text("size: 3\nteacher: simulated\n")
    Path("teacher.yaml").write_text("model: openai/gpt-4o-mini\n")
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for words in (
        ["synth", "--references", "references.jsonl", "--teacher", "simulated", "--size", "3", "--run-dir", "run"],
        ["filter", "run", "--filter", "refusals", "--out", "filtered"],
    ):
        done = ended(words, home)
        assert done.code == 0, done
    ended(["compile", "promote"], home)  # makes MLflow's store, which takes seconds


def _environment(home: Path) -> dict[str, str]:
    dirs = {name: str(home / ".home") for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "REFED_CACHE", "TMPDIR")}
    return {**dirs, **VARIABLES}


def _in_child(line: Sequence[str], home: Path, files: Sequence[int]) -> None:
    """Become the command, as a shell would have started it; never returns."""
    out, err, asked = files

    def told(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
            if event == "socket.connect" and isinstance(arguments[1], str | bytes):  # of this machine
                return
            os.write(asked, f"{event} {arguments[1:]!r}\n".encode("utf-8", "replace"))
            raise OSError("no connection leaves this process")

    os.chdir(home)
    os.environ.clear()
    os.environ.update(_environment(home))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", errors=errors, closefd=False)  # noqa: SIM115
                              for number, errors in ((1, "strict"), (2, "backslashreplace")))  # fmt: skip
    sys.addaudithook(told)
    sys.argv = ["refed", *line]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 0
    try:
        console_script()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
        os._exit(code)


def ended(line: Sequence[str], home: Path) -> Ended:
    """Run `refed` with the words of `line` in `home`. What serves a page for ever is stopped by Ctrl-C."""
    begun = time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as asked:
        if not (child := os.fork()):
            try:
                os.setsid()
                _in_child(line, home, (out.fileno(), err.fileno(), asked.fileno()))
            finally:
                os._exit(99)
        code = _waited(child, begun)
        seconds = time.monotonic() - begun
        texts = []
        for file in (out, err, asked):
            file.seek(0)
            texts.append(file.read().decode("utf-8", "surrogateescape"))
    printed, told, connected = texts
    return Ended(code, printed, told, connected, seconds)


def _waited(child: int, begun: float) -> int:
    patience = {signal.SIGINT: PATIENCE, signal.SIGKILL: PATIENCE + 15}
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        for number in [number for number, after in patience.items() if time.monotonic() - begun > after]:
            del patience[number]
            os.kill(child, number)
        time.sleep(0.002)


def _preload() -> None:
    """Import what the commands import, once for all of them."""
    for module in pkgutil.walk_packages(refed_dspy.__path__, "refed_dspy."):
        if not module.name.endswith(("__main__", "launch", "seeded", "llama_child", ".check", ".checker")):
            with suppress(ImportError):
                importlib.import_module(module.name)
    gc.freeze()  # else the first collection in each child copies all of that


def tried(seed: int, count: int, only: int | None = None) -> Iterator[tuple[int, list[str], Ended]]:
    """(number, line, how it ended) of `count` lines that `seed` draws."""
    _preload()
    with tempfile.TemporaryDirectory(prefix="refed-odd-") as folder:
        template, home = Path(folder, "template"), Path(folder, "home")
        template.mkdir()
        _make_home(template)
        for number in range(count) if only is None else [only]:
            line = drawn(random.Random(f"{seed}/{number}"))
            shutil.rmtree(home, ignore_errors=True)
            shutil.copytree(template, home, symlinks=True, ignore=shutil.ignore_patterns("pipe"))  # the copy would wait
            os.mkfifo(home / "pipe")
            yield number, line, ended(line, home)


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:]]
    seed, count = (*numbers[:2], *(0, LINES)[len(numbers) :])
    only = numbers[2] if len(numbers) > 2 else None
    codes, kinds, slowest = Counter[int](), Counter[str](), (0.0, "")
    for number, line, end in tried(seed, count, only):
        codes[end.code] += 1
        slowest = max(slowest, (end.seconds, " ".join(line)[:100]))
        if only is not None:
            print(ascii(line), end, sep="\n")
        if wrong := end.wrong():
            kinds[wrong[:100]] += 1
            print(f"{number}: refed {ascii(line)[:300]}: {wrong}", file=sys.stderr, flush=True)
    print(f"seed {seed}: {sum(codes.values())} lines, exit codes {dict(sorted(codes.items()))}; {kinds.total()} wrong")
    print(f"the slowest took {slowest[0]:.1f} s: {slowest[1]!a}")
    sys.exit(bool(kinds))


if __name__ == "__main__":
    main()

"""A benchmark's own code: the environment it needs, and its run in a process that holds nothing of the user's.

It needs other versions of libraries than this package. An environment is made once for each user, in the folder for
caches, with pinned versions and checked hashes; a half-made one is made again. Or a person names one that has the code.

    python = environment(ALPACA_EVAL).python
    await run_command(Command("alpaca-eval", python, ["-m", "alpaca_eval.main", …], folder, log))
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from filelock import FileLock

from refed_dspy import children
from refed_dspy.errors import ConfigError, InputError, RunStopped, one_line, setting
from refed_dspy.weights import cache_dir

log = logging.getLogger("refed_dspy.environments")
_COMPLETE = "refed-complete"
"""The file in an environment that says that all of it is there."""
_SLACK = 1.5
"""How much more room a download needs than what it becomes."""
_LOOK = """
import importlib.metadata, importlib.util, json, sys
try:
    version = importlib.metadata.version(sys.argv[1])
    folder = importlib.util.find_spec(sys.argv[2]).submodule_search_locations[0]
    print(json.dumps({"version": version, "folder": folder}))
except (AttributeError, ImportError):
    print("{}")
"""
"""What an interpreter says of a package, without importing it: seconds would go by."""
_LAUNCH = Path(__file__).with_name("launch.py")
_TAIL = 4096
"""Bytes of the log that are looked at for what went wrong."""
_LINES = 3


@dataclass(frozen=True)
class Package:
    """A package with a benchmark's code, and what it needs."""

    name: str
    version: str
    module: str
    requirements: Path
    """Every package with its version and hashes."""
    megabytes: int
    """The size of the environment."""
    unhashed: bool = False
    """Whether the package itself is not among the requirements: it is installed after them, as the index has it for
    this machine."""


_HERE = Path(__file__).parent
ALPACA_EVAL = Package("alpaca-eval", "0.6.6", "alpaca_eval", _HERE / "alpaca_eval" / "requirements.txt", 670)
ARENA_HARD = Package("torch", "2.13.0", "torch", _HERE / "arena_hard" / "requirements.txt", 1_200, unhashed=True)
"""What the code of its repository imports. PyTorch fits five numbers there, so any build of it will do."""
LM_EVAL = Package("lm-eval", "0.4.13", "lm_eval", _HERE / "ifeval" / "requirements.txt", 760)


@dataclass(frozen=True)
class Installed:
    """A package where it is installed: the interpreter, and the folder of its module."""

    python: Path
    folder: Path
    version: str


def environment(package: Package, chosen: Path | None = None) -> Installed:
    """The package in the `chosen` environment (its folder, or its interpreter), else in one that is made if need be.

    Raises InputError, in one line: it is not there, no network, no room, no permission.
    """
    if chosen is not None:
        return _existing(package, chosen)
    folder = cache_dir() / "environments" / _folder_name(package)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not (folder / _COMPLETE).is_file():
                _make(package, folder)
                (folder / _COMPLETE).touch()
    except OSError as error:
        why = one_line(error.strerror or error)
        raise InputError(f"{folder}: cannot be written: {why}; set REFED_CACHE to another folder") from None
    return _existing(package, folder)


def _folder_name(package: Package) -> str:
    """Another for other versions, of Python too."""
    pinned = sha256(package.requirements.read_bytes()).hexdigest()[:8]
    return f"{package.name}-{package.version}-py{sys.version_info.major}.{sys.version_info.minor}-{pinned}"


def _existing(package: Package, chosen: Path) -> Installed:
    chosen = chosen.absolute()  # the program starts in a folder of its own
    python = chosen if chosen.is_file() else _interpreter(chosen)
    wanted = f"pip install {package.name}=={package.version}"
    try:
        looked = subprocess.run(  # noqa: S603 — the program is ours; the interpreter is the user's choice
            children.python("-c", _LOOK, package.name, package.module, interpreter=python),
            env=children.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(looked.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        raise ConfigError(
            f"environment: {one_line(chosen, 120)} is no environment; name its folder, or its Python"
        ) from None
    if not found:
        raise ConfigError(f"environment: {one_line(chosen, 120)} has no {package.name}; install it there: {wanted}")
    if found["version"].partition("+")[0] != package.version:  # what follows is the build
        log.warning(
            "%s has %s %s, and this was tested with %s", chosen, package.name, found["version"], package.version
        )
    return Installed(python, Path(found["folder"]), str(found["version"]))


def _interpreter(folder: Path) -> Path:
    return folder / "Scripts" / "python.exe" if sys.platform == "win32" else folder / "bin" / "python"


def _make(package: Package, folder: Path) -> None:
    """Make the environment in `folder`, in place of a half-made one."""
    shutil.rmtree(folder, ignore_errors=True)
    free, needed = shutil.disk_usage(folder.parent).free / 1e6, _SLACK * package.megabytes
    if free < needed:
        raise InputError(
            f"{folder.parent} has {free:,.0f} MB free, and {package.name} needs {needed:,.0f}; make room, or set "
            "REFED_CACHE to another folder"
        )
    log.info(
        "making an environment for %s %s, once: %d MB, one to three minutes, in %s",
        package.name, package.version, package.megabytes, folder,
    )  # fmt: skip
    for alternatives in _commands(package, folder):
        _run_one(package, alternatives)


def _commands(package: Package, folder: Path) -> list[list[list[str]]]:
    """Steps, each with the commands of which one must do. With uv where there is one: it is ten times as fast."""
    listed = ["--require-hashes", "-r", str(package.requirements)]
    itself = f"{package.name}=={package.version}"
    if (uv := _uv()) is not None:
        make = [uv, "venv", "--quiet", "--python", sys.executable, str(folder)]
        install = [uv, "pip", "install", "--quiet", "--python", str(_interpreter(folder))]
        # The usual index has PyTorch with several GB of CUDA; its own has one without.
        alone = [[*install, "--torch-backend", "cpu", itself], [*install, itself]]
    else:
        make = children.python("-m", "venv", str(folder))
        pip = children.python("-m", "pip", "install", interpreter=_interpreter(folder))
        install = [*pip, "--quiet", "--no-input", "--disable-pip-version-check"]
        alone = [[*install, itself]]
    return [[make], [[*install, *listed]], *([alone] if package.unhashed else [])]


def _uv() -> str | None:
    """uv on the path, or beside this interpreter."""
    return shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))


def _run_one(package: Package, alternatives: Sequence[Sequence[str]]) -> None:
    """Raises InputError, with what the last command said last, where none does."""
    for command in alternatives:
        done = subprocess.run(  # noqa: S603 — ours
            command, env=children.environment(*children.INSTALLING), capture_output=True, text=True, errors="replace",
            check=False,
        )  # fmt: skip
        if not done.returncode:
            return
    said = [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    raise InputError(
        f"{package.name}: its environment cannot be made: {one_line(' / '.join(said[-8:]))}; try again, or "
        "name an environment that has it with " + setting("environment")
    )


# --- its run


@dataclass(frozen=True)
class Command:
    """Code that is run by `python` in `folder`. What it prints goes to the file `log`."""

    name: str
    """For messages."""
    python: Path
    """An interpreter that has what the code needs."""
    arguments: Sequence[str]
    """A script's path, or `-m` and a module's name; and what follows."""
    folder: Path
    """Its working folder and its HOME: it finds no settings or tokens of the user's there."""
    log: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    """What it gets of us, besides what any program gets: the proxy's address and token, say."""

    def environment(self) -> dict[str, str]:
        """Its whole environment."""
        home = str(self.folder.absolute())
        return {
            **children.environment(),
            "HOME": home,
            "USERPROFILE": home,
            "LOGNAME": "refed",
            "PYTHONUTF8": "1",
            **self.variables,
        }


async def run_command(command: Command) -> None:
    """Run it to its end. If this is cancelled it is ended at once, with all that it started.

    Raises RunStopped, with its last lines, where it does not end well or cannot be started.
    """
    try:
        command.log.unlink(missing_ok=True)  # a link's other end is somebody's file
        with command.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *children.python(str(_LAUNCH), *command.arguments, interpreter=command.python),
                cwd=command.folder,
                env=command.environment(),
                stdin=asyncio.subprocess.PIPE,  # it ends when this does: also if this process is killed
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal reaches only this process
            )
    except OSError as error:
        raise RunStopped(f"{command.name}: cannot be run: {one_line(error)}") from None
    try:
        status = await process.wait()
    finally:
        await _end(process)
    if status:
        raise RunStopped(
            f"{command.name} ended with status {status}: {last_lines(command.log)}; its log: {command.log}"
        )


def last_lines(log: Path) -> str:
    """The last lines of a log, in one."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL))
        lines = [line.strip() for line in file.read().decode("utf-8", "replace").splitlines() if line.strip()]
    return one_line(" / ".join(lines[-_LINES:]) or "it printed nothing", 300)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End it, and whatever it started, unless it has ended."""
    if process.returncode is not None:
        return
    with suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
        else:
            process.kill()
    await process.wait()

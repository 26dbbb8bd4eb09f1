"""A benchmark's own code, run in a process of its own with an environment that holds nothing of the user's.

await run_program(Program("alpaca-eval", python, ["-m", "alpaca_eval.main", …], folder, log, {"HF_HUB_OFFLINE": "1"}))
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from refed_dspy import children
from refed_dspy.errors import RunStopped, one_line

_LAUNCH = Path(__file__).with_name("launch.py")
_TAIL = 4096
"""Bytes of the log that are looked at for what went wrong."""
_LINES = 3


@dataclass(frozen=True)
class Program:
    """Code that is run by `python` in `folder`. What it prints goes to the file `log`."""

    name: str
    """For messages."""
    python: Path
    """An interpreter that has what the code needs (`environment.py`)."""
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


async def run_program(program: Program) -> None:
    """Run it to its end. If this is cancelled it is ended at once, with all that it started.

    Raises RunStopped, with its last lines, where it does not end well or cannot be started.
    """
    try:
        program.log.unlink(missing_ok=True)  # a link's other end is somebody's file
        with program.log.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *children.python(str(_LAUNCH), *program.arguments, interpreter=program.python),
                cwd=program.folder,
                env=program.environment(),
                stdin=asyncio.subprocess.PIPE,  # it ends when this does: also if this process is killed
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal reaches only this process
            )
    except OSError as error:
        raise RunStopped(f"{program.name}: cannot be run: {one_line(error)}") from None
    try:
        status = await process.wait()
    finally:
        await _end(process)
    if status:
        raise RunStopped(
            f"{program.name} ended with status {status}: {last_lines(program.log)}; its log: {program.log}"
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

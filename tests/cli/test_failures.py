"""What no command expects ends in a line, too: odd command lines, rights, memory, streams that are closed or full."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from refed_dspy.cli.ending import told
from tests.support.command_line import REFED
from tests.support.said import Said

SYNTH = ["synth", "--references", "references.jsonl", "--teacher", "simulated", "--size", "2", "--run-dir", "run"]


def ended(words: list[str], shell: str = "", before: Callable[[], None] | None = None) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr of a command in a process of its own, with `shell` behind it."""
    command = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *REFED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=before)
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_odd_command_lines_end_in_a_line_and_a_documented_code() -> None:
    """Sixty of the 2,000 that `benchmarks.odd_lines` draws from the command tree."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.odd_lines", "1", "60"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.startswith("seed 1: 60 lines, ")


def test_every_option_whose_value_is_missing_says_so(said: Said) -> None:
    """In one process: the tree is walked, and no command begins."""
    from benchmarks.odd_lines import commands
    from tests.support.command_line import refed

    for words, command in commands():
        for option in command.params:
            if option.param_type_name == "option" and not option.is_flag:
                result = refed(*words, option.opts[0])
                assert result.exit_code == 2, (words, option.opts, result.output)
                said(result.stderr)


def test_with_stdout_closed_a_run_is_complete(said: Said, home: Path) -> None:
    """And what it opens does not become its stdout or stderr, which would then be printed into it."""
    code, _, told = ended(SYNTH, ">&- 2>&- <&-")
    assert (code, told) == (0, [])
    code, out, _ = ended(["status", "run"])
    assert code == 0
    said(out)


@pytest.mark.parametrize("words", [["status", "run"], ["export", "run", "--out", "-"], ["--help"], ["synth", "--help"]])
def test_a_full_disk_under_stdout_is_told(said: Said, home: Path, words: list[str]) -> None:
    assert ended(SYNTH)[0] == 0
    said(ended(words, ">/dev/full"))
    code, out, _ = ended(["status", "no-such-run"], "2>/dev/full")
    assert (code, out) == (2, "")


@pytest.mark.parametrize("megabytes", [120, 180, 240])
def test_too_little_memory_is_told(said: Said, home: Path, megabytes: int) -> None:
    def little() -> None:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # where a thread of its has no room it raises SIGINT
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    code, _, told = ended(SYNTH, before=little)
    assert code == 1 and len(told) == 1
    said(told[0])


@pytest.mark.parametrize(
    "words",
    [["status", "shut/run"], ["show", "shut/run"], ["export", "shut/run"], ["report", "shut/run"],
     ["filter", "shut/rows.jsonl", "--filter", "refusals", "--out", "made"],
     ["synth", "--config", "shut/run.yaml"], [*SYNTH[:-1], "shut/run"],
     ["synth", "--references", "shut/rows.jsonl", "--teacher", "simulated"]],
)  # fmt: skip
def test_a_folder_without_rights_is_told(said: Said, home: Path, words: list[str]) -> None:
    """Root heeds no rights, unless it gives up those capabilities before the command begins."""
    (home / "shut").mkdir()
    (home / "shut").chmod(0o600)

    def with_rights_heeded() -> None:
        if not os.getuid():
            for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
                ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP

    code, _, told = ended(words, before=with_rights_heeded)
    assert code == 2 and len(told) == 1 and told[0].startswith("refed: "), told
    said(told[0])


def test_ctrl_c_before_a_command_begins_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(KeyboardInterrupt()) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1

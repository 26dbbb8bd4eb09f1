"""What no command expects ends in a line, too: odd command lines, rights, memory, streams that are closed or full."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click.testing
import pytest
import typer

from refed_dspy.cli.ending import told
from refed_dspy.cli.main import app
from tests.support.command_line import REFED, refed
from tests.support.said import Said

REPOSITORY = Path(__file__).parents[2]
SYNTH = ["synth", "--references", "references.jsonl", "--teacher", "simulated", "--size", "2", "--run-dir", "run"]


def ended(words: list[str], shell: str = "", before: Callable[[], None] | None = None) -> tuple[int, str, list[str]]:
    """Exit code, stdout and the lines of stderr of a command in a process of its own, with `shell` behind it."""
    command = ["/bin/sh", "-c", f'exec "$@" {shell}', "sh", *REFED, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=before)
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize("lines", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_odd_command_lines_end_in_a_line_and_a_documented_code(lines: int) -> None:
    """Some of the 2,000 that `benchmarks.odd_lines` draws from the command tree."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.odd_lines", "1", str(lines)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    assert str(lines) in done.stdout.splitlines()[0]


def test_every_option_whose_value_is_missing_says_so() -> None:
    """In one process: the tree is walked, and no command begins."""
    from benchmarks.odd_lines import commands

    tree = typer.main.get_command(app)
    for words, command in commands():
        for option in command.params:
            if option.param_type_name == "option" and not option.is_flag:
                result = click.testing.CliRunner().invoke(tree, [*words, option.opts[0]])  # type: ignore[arg-type]
                assert result.exit_code == 2 and f"'{option.opts[0]}'" in result.stderr, (words, option.opts)
                assert result.stderr.count("\n") == 1


def test_with_stdout_closed_a_run_is_complete(home: Path) -> None:
    """And what it opens does not become its stdout or stderr, which would then be printed into it."""
    assert ended(SYNTH, ">&- 2>&- <&-") == (0, "", [])
    assert json.loads(refed("status", "run", "--json").stdout)["state"] == "done"


@pytest.mark.parametrize(
    "words",
    [
        "export run --out -",
        *(pytest.param(words, marks=pytest.mark.slow) for words in ("status run", "--help", "synth --help")),
    ],
)
def test_a_full_disk_under_stdout_is_told(said: Said, run: Path, words: str) -> None:
    said(ended(words.split(), ">/dev/full"))


def test_a_full_disk_under_stderr_leaves_the_exit_code(home: Path) -> None:
    assert ended(["status", "no-such-run"], "2>/dev/full")[:2] == (2, "")


@pytest.mark.parametrize("megabytes", [180, *(pytest.param(at, marks=pytest.mark.slow) for at in (120, 240))])
def test_too_little_memory_is_told(said: Said, home: Path, megabytes: int) -> None:
    def little() -> None:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # where a thread of its has no room it raises SIGINT
        resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))

    code, _, told = ended(SYNTH, before=little)
    assert code == 1
    said(told)


SHUT = [
    "status shut/run", "show shut/run", "export shut/run", "report shut/run",
    "filter shut/rows.jsonl --filter refusals --out made", "synth --config shut/run.yaml",
    "synth --references references.jsonl --teacher simulated --size 2 --run-dir shut/run",
    "synth --references shut/rows.jsonl --teacher simulated",
]  # fmt: skip
REFUSED = """
import json, sys
from tests.support.command_line import refed, refused
lines = {}
for words in json.loads(sys.argv[1]):
    refused(done := refed(*words.split()))
    lines[words] = done.stderr
print(json.dumps(lines))
"""


def test_a_folder_without_rights_is_told(said: Said, home: Path) -> None:
    """Root heeds no rights, unless it gives up those capabilities before the process begins."""
    (home / "shut").mkdir()
    (home / "shut").chmod(0o600)

    def with_rights_heeded() -> None:
        if not os.getuid():
            for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
                ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP

    done = subprocess.run(
        [sys.executable, "-c", REFUSED, json.dumps(SHUT)], env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True, text=True, check=False, preexec_fn=with_rights_heeded,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said(json.loads(done.stdout.splitlines()[-1]))


def test_ctrl_c_before_a_command_begins_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(KeyboardInterrupt()) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1

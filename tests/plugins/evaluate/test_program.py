"""Other people's code in a process of its own: what it is given, how it ends, and what is told when it fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from refed_dspy.children import KEPT
from refed_dspy.errors import RunStopped
from refed_dspy.plugins.evaluate.program import Command, run_command
from tests.support import ROOT
from tests.support.clocks import until
from tests.support.said import Said

WAITS = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path("pids.tmp").write_text(f"{os.getpid()} {child.pid}")
os.rename("pids.tmp", "pids")
time.sleep(60)
"""
"""A script that notes its own number and that of a process that it started, and waits."""


def program(folder: Path, script: str, *arguments: str, **variables: str) -> Command:
    (folder / "code").mkdir(exist_ok=True)
    file = folder / "code" / "script.py"
    file.write_text(script, encoding="utf-8")
    return Command("code", Path(sys.executable), [str(file), *arguments], folder, folder / "code.log", variables)


async def test_it_gets_what_it_needs_and_nothing_of_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {"OPENAI_API_KEY": "sk-mine", "HF_TOKEN": "hf-mine", "HTTPS_PROXY": "http://p", "PYTHONPATH": str(ROOT)}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    script = "import json, os, sys; json.dump([dict(os.environ), sys.argv, os.getcwd()], open('seen.json', 'w'))"
    await run_command(program(tmp_path, script, "--of", "its own", OPENAI_BASE_URL="http://127.0.0.1:1/v1"))
    environment, arguments, folder = json.loads((tmp_path / "seen.json").read_text())
    assert folder == str(tmp_path)
    assert arguments == [str(tmp_path / "code" / "script.py"), "--of", "its own"]
    ours = {"HOME", "USERPROFILE", "LOGNAME", "PYTHONUTF8", "OPENAI_BASE_URL"}
    assert environment.keys() - {*KEPT, *ours} <= {"LC_CTYPE", "__CF_USER_TEXT_ENCODING"}
    assert environment["HOME"] == str(tmp_path) and environment["OPENAI_BASE_URL"] == "http://127.0.0.1:1/v1"


async def test_a_script_finds_its_neighbours_and_a_module_its_arguments(tmp_path: Path) -> None:
    code = program(tmp_path, "import beside; print(beside.NAME)")
    (tmp_path / "code" / "beside.py").write_text("NAME = 'from beside'", encoding="utf-8")
    await run_command(code)
    assert code.log.read_text() == "from beside\n"
    await run_command(
        Command("tool", code.python, ["-m", "json.tool", "in.json", "out.json"], _with(tmp_path, "[1]"), code.log)
    )
    assert json.loads((tmp_path / "out.json").read_text()) == [1]


def _with(folder: Path, text: str) -> Path:
    (folder / "in.json").write_text(text, encoding="utf-8")
    return folder


async def test_one_that_fails_says_its_last_lines_and_where_its_log_is(said: Said, tmp_path: Path) -> None:
    script = "print('begun\\n\\n\\x1b[31m' + 'x' * 9000); raise ValueError('the file\\nhas no rows')"
    with said.by(RunStopped) as e:
        await run_command(program(tmp_path, script))
    assert str(e.value).endswith(str(tmp_path / "code.log")) and str(e.value).isprintable()
    with said.by(RunStopped):
        await run_command(program(tmp_path, "raise SystemExit(3)"))
    with said.by(RunStopped):
        await run_command(Command("code", tmp_path / "python", ["x"], tmp_path, tmp_path / "code.log"))


async def test_one_that_is_cancelled_ends_with_all_that_it_started(tmp_path: Path) -> None:
    running = asyncio.ensure_future(run_command(program(tmp_path, WAITS)))
    await asyncio.to_thread(until, (tmp_path / "pids").exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.to_thread(until, lambda: not _alive(tmp_path))


def test_one_ends_when_this_process_is_killed(tmp_path: Path) -> None:
    code = program(tmp_path, WAITS)
    own = (
        "import asyncio; from pathlib import Path;"
        "from refed_dspy.plugins.evaluate.program import Command, run_command;"
        f"asyncio.run(run_command(Command('c', Path({sys.executable!r}), {code.arguments!r}, Path({str(tmp_path)!r}), "
        f"Path({str(code.log)!r}))))"
    )
    with subprocess.Popen([sys.executable, "-c", own], cwd=ROOT) as process:
        until((tmp_path / "pids").exists)
        process.send_signal(signal.SIGKILL)
    code_itself, started_by_it = map(int, (tmp_path / "pids").read_text().split())
    until(lambda: code_itself not in _alive(tmp_path))
    os.kill(started_by_it, signal.SIGKILL)


def _alive(folder: Path) -> list[int]:
    pids = map(int, (folder / "pids").read_text().split())
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]

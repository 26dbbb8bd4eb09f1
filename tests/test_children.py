"""Programs that this package starts see neither the working folder's modules nor the user's keys."""

from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from refed_dspy import children
from refed_dspy.errors import InputError
from refed_dspy.plugins.evaluate import program as environments
from refed_dspy.plugins.evaluate.program import Command, run_command
from refed_dspy.weights import pip_download
from tests.support import ROOT
from tests.support.said import Said

STARTS = {"run", "Popen", "call", "check_call", "check_output", "create_subprocess_exec", "create_subprocess_shell"}
PLANTED = ("pip", "venv", "json", "ensurepip", "runpy", "threading", "xllamacpp", "tiny", "sitecustomize")
SECRETS = {"OPENAI_API_KEY": "sk-" + "a" * 30, "HF_TOKEN": "hf_" + "b" * 30, "MY_OWN": "c" * 30, "AWS_PROFILE": "d"}


def starts() -> Iterator[tuple[str, str]]:
    """(file and line, the code) of every call that starts a program."""
    for path in sorted((ROOT / "refed_dspy").rglob("*.py")):
        source = path.read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STARTS:
                code = ast.get_source_segment(source, node) or ""
                if ast.unparse(node.func.value) in {"subprocess", "asyncio", "os"} and not code.startswith(
                    "asyncio.run("
                ):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", code


def test_every_program_is_started_with_an_environment_of_ours() -> None:
    found = list(starts())
    assert len(found) >= 5
    for where, code in found:
        assert "env=" in code and ("children.environment(" in code or "command.environment()" in code), where


def test_every_python_is_started_by_children() -> None:
    """uv makes an environment of this interpreter, and runs nothing in it."""
    for path in sorted((ROOT / "refed_dspy").rglob("*.py")):
        if path.name == "children.py":
            continue
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            assert "sys.executable" not in line or "uv" in line, f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
    assert children.python("a.py")[1] == "-I"


def test_no_key_is_in_what_programs_get(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for more in ((), children.INSTALLING, children.COMPUTING):
        assert not SECRETS.keys() & children.environment(*more).keys()


def test_modules_planted_in_the_working_folder_do_not_run(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    for name in PLANTED:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(here))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match="tiny"):
        pip_download(f"tiny==1 --hash=sha256:{'0' * 64}", other)
    monkeypatch.setattr(environments, "_uv", lambda: None)
    [[make], *installing] = environments._commands(environments.ARENA_HARD, tmp_path / "made")
    assert all(command[1] == "-I" for commands in installing for command in commands)
    subprocess.run([*make, "--without-pip"], check=True)
    with said.by(InputError):
        environments.environment(environments.LM_EVAL, tmp_path / "made")
    program = Command("it", Path(sys.executable), ["-m", "json.tool", "--help"], other, tmp_path / "log")
    asyncio.run(run_command(program))
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()

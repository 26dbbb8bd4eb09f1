"""Programs that this package starts see neither the working folder's modules nor the user's keys."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from refed_dspy import children
from refed_dspy.errors import InputError
from refed_dspy.plugins.evaluate import program as environments
from refed_dspy.plugins.evaluate.program import Command, run_command
from refed_dspy.weights import pip_download
from tests.support.said import Said

PLANTED = ("pip", "venv", "json", "ensurepip", "runpy", "threading", "xllamacpp", "tiny", "sitecustomize")
SECRETS = {"OPENAI_API_KEY": "sk-" + "a" * 30, "HF_TOKEN": "hf_" + "b" * 30, "MY_OWN": "c" * 30, "AWS_PROFILE": "d"}


def test_no_key_is_in_what_programs_get(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    for more in ((), children.INSTALLING, children.COMPUTING):
        assert not SECRETS.keys() & children.environment(*more).keys()


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with modules in it that write their names into the file `ran` beside it."""
    (here := tmp_path / "here").mkdir()
    for name in PLANTED:
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write('{name} ')\n")
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", str(here))
    (tmp_path / "other").mkdir()
    return here


def test_modules_planted_in_the_working_folder_do_not_run(planted: Path, tmp_path: Path) -> None:
    program = Command("it", Path(sys.executable), ["-m", "json.tool", "--help"], tmp_path / "other", tmp_path / "log")
    asyncio.run(run_command(program))
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()
    assert children.python("a.py")[1] == "-I"


@pytest.mark.slow
def test_nor_do_they_where_an_environment_is_made(
    said: Said, planted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match="tiny"):
        pip_download(f"tiny==1 --hash=sha256:{'0' * 64}", tmp_path / "other")
    monkeypatch.setattr(environments, "_uv", lambda: None)
    [[make], *installing] = environments._commands(environments.ARENA_HARD, tmp_path / "made")
    assert all(command[1] == "-I" for commands in installing for command in commands)
    subprocess.run([*make, "--without-pip"], check=True)
    with said.by(InputError):
        environments.environment(environments.LM_EVAL, tmp_path / "made")
    assert not (tmp_path / "ran").exists(), (tmp_path / "ran").read_text()

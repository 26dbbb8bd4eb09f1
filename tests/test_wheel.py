"""The package as people install it: a wheel, in an environment that has its dependencies and nothing of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import refed_dspy
from tests.support import ROOT
from tests.support.said import Said

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_every_file_of_the_package(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "refed_dspy"], cwd=ROOT, check=True, capture_output=True, text=True)
    assert set(zipfile.ZipFile(wheel).namelist()) >= set(listed.stdout.split())


def test_its_commands_and_references_need_no_source_tree(said: Said, wheel: Path, tmp_path: Path) -> None:
    env = tmp_path / "env"
    venv.create(env)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(env)}))
    pip = [sys.executable, "-m", "pip", "--python", str(env / "bin/python")]
    subprocess.run([*pip, "install", "-q", "--no-index", "--no-deps", str(wheel)], check=True)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # what pip would fetch; not this folder

    def printed(*command: str) -> str:
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        words = [str(env / "bin" / command[0]), *command[1:]]
        return subprocess.run(words, cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True, check=True).stdout

    code = "import refed_dspy as r; print(r.__file__, len(r.load_references('builtin')))"
    file, count = printed("python", "-c", code).split()
    assert Path(file).is_relative_to(env) and int(count) >= 24
    assert "--teacher" in printed("refed", "synth", "--help")
    printed("refed", "synth", "--teacher", "simulated", "--size", "2", "--run-dir", "first")
    printed("refed", "report", "first")
    said(printed("refed", "export", "first"))
    assert printed("refed-dspy", "--version") == f"refed-dspy {refed_dspy.__version__}\n"
    assert f"\nversion: {refed_dspy.__version__}\n" in (ROOT / "CITATION.cff").read_text()

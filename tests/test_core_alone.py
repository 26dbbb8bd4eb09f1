"""The core stands alone: a copy of the package without `plugins/` does what the tutorial does. And another package's
plug-in, the one that docs/how-to/plug-ins.md shows, adds to it what that page says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import refed_dspy
from refed_dspy.registry import COMMANDS, registered
from tests.support import mlflow_stores
from tests.support.said import Said

mlflow_template = mlflow_stores.mlflow_template
PACKAGE = Path(refed_dspy.__file__).parent
PAGE = PACKAGE.parent / "docs/how-to/plug-ins.md"


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that has the copy, without its plug-ins."""
    folder = tmp_path_factory.mktemp("core")
    shutil.copytree(PACKAGE, folder / "refed_dspy", ignore=shutil.ignore_patterns("plugins"))
    return folder


INVOKED = """
import json, sys
from typer.testing import CliRunner
from refed_dspy.cli.main import app
results = [CliRunner().invoke(app, line.split()) for line in sys.argv[1:]]
print(json.dumps([[made.exit_code, made.stdout, made.stderr] for made in results]))
"""
"""Runs each argument as a line of words, and prints exit codes and outputs."""


def python(first: Path, home: Path, *words: str) -> str:
    """What a process prints that finds packages in the folder `first`."""
    done = subprocess.run(
        [sys.executable, *words], cwd=home, env={**os.environ, "PYTHONPATH": str(first)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def refed(first: Path, home: Path, *lines: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of these commands, in one process that finds packages in the folder `first`."""
    printed = python(first, home, "-c", INVOKED, *lines).splitlines()[-1]
    return [tuple(each) for each in json.loads(printed)]


@pytest.mark.slow
def test_the_main_path_needs_no_plug_in(
    core: Path, tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    sizes = {"train": 4, "validation": 4, "test": 5, "evaluations": 8, "instructions_per_feature": 1}
    (tmp_path / "compile.yaml").write_text(json.dumps({"optimizer": "bootstrap", **sizes}))

    assert python(core, tmp_path, "-c", "import refed_dspy; print(refed_dspy.__file__)").startswith(str(core))
    made = refed(
        core,
        tmp_path,
        "init run.yaml --teacher simulated",
        "synth --config run.yaml --size 4 --run-dir run",
        "filter run --filter refusals --out kept",
        "resume run --size 6",
        "show run",
        "status run",
        "export run --format messages --out out.jsonl",
        "compile --teacher simulated --judge simulated --config compile.yaml --out made --track",
        "compile promote --unproved",
    )
    assert [code for code, *_ in made] == [0] * 9, made
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 6


def test_a_command_and_a_name_without_their_plug_in_say_so(said: Said, core: Path, tmp_path: Path) -> None:
    lines = [f"{name} x --out y" for name in registered(COMMANDS)]
    made = refed(core, tmp_path, *lines)
    assert {(code, stdout) for code, stdout, _ in made} == {(2, "")}
    said([stderr for *_, stderr in made])
    code = "import refed_dspy\ntry: refed_dspy.share\nexcept Exception as e: print(repr(e))"
    said(python(core, tmp_path, "-c", code))


def test_the_plug_in_that_the_page_shows(said: Said, tmp_path: Path) -> None:
    blocks = dict(re.findall(r'^```\w+ title="lengths/([^"]+)"\n(.*?)^```', PAGE.read_text(), re.MULTILINE | re.DOTALL))
    points = blocks.pop("pyproject.toml").partition("\n[project.entry-points")
    installed = tmp_path / "site" / "lengths-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: lengths\nVersion: 1.0\n")
    written = re.sub(r'^\[project\.entry-points\."(.*)"\]', r"[\1]", points[1] + points[2], flags=re.MULTILINE)
    (installed / "entry_points.txt").write_text(written.replace('"', ""))
    for name, text in blocks.items():
        (tmp_path / "site" / name).write_text(text)

    rows = [{"instruction": "Say it.", "response": "word " * count} for count in (2, 9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = refed(
        tmp_path / "site",
        tmp_path,
        "--help",
        "lengths rows.jsonl",
        "filter rows.jsonl --filter short --out kept",
        "synth --teacher simulated --size 2 --run-dir run",
        "export run --format plain --out plain.jsonl",
    )
    assert [code for code, *_ in made] == [0] * 5, made
    assert "lengths" in made[0][1]
    said(made[1][1])
    assert len((tmp_path / "kept/kept.jsonl").read_text().splitlines()) == 1
    assert set(json.loads((tmp_path / "plain.jsonl").read_text().splitlines()[0])) == {"prompt", "text"}

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
    shutil.copytree(PACKAGE, folder / "refed_dspy", ignore=shutil.ignore_patterns("plugins", "__pycache__"))
    return folder


def python(first: Path, home: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """A process that finds packages in the folder `first`. Asserts the exit code."""
    done = subprocess.run(
        [sys.executable, *words], cwd=home, env={**os.environ, "PYTHONPATH": str(first)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


@pytest.mark.slow
def test_the_main_path_needs_no_plug_in(
    core: Path, tmp_path: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(mlflow_template, tmp_path / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    sizes = {"train": 4, "validation": 4, "test": 5, "evaluations": 8, "instructions_per_feature": 1}
    (tmp_path / "compile.yaml").write_text(json.dumps({"optimizer": "bootstrap", **sizes}))

    def refed(line: str) -> str:
        return python(core, tmp_path, "-m", "refed_dspy.cli", *line.split()).stdout

    where = python(core, tmp_path, "-c", "import refed_dspy; print(refed_dspy.__file__)").stdout
    assert where.startswith(str(core)), "it is the copy that is tried"
    assert "settings for simulated are in run.yaml" in refed("init run.yaml --teacher simulated")
    assert refed("synth --config run.yaml --size 4 --run-dir run").startswith("done: 4 of 4 samples")
    assert "rows kept" in refed("filter run --filter refusals --out kept")
    assert refed("resume run --size 6").startswith("done: 6 of 6 samples")
    assert "── sample 1 of 6" in refed("show run") and "done" in refed("status run")
    assert "6 samples" in refed("export run --format messages --out out.jsonl")
    refed("compile --teacher simulated --judge simulated --config compile.yaml --out made --track")
    assert "is champion" in refed("compile promote --unproved")


def test_a_command_and_a_name_without_their_plug_in_say_so(said: Said, core: Path, tmp_path: Path) -> None:
    for name in registered(COMMANDS):
        done = python(core, tmp_path, "-m", "refed_dspy.cli", name, "x", "--out", "y", code=2)
        assert not done.stdout
        said(done.stderr)
    told = python(
        core, tmp_path, "-c", "import refed_dspy\ntry: refed_dspy.share\nexcept Exception as e: print(repr(e))"
    )
    said(told.stdout)


def test_the_plug_in_that_the_page_shows(tmp_path: Path) -> None:
    blocks = dict(re.findall(r'^```\w+ title="lengths/([^"]+)"\n(.*?)^```', PAGE.read_text(), re.MULTILINE | re.DOTALL))
    points = blocks.pop("pyproject.toml").partition("\n[project.entry-points")
    installed = tmp_path / "site" / "lengths-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: lengths\nVersion: 1.0\n")
    written = re.sub(r'^\[project\.entry-points\."(.*)"\]', r"[\1]", points[1] + points[2], flags=re.MULTILINE)
    (installed / "entry_points.txt").write_text(written.replace('"', ""))
    for name, text in blocks.items():
        (tmp_path / "site" / name).write_text(text)

    def refed(line: str) -> str:
        return python(tmp_path / "site", tmp_path, "-m", "refed_dspy.cli", *line.split()).stdout

    rows = [{"instruction": "Say it.", "response": "word " * count} for count in (2, 9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "lengths" in refed("--help")
    assert refed("lengths rows.jsonl") == "2 rows, 5.5 words each\n"
    assert (
        "short" in refed("filter rows.jsonl --filter short --out kept")
        and len((tmp_path / "kept/kept.jsonl").read_text().splitlines()) == 1
    )
    refed("synth --teacher simulated --size 2 --run-dir run")
    refed("export run --format plain --out plain.jsonl")
    assert set(json.loads((tmp_path / "plain.jsonl").read_text().splitlines()[0])) == {"prompt", "text"}

"""No command writes over a ledger, what SQLite keeps beside it, or what it reads: by its name, or by a link."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.odd_lines import commands
from tests.support.command_line import refed, refusal, refused
from tests.support.judged_pairs import judged_pairs, lines_of

OF_LEDGER = ("ledger.sqlite", "ledger.sqlite-wal", "ledger.sqlite-shm", ".lock", ".checked")
FILES = {
    "export": "export run --out {out} --force",
    "export, dropped": "export filtered --dropped --out {out} --force",
    "export, parquet": "export run --format parquet --out {out} --force",
    "export, pairs": "export run --format kto --out {out} --force",
    "export, filtered": "export filtered --out {out} --force",
    "report": "report run --out {out} --force",
    "init": "init {out} --teacher simulated",
}
"""Commands that write a file which a person names."""
MODELS = "--teacher simulated --judge simulated --config small.yaml"
FOLDERS = {
    "filter": ("filter {data} --filter refusals --out out", "rows.jsonl"),
    "recycle": ("recycle {data} --teacher simulated --size 1 --out out", "rows.jsonl"),
    "compare": ("compare --references {data} --teacher simulated --judge simulated --size 2 --out out", "rows.jsonl"),
    "evaluate answers": ("evaluate answers --prompts {data} --teacher simulated --out out", "rows.jsonl"),
    "compile": (f"compile --references {{data}} {MODELS} --out out", "rows.jsonl"),
    "compile plan": (f"compile plan --references {{data}} {MODELS} --out out", "rows.jsonl"),
    "judge train": ("judge train --pairs {data} --judge simulated --out out", "pairs.jsonl"),
}
"""Commands that write files of their own names into a folder, and what they read."""
OTHERS = {
    "synth": "a ledger, and nothing else",
    "stats": "a ledger, and nothing else",
    "judge agreement": "a ledger, and nothing else",
    "share": "a new folder, or one that it made",
    "judge annotate": "a new folder",
    "evaluate alpaca-eval": "as answers; needs an environment",
    "evaluate arena-hard": "as answers; needs an environment",
    "evaluate ifeval": "as answers; needs an environment",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a filtering of it, which dropped a row, with what they were made of."""
    folder = tmp_path_factory.mktemp("made")
    rows = [{"instruction": f"Say {n}.", "response": f"Well, it is {n} then."} for n in range(12)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"optimizer": "bootstrap", "train": 2, "validation": 2, "test": 5, "evaluations": 3}
    (folder / "small.yaml").write_text(json.dumps({**sizes, "instructions_per_feature": 1}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("REFED_EMBEDDINGS", "false")
        synth = "synth --references rows.jsonl --teacher simulated --size 3 --run-dir run"
        assert refed(*synth.split()).exit_code == 0
        assert refed("filter", "rows.jsonl", "--filter", "random: {keep: 6}", "--out", "filtered").exit_code == 0
    return folder


@pytest.fixture
def work(made: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working folder."""
    monkeypatch.setenv("REFED_EMBEDDINGS", "false")
    shutil.copytree(made, home, dirs_exist_ok=True)
    assert refed("export", "run", "--out", "first.jsonl").exit_code == 0, "which checks the copy, and notes that"
    return home


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_command_with_an_output_is_walked_here() -> None:
    writing = {
        " ".join(words)
        for words, command in commands()
        for one in command.params
        if one.name in {"out", "run_dir", "file"} and (one.param_type_name == "option" or words == ["init"])
    }
    known = {name.partition(",")[0] for name in FILES} | FOLDERS.keys() | OTHERS.keys()
    assert writing == known, writing ^ known


@pytest.mark.parametrize("name", FILES)
def test_a_ledger_is_never_written_over(work: Path, name: str) -> None:
    targets = [Path("run") / own for own in OF_LEDGER]
    Path("aside").symlink_to("run", target_is_directory=True)
    targets += [Path("aside/ledger.sqlite"), Path("filtered/../run/ledger.sqlite"), Path("new/ledger.sqlite-wal")]
    Path("new").mkdir()
    for target in targets:
        before = contents(work)
        line = refusal(refed(*FILES[name].format(out=target).split()))
        assert str(target) in line and "ledger" in line and contents(work) == before, target


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_link_to_a_ledger_leaves_it_as_it_is(work: Path, name: str, link: Callable[[Path, Path], Any]) -> None:
    link(Path("made"), Path("run/ledger.sqlite").absolute())
    before = Path("run/ledger.sqlite").read_bytes()
    refed(*FILES[name].format(out="made").split())
    assert Path("run/ledger.sqlite").read_bytes() == before


def test_what_a_filtering_keeps_is_not_written_over_by_its_export(work: Path) -> None:
    before = contents(work)
    for own in ("kept.jsonl", "dropped.jsonl", "funnel.json", "source.json"):
        for words in ("", " --dropped", " --format alpaca"):
            refused(refed(*f"export filtered --out filtered/{own} --force{words}".split()))
    assert contents(work) == before


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in {"compile", "judge train"} else n for n in FOLDERS]
)
def test_no_command_writes_over_what_it_reads(work: Path, name: str) -> None:
    """The input stands under each name that the command writes: in a new folder, and by a link in its own."""
    line, data = FOLDERS[name]
    if data == "pairs.jsonl":
        Path(data).write_text(lines_of(judged_pairs(10)))
    made = refed(*line.format(data=data).split())
    assert made.exit_code in {0, 1}, made.output
    names = [path.name for path in Path("out").iterdir() if path.is_file() and path.name not in OF_LEDGER]
    assert names
    for own in names:
        shutil.rmtree("out")
        Path("out").mkdir()
        shutil.copy(data, f"out/{own}")
        if not own.endswith(".jsonl"):  # read by its ending
            Path("input.jsonl").unlink(missing_ok=True)
            Path("input.jsonl").hardlink_to(f"out/{own}")
        source = f"out/{own}" if own.endswith(".jsonl") else "input.jsonl"
        before = Path(source).read_bytes()
        result = refed(*line.format(data=source).split())
        assert result.exit_code == 2, (own, result.output)
        assert Path(source).read_bytes() == before

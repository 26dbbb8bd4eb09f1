"""Folders of earlier versions, killed half way: they are opened and continued, and nothing is paid twice.

`of_e34ee2a/` holds two that the code of commit e34ee2a left, which kept each setting under a name of its own: one with
one teacher, one with pools and a judge. Version 0.2.0 wrote the same, except `spread`. `of_3fa4620/` holds a compile
and a filtering, which had records of settings of their own, as those of version 0.2.0 have.
"""

from __future__ import annotations

import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import refed_dspy
from refed_dspy.cli.main import app
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.ledger.candidates import examples_of
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import ANY, settings_of
from refed_dspy.plugins.share.facts import made_facts
from refed_dspy.plugins.share.share import share
from tests.support.said import Said

FOLDERS = Path(__file__).parent
SIMULATED = {"model": "simulated", "concurrency": 1}
JUDGE = {**SIMULATED, "temperature": 0.2}


def unpacked(name: str, at: Path, *statements: str) -> Path:
    [found] = FOLDERS.glob(f"of_*/{name}.tar.xz")
    with tarfile.open(found) as archive:
        archive.extractall(at, filter="data")
    with closing(sqlite3.connect(at / FILE)) as db, db:
        for statement in statements:
            db.execute(statement)
    return at


def calls(folder: Path) -> list[Any]:
    with closing(sqlite3.connect(folder / FILE)) as db:
        return db.execute("SELECT id, key, model FROM calls WHERE outcome = 'ok' ORDER BY id").fetchall()


@pytest.mark.parametrize("name", ["plain", "pools"])
def test_it_is_read_as_a_new_folder_says_it_and_goes_on_paying_nothing_twice(name: str, tmp_path: Path) -> None:
    """The start of this version writes the record of settings anew."""
    folder = unpacked(name, tmp_path / "run")
    before, kept = calls(folder), list(refed_dspy.read_run(folder).samples.rows())
    with Ledger.read(folder) as ledger:
        older = settings_of(ledger)
        assert ledger.meta("settings") is None
    made = refed_dspy.resume(folder, progress=False)
    assert_continued(made, folder, before, kept)
    with Ledger.read(folder) as ledger:
        newer = settings_of(ledger)
        assert newer.values == ledger.meta("settings")
    for key in ("seed", "per_reference", "max_failure_share", "filters", "guards", "track", "program"):
        assert newer.values[key] == older.values[key], key
    assert {stage: len(pool) for stage, pool in newer.pools.items()} == {
        stage: len(pool) for stage, pool in older.pools.items()
    }
    assert newer.several is older.several is (name == "pools") and bool(newer.judge) is (name == "pools")


def assert_continued(made: Any, folder: Path, before: list[Any], kept: list[Any]) -> None:
    assert made.complete and list(made.samples.rows())[:5] == kept and len(made.samples) == 12
    assert len(kept) == 5 and before
    assert_nothing_paid_twice(before, calls(folder))


def assert_nothing_paid_twice(before: list[Any], after: list[Any]) -> None:
    assert after[: len(before)] == before and len({key for _, key, _ in after}) == len(after) > len(before)


@pytest.mark.parametrize("name", ["plain", "pools"])
def test_the_same_call_goes_on_too(name: str, tmp_path: Path) -> None:
    folder = unpacked(name, tmp_path / "run")
    before, kept = calls(folder), list(refed_dspy.read_run(folder).samples.rows())
    assert_continued(same_call(name, folder), folder, before, kept)


def same_call(name: str, folder: Path) -> Any:
    """What the killed process had called."""
    simulated = {"model": "simulated", "concurrency": 3}
    common: dict[str, Any] = {"size": 12, "seed": 3, "guidance": {"response_generation": "Be brief."}}
    common |= {"filters": ["refusals", {"rouge": {"threshold": 0.9}}], "run_dir": folder, "progress": False}
    if name == "plain":
        return refed_dspy.synthesize(None, "builtin-short", teacher=simulated, per_reference=4, **common)
    pool = [{**simulated, "max_tokens": 2000}, {**simulated, "weight": 3, "temperature": 0.5}]
    common |= {"guards": {"copies": False}, "filters": [*common["filters"], "judge"]}
    teachers, judge = {"feedback": {**simulated, "temperature": 0.1}}, {**simulated, "temperature": 0.0}
    return refed_dspy.synthesize(None, "builtin-short", teacher=pool, teachers=teachers, judge=judge, **common)


def test_every_reader_takes_it(tmp_path: Path) -> None:
    folder = unpacked("pools", tmp_path / "run")
    for command in ("status", "report", "show"):
        assert CliRunner().invoke(app, [command, str(folder)]).exit_code == 0
    assert share(folder, tmp_path / "shared").folder.is_dir()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher", {"model": "m", "config": None}),
        ("filters", [["Own", {"class": "my.Own"}]]),
        ("program_named", "nowhere:Program"),
    ],
)
def test_what_only_a_script_can_build_is_refused_before_any_payment(
    said: Said, name: str, value: Any, tmp_path: Path
) -> None:
    folder = unpacked("plain", tmp_path / "run")
    with Ledger.create(folder) as ledger:
        ledger.set_meta(**{name: value})
    paid = calls(folder)
    with said.by(refed_dspy.errors.InputError):
        refed_dspy.resume(folder, progress=False)
    assert calls(folder) == paid


def test_a_compile_goes_on_and_pays_nothing_twice(tmp_path: Path) -> None:
    folder = unpacked("compile", tmp_path / "compile")
    with Ledger.read(folder) as ledger:
        older, examples = settings_of(ledger), examples_of(ledger)
        assert ledger.meta("settings") is None and older.values["name"] == "older"
    assert CliRunner().invoke(app, ["status", str(folder)]).exit_code == 0
    before = calls(folder)
    made = refed_dspy.compile(
        None, "builtin", teacher=SIMULATED, judge=JUDGE, out=folder, optimizer="bootstrap", evaluations=20, train=4,
        validation=4, test=8, threads=1, name="older", seed=1, track=False, progress=False,
    )  # fmt: skip
    assert made.state == "done" and made.manifest["models"]["judge"]["model"] == "simulated"
    assert_nothing_paid_twice(before, calls(folder))
    with Ledger.read(folder) as ledger:
        newer = settings_of(ledger)
        assert newer.values == ledger.meta("settings") and examples_of(ledger) == {
            name: examples[name] for name in ("unit", "sets", "clusters")
        }
        assert newer.judge["model"] == older.judge["model"] and newer.reflection["model"] == older.reflection["model"]
        assert newer.teacher["model"] == older.teacher["model"] and newer.values["options"] == older.values["options"]


def test_a_filtering_goes_on_and_pays_nothing_twice(tmp_path: Path) -> None:
    folder = unpacked("filtering", tmp_path / "filtering")
    for command in (["status"], ["report"], ["show", "--dropped"]):
        assert CliRunner().invoke(app, [*command, str(folder)]).exit_code == 0
    assert [step.seed for step in share_facts(folder)] == [1]
    before = calls(folder)
    with pytest.raises(refed_dspy.errors.RunDirError):
        filter_again(folder, margin=1)
    assert calls(folder) == before
    made = filter_again(folder, margin=0)
    assert made.state == "done" and not made.filtered.undecided
    assert_nothing_paid_twice(before, calls(folder))
    assert [step.settings for step in share_facts(folder)] == [[("refusals", "{}"), ("judge", '{"margin": 0.0}')]]


def filter_again(folder: Path, margin: float) -> Any:
    """What had been called, without its cap."""
    texts = {
        "instruction": "Write {} lines about tides.",
        "response": "{} lines",
        "improved_response": "{} better lines.",
    }
    rows = [{name: text.format(number) for name, text in texts.items()} for number in range(12)]
    return refed_dspy.filter_data(
        rows, ["refusals", {"judge": {"margin": margin}}], judge=JUDGE, out=folder, seed=1,
        columns={"plain": "response"}, max_calls=1000, progress=False,
    )  # fmt: skip


def share_facts(folder: Path) -> Any:
    with made_facts(folder) as (_, steps, _, _):
        return steps


def test_a_judge_that_is_none_of_its_teachers_is_remembered(said: Said, tmp_path: Path) -> None:
    judge = TeacherConfig(model="simulated", temperature=0.3).model_dump(mode="json")
    folder = unpacked("pools", tmp_path / "run")
    with Ledger.create(folder) as ledger:
        ledger.set_meta(judge={"model": "simulated", "config": judge})
        assert settings_of(ledger).judge["rates"] == [0, 0, 0, 0] and ANY in settings_of(ledger).pools
    with said.by(refed_dspy.errors.RunDirError):
        refed_dspy.resume(folder, progress=False)

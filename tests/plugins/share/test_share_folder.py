"""How the folder for the Hub is made: whole or not at all, of a run at rest, and with errors in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.errors import ConfigError, ExportError, RunDirError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.manifest import read_manifest, whole_folder
from refed_dspy.plugins.share.share import share
from refed_dspy.runs.result import Synthesis
from tests.plugins.share.conftest import FILTERED_SIZE, contents_of, copy_run
from tests.support.command_line import refed, refused
from tests.support.said import Said

# --- whole or not at all


def test_a_folder_that_is_there_is_kept_unless_forced(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    out = tmp_path / "out"
    share(filtered_run.run_dir, out, dropped=True)
    before = contents_of(out)
    with said.by(ExportError):
        share(filtered_run.run_dir, out)
    assert contents_of(out) == before
    share(filtered_run.run_dir, out, force=True)
    assert not (out / "dropped").exists() and set(contents_of(out)) < set(before)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_of_somebody_elses_is_never_replaced(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for force in (False, True):
        for name in ("mine", "file"):
            with said.by(ExportError):
                share(filtered_run.run_dir, tmp_path / name, force=force)
    assert contents_of(tmp_path) == {"mine/thesis.txt": b"x", "file": b"x"}


def test_what_somebody_put_into_the_folder_is_not_removed(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    share(filtered_run.run_dir, tmp_path / "out")
    (tmp_path / "out" / "notes.md").write_text("mine")
    with said.by(ExportError):
        share(filtered_run.run_dir, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.md").read_text() == "mine"


def test_a_failure_halfway_leaves_the_old_folder_and_no_other(filtered_run: Synthesis, tmp_path: Path) -> None:
    last = "(SELECT instruction FROM samples ORDER BY seq DESC LIMIT 1)"
    broken = copy_run(filtered_run, tmp_path / "broken", f"UPDATE instructions SET sample = '{{' WHERE id = {last}")
    out = tmp_path / "folder" / "out"
    out.parent.mkdir()
    share(filtered_run.run_dir, out)
    before = contents_of(out)
    for target in (out, out.parent / "new"):
        with pytest.raises(RunDirError):
            share(broken, target, force=True)
    assert contents_of(out) == before and [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_kill_halfway_leaves_no_half_folder(filtered_run: Synthesis, tmp_path: Path) -> None:
    """Killed as soon as it writes: the name is free, and the next call makes the whole folder."""
    script = "import sys; from refed_dspy import share; share(sys.argv[1], sys.argv[2], force=True)"
    words = [sys.executable, "-c", script, str(filtered_run.run_dir), str(tmp_path / "out")]
    with subprocess.Popen(words) as process:
        while process.poll() is None and not any(tmp_path.glob(".refed-*/made/*")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    share(filtered_run.run_dir, tmp_path / "out")
    assert read_manifest(tmp_path / "out").files


def test_the_folder_gets_the_permissions_of_a_new_folder(filtered_run: Synthesis, tmp_path: Path) -> None:
    """Also where an empty one was there."""
    (tmp_path / "out").mkdir()
    before = os.umask(0o027)
    try:
        share(filtered_run.run_dir, tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0o640}


class Meddled(type(Path())):  # type: ignore[misc]
    """A path at which a file appears as soon as the folder there is moved away."""

    def rename(self, target: Any) -> Any:
        moved = super().rename(target)
        Path(self).write_text("another's")
        return moved


def test_what_was_there_is_kept_where_something_else_takes_its_place(
    said: Said, filtered_run: Synthesis, tmp_path: Path
) -> None:
    share(filtered_run.run_dir, tmp_path / "out")
    (tmp_path / "out.before").write_text("of another time")
    before = contents_of(tmp_path / "out")
    with (
        said.by(ExportError) as raised,
        whole_folder(Meddled(tmp_path / "out"), force=True) as made,
    ):
        (made / "README.md").write_text("new")
    assert "\n" not in str(raised.value) and contents_of(tmp_path / "out.before1") == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.before", "out.before1"}
    assert (tmp_path / "out").read_text() == "another's"


# --- a run at work


def test_a_run_at_work_is_refused(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    folder = copy_run(filtered_run, tmp_path / "run")
    with (
        Ledger.create(folder),
        said.by(RunDirError),
    ):
        share(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert share(folder, tmp_path / "out").rows == FILTERED_SIZE
    with Ledger.create(folder):  # the lock is free again
        pass


def test_nothing_of_the_run_changes_meanwhile(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    folder, started = copy_run(filtered_run, tmp_path / "run"), []

    class Resolved(os.PathLike[str]):
        """A path that is resolved while the run is being shared."""

        def __fspath__(self) -> str:
            with said.by(RunDirError):
                Ledger.create(folder)
            started.append(True)
            return str(tmp_path / "own.txt")

    (tmp_path / "own.txt").write_text("Mine.")
    share(folder, tmp_path / "out", citation=Resolved())  # type: ignore[arg-type]
    assert started


def test_a_folder_in_which_no_lock_can_be_made_is_shared(filtered_run: Synthesis, tmp_path: Path) -> None:
    folder = copy_run(filtered_run, tmp_path / "run")
    (folder / ".lock").mkdir()
    assert share(folder, tmp_path / "out").rows == FILTERED_SIZE


def test_no_folder_is_made_where_there_is_no_run(said: Said, tmp_path: Path) -> None:
    with said.by(RunDirError):
        share(tmp_path / "none", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- what is refused


def test_bad_input_is_one_line(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    run, out = filtered_run.run_dir, tmp_path / "out"
    (tmp_path / "empty").write_text(" ")
    lines = []
    for words in (
        (tmp_path, "--out", out), (run, "--out", out, "--license", "cc-by-4"),
        (run, "--out", out, "--license", "other"),
        (run, "--out", out, "--citation", tmp_path / "none.bib"), (run, "--out", out, "--citation", tmp_path / "empty"),
        (run, "--out", tmp_path / "empty" / "out"),
    ):  # fmt: skip
        refused(done := refed("share", *words))
        lines.append(done.stderr)
    said(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_run_without_rows_or_of_another_kind(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    empty = copy_run(filtered_run, tmp_path / "none", "DELETE FROM samples")
    with said.by(ExportError):
        share(empty, tmp_path / "out")
    other = copy_run(
        filtered_run, tmp_path / "other", "REPLACE INTO meta (name, value) VALUES ('work', '\"statistics\"')"
    )
    with said.by(RunDirError):
        share(other, tmp_path / "out")
    undropped = copy_run(filtered_run, tmp_path / "undropped", "DELETE FROM decisions")
    with said.by(ExportError):
        share(undropped, tmp_path / "out", dropped=True)
    with said.by(ConfigError):
        share(filtered_run.run_dir, tmp_path / "out", license="mine")


def test_the_command_reports_what_it_made(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    done = refed("share", filtered_run.run_dir, "--out", tmp_path / "out")
    assert done.exit_code == 0
    *files, ledger, last = done.stdout.splitlines()
    assert {line.split()[0] for line in files} == contents_of(tmp_path / "out").keys()
    said((ledger, last, done.stderr))

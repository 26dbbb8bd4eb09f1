"""The folder for the Hub: whole or not at all, rows as they are, and nothing private in it."""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard
from typer.testing import CliRunner

from refed_dspy import Synthesis, synthesize
from refed_dspy.cli.main import app
from refed_dspy.errors import ConfigError, ExportError, RunDirError
from refed_dspy.ledger.ledger import FILE as LEDGER
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.sharing.manifest import FILE, files_in, looked_at, name_digest, read_manifest, whole_folder
from refed_dspy.sharing.parquet import ShardSize
from refed_dspy.sharing.share import share
from tests.support.scripted_engine import Writer, fake_lm, references

SIZE = 9
HOST = "llm.corp.internal"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """A run of three references, with rows that a filter dropped."""
    made: dict[str, Any] = {"teacher": fake_lm(Writer()), "run_dir": tmp_path_factory.mktemp("run")}
    return synthesize(None, references(3), size=SIZE, per_reference=4, filters=[{"random": {"share": 0.5}}], **made)


def copied(run: Synthesis, folder: Path, *statements: str) -> Path:
    """A copy of the run, changed by SQL."""
    folder.mkdir()
    source, copy = sqlite3.connect(run.run_dir / LEDGER), sqlite3.connect(folder / LEDGER)
    source.backup(copy)
    for statement in statements:
        copy.execute(statement)
    copy.commit()
    source.close()
    copy.close()
    return folder


@pytest.fixture
def private(run: Synthesis, tmp_path: Path) -> Path:
    """The run, had it been made by a private endpoint, from a file in somebody's folder."""
    model = "hosted_vllm//home/somebody/models/big"
    source = "json_set(record, '$.source', '/home/somebody/secret plans/refs.jsonl row ' || (position + 1))"
    return copied(
        run,
        tmp_path / "private",
        f"UPDATE answers SET endpoint = 'https://{HOST}:8443/v1/tenant-7'",
        f"UPDATE calls SET endpoint = 'https://{HOST}:8443/v1/tenant-7', model = '{model}'",
        f"UPDATE refs SET record = {source}",
        f"UPDATE meta SET value = json_object('model', '{model}') WHERE name = 'teacher'",
    )


def folder_of(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in files_in(path)}


def refed(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


# --- what is in it


def test_the_library_loads_the_rows_from_the_folder(run: Synthesis, tmp_path: Path) -> None:
    made = share(run.run_dir, tmp_path / "out", dropped=True, shards=ShardSize(rows=4))
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    private = {"endpoint", "response_endpoint", "instruction_endpoint", "reference_source"}
    kept = [{name: value for name, value in row.items() if name not in private} for row in rows.to_list()]
    assert kept == [{n: v for n, v in row.items() if n not in private} for row in run.samples.rows()]
    lost = datasets.load_dataset(str(tmp_path / "out"), "dropped", split="train", cache_dir=str(tmp_path / "cache"))
    assert lost.to_list() == list(run.dropped())
    assert (made.rows, made.dropped) == (SIZE, len(lost)) and len(lost) > 0


def test_shards_are_ended_by_rows_and_by_bytes_and_found_by_their_number(run: Synthesis, tmp_path: Path) -> None:
    for name, size, rows in (("rows", ShardSize(rows=4), [4, 4, 1]), ("bytes", ShardSize(2, bytes=1), [2, 2, 2, 2, 1])):
        share(run.run_dir, tmp_path / name, shards=size)
        files = [f"train-{at:05d}-of-{len(rows):05d}.parquet" for at in range(len(rows))]
        assert sorted(path.name for path in (tmp_path / name / "data").iterdir()) == files
        assert [pq.read_table(tmp_path / name / "data" / file).num_rows for file in files] == rows
        card = DatasetCard.load(tmp_path / name / "README.md")
        path = f"data/train-*-of-{len(rows):05d}.parquet"
        assert card.data.configs[0]["data_files"] == [{"split": "train", "path": path}]


def test_the_manifest_lists_every_file_as_it_is(run: Synthesis, tmp_path: Path) -> None:
    made = share(run.run_dir, tmp_path / "out")
    noted = {one.path: (one.bytes, one.sha256) for one in read_manifest(tmp_path / "out").files}
    assert set(noted) | {FILE} == files_in(tmp_path / "out") == {one.path for one in made.files}
    for path, told in noted.items():
        seen = looked_at(tmp_path / "out", path)
        assert (seen.bytes, seen.sha256) == told


def test_the_same_run_gives_the_same_bytes(run: Synthesis, tmp_path: Path) -> None:
    for name in ("a", "b"):
        share(run.run_dir, tmp_path / name, name="set", dropped=True)
    assert folder_of(tmp_path / "a") == folder_of(tmp_path / "b")


def test_nothing_private_is_told(private: Path, tmp_path: Path) -> None:
    share(private, tmp_path / "out", dropped=True)
    tables = [pq.read_table(path).to_pylist() for path in (tmp_path / "out").rglob("*.parquet")]
    card = (tmp_path / "out" / "README.md").read_text()
    everything = card + json.dumps(tables) + (tmp_path / "out" / FILE).read_text()
    for secret in (HOST, "8443", "tenant", "somebody", "secret plans", "/home", str(tmp_path), str(private)):
        assert secret not in everything, secret
    assert "a private endpoint" in card and "`refs.jsonl`" in card and "`big`" in card
    row = next(row for table in tables for row in table if "endpoint" in row)
    assert (row["endpoint"], row["teacher"]) == ("a private endpoint", "big")
    assert row["reference_source"].startswith("refs.jsonl row ")


def test_the_page_tells_nothing_private_either(private: Path, tmp_path: Path) -> None:
    made = share(private, tmp_path / "out", report=True, name="the set")
    page = (tmp_path / "out" / "report.html").read_text()
    found = re.search(r'id="rows">\s*([A-Za-z0-9+/=]+)\s*</script>', page)
    assert found and any("shows the references" in note for note in made.notes)
    rows = gzip.decompress(base64.b64decode(found[1])).decode()
    shown = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL) + rows
    for secret in (HOST, "8443", "tenant", "somebody", "secret plans", "/home", str(tmp_path)):
        assert secret not in shown, secret
    assert "a private endpoint" in shown and "refs.jsonl row" in rows and "the set" in page
    assert len(json.loads(rows)["columns"]["instruction"]) >= made.rows


@pytest.fixture
def abstained(run: Synthesis, tmp_path: Path) -> Path:
    """The run, had a judge abstained on a row for what its server said, and a filter of one's own said the rest."""
    said = f"unfit: HTTP 400 at https://{HOST}/v1 for /home/somebody/models/big: too long"
    one = "(SELECT min(instruction) FROM decisions WHERE NOT kept)"
    return copied(
        run,
        tmp_path / "abstained",
        "UPDATE decisions SET detail = 'mine: as it is' WHERE NOT kept",
        f"UPDATE decisions SET reason = 'judge abstained', detail = '{said}' WHERE instruction = {one}",
    )


def test_of_an_abstention_only_the_kind_is_told(abstained: Path, tmp_path: Path) -> None:
    share(abstained, tmp_path / "out", dropped=True)
    rows = [row for path in (tmp_path / "out" / "dropped").iterdir() for row in pq.read_table(path).to_pylist()]
    told = sorted((row["reason"], row["detail"]) for row in rows)
    assert len(told) > 1 and told[0] == ("judge abstained", "unfit")
    assert {detail for _, detail in told[1:]} == {"mine: as it is"}


def test_the_variables_of_keys_are_noted_by_their_digests(run: Synthesis, tmp_path: Path) -> None:
    def config(name: str) -> str:
        return json.dumps({"model": "m/m", "config": {"api_key_env": name}, "endpoint": "e", "weight": 1})

    folder = copied(
        run,
        tmp_path / "run",
        f"INSERT OR REPLACE INTO meta VALUES ('teacher', '{config('CORP_LLM')}'), ('judge', '{config('ACME_J')}')",
        f"""INSERT OR REPLACE INTO meta VALUES ('pools', '{{"": [{config("CORP_LLM")}, {config("POOL_TWO")}]}}')""",
    )
    share(folder, tmp_path / "out")
    noted = read_manifest(tmp_path / "out").key_variables
    assert noted == {name_digest(name) for name in ("CORP_LLM", "ACME_J", "POOL_TWO")}
    assert not [text for text in folder_of(tmp_path / "out").values() if b"CORP_LLM" in text or b"ACME_J" in text]


# --- whole or not at all


def test_a_folder_that_is_there_is_kept_unless_forced(run: Synthesis, tmp_path: Path) -> None:
    out = tmp_path / "out"
    share(run.run_dir, out, dropped=True)
    before = folder_of(out)
    with pytest.raises(ExportError, match="--force"):
        share(run.run_dir, out)
    assert folder_of(out) == before
    share(run.run_dir, out, force=True)
    assert not (out / "dropped").exists() and set(folder_of(out)) < set(before)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_somebody_elses_is_never_replaced(run: Synthesis, tmp_path: Path, force: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ExportError, match="refed share did not make it"):
        share(run.run_dir, tmp_path / "mine", force=force)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ExportError, match="is a file"):
        share(run.run_dir, tmp_path / "file", force=force)
    assert folder_of(tmp_path) == {"mine/thesis.txt": b"x", "file": b"x"}


def test_what_was_put_into_the_folder_by_hand_is_not_removed(run: Synthesis, tmp_path: Path) -> None:
    share(run.run_dir, tmp_path / "out")
    (tmp_path / "out" / "notes.md").write_text("mine")
    with pytest.raises(ExportError, match=r"holds notes\.md, which refed share did not write"):
        share(run.run_dir, tmp_path / "out", force=True)
    assert (tmp_path / "out" / "notes.md").read_text() == "mine"


def test_an_empty_folder_is_filled(run: Synthesis, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    share(run.run_dir, tmp_path / "out")
    assert (tmp_path / "out" / "README.md").is_file()


def test_a_failure_halfway_leaves_the_old_folder_and_no_other(run: Synthesis, tmp_path: Path) -> None:
    last = "(SELECT instruction FROM samples ORDER BY seq DESC LIMIT 1)"
    broken = copied(run, tmp_path / "broken", f"UPDATE answers SET output = '{{' WHERE item = {last}")
    out = tmp_path / "folder" / "out"
    out.parent.mkdir()
    share(run.run_dir, out)
    before = folder_of(out)
    for target in (out, out.parent / "new"):
        with pytest.raises(json.JSONDecodeError):
            share(broken, target, force=True)
    assert folder_of(out) == before and [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_a_kill_halfway_leaves_no_half_folder(run: Synthesis, tmp_path: Path) -> None:
    """Killed as soon as it writes: the name is free, and the next call makes all of it."""
    script = "import sys; from refed_dspy import share; share(sys.argv[1], sys.argv[2], force=True)"
    words = [sys.executable, "-c", script, str(run.run_dir), str(tmp_path / "out")]
    with subprocess.Popen(words) as process:
        while process.poll() is None and not any(tmp_path.glob(".refed-*/made/*")):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    share(run.run_dir, tmp_path / "out")
    assert read_manifest(tmp_path / "out").files


def test_the_folder_gets_the_rights_any_new_one_gets(run: Synthesis, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        share(run.run_dir, tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0o640}


class Meddled(type(Path())):  # type: ignore[misc]
    """A path in whose place a file comes to be as soon as what was there is moved away."""

    def rename(self, target: Any) -> Any:
        moved = super().rename(target)
        Path(self).write_text("another's")
        return moved


def test_what_was_there_is_kept_where_something_else_takes_its_place(run: Synthesis, tmp_path: Path) -> None:
    share(run.run_dir, tmp_path / "out")
    (tmp_path / "out.before").write_text("of another time")
    before = folder_of(tmp_path / "out")
    with (
        pytest.raises(ExportError, match=r"what it held before is in .*/out\.before1; ") as told,
        whole_folder(Meddled(tmp_path / "out"), force=True) as made,
    ):
        (made / "README.md").write_text("new")
    assert "\n" not in str(told.value) and folder_of(tmp_path / "out.before1") == before
    assert {path.name for path in tmp_path.iterdir()} == {"out", "out.before", "out.before1"}
    assert (tmp_path / "out").read_text() == "another's"


# --- a run at work


def test_a_run_at_work_is_refused(run: Synthesis, tmp_path: Path) -> None:
    folder = copied(run, tmp_path / "run")
    with Ledger.create(folder), pytest.raises(RunDirError, match="is at work; let it end, or stop it"):
        share(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert share(folder, tmp_path / "out").rows == SIZE
    with Ledger.create(folder):  # the lock is free again
        pass


def test_nothing_of_the_run_changes_meanwhile(run: Synthesis, tmp_path: Path) -> None:
    folder, started = copied(run, tmp_path / "run"), []

    class Looked(os.PathLike[str]):
        """A file that is looked at while the run is shared."""

        def __fspath__(self) -> str:
            with pytest.raises(RunDirError, match="another process"):
                Ledger.create(folder)
            started.append(True)
            return str(tmp_path / "own.txt")

    (tmp_path / "own.txt").write_text("Mine.")
    share(folder, tmp_path / "out", citation=Looked())  # type: ignore[arg-type]
    assert started


def test_a_folder_in_which_no_lock_can_be_made_is_shared(run: Synthesis, tmp_path: Path) -> None:
    folder = copied(run, tmp_path / "run")
    (folder / ".lock").mkdir()
    assert share(folder, tmp_path / "out").rows == SIZE


def test_no_folder_is_made_where_there_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no run here"):
        share(tmp_path / "none", tmp_path / "out")
    assert not list(tmp_path.iterdir())


# --- what is refused


def test_bad_input_is_one_line(run: Synthesis, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").write_text(" ")
    for words, told in (
        ((tmp_path, "--out", out), "no run here"),
        ((run.run_dir, "--out", out, "--license", "cc-by-4"), "did you mean cc-by-"),
        ((run.run_dir, "--out", out, "--license", "other"), "the license's text"),
        ((run.run_dir, "--out", out, "--citation", tmp_path / "none.bib"), "none.bib: cannot be read"),
        ((run.run_dir, "--out", out, "--citation", tmp_path / "empty"), "is empty"),
        ((run.run_dir, "--out", tmp_path / "empty" / "out"), "cannot be written"),
    ):
        done = refed("share", *words)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1) and told in done.stderr, done.output
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_a_run_without_rows_or_of_another_kind(run: Synthesis, tmp_path: Path) -> None:
    empty = copied(run, tmp_path / "none", "DELETE FROM samples")
    with pytest.raises(ExportError, match="no samples yet"):
        share(empty, tmp_path / "out")
    other = copied(run, tmp_path / "other", "INSERT OR REPLACE INTO meta VALUES ('work', '\"filtering\"')")
    with pytest.raises(RunDirError, match="holds a filtering, not a run"):
        share(other, tmp_path / "out")
    undropped = copied(run, tmp_path / "undropped", "DELETE FROM decisions")
    with pytest.raises(ExportError, match="leave out --dropped"):
        share(undropped, tmp_path / "out", dropped=True)
    with pytest.raises(ConfigError, match="the Hub knows none"):
        share(run.run_dir, tmp_path / "out", license="mine")


def test_the_command_tells_what_it_made(run: Synthesis, tmp_path: Path) -> None:
    done = refed("share", run.run_dir, "--out", tmp_path / "out")
    assert done.exit_code == 0 and f"{SIZE} rows in" in done.stdout and "refed push" in done.stdout
    assert "no license is named" in done.stderr and "--reference-license" in done.stderr

"""What is in the folder for the Hub: rows as they are, a manifest of every file, and nothing private."""

from __future__ import annotations

import base64
import gzip
import json
import re
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from refed_dspy.plugins.share.croissant import FILE as CROISSANT
from refed_dspy.plugins.share.manifest import FILE, files_in, hash_file, name_digest, read_manifest
from refed_dspy.plugins.share.secrets import PRIVATE
from refed_dspy.plugins.share.share import share
from refed_dspy.runs.result import Synthesis
from tests.plugins.share.conftest import FILTERED_SIZE, contents_of, copy_run
from tests.support.said import Said

HOST = "llm.corp.internal"
OWN_DETAIL = "mine: as it is"


@pytest.fixture
def private(filtered_run: Synthesis, tmp_path: Path) -> Path:
    """The run as if a private endpoint had made it, from references in a file of somebody's folder."""
    model = "hosted_vllm//home/mary.smith/models/big"
    source = "json_set(record, '$.source', '/home/mary.smith/secret plans/refs.jsonl row ' || (position + 1))"
    return copy_run(
        filtered_run,
        tmp_path / "private",
        f"UPDATE answers SET endpoint = 'https://{HOST}:8443/v1/tenant-7', sum = NULL",
        f"UPDATE calls SET endpoint = 'https://{HOST}:8443/v1/tenant-7', model = '{model}'",
        f"UPDATE refs SET record = {source}, sum = NULL",
        f"UPDATE meta SET sum = NULL, value = json_set(value, '$.teacher[0].model', '{model}') WHERE name = 'settings'",
    )


def test_the_library_loads_the_rows_from_the_folder(
    filtered_run: Synthesis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refed_dspy.plugins.share.share.SHARD_ROWS", 4)
    made = share(filtered_run.run_dir, tmp_path / "out", dropped=True)
    rows = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    private = {"endpoint", "response_endpoint", "instruction_endpoint", "reference_source"}
    kept = [{name: value for name, value in row.items() if name not in private} for row in rows.to_list()]
    assert kept == [{n: v for n, v in row.items() if n not in private} for row in filtered_run.samples.rows()]
    dropped = datasets.load_dataset(str(tmp_path / "out"), "dropped", split="train", cache_dir=str(tmp_path / "cache"))
    assert dropped.to_list() == list(filtered_run.dropped())
    assert (made.rows, made.dropped) == (FILTERED_SIZE, len(dropped)) and len(dropped) > 0


def test_shards_end_by_rows_and_by_bytes_and_are_matched_by_their_number(
    filtered_run: Synthesis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, most_rows, most_bytes, rows in (("rows", 4, 10**9, [4, 4, 1]), ("bytes", 2, 1, [2, 2, 2, 2, 1])):
        monkeypatch.setattr("refed_dspy.plugins.share.share.SHARD_ROWS", most_rows)
        monkeypatch.setattr("refed_dspy.plugins.share.share.SHARD_BYTES", most_bytes)
        share(filtered_run.run_dir, tmp_path / name)
        files = [f"train-{at:05d}-of-{len(rows):05d}.parquet" for at in range(len(rows))]
        assert sorted(path.name for path in (tmp_path / name / "data").iterdir()) == files
        assert [pq.read_table(tmp_path / name / "data" / file).num_rows for file in files] == rows
        card = DatasetCard.load(tmp_path / name / "README.md")
        path = f"data/train-*-of-{len(rows):05d}.parquet"
        assert card.data.configs[0]["data_files"] == [{"split": "train", "path": path}]


def test_the_manifest_lists_every_file_as_it_is(filtered_run: Synthesis, tmp_path: Path) -> None:
    made = share(filtered_run.run_dir, tmp_path / "out")
    listed = {file.path: (file.bytes, file.sha256) for file in read_manifest(tmp_path / "out").files}
    assert set(listed) | {FILE} == files_in(tmp_path / "out") == {file.path for file in made.files}
    for path, entry in listed.items():
        file = hash_file(tmp_path / "out", path)
        assert (file.bytes, file.sha256) == entry


def test_the_same_run_gives_the_same_bytes(filtered_run: Synthesis, tmp_path: Path) -> None:
    for name in ("a", "b"):
        share(filtered_run.run_dir, tmp_path / name, name="set", dropped=True)
    assert contents_of(tmp_path / "a") == contents_of(tmp_path / "b")


def test_nothing_private_is_published(private: Path, tmp_path: Path) -> None:
    share(private, tmp_path / "out", dropped=True)
    tables = [pq.read_table(path).to_pylist() for path in (tmp_path / "out").rglob("*.parquet")]
    card = (tmp_path / "out" / "README.md").read_text()
    described = (tmp_path / "out" / CROISSANT).read_text()
    everything = card + json.dumps(tables) + (tmp_path / "out" / FILE).read_text() + described
    for secret in (HOST, "8443", "tenant", "mary.smith", "secret plans", "/home", str(tmp_path), str(private)):
        assert secret not in everything, secret
    assert PRIVATE in described and PRIVATE in card and "`refs.jsonl`" in card and "`big`" in card
    row = next(row for table in tables for row in table if "endpoint" in row)
    assert (row["endpoint"], row["teacher"]) == (PRIVATE, "big")
    assert row["reference_source"].startswith("refs.jsonl")


def test_nothing_private_is_on_the_page_either(said: Said, private: Path, tmp_path: Path) -> None:
    made = share(private, tmp_path / "out", report=True, name=(name := "the set"))
    page = (tmp_path / "out" / "report.html").read_text()
    packed_rows = re.search(r'id="rows">\s*([A-Za-z0-9+/=]+)\s*</script>', page)
    assert packed_rows
    said(made.notes[-1])
    rows = gzip.decompress(base64.b64decode(packed_rows[1])).decode()
    shown = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL) + rows
    for secret in (HOST, "8443", "tenant", "mary.smith", "secret plans", "/home", str(tmp_path)):
        assert secret not in shown, secret
    assert PRIVATE in shown and "refs.jsonl" in rows and name in page
    assert len(json.loads(rows)["columns"]["instruction"]) >= made.rows


@pytest.mark.parametrize("reason", ["judge failed", "judge abstained"])
def test_of_a_judge_s_failure_only_the_kind_is_published(filtered_run: Synthesis, tmp_path: Path, reason: str) -> None:
    """A server's error made it fail (in 0.2.0 it abstained); a custom filter decided on the other rows."""
    detail = f"unfit: HTTP 400 at https://{HOST}/v1 for /home/mary.smith/models/big: too long"
    row = "(SELECT min(instruction) FROM decisions WHERE NOT kept)"
    run = copy_run(
        filtered_run,
        tmp_path / "unjudged",
        f"UPDATE decisions SET detail = '{OWN_DETAIL}' WHERE NOT kept",
        f"UPDATE decisions SET reason = '{reason}', detail = '{detail}' WHERE instruction = {row}",
    )
    share(run, tmp_path / "out", dropped=True)
    rows = [row for path in (tmp_path / "out" / "dropped").iterdir() for row in pq.read_table(path).to_pylist()]
    decisions = sorted((row["reason"], row["detail"]) for row in rows)
    assert decisions[0] == (reason, "unfit") and {detail for _, detail in decisions[1:]} == {OWN_DETAIL}


def test_the_variables_of_keys_are_listed_by_their_digests(filtered_run: Synthesis, tmp_path: Path) -> None:
    def config(name: str) -> str:
        return json.dumps({"model": "m/m", "config": {"api_key_env": name}, "endpoint": "e", "weight": 1})

    folder = copy_run(
        filtered_run,
        tmp_path / "run",
        f"""UPDATE meta SET sum = NULL,
        value = json_set(value, '$.teacher', json('[{config("CORP_LLM")}, {config("POOL_TWO")}]'),
        '$.judge', json('{config("ACME_J")}')) WHERE name = 'settings'""",
    )
    share(folder, tmp_path / "out")
    listed = read_manifest(tmp_path / "out").key_variables
    assert listed == {name_digest(name) for name in ("CORP_LLM", "ACME_J", "POOL_TWO")}
    assert not [text for text in contents_of(tmp_path / "out").values() if b"CORP_LLM" in text or b"ACME_J" in text]

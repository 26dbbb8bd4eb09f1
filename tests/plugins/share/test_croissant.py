"""croissant.json: read by the standard's own library without an error, with the rows as Parquet has them; and what it
says of how the rows were made is what is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlcroissant
import pyarrow.parquet as pq
import pytest

import refed_dspy
from refed_dspy.ledger.digest import ledger_digest
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.croissant import CONFORMS_TO, FILE, ledger_name
from refed_dspy.plugins.share.share import share
from refed_dspy.runs.result import Synthesis
from tests.plugins.share.conftest import GPT
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

REQUIRED = (
    "rai:dataLimitations", "rai:dataBiases", "rai:personalSensitiveInformation", "rai:dataUseCases",
    "rai:dataSocialImpact", "prov:wasDerivedFrom",
)  # fmt: skip
"""What the data track of NeurIPS 2026 asks for, of any data."""
UNKNOWN = ("datePublished", "license", "citeAs")
"""What may not be known, and the library would rather have."""
NESTED = [
    {
        "instruction": f"Say {n}.", "response": "word " * n, "a column/with #signs?": n, "score": n / 2, "good": n > 2,
        "none": None, "words": [["a"], ["b", "c"]], "turns": [{"from": "human", "the value": "x"}] * n,
        "of": {"who": {"name": "N"}},
    }
    for n in range(1, 5)
]  # fmt: skip


def described(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    assert found["conformsTo"] == CONFORMS_TO and set(REQUIRED) <= found.keys()
    return found


def records(folder: Path, config: str = "default") -> list[dict[str, Any]]:
    """The rows as mlcroissant reads them, by column. Fails where it finds an error, or misses what could be known."""
    dataset = mlcroissant.Dataset(jsonld=folder / FILE)
    issues = dataset.metadata.issues
    assert not issues.errors and not [each for each in issues.warnings if not any(map(each.__contains__, UNKNOWN))]
    return [plain(row) for row in dataset.records(config)]


def plain(value: Any) -> Any:
    """A record with the names of columns, and texts as such."""
    if isinstance(value, dict):
        return {name.rpartition("/")[2]: plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value


def in_parquet(folder: Path, config: str = "data") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / config).to_pylist()
    return rows


def test_a_run_s_rows_are_read_as_they_are(
    filtered_run: Synthesis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several files, with the dropped rows, and with parts of columns."""
    monkeypatch.setattr("refed_dspy.plugins.share.share.SHARD_ROWS", 4)
    made = share(filtered_run.run_dir, tmp_path / "out", dropped=True, license="cc-by-4.0")
    assert records(made.folder) == in_parquet(made.folder)
    assert records(made.folder, "dropped") == in_parquet(made.folder, "dropped")
    files = {each["@id"]: each.get("sha256") for each in described(made.folder)["distribution"]}
    listed = {file.path: file.sha256 for file in made.files if file.path.endswith(".parquet")}
    assert len(listed) == 6 and files == {**listed, "files-of-default": None, "files-of-dropped": None}


def test_it_says_how_a_run_made_them(said: Said, filtered_run: Synthesis, tmp_path: Path) -> None:
    made = share(filtered_run.run_dir, tmp_path / "out", license="cc-by-4.0", reference_license="CC0")
    found = described(made.folder)
    with Ledger.read(filtered_run.run_dir) as ledger:
        assert made.ledgers == [ledger_digest(ledger)]
    name = ledger_name(made.ledgers[0])
    assert name in [each.get("@id") for each in found["prov:wasDerivedFrom"]]
    assert made.ledgers[0] in (made.folder / "README.md").read_text()
    assert found["dateCreated"] in found["rai:dataCollectionTimeframe"]
    told = {name: value for name, value in found.items() if name.startswith(("rai:", "prov:", "license", "descri"))}
    del told["rai:dataCollectionTimeframe"]
    said(json.loads(json.dumps(told).replace(name, "LEDGER")))


def test_a_judge_and_a_later_filtering_are_told(tmp_path: Path) -> None:
    run = refed_dspy.synthesize(
        None, references(2), size=4, teacher=fake_lm(Writer(), GPT), judge="simulated", filters=["judge"],
        run_dir=tmp_path / "run",
    )  # fmt: skip
    kept = refed_dspy.filter_data(run.run_dir, [{"random": {"keep": 2}}], out=tmp_path / "kept")
    made = share(kept.out, tmp_path / "out")
    found = described(made.folder)
    assert records(made.folder) == in_parquet(made.folder) and len(in_parquet(made.folder)) == 2
    assert [each.partition(" ")[0] for each in found["rai:dataPreprocessingProtocol"]][-2:] == ["judge", "random"]
    assert found["rai:dataPreprocessingProtocol"][-1].endswith("kept 2, dropped 2 (2 not checked: enough were kept)")
    assert [tool for tool in found["rai:machineAnnotationTools"] if tool.startswith("pairwise_judge: simulated")]
    agents = found["prov:wasGeneratedBy"][0]["prov:wasAssociatedWith"]
    assert {agent["prov:label"] for agent in agents} == {GPT, "simulated"}
    assert found["prov:wasGeneratedBy"][1]["prov:label"].startswith("filtering of 4 rows")


def test_of_other_data_it_says_only_what_is_known(tmp_path: Path) -> None:
    """Their columns may have any name and be nested."""
    kept = refed_dspy.filter_data(NESTED, [{"length": {"min_words": 2}}], out=tmp_path / "kept")
    made = share(kept.out, tmp_path / "out")
    found, rows = described(made.folder), records(made.folder)
    assert not {"rai:hasSyntheticData", "license", "citeAs", "dateCreated", "rai:machineAnnotationTools"} & found.keys()
    assert found["prov:wasDerivedFrom"] == [{"@type": "prov:Entity", "prov:label": "data without a name"}]
    assert [row["instruction"] for row in rows] == ["Say 2.", "Say 3.", "Say 4."]
    assert [row["turns"][0]["the%20value"] for row in rows] == ["x"] * 3
    fields = {field["name"]: field for field in found["recordSet"][0]["field"]}
    assert [fields[name].get("dataType") for name in ("a column/with #signs?", "score", "good", "none", "of")] == [
        "sc:Integer", "sc:Float", "sc:Boolean", "sc:Text", None
    ]  # fmt: skip
    assert fields["words"]["arrayShape"] == "-1,-1" and fields["turns"]["isArray"]


def test_recycled_rows_are_synthetic(tmp_path: Path) -> None:
    rows = [{"instruction": "Say a word.", "response": "Word."}]
    refed_dspy.recycle(rows, teacher="simulated", out=tmp_path / "new", embeddings=False, progress=False)
    made = share(tmp_path / "new", tmp_path / "out")
    found = described(made.folder)
    assert records(made.folder) == in_parquet(made.folder)
    assert found["rai:hasSyntheticData"] and found["prov:wasDerivedFrom"][1]["@id"] == ledger_name(made.ledgers[0])
    assert found["prov:wasGeneratedBy"][0]["prov:wasAssociatedWith"][0]["prov:label"] == "simulated"


def test_a_license_of_one_s_own_is_the_file(filtered_run: Synthesis, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("Mine.")
    made = share(filtered_run.run_dir, tmp_path / "out", license=tmp_path / "own.txt")
    assert described(made.folder)["license"] == [{"@type": "sc:CreativeWork", "name": "LICENSE"}]
    records(made.folder)

"""Pages for annotators: which pairs they have, what nobody can read in them, and what is refused in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy import annotate
from refed_dspy.data.verdicts import KEY, PagesKey
from refed_dspy.errors import ConfigError, ExportError, InputError, ReferencesError, RunDirError
from refed_dspy.plugins.judge.annotate.annotate import Pages, posed_pairs
from refed_dspy.runs.result import Synthesis
from tests.support.annotators import page_data
from tests.support.said import Said

BOTH = {"plain": "plain"}
TELLING = "maker|improved|plain by|exchanged|system_"
QUALITY = "content quality"


def rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Task {i}.", "response": f"good {i}", "plain": f"bad {i}"} for i in range(count)]


def pages(tmp_path: Path, source: Any = None, name: str = "pages", **settings: Any) -> Pages:
    source = rows(40) if source is None else source
    return annotate(source, tmp_path / name, **{"pairs": 30, "columns": BOTH, **settings})


def key_of(made: Pages) -> PagesKey:
    return PagesKey.model_validate_json((made.folder / KEY).read_text(encoding="utf-8"))


def shown(page: Path) -> list[tuple[str, str, str]]:
    return [(pair["instruction"], pair["A"], pair["B"]) for pair in page_data(page)["pairs"]]


# --- the pages


def test_all_have_the_same_pairs_in_orders_and_on_sides_of_their_own(tmp_path: Path) -> None:
    made = pages(tmp_path, annotators=3)
    assert [file.name for file in made.files] == [f"annotator-{number}.html" for number in (1, 2, 3)]
    each = [shown(file) for file in made.files]
    assert len({frozenset(instruction for instruction, *_ in page) for page in each}) == 1
    assert len({tuple(instruction for instruction, *_ in page) for page in each}) == 3
    sides = [{instruction: a.startswith("good") for instruction, a, _ in page} for page in each]
    assert all(8 <= sum(side.values()) <= 22 for side in sides), "about half of them"
    assert sides[0] != sides[1] != sides[2] != sides[0]
    assert {*sides[0]} == {pair.instruction for pair in key_of(made).pairs}


def test_the_same_seed_makes_the_same_pages_and_another_one_others(tmp_path: Path) -> None:
    one, again, other = (pages(tmp_path, name=name, seed=seed) for name, seed in (("1", 5), ("2", 5), ("3", 6)))
    assert [page_data(file) for file in one.files] == [page_data(file) for file in again.files]
    assert key_of(one) == key_of(again) and key_of(one).set != key_of(other).set
    assert {pair.id for pair in key_of(one).pairs} != {pair.id for pair in key_of(other).pairs}


def test_more_annotators_leave_the_pages_of_the_first_as_they_were(tmp_path: Path) -> None:
    two, three = (pages(tmp_path, name=str(many), annotators=many) for many in (2, 3))
    assert [page_data(file) for file in three.files[:2]] == [page_data(file) for file in two.files]


def test_nothing_in_a_page_says_which_side_was_whose(said: Said, tmp_path: Path) -> None:
    made = pages(tmp_path, [{**row, "teacher": "maker/one", "response_teacher": "maker/two"} for row in rows(40)])
    said((key_of(made).pairs[0].system_a, key_of(made).pairs[0].system_b))
    for file in made.files:
        data = page_data(file)
        assert data.keys() == {"set", "annotator", "criteria", "pairs"}
        assert {frozenset(pair) for pair in data["pairs"]} == {frozenset(("id", "instruction", "A", "B"))}
        assert all(re.fullmatch("[0-9a-f]{12}", pair["id"]) for pair in data["pairs"])
        text = file.read_text(encoding="utf-8") + json.dumps(data)
        assert not re.search(TELLING, text)


def test_a_page_loads_nothing(tmp_path: Path) -> None:
    text = pages(tmp_path).files[0].read_text(encoding="utf-8").replace("&#39;", "'")
    policy = re.search('Content-Security-Policy" content="([^"]+)"', text)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules.pop("script-src").startswith("'sha256-")
    drawn = {"style-src": "'unsafe-inline'", "img-src": "data: blob:"}
    nothing = ("default-src", "base-uri", "form-action", "connect-src")
    assert rules == drawn | dict.fromkeys(nothing, "'none'")


def test_criteria_have_their_meaning(tmp_path: Path) -> None:
    made = pages(tmp_path, criteria=["content_quality", "helpfulness"], name="1")
    described = {each.name: each.description for each in key_of(made).criteria}
    assert described["helpfulness"] == "helpfulness" and described[QUALITY].startswith("accurate")
    assert page_data(made.files[0])["criteria"] == [each.model_dump() for each in key_of(made).criteria]
    told = {"content_quality": "as we told them"}
    own = pages(tmp_path, criteria=told, name="2")
    assert list(own.criteria) == list(told) and key_of(own).criteria[0].description == told["content_quality"]


def test_what_was_made_shows_in_a_notebook(said: Said, tmp_path: Path) -> None:
    said(repr(pages(tmp_path, name="p")))


# --- where the pairs are from


def test_of_a_run_the_improved_responses_beside_the_plain_ones(
    said: Said, filtered_run: Synthesis, tmp_path: Path
) -> None:
    made = pages(tmp_path, filtered_run, pairs=9, columns=None)
    samples = {sample.instruction: sample for sample in filtered_run.samples}
    for pair in key_of(made).pairs:
        sample = samples[pair.instruction]
        assert (pair.answer_a, pair.answer_b) == (sample.improved_response, sample.response)
    said({(pair.system_a, pair.system_b) for pair in key_of(made).pairs}.pop())
    assert key_of(made).source == str(filtered_run.run_dir)


def test_of_a_filtering_its_rows(tmp_path: Path) -> None:
    refed_dspy.filter_data(rows(9), [{"random": {"share": 0.5}}], out=tmp_path / "kept", columns=BOTH)
    kept = len(posed_pairs(tmp_path / "kept"))
    assert 0 < kept < 9 and len(key_of(pages(tmp_path, tmp_path / "kept", pairs=kept, columns=None)).pairs) == kept


def test_of_a_comparison_each_program_beside_the_one_it_is_against(comparison: Path, tmp_path: Path) -> None:
    systems = [(pair.system_a, pair.system_b) for pair in posed_pairs(comparison)]
    assert len(systems) == 12
    assert {*systems} == {(name, "instruction-only") for name in ("sample-level", "reference-level")}
    two = pages(tmp_path, comparison, pairs=6, columns=None, between=["reference-level", "sample-level"])
    assert {(pair.system_a, pair.system_b) for pair in key_of(two).pairs} == {("reference-level", "sample-level")}
    written = [json.loads(line) for line in (comparison / "rows.jsonl").read_text().splitlines()]
    texts = {(row["instruction"], row["program"]): row["improved_response"] for row in written}
    for pair in key_of(two).pairs:
        assert pair.answer_a == texts[pair.instruction, "reference-level"]
        assert pair.answer_b == texts[pair.instruction, "sample-level"]


def test_of_pairs_in_a_file_both_answers_whatever_was_said_of_them(said: Said, tmp_path: Path) -> None:
    panda = {"instruction": "Name it.", "input": "In Bonn.", "response1": "The Rhine.", "response2": "No."}
    bar = {"input": "Name a river.", "output_1": "The Rhine.", "output_2": "A hill.", "label": "1"}
    own = {"instruction": "Name it.", "answer_a": "x", "answer_b": "y", "system_a": "one", "system_b": "two"}
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, [panda, bar, own])), encoding="utf-8")
    first, second, third = posed_pairs(path)
    assert first.instruction.split() == f"{panda['instruction']} {panda['input']}".split()
    assert (first.answer_a, second.answer_b) == (panda["response1"], bar["output_2"])
    assert (third.system_a, third.system_b) == ("one", "two")
    with said.by(ReferencesError):
        posed_pairs([own, {"instruction": "i", "response": "r"}])


def test_what_is_the_same_or_comes_twice_is_no_pair(said: Said, tmp_path: Path) -> None:
    same, alone = {"response": "x", "plain": " x "}, {"response": "x", "plain": ""}
    data = [*rows(4), *rows(2), {"instruction": "i", **same}, {"instruction": "j", **alone}]
    assert len(posed_pairs(data, BOTH)) == 4
    with said.by(ReferencesError):
        posed_pairs([{"instruction": "i", **same}], BOTH)


def test_a_system_prompt_stands_over_its_instruction(said: Said) -> None:
    (pair,) = posed_pairs([{**rows(1)[0], "system": "Be brief."}], BOTH)
    said(pair.instruction)


# --- what is refused


UNUSABLE: list[dict[str, Any]] = [
    {"pairs": 41}, {"pairs": 0}, {"annotators": 0}, {"annotators": 2_000}, {"criteria": ["depth", "depth"]},
    {"criteria": ["content_quality", "content quality"]}, {"criteria": [" "]}, {"criteria": "depth"},
    {"between": ["a", "b"]}, {"columns": {"plani": "x"}},
]  # fmt: skip


def test_an_argument_that_cannot_be_used(said: Said, tmp_path: Path) -> None:
    for settings in UNUSABLE:
        with said.by(ConfigError) as raised:
            pages(tmp_path, **settings)
        assert "\n" not in str(raised.value) and not (tmp_path / "pages").exists()


def test_programs_that_a_comparison_lacks(said: Said, comparison: Path, tmp_path: Path) -> None:
    for between in (["reference-level", "none"], ["reference-level"], ["reference-level"] * 2):
        with said.by(ConfigError):
            pages(tmp_path, comparison, pairs=1, columns=None, between=between)


def test_a_comparison_that_has_not_ended(said: Said, comparison: Path, tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes((comparison / "ledger.sqlite").read_bytes())
    with said.by(RunDirError):
        pages(tmp_path, tmp_path, pairs=1, columns=None)


def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    for source in (tmp_path / "none.jsonl", tmp_path, "no/such/folder"):
        with pytest.raises(InputError) as caught:
            pages(tmp_path, source, columns=None)
        assert len(str(caught.value).splitlines()) == 1


def test_a_folder_with_anything_in_it_is_left_alone(said: Said, tmp_path: Path) -> None:
    made = pages(tmp_path)
    before = {path.name: path.read_bytes() for path in made.folder.iterdir()}
    with said.by(ExportError):
        pages(tmp_path, seed=9)
    assert {path.name: path.read_bytes() for path in made.folder.iterdir()} == before
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/below"):
        with pytest.raises(InputError):
            pages(tmp_path, name=name)
    (tmp_path / "empty").mkdir()
    assert pages(tmp_path, name="empty").files

"""Rows that hold a stretch of a benchmark's prompts, by a naive search and by files of every kind."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.texts import WORDS
from refed_dspy.errors import ConfigError, InputError
from refed_dspy.filters.base import Decision
from refed_dspy.filters.near_duplicates import tokens
from refed_dspy.filters.overlap import Contamination, Overlap, OverlappingRow, overlap
from refed_dspy.records import DataRow
from tests.support.said import Said

PROMPT = "A train leaves the station at nine and travels at sixty miles an hour; how far has it come by noon?"


def row(instruction: str, response: str = "") -> DataRow:
    return DataRow(1, instruction, response)


def test_thirteen_words_of_a_prompt_drop_a_row_and_twelve_do_not(said: Said) -> None:
    filter_ = Overlap([PROMPT])
    words = PROMPT.split()
    decision = filter_.check(row("Solve: " + " ".join(words[3:16]).upper().replace(";", " --")))
    assert (decision.kept, decision.reason) == (False, "overlap")
    said(decision.detail)
    assert decision.score == pytest.approx(1 / 2)
    assert filter_.check(row("Solve: " + " ".join(words[3:15]))) == Decision(True, score=0.0)
    assert filter_.check(row(PROMPT)).score == 1.0


def test_it_decides_as_a_plain_search_for_shared_runs_would() -> None:
    rng = random.Random(0)
    prompts = [" ".join(rng.choices(WORDS[:3], k=rng.randint(5, 10))) for _ in range(30)]
    n, dropped = 6, 0
    filter_ = Overlap(prompts, n=n)
    for _ in range(300):
        words = rng.choices(WORDS[:3], k=rng.randint(1, 15))
        grams = {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}
        near = False
        for prompt in prompts:
            theirs = prompt.split()
            whole = len(theirs) < n and f" {prompt} " in f" {' '.join(words)} "
            near = near or whole or any(tuple(theirs[at : at + n]) in grams for at in range(len(theirs) - n + 1))
        assert filter_.check(row(" ".join(words))).kept is not near
        dropped += near
    assert 30 < dropped < 270


def test_the_score_is_the_share_of_the_row_s_runs() -> None:
    filter_ = Overlap(["one two three four five six seven"], n=5)
    assert filter_.check(row("zero one two three four five six")).score == pytest.approx(2 / 3)


def test_short_prompts_are_looked_for_as_a_whole_and_shorter_ones_as_the_whole_instruction() -> None:
    filter_ = Overlap(["Who wrote the novel Emma?", "Name a colour.", "", "?!"])
    assert filter_.prompts == 1
    assert not filter_.check(row("Tell me: who wrote the novel “Emma”, and when?")).kept
    assert filter_.check(row("Who wrote the novel, Emma?")).score == 1.0
    assert filter_.check(row("Who wrote the novel Persuasion?")).kept
    assert filter_.check(row("Name a colour and a fish.")).kept
    assert filter_.check(row("name a colour")) == Decision(False, "overlap", 1.0, "name a colour")
    assert Overlap([PROMPT, "Yes."], of="both").check(row("Is it?", "Yes.")).kept


def test_scripts_without_spaces_take_twice_as_many_characters() -> None:
    prompt = "请用三句话解释为什么天空是蓝色的，并举一个日常生活中的例子来说明光的散射现象。"
    characters = tokens(prompt)
    filter_ = Overlap([prompt])
    assert not filter_.check(row("问题：" + "".join(characters[2:28]))).kept
    assert filter_.check(row("问题：" + "".join(characters[2:27]))).kept
    assert Overlap(["天空为什么是蓝色的呢"]).prompts == 1  # ten characters: five words, as a whole
    assert not Overlap(["天空为什么是蓝色的呢"]).check(row("请问，天空为什么是蓝色的呢？")).kept
    mixed = Overlap(
        ["Translate the sentence 天空是蓝色的 into plain English and explain each of its words to a young beginner"]
    )
    assert not mixed.check(row("into plain English and explain each of its words to a young beginner, please")).kept


def test_the_response_is_looked_at_if_asked_for() -> None:
    contaminated = row("Give me a puzzle.", PROMPT)
    only, both = Overlap([PROMPT]), Overlap([PROMPT], of="both")
    assert only.of_instruction and not both.of_instruction
    assert only.check(contaminated).kept and not both.check(contaminated).kept
    half = PROMPT.split()
    assert both.check(row(" ".join(half[:8]), " ".join(half[8:16]))).kept  # no run goes across


def test_files_of_every_kind(tmp_path: Path) -> None:
    rows = [{"id": 1, "question": PROMPT}, {"id": 2, "question": "Who wrote the novel Emma?"}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(fields) + "\n" for fields in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "b.csv").write_text(
        "id,question\n" + "".join(f'{fields["id"]},"{fields["question"]}"\n' for fields in rows)
    )
    (tmp_path / "b.txt").write_text(f"\ufeff{PROMPT}\r\n\r\nWho wrote the novel Emma?\n", encoding="utf-8")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    for kind in ("jsonl", "json", "csv", "txt", "parquet"):
        filter_ = Overlap(tmp_path / f"b.{kind}")
        assert filter_.prompts == 2, kind
        assert not filter_.check(row(PROMPT)).kept
        assert not filter_.check(row("Who wrote the novel Emma?")).kept


def test_columns(said: Said, tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    turns = ["Describe the longest river of the world.", "Now tell it as a story for children."]
    file.write_text(json.dumps([{"turns": turns, "gold": PROMPT, "prompt": None}, {"turns": [], "prompt": 7}]))
    assert Overlap(file).prompts == 2
    assert not Overlap(file).check(row(turns[1])).kept
    assert Overlap(file).check(row(PROMPT)).kept
    assert not Overlap(file, columns=["gold"]).check(row(PROMPT)).kept
    with said.by(InputError):
        Overlap(file, columns=["asked", "that"])
    file.write_text(json.dumps([{"gold": PROMPT}]))
    with said.by(InputError):
        Overlap(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.jsonl", None, "no such file"),
        ("none.txt", None, "no such file"),
        ("x.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("x.txt", b"Hi there\n", "no prompt of 5 words or more"),
        ("x.jsonl", b"{broken", "line 1: broken JSON"),
        ("x.bin", b"x", "unknown file type"),
    ],
)
def test_files_that_cannot_be_used_are_one_line(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        Overlap(file)
    assert "\n" not in str(caught.value)


def test_no_column_at_all_is_refused(said: Said) -> None:
    with said.by(ConfigError):
        Overlap([PROMPT], columns=[])


def test_hostile_texts(said: Said) -> None:
    filter_ = Overlap([PROMPT, "x " * 50_000])
    for text in ("", "?!", "\x00\n", "y" * 100_000, "la " * 30_000):
        assert filter_.check(row(text)).kept
    assert filter_.check(row("x " * 13)).score == 1.0
    filter_.remember(row(PROMPT))
    with said.by(InputError):
        Overlap([])


def test_which_rows_overlap_with_which_prompts() -> None:
    prompts = ["Name a colour.", "Who wrote the novel Emma?", PROMPT, f"{PROMPT} And by one?"]
    texts = ["Name a fish.", f"Solve: {PROMPT}", "Name a colour", "Who wrote the novel “Emma”, and when?"]
    rows = [DataRow(number, text, PROMPT) for number, text in enumerate(texts, start=3)]
    found = overlap(iter(rows), prompts)
    shared = " ".join(tokens(PROMPT)[:13])
    assert found.first == [
        OverlappingRow(4, texts[1], PROMPT, shared),
        OverlappingRow(5, texts[2], prompts[0], "name a colour"),
        OverlappingRow(6, texts[3], prompts[1], "who wrote the novel emma"),
    ]
    assert (found.rows, found.count, found.share) == (4, 3, 0.75)
    assert found.lines()[:2] == ["3 of 4 rows (75.00%) overlap with the benchmark's prompts", f"  row 4: {shared}"]
    assert overlap(rows, prompts, most=1) == Contamination(4, 3, found.first[:1])
    assert [each.kept for each in map(Overlap(prompts).check, rows)] == [True, False, False, False]


def test_nothing_that_overlaps(said: Said) -> None:
    assert overlap([], [PROMPT]) == Contamination(0, 0, [])
    (told,) = overlap([row("Name a fish.")], [PROMPT]).lines()
    said(told)
    with said.by(InputError):
        overlap([row("Name a fish.")], ["Hi"])

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
EMMA = "Who wrote the novel Emma?"


def row(instruction: str, response: str = "") -> DataRow:
    return DataRow(1, instruction, response)


def test_thirteen_words_of_a_prompt_drop_a_row_and_twelve_do_not() -> None:
    filter_, words = Overlap([PROMPT]), PROMPT.split()
    shared = " ".join(words[3:16])
    decision = filter_.check(row(f"Solve: {shared.upper().replace(';', ' --')}"))
    assert (decision.kept, decision.reason, decision.detail) == (False, "overlap", shared.replace(";", ""))
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
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven"]
    filter_ = Overlap([" ".join(numbers[1:])], n=5)
    assert filter_.check(row(" ".join(numbers[:-1]))).score == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Tell me: who wrote the novel “Emma”, and when?", False),
        ("Who wrote the novel, Emma?", False),
        ("Who wrote the novel Persuasion?", True),
        ("Name a colour and a fish.", True),
        ("name a colour", False),
    ],
)
def test_short_prompts_are_looked_for_as_a_whole_and_shorter_ones_as_the_whole_instruction(
    text: str, kept: bool
) -> None:
    filter_ = Overlap([EMMA, "Name a colour.", "", "?!"])
    assert filter_.prompts == 1 and filter_.check(row(text)).kept == kept
    assert Overlap([PROMPT, "Yes."], of="both").check(row("So?", "Yes.")).kept


def test_scripts_without_spaces_take_twice_as_many_characters() -> None:
    prompt, short = (
        "请用三句话解释为什么天空是蓝色的，并举一个日常生活中的例子来说明光的散射现象。",
        "天空为什么是蓝色的呢",
    )
    characters = tokens(prompt)
    kept = [Overlap([prompt]).check(row("问题：" + "".join(characters[2:end]))).kept for end in (28, 27)]
    assert kept == [False, True]
    assert Overlap([short]).prompts == 1  # ten characters: five words, as a whole
    assert not Overlap([short]).check(row(f"请问，{short}？")).kept
    rest = "into plain English and explain each of its words to a young beginner"
    mixed = Overlap([f"Translate the sentence 天空是蓝色的 {rest}"])
    assert not mixed.check(row(f"{rest}, please")).kept


def test_the_response_is_looked_at_if_asked_for() -> None:
    contaminated = row("Give me a puzzle.", PROMPT)
    only, both = Overlap([PROMPT]), Overlap([PROMPT], of="both")
    assert only.of_instruction and not both.of_instruction
    assert only.check(contaminated).kept and not both.check(contaminated).kept
    half = PROMPT.split()
    assert both.check(row(" ".join(half[:8]), " ".join(half[8:16]))).kept  # no run goes across


def test_files_of_every_kind(tmp_path: Path) -> None:
    rows = [{"id": 1, "question": PROMPT}, {"id": 2, "question": EMMA}]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(fields) + "\n" for fields in rows))
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "b.csv").write_text(
        "id,question\n" + "".join(f'{fields["id"]},"{fields["question"]}"\n' for fields in rows)
    )
    (tmp_path / "b.txt").write_text(f"\ufeff{PROMPT}\r\n\r\n{EMMA}\n", encoding="utf-8")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    for kind in ("jsonl", "json", "csv", "txt", "parquet"):
        filter_ = Overlap(tmp_path / f"b.{kind}")
        assert filter_.prompts == 2, kind
        assert not filter_.check(row(PROMPT)).kept and not filter_.check(row(EMMA)).kept


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
    ("name", "content"),
    [
        ("none.jsonl", None),
        ("none.txt", None),
        ("x.txt", b"\xff\xfe\x00"),
        ("short.txt", b"Hi there\n"),
        ("x.jsonl", b"{broken"),
        ("x.bin", b"x"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_cannot_be_used_are_one_line(said: Said, tmp_path: Path, name: str, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with said.by(InputError) as caught:
        Overlap(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_no_column_and_no_prompt_are_refused(said: Said) -> None:
    with said.by(ConfigError):
        Overlap([PROMPT], columns=[])
    with said.by(InputError):
        Overlap([])
    with said.by(InputError):
        overlap([row("Name a fish.")], ["Hi"])


def test_hostile_texts() -> None:
    filter_ = Overlap([PROMPT, "x " * 50_000])
    for text in ("", "?!", "\x00\n", "y" * 100_000, "la " * 30_000):
        assert filter_.check(row(text)).kept
    assert filter_.check(row("x " * 13)).score == 1.0
    filter_.remember(row(PROMPT))


def test_which_rows_overlap_with_which_prompts(said: Said) -> None:
    prompts = ["Name a colour.", EMMA, PROMPT, f"{PROMPT} And by one?"]
    texts = ["Name a fish.", f"Solve: {PROMPT}", "Name a colour", "Who wrote the novel “Emma”, and when?"]
    rows = [DataRow(number, text, PROMPT) for number, text in enumerate(texts, start=3)]
    found = overlap(iter(rows), prompts)
    shared = [" ".join(tokens(PROMPT)[:13]), " ".join(tokens(prompts[0])), " ".join(tokens(EMMA))]
    assert found.first == [
        OverlappingRow(4, texts[1], PROMPT, shared[0]),
        OverlappingRow(5, texts[2], prompts[0], shared[1]),
        OverlappingRow(6, texts[3], EMMA, shared[2]),
    ]
    assert (found.rows, found.count, found.share) == (4, 3, 0.75)
    said(found.lines()[:2])
    assert overlap(rows, prompts, most=1) == Contamination(4, 3, found.first[:1])
    assert [each.kept for each in map(Overlap(prompts).check, rows)] == [True, False, False, False]


def test_nothing_that_overlaps(said: Said) -> None:
    assert overlap([], [PROMPT]) == Contamination(0, 0, [])
    (told,) = overlap([row("Name a fish.")], [PROMPT]).lines()
    said(told)

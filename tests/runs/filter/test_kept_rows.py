"""Which rows filters keep, what their files look like, that no verdict is paid twice, and what a filtering refuses."""

from __future__ import annotations

import datetime
import decimal
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.data.dataset import load_dataset
from refed_dspy.errors import ExportError, InputError, RefedError, RunDirError, RunStopped
from refed_dspy.runs.filter.result import Filtering
from tests.runs.filter.helpers import (
    PAIRS,
    WON,
    NumberJudge,
    adds_up,
    filtered,
    http,
    lines,
    number,
    numbers,
    outputs,
    pair,
)
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


def test_rows_stay_as_they_stood(tmp_path: Path) -> None:
    table = tmp_path / "data.parquet"
    rows = [
        {"instruction": f" Schreib {n} 漢字 ", "output": f"r{n}", "day": datetime.date(2024, 2, n + 1), "raw": b"\xff",
         "nested": {"a": [1, None], "b": {"ü": "ü"}}, "none": None, "share": float("nan"), "whole": 2**53 + 1}
        for n in range(3)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), table)
    before = table.read_bytes()
    made = filtered(tmp_path / "out", [{"length": {"min_characters": 1}}], table)
    for row, original in zip(lines(made.out / "kept.jsonl"), rows, strict=True):
        remarks = row.pop("refed_filters")
        assert row == {**original, "day": str(original["day"]), "raw": "/w==", "share": None}
        assert remarks["row"] == rows.index(original) + 1
    assert table.read_bytes() == before


def test_rows_of_numpy_and_other_types_are_json(tmp_path: Path) -> None:
    odd = {"n": np.int64(7), "f": np.float32(0.5), "a": np.array([[1, 2]]), "d": decimal.Decimal("1.50"), 3: {"x", "y"},
           "t": datetime.datetime(2024, 1, 2, 3), "inf": float("inf"), "tuple": (1, (2,))}  # fmt: skip
    made = filtered(tmp_path / "out", ["refusals"], [{**PAIRS[0], **odd}])
    row = json.loads((made.out / "kept.jsonl").read_text(), parse_constant=lambda _: pytest.fail("no JSON"))
    assert row["n"] == 7 and row["f"] == 0.5 and row["a"] == [[1, 2]] and row["d"] == "1.50" and row["3"] == ["x", "y"]
    assert row["t"] == "2024-01-02T03:00:00" and row["inf"] is None and row["tuple"] == [1, [2]]


def test_remarks_of_an_earlier_filtering_stay(tmp_path: Path) -> None:
    first = filtered(tmp_path / "a", ["judge"], judge=NumberJudge())
    again = filtered(tmp_path / "b", ["refusals"], first.out / "kept.jsonl")
    rows = lines(again.out / "kept.jsonl")
    assert [row["refed_filters"]["before"]["row"] for row in rows] == WON
    assert rows[0]["refed_filters"]["row"] == 1


def test_rows_that_are_no_pair_are_dropped_with_their_reason(said: Said, tmp_path: Path) -> None:
    table = tmp_path / "d.csv"
    table.write_text("instruction,response,note\nSay a,b,c,d\nOne,two,\nOnly this\n")
    made = filtered(tmp_path / "out", ["refusals"], table)
    adds_up(made, 3)
    dropped = [row["refed_filters"] for row in lines(made.out / "dropped.jsonl")]
    said([(remarks["row"], remarks["filter"], remarks["reason"]) for remarks in dropped])
    assert made.lines()[1].split()[:4] == ["read", "3", "1", "2"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rouge_keeps_the_first_in_the_seeds_order(tmp_path: Path, seed: int) -> None:
    rows = [pair(3, instruction=f"Tell {name} a story.") for name in "Ann Bob Cid Dan Eve Fay Gus".split()]  # noqa: SIM905
    made = filtered(tmp_path / "out", [{"rouge": {"threshold": 0.7, "keep": 1}}], rows, seed=seed)
    assert numbers(lines(made.out / "kept.jsonl")) == [random.Random(seed).sample(range(1, 8), 7)[0]]
    adds_up(made, 7)


def test_random_keeps_so_many_and_other_ones_by_another_seed(tmp_path: Path) -> None:
    kept = [
        numbers(lines(filtered(tmp_path / str(n), [{"random": {"keep": 9}}], seed=seed).out / "kept.jsonl"))
        for n, seed in enumerate([0, 0, 1])
    ]
    assert len(kept[0]) == 9 and kept[0] == kept[1] != kept[2]


def test_a_judge_keeps_the_best_and_the_seed_decides_among_equals(tmp_path: Path) -> None:
    judge, chosen = NumberJudge(), list[list[int]]()
    for seed in (0, 0, 1, 2):
        made = filtered(tmp_path / "out", [{"judge": {"keep": 12}}], judge=judge, seed=seed, force=True)
        rows = lines(made.out / "kept.jsonl")
        scores = [row["refed_filters"]["scores"]["judge"] for row in rows]
        assert len(rows) == 12 and sorted(scores) == [1.0] * 4 + [2.0] * 8, "all that are much better, then some others"
        chosen.append(numbers(rows))
        adds_up(made, 40)
    assert chosen[0] == chosen[1] and len({tuple(rows) for rows in chosen}) == 3
    assert len(judge.requests) == 80, "two questions a row, asked once"


def test_rubric_keeps_the_best_grades(said: Said, tmp_path: Path) -> None:
    rows = [row for row in PAIRS if number(row["improved_response"])]
    made = filtered(tmp_path / "out", [{"rubric": {"keep": 10, "at_least": 2}}], rows, NumberJudge())
    grades = [row["refed_filters"]["scores"]["rubric"] for row in lines(made.out / "kept.jsonl")]
    assert sorted(grades) == [3] * 2 + [4] * 8
    reasons = json.loads((made.out / "funnel.json").read_text())[0]["reasons"]
    said(reasons)


def test_fewer_than_keep_is_reported(said: Said, tmp_path: Path) -> None:
    made = filtered(tmp_path / "out", [{"judge": {"keep": 4000}}], judge=NumberJudge())
    assert numbers(lines(made.out / "kept.jsonl")) == WON
    said(made.lines())


# --- no verdict is paid for twice


def test_what_is_written_is_the_same_in_any_folder_whichever_call_ended_first(tmp_path: Path) -> None:
    filters = ["refusals", {"judge": {"keep": 3}}, {"rubric": {"at_least": 3}}]
    made = [outputs(filtered(tmp_path / name, filters, PAIRS[:10], NumberJudge()).out) for name in ("out", "other")]
    made[0]["funnel.txt"] = made[0]["funnel.txt"].replace(b"/out/", b"/other/")
    assert made[0] == made[1] and len(made[0]) == 5


def test_other_thresholds_and_filters_in_the_same_folder_pay_for_what_is_new_only(tmp_path: Path) -> None:
    judge = NumberJudge()
    kept = []
    for filters in (
        ["judge"],
        [{"judge": {"margin": 1.5}}],
        [{"length": {"max_words": 2}}, "judge"],
        ["judge", "rubric"],
    ):
        made = filtered(tmp_path / "out", filters, judge=judge, force=True)
        adds_up(made, 40)
        kept.append(len(made.filtered.kept))
    assert kept == [16, 8, 0, 8]
    assert len(judge.requests) == 80 + 16, "the rubric is new, and asked about what was left"


def test_a_corrected_row_is_asked_about_and_no_other(said: Said, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    judge = NumberJudge()
    for rows in (PAIRS, [{**PAIRS[0], "improved_response": "Quality 4."}, *PAIRS[1:], pair(3)]):
        data.write_text("\n".join(map(json.dumps, rows)))
        made = filtered(tmp_path / "out", ["judge"], data, judge)
    adds_up(made, 41)
    assert len(judge.requests) == 80 + 4 and numbers(lines(made.out / "kept.jsonl")) == [1, *WON, 41]
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text())
    with said.by(RunDirError):
        filtered(tmp_path / "out", ["judge"], other, judge)


def test_without_out_the_folder_goes_by_rows_and_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    judge = NumberJudge()
    paid = [refed_dspy.filter_data(PAIRS, [{"judge": {"margin": m}}], judge=fake_lm(judge)).out for m in (0, 1)]
    assert paid[0] == paid[1] and len(judge.requests) == 80
    free = [refed_dspy.filter_data(PAIRS, [{"rouge": {"threshold": t}}]).out for t in (0.5, 0.6)]
    assert len({*paid, *free}) == 3


def test_two_filters_of_one_kind(tmp_path: Path) -> None:
    judge = NumberJudge()
    filters = ["judge", {"judge": {"margin": 1.5}}, {"judge": {"criterion": "content_quality"}}]
    made = filtered(tmp_path / "out", filters, judge=judge)
    adds_up(made, 40)
    assert [(entry["filter"], entry["in"], entry["kept"]) for entry in made.funnel()] == [
        ("judge", 40, 16), ("judge 2", 16, 8), ("judge 3", 8, 8),
    ]  # fmt: skip
    assert len(judge.requests) == 80 + 16, "the second asks the very same questions, the third others"
    assert set(lines(made.out / "kept.jsonl")[0]["refed_filters"]["scores"]) == {"judge", "judge 2", "judge 3"}


def test_at_a_cap_what_is_decided_stands_and_the_rest_is_undecided(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    def go(**caps: Any) -> Filtering:
        filters = [{"length": {"min_words": 2}}, "judge", {"rubric": {"at_least": 2}}]
        made = refed_dspy.filter_data(PAIRS[:20], filters, judge=http(server), out=tmp_path / "out", **caps)
        adds_up(made, 20)
        return made

    made = go(max_calls=15)
    assert made.stopped == "max_calls" and len(made.filtered.undecided) >= 10 and not made.problem
    said((made.state, made.lines()[-2]))
    done = go(max_calls=1000)
    assert not done.stopped and done.state == "done" and not (tmp_path / "out" / "undecided.jsonl").exists()


# --- what is refused or reported: bad filters, files and folders that must stay, filters that keep nothing


@pytest.mark.parametrize(
    "filters",
    [
        [],
        ["judges"],
        [{"rouge": {"treshold": 0.7}}],
        [{"rouge": {}, "judge": {}}],
        ["random"],
        [{"rubric": {"criterion": "grace"}}],
        [{"rubric": {"criterion": "unlike_its_siblings"}}],
        [{"judge": {"description": "how graceful it is"}}],
        ["judge"],
        [{"overlap": {"against": "no/such.jsonl"}}],
        [7],
    ],
)
def test_bad_filters_are_reported_in_a_line(said: Said, tmp_path: Path, filters: list[Any]) -> None:
    with said.by(InputError) as raised:
        filtered(tmp_path / "out", filters)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


def test_a_file_of_somebody_else_s_is_never_written_over(said: Said, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept.jsonl").write_text("precious")
    with said.by(ExportError):
        filtered(tmp_path / "out", ["refusals"])
    assert (tmp_path / "out" / "kept.jsonl").read_text() == "precious"
    filtered(tmp_path / "other", ["refusals"])
    filtered(tmp_path / "other", [{"length": {"min_words": 1}}], force=True)  # its own files may be


def test_another_filtering_in_a_folder_is_refused_by_name_and_the_same_goes_on(said: Said, tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out"
    data.write_text("\n".join(map(json.dumps, PAIRS)))
    filtered(out, ["refusals"], data)
    data.write_text("\n".join(map(json.dumps, PAIRS[:7])))
    assert len(filtered(out, ["refusals"], data)) == 7, "the same data, changed since"
    (out / "report.html").write_text("a page")
    (tmp_path / "link.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    for filters, other, more in (
        ([{"length": {"min_words": 1}}], data, {}),
        (["refusals"], tmp_path / "link.jsonl", {}),
        (["refusals"], PAIRS, {}),
        (["refusals"], data, {"seed": 1}),
        (["refusals"], data, {"columns": {"plain": "response"}}),
    ):
        with said.by(RunDirError):
            filtered(out, filters, other, **more)
    assert len(lines(out / "kept.jsonl")) == 7 and (out / "report.html").exists()
    assert len(filtered(out, [{"random": {"keep": 3}}], data, force=True)) == 3
    assert not (out / "report.html").exists(), "it showed what was replaced"


@pytest.mark.parametrize("where", ["out/kept.jsonl", "out/dropped.jsonl", "out/undecided.jsonl"])
def test_what_is_read_is_never_written_over(said: Said, tmp_path: Path, where: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    rows = "\n".join(map(json.dumps, PAIRS))
    path.write_text(rows)
    (tmp_path / "link.jsonl").symlink_to(path)
    for source in (path, tmp_path / "link.jsonl"):
        with said.by(ExportError):
            filtered(tmp_path / "out", ["refusals"], source)
    assert path.read_text() == rows


def test_a_filter_that_keeps_nothing_is_named(said: Said, tmp_path: Path) -> None:
    judge = NumberJudge()
    filters = ["refusals", {"length": {"min_words": 90}}, "judge", "refusals"]
    made = filtered(tmp_path / "out", filters, judge=judge)
    said(made.problem)
    assert not judge.requests and made.used is None
    adds_up(made, 40)
    assert (made.out / "kept.jsonl").read_text() == ""


def test_a_folder_that_cannot_be_written(said: Said, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with said.by(RunDirError):
        filtered(tmp_path / "file", ["refusals"])
    (tmp_path / "out" / "kept.jsonl").mkdir(parents=True)
    (tmp_path / "out" / "funnel.json").write_text("[]")
    with said.by(ExportError):
        filtered(tmp_path / "out", ["refusals"])
    judge = NumberJudge()
    with said.by(RunStopped) as raised:
        filtered(tmp_path / "out", ["judge"], judge=judge)
    assert raised.value.exit_code == 1
    (tmp_path / "out" / "kept.jsonl").rmdir()
    filtered(tmp_path / "out", ["judge"], judge=judge)
    assert len(judge.requests) == 80


def test_the_folder_of_other_work_is_refused(said: Said, tmp_path: Path) -> None:
    refed_dspy.synthesize(None, references(2), size=4, teacher=fake_lm(Writer()), run_dir=tmp_path / "run", track=False)
    with said.by(RefedError):
        filtered(tmp_path / "run", ["judge"], judge=NumberJudge())
    made = filtered(tmp_path / "out", [{"random": {"keep": 3}}], tmp_path / "run")
    assert [row["sample"] for row in lines(made.out / "kept.jsonl")] == numbers(lines(made.out / "kept.jsonl"))
    assert len(load_dataset(made.out / "kept.jsonl").rows) == 3

"""A data set through its filters: what is kept, dropped and undecided, what is paid for, and what the files hold."""

from __future__ import annotations

import datetime
import decimal
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dspy.lm15 import Request
from dspy.utils.exceptions import LMServerError

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.config.teacher import TeacherConfig
from refed_dspy.data.dataset import load_dataset
from refed_dspy.errors import (
    ConfigError,
    ExportError,
    InputError,
    NoAnswer,
    RefedError,
    RunDirError,
    RunStopped,
    TeacherRefused,
)
from refed_dspy.filters.base import Decision, JudgeFilter, Step, labels
from refed_dspy.programs.judges import PairwiseJudge
from refed_dspy.programs.saved import save_program
from refed_dspy.records import DataRow
from refed_dspy.runs.filter.result import Filtering
from tests.support import ROOT
from tests.support.scripted_engine import Writer, fake_lm

_part = re.compile(r"<(\w+)>\n(.*?)\n</>", re.DOTALL).findall


class Scales(Writer):
    """A judge that weighs the first number of a text: two more is much better. It cannot tell where the text that both
    belong to says "unclear". Grades are the number."""

    def write(self, request: Request) -> str:
        shown = dict(_part(str(request.messages[-1].text)))
        if "verdict" not in self.fields(request):
            grade = "cannot tell" if "unclear" in shown.get("context", "") else str(number(shown["text"]))
            return json.dumps({"reason": f"it is {grade}", "grade": grade})
        more = number(shown["answer_a"]) - number(shown["answer_b"])
        verdict = ("B>>A", "B>A", "A=B", "A>B", "A>>B")[max(-2, min(2, more)) + 2]
        verdict = "cannot tell" if "unclear" in shown["instruction"] else verdict
        return json.dumps({"reason": f"by {more}", "verdict": verdict})


def number(text: str) -> int:
    found = re.search(r"\d+", text)
    return int(found[0]) if found else 0


def pair(better: int, first: int = 2, instruction: str = "") -> dict[str, Any]:
    words = random.Random(f"{better} {first} {instruction}").choices("ant bee cat dog elk fox gnu hen".split(), k=6)  # noqa: SIM905
    return {
        "instruction": instruction or f"Write of {' '.join(words)}.",
        "response": f"Quality {first}.",
        "improved_response": f"Quality {better} indeed.",
    }


PAIRS = [pair(n % 5, instruction=f"Number {n}: do it.") for n in range(40)]
WON = [number_ for number_, row in enumerate(PAIRS, start=1) if number(row["improved_response"]) > 2]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers(rows: list[dict[str, Any]]) -> list[int]:
    return [row["refed_filters"]["row"] for row in rows]


def whole(out: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix in {".jsonl", ".json", ".txt"}
    }


def filtered(out: Path, filters: list[Any], data: Any = None, judge: Writer | None = None, **more: Any) -> Filtering:
    model = None if judge is None else fake_lm(judge)
    return refed_dspy.filter_data(PAIRS if data is None else data, filters, judge=model, out=out, **more)


def adds_up(made: Filtering, rows: int) -> None:
    """Every row is in one of the files, once, in order; the funnel counts what they hold."""
    kept, dropped = lines(made.out / "kept.jsonl"), lines(made.out / "dropped.jsonl")
    undecided = lines(made.out / "undecided.jsonl") if (made.out / "undecided.jsonl").exists() else []
    for some in (kept, dropped, undecided):
        assert numbers(some) == sorted(numbers(some))
    assert sorted(numbers(kept) + numbers(dropped) + numbers(undecided)) == list(range(1, rows + 1))
    funnel = json.loads((made.out / "funnel.json").read_text())
    assert funnel[0]["in"] == rows
    for stage, following in zip(funnel, [*funnel[1:], {"in": len(kept)}], strict=True):
        assert stage["in"] == stage["kept"] + stage["dropped"] + stage["undecided"]
        assert stage["kept"] == following["in"] and sum(stage["reasons"].values()) == stage["dropped"]
    assert sum(stage["dropped"] for stage in funnel) == len(dropped)
    assert sum(stage["undecided"] for stage in funnel) == len(undecided)


# --- what is kept


@pytest.mark.slow
def test_every_kind_of_filter_by_its_settings(tmp_path: Path) -> None:
    bench = tmp_path / "bench.jsonl"
    bench.write_text(json.dumps({"prompt": "one two three four five six seven eight nine ten eleven twelve thirteen"}))
    spoiled = [
        {**pair(4), "improved_response": "I'm sorry, but I can't help with that request 4."},
        {**pair(4, instruction="Number 3: do it!"), "response": "x 1"},
        {**pair(4), "instruction": "Say: one two three four five six seven eight nine ten eleven twelve thirteen."},
        {**pair(4), "improved_response": "Quality 4 " * 100},
        {
            **pair(4),
            "improved_response": "Das ist die deutsche Antwort der Güte 4, und sie ist leider nicht auf Englisch.",
        },
    ]
    filters = [
        "refusals",
        {"length": {"max_words": 60}},
        {"language": {"of": "response"}},
        {"overlap": {"against": str(bench)}},
        {"near_duplicates": {"threshold": 0.9}},
        {"rubric": {"at_least": 1}},
        {"judge": {"margin": 0.5}},
        {"rouge": {"threshold": 1}},
        {"random": {"share": 0.9}},
    ]
    made = filtered(tmp_path / "out", filters, [*PAIRS, *spoiled], Scales())
    adds_up(made, 45)
    by = {numbers([row])[0]: row["refed_filters"]["filter"] for row in lines(made.out / "dropped.jsonl")}
    assert (by[41], by[42], by[43], by[44], by[45]) == (
        "refusals", "near_duplicates", "overlap", "length", "language",
    )  # fmt: skip
    assert {by.get(n) for n in range(1, 41) if n not in WON} <= {"judge", "rubric"}
    assert len(lines(made.out / "kept.jsonl")) > 8


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
    for row, given in zip(lines(made.out / "kept.jsonl"), rows, strict=True):
        said = row.pop("refed_filters")
        assert row == {**given, "day": str(given["day"]), "raw": "/w==", "share": None}
        assert said["row"] == rows.index(given) + 1
    assert table.read_bytes() == before


def test_rows_of_numpy_and_other_types_are_json(tmp_path: Path) -> None:
    odd = {"n": np.int64(7), "f": np.float32(0.5), "a": np.array([[1, 2]]), "d": decimal.Decimal("1.50"), 3: {"x", "y"},
           "t": datetime.datetime(2024, 1, 2, 3), "inf": float("inf"), "tuple": (1, (2,))}  # fmt: skip
    made = filtered(tmp_path / "out", ["refusals"], [{**PAIRS[0], **odd}])
    row = json.loads((made.out / "kept.jsonl").read_text(), parse_constant=lambda _: pytest.fail("no JSON"))
    assert row["n"] == 7 and row["f"] == 0.5 and row["a"] == [[1, 2]] and row["d"] == "1.50" and row["3"] == ["x", "y"]
    assert row["t"] == "2024-01-02T03:00:00" and row["inf"] is None and row["tuple"] == [1, [2]]


def test_what_an_earlier_filtering_said_stays(tmp_path: Path) -> None:
    first = filtered(tmp_path / "a", ["judge"], judge=Scales())
    again = filtered(tmp_path / "b", ["refusals"], first.out / "kept.jsonl")
    rows = lines(again.out / "kept.jsonl")
    assert [row["refed_filters"]["before"]["row"] for row in rows] == WON
    assert rows[0]["refed_filters"]["row"] == 1


def test_rows_that_are_no_pair_are_dropped_with_their_reason(tmp_path: Path) -> None:
    table = tmp_path / "d.csv"
    table.write_text("instruction,response,note\nSay a,b,c,d\nOne,two,\nOnly this\n")
    made = filtered(tmp_path / "out", ["refusals"], table)
    adds_up(made, 3)
    told = [row["refed_filters"] for row in lines(made.out / "dropped.jsonl")]
    assert [(one["row"], one["filter"], one["reason"]) for one in told] == [
        (1, "read", "more cells than columns"),
        (3, "read", "empty"),
    ]
    assert made.lines()[1].split()[:4] == ["read", "3", "1", "2"]


# --- keep


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
    judge, chosen = Scales(), list[list[int]]()
    for seed in (0, 0, 1, 2):
        made = filtered(tmp_path / "out", [{"judge": {"keep": 12}}], judge=judge, seed=seed)
        rows = lines(made.out / "kept.jsonl")
        scores = [row["refed_filters"]["scores"]["judge"] for row in rows]
        assert len(rows) == 12 and sorted(scores) == [1.0] * 4 + [2.0] * 8, "all that are much better, then some others"
        chosen.append(numbers(rows))
        adds_up(made, 40)
    assert chosen[0] == chosen[1] and len({tuple(one) for one in chosen}) == 3
    assert len(judge.requests) == 80, "two questions a row, asked once"


def test_rubric_keeps_the_best_grades(tmp_path: Path) -> None:
    rows = [row for row in PAIRS if number(row["improved_response"])]
    made = filtered(tmp_path / "out", [{"rubric": {"keep": 10, "at_least": 2}}], rows, Scales())
    grades = [row["refed_filters"]["scores"]["rubric"] for row in lines(made.out / "kept.jsonl")]
    assert sorted(grades) == [3] * 2 + [4] * 8
    reasons = json.loads((made.out / "funnel.json").read_text())[0]["reasons"]
    assert reasons == {"below 2": 8, "beyond keep": 14}


def test_fewer_than_keep_is_told(tmp_path: Path) -> None:
    made = filtered(tmp_path / "out", [{"judge": {"keep": 4000}}], judge=Scales())
    assert numbers(lines(made.out / "kept.jsonl")) == WON
    assert "judge: 16 of the 4000 rows to keep passed" in made.lines()


# --- paid once


def test_the_same_command_again_pays_nothing_and_writes_the_same(tmp_path: Path) -> None:
    filters = ["refusals", {"judge": {"keep": 9}}, {"rubric": {"at_least": 3}}]
    first, again = Scales(), Scales()
    filtered(tmp_path / "out", filters, judge=first)
    files = whole(tmp_path / "out")
    filtered(tmp_path / "out", filters, judge=again)
    assert len(first.requests) == 80 + 9 and not again.requests
    assert whole(tmp_path / "out") == files and len(files) == 4
    filtered(tmp_path / "tuo", filters, judge=Scales())
    files["funnel.txt"] = files["funnel.txt"].replace(b"/out/", b"/tuo/")
    assert whole(tmp_path / "tuo") == files, "whichever call ended first"


def test_other_thresholds_and_filters_in_the_same_folder_pay_for_what_is_new_only(tmp_path: Path) -> None:
    judge = Scales()
    kept = []
    for filters in (
        ["judge"],
        [{"judge": {"margin": 1.5}}],
        [{"length": {"max_words": 2}}, "judge"],
        ["judge", "rubric"],
    ):
        made = filtered(tmp_path / "out", filters, judge=judge)
        adds_up(made, 40)
        kept.append(len(made.sifted.kept))
    assert kept == [16, 8, 0, 8]
    assert len(judge.requests) == 80 + 16, "the rubric is new, and asked about what was left"


def test_a_corrected_row_is_asked_about_and_no_other(tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    judge = Scales()
    for rows in (PAIRS, [{**PAIRS[0], "improved_response": "Quality 4."}, *PAIRS[1:], pair(3)]):
        data.write_text("\n".join(map(json.dumps, rows)))
        made = filtered(tmp_path / "out", ["judge"], data, judge)
    adds_up(made, 41)
    assert len(judge.requests) == 80 + 4 and numbers(lines(made.out / "kept.jsonl")) == [1, *WON, 41]
    other = tmp_path / "other.jsonl"
    other.write_text(data.read_text())
    with pytest.raises(RunDirError, match=r"data was data.jsonl, is other.jsonl; .* another folder"):
        filtered(tmp_path / "out", ["judge"], other, judge)


def test_without_out_the_folder_goes_by_rows_and_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    judge = Scales()
    paid = [refed_dspy.filter_data(PAIRS, [{"judge": {"margin": m}}], judge=fake_lm(judge)).out for m in (0, 1)]
    assert paid[0] == paid[1] and len(judge.requests) == 80
    free = [refed_dspy.filter_data(PAIRS, [{"rouge": {"threshold": t}}]).out for t in (0.5, 0.6)]
    assert len({*paid, *free}) == 3


def test_two_filters_of_one_kind(tmp_path: Path) -> None:
    judge = Scales()
    filters = ["judge", {"judge": {"margin": 1.5}}, {"judge": {"criterion": "content_quality"}}]
    made = filtered(tmp_path / "out", filters, judge=judge)
    adds_up(made, 40)
    assert [(told["filter"], told["in"], told["kept"]) for told in made.funnel()] == [
        ("judge", 40, 16), ("judge 2", 16, 8), ("judge 3", 8, 8),
    ]  # fmt: skip
    assert len(judge.requests) == 80 + 16, "the second asks the very same questions, the third others"
    assert set(lines(made.out / "kept.jsonl")[0]["refed_filters"]["scores"]) == {"judge", "judge 2", "judge 3"}


def test_labels_are_unlike_whatever_filters_are_called() -> None:
    steps = [Step(Own(name), {}) for name in ("rouge", "rouge", "rouge 2", "rouge", "rouge 2 2")]
    assert labels(steps) == ["rouge", "rouge 2", "rouge 2 2", "rouge 3", "rouge 2 2 2"]


def test_a_compiled_judge_is_asked_in_its_own_words(tmp_path: Path) -> None:
    program = PairwiseJudge()
    words = "Weigh the two, and nothing else."
    program.compare.signature = program.compare.signature.with_instructions(words)
    save_program(program, tmp_path / "judge.json")
    judge = Scales()
    filtered(tmp_path / "out", ["judge"], PAIRS[:3], judge)
    filtered(tmp_path / "out", ["judge"], PAIRS[:3], judge, judge_program=str(tmp_path / "judge.json"))
    asked = [words in str(request) for request in judge.requests]
    assert asked == [False] * 6 + [True] * 6
    with pytest.raises(ConfigError, match="judge_program: no filter asks it"):
        filtered(tmp_path / "out", ["rubric"], PAIRS[:3], judge, judge_program=str(tmp_path / "judge.json"))


# --- judges that do not judge


@pytest.mark.parametrize(("count", "asked"), [(7, 14), (60, None)])
def test_a_judge_that_abstains_everywhere_is_told_in_a_line(tmp_path: Path, count: int, asked: int | None) -> None:
    rows = [pair(4, instruction=f"An unclear matter {n}.") for n in range(count)] + [pair(2), pair(2)]
    rows[-1]["improved_response"] = rows[-1]["response"]  # a tie without a question decides nothing
    judge = Scales()
    with pytest.raises(RunStopped, match=r"judge: the judge abstained on each of the .* another folder") as raised:
        filtered(tmp_path / "out", ["judge"], rows[:count] + rows[-1:], judge)
    assert "\n" not in str(raised.value) and raised.value.exit_code == 1
    assert len(judge.requests) == asked if asked else 40 <= len(judge.requests) < 80
    asked_before = len(judge.requests)
    with pytest.raises(RunStopped, match="abstained"):
        filtered(tmp_path / "out", ["judge"], rows[:count] + rows[-1:], judge)
    assert len(judge.requests) <= asked_before + (0 if asked else 40)


def test_one_row_that_it_abstains_on_is_dropped(tmp_path: Path) -> None:
    rows = [*PAIRS[:5], pair(4, instruction="An unclear matter.")]
    made = filtered(tmp_path / "out", ["judge"], rows, Scales())
    said = lines(made.out / "dropped.jsonl")[-1]["refed_filters"]
    assert (said["row"], said["reason"], said["score"]) == (6, "judge abstained", None)
    assert said["detail"] == "the judge could not tell"


def test_a_row_that_it_did_not_answer_on_is_undecided_and_asked_again(tmp_path: Path) -> None:
    judge = Scales()
    judge.on_request = lambda request: (
        LMServerError(message="busy", status=503) if "Number 7:" in str(request) else None
    )
    made = filtered(tmp_path / "out", ["judge", {"length": {"min_words": 2}}], judge=judge)
    adds_up(made, 40)
    assert numbers(lines(made.out / "undecided.jsonl")) == [8]
    assert "the judge did not answer on 1 rows" in made.fruitless
    assert len(made.sifted.kept) == len(set(WON) - {8}), "what was decided goes on to the next filter"
    again = Scales()
    done = filtered(tmp_path / "out", ["judge", {"length": {"min_words": 2}}], judge=again)
    assert not done.fruitless and len(again.requests) == 2 and not (made.out / "undecided.jsonl").exists()
    assert numbers(lines(done.out / "kept.jsonl")) == WON


def test_rows_without_a_plain_response(tmp_path: Path) -> None:
    rows = [*PAIRS[:5], {"instruction": "i", "response": "Quality 4."}]
    judge = Scales()
    made = filtered(tmp_path / "out", ["judge"], rows, judge)
    adds_up(made, 6)
    assert made.funnel()[0]["reasons"]["no plain response"] == 1 and len(judge.requests) == 10
    with pytest.raises(ConfigError, match="none of the 1 rows of data has a plain one; name its column"):
        filtered(tmp_path / "none", ["judge"], rows[-1:], judge)
    assert not (tmp_path / "none").exists()


def http(server: SimulatedTeacher, **more: Any) -> TeacherConfig:
    price = {"prompt": 1.0, "completion": 2.0}
    settings: dict[str, Any] = {"api_base": server.base_url, "concurrency": 3, "max_tokens": 300, "retries": 0}
    return TeacherConfig.model_validate({"model": "sim/sim-model", "price": price, **settings, **more})


def test_a_wrong_key_is_the_judges(locked: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_KEY", "sk-wrong-and-secret")
    with pytest.raises(TeacherRefused, match="judge") as raised:
        refed_dspy.filter_data(PAIRS, ["judge"], judge=http(locked, api_key_env="OTHER_KEY"), out=tmp_path / "out")
    assert raised.value.exit_code == 2 and "wrong-and-secret" not in str(raised.value)
    refed_dspy.filter_data(
        PAIRS[:3], ["judge"], judge=http(locked, api_key_env="SIMULATED_TEACHER_KEY"), out=tmp_path / "out"
    )
    assert all(b"secret" not in path.read_bytes() for path in (tmp_path / "out").iterdir())


def test_a_judge_that_is_not_there(server: SimulatedTeacher, tmp_path: Path) -> None:
    nobody = http(server, api_base="http://127.0.0.1:9/v1")
    with pytest.raises(TeacherRefused, match="check api_base") as raised:
        refed_dspy.filter_data(PAIRS, ["judge"], judge=nobody, out=tmp_path / "out")
    assert "\n" not in str(raised.value)
    server.control(down_after=0)
    with pytest.raises(RunStopped, match="pairwise_judge failed in 20 of its last 20 calls"):
        refed_dspy.filter_data(PAIRS, ["judge"], judge=http(server), out=tmp_path / "out")
    server.control(down_after=None)
    refed_dspy.filter_data(PAIRS[:4], ["judge"], judge=http(server), out=tmp_path / "out")


# --- caps and kills


def test_at_a_cap_what_is_decided_stands_and_the_next_start_goes_on(server: SimulatedTeacher, tmp_path: Path) -> None:
    def go(out: str, **caps: Any) -> Filtering:
        filters = [{"length": {"min_words": 2}}, "judge", {"rubric": {"at_least": 2}}]
        made = refed_dspy.filter_data(PAIRS, filters, judge=http(server), out=tmp_path / out, **caps)
        adds_up(made, 40)
        return made

    made = go("out", max_calls=31)
    assert made.stopped == "max_calls" and server.stats()["requests"] == 31
    assert len(made.sifted.undecided) >= 25 and not made.fruitless
    assert made.lines()[-2].startswith("stopped: max_calls is reached with")
    assert go("out").stopped == "max_calls" and server.stats()["requests"] == 31, "the cap stays"
    done = go("out", max_calls=1000)
    assert not done.stopped and server.stats()["repeated"] == 0
    assert not (tmp_path / "out" / "undecided.jsonl").exists()
    asked = server.stats()["requests"]
    assert go("out").used is not None and server.stats()["requests"] == asked


def test_a_cap_below_one_verdict_is_the_judges(server: SimulatedTeacher, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"max_cost: .* worst case of one call.*judge's max_tokens"):
        refed_dspy.filter_data(PAIRS, ["judge"], judge=http(server), out=tmp_path / "out", max_cost=0.0000001)
    with pytest.raises(ConfigError, match="give the judge as"):
        filtered(tmp_path / "out", ["judge"], judge=Scales(), max_calls=5)
    assert server.stats()["requests"] == 0


@pytest.mark.slow
def test_after_a_kill_no_verdict_is_paid_again(server: SimulatedTeacher, tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(pair(n)) for n in range(120)))
    teacher = f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: 4\nretries: 0\n"
    (tmp_path / "judge.yaml").write_text(teacher)
    command = [sys.executable, "-m", "refed_dspy.cli", "filter", "data.jsonl", "--filter", "judge", "--out", "out"]
    command += ["--judge", "judge.yaml"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    server.control(latency=0.02)
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env
    ) as begun:
        while server.stats()["answered"] < 40:
            time.sleep(0.01)
        begun.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out" / "kept.jsonl").exists()
    time.sleep(0.3)
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, env=env)
    assert server.stats()["repeated"] <= 8, "those in flight, at most twice the slots"
    assert len(lines(tmp_path / "out" / "kept.jsonl")) + len(lines(tmp_path / "out" / "dropped.jsonl")) == 120


# --- filters of one's own


class Own:
    of_instruction = False

    def __init__(self, name: str = "mine", check: Callable[[DataRow], Any] = lambda _: Decision(True)) -> None:
        self.name, self.said = name, check

    def check(self, row: DataRow) -> Any:
        return self.said(row)

    def remember(self, row: DataRow) -> None: ...


class OwnJudge(JudgeFilter):
    name = "own judge"

    async def judged(self, row: DataRow, item: str) -> Decision:
        if row.number == 2:
            raise NoAnswer("own", item, "busy")
        return Decision(row.number != 3, "third", row.number / 2)


def test_filters_of_ones_own(tmp_path: Path) -> None:
    even = Own(check=lambda row: Decision(np.bool_(row.number % 2 == 0), "odd", np.float32(row.number)))  # type: ignore[arg-type]
    made = filtered(tmp_path / "out", [even, "refusals"])
    adds_up(made, 40)
    assert numbers(lines(made.out / "kept.jsonl")) == list(range(2, 41, 2))
    assert lines(made.out / "kept.jsonl")[0]["refed_filters"]["scores"] == {"mine": 2.0}
    judged = filtered(tmp_path / "judged", [OwnJudge()], PAIRS[:5], Scales())
    assert numbers(lines(judged.out / "kept.jsonl")) == [1, 4, 5]
    assert numbers(lines(judged.out / "undecided.jsonl")) == [2]


def test_reasons_are_counted_in_one_order(tmp_path: Path) -> None:
    reasons = ["z", "b", "a", "b", "z"]
    made = filtered(tmp_path / "out", [Own(check=lambda row: Decision(False, reasons[row.number % 5]))], PAIRS[:11])
    assert list(made.funnel()[0]["reasons"].items()) == [("b", 5), ("z", 4), ("a", 2)]
    adds_up(made, 11)
    even = filtered(tmp_path / "out", [Own(check=lambda row: Decision(False, reasons[row.number % 3]))], PAIRS[:6])
    assert list(even.funnel()[0]["reasons"]) == ["a", "b", "z"], "equal counts by name, whichever came first"


class Duck:
    name = "duck"

    async def judged(self, row: DataRow, item: str) -> Decision: ...  # type: ignore[empty-body]


class Nameless:
    of_instruction = True

    def check(self, row: DataRow) -> Decision: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (Own, r"Own is a class; give one of its objects, Own\(…\)"),
        (Duck(), "Duck asks a judge, so make it a JudgeFilter"),
        (Nameless(), "Nameless lacks name, remember"),
        (Own(name=""), "the name of Own must be a text"),
    ],
)
def test_one_that_cannot_work_is_refused_before_anything(tmp_path: Path, own: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        filtered(tmp_path / "out", [own])
    assert not (tmp_path / "out").exists()


def test_what_ones_own_does_wrong_is_told_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match="filters: mine said a bool; it must be a Decision"):
        filtered(tmp_path / "out", [Own(check=lambda _: True)])

    def broken(row: DataRow) -> Decision:
        raise KeyError(row.number)

    with pytest.raises(KeyError) as raised:
        filtered(tmp_path / "out", [Own(check=broken)])
    assert raised.value.__notes__ == ["raised by the filter mine, on: Number 0: do it."]


# --- what cannot be


@pytest.mark.parametrize(
    ("filters", "told"),
    [
        ([], "filters: name at least one"),
        (["judges"], "did you mean judge?"),
        ([{"rouge": {"treshold": 0.7}}], "did you mean threshold?"),
        ([{"rouge": {}, "judge": {}}], "one filter: write each as an entry"),
        (["random"], "keep .* or share"),
        ([{"rubric": {"criterion": "grace"}}], "needs a description"),
        ([{"rubric": {"criterion": "unlike_its_siblings"}}], "needs a description"),
        ([{"judge": {"description": "how graceful it is"}}], "a description needs a criterion"),
        (["judge"], "judge: name the model that judges"),
        ([{"overlap": {"against": "no/such.jsonl"}}], "no/such.jsonl"),
        ([7], "filters"),
    ],
)
def test_bad_filters_are_told_in_a_line(tmp_path: Path, filters: list[Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as raised:
        filtered(tmp_path / "out", filters)
    assert "\n" not in str(raised.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["out/kept.jsonl", "out/dropped.jsonl", "out/undecided.jsonl"])
def test_what_is_read_is_never_written_over(tmp_path: Path, where: str) -> None:
    path = tmp_path / where
    path.parent.mkdir(exist_ok=True)
    rows = "\n".join(map(json.dumps, PAIRS))
    path.write_text(rows)
    (tmp_path / "link.jsonl").symlink_to(path)
    for source in (path, tmp_path / "link.jsonl"):
        with pytest.raises(ExportError, match="name another folder"):
            filtered(tmp_path / "out", ["refusals"], source)
    assert path.read_text() == rows


def test_a_filter_that_keeps_nothing_is_named(tmp_path: Path) -> None:
    judge = Scales()
    filters = ["refusals", {"length": {"min_words": 90}}, "judge", "refusals"]
    made = filtered(tmp_path / "out", filters, judge=judge)
    assert made.fruitless == "length kept none of 40 rows (40 too short); loosen it, or take it out"
    assert not judge.requests and made.used is None
    adds_up(made, 40)
    assert (made.out / "kept.jsonl").read_text() == ""


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirError, match="cannot be written"):
        filtered(tmp_path / "file", ["refusals"])
    (tmp_path / "out" / "kept.jsonl").mkdir(parents=True)
    with pytest.raises(ExportError, match=r"kept.jsonl: cannot be written"):
        filtered(tmp_path / "out", ["refusals"])
    judge = Scales()
    with pytest.raises(RunStopped, match=r"kept.jsonl: cannot be written.*pays for none of it again") as raised:
        filtered(tmp_path / "out", ["judge"], judge=judge)
    assert raised.value.exit_code == 1
    (tmp_path / "out" / "kept.jsonl").rmdir()
    filtered(tmp_path / "out", ["judge"], judge=judge)
    assert len(judge.requests) == 80


def test_the_folder_of_other_work_is_refused(tmp_path: Path) -> None:
    from tests.support.scripted_engine import references

    refed_dspy.synthesize(None, references(2), size=4, teacher=fake_lm(Writer()), run_dir=tmp_path / "run", track=False)
    with pytest.raises(RefedError, match="holds a run, not a filtering"):
        filtered(tmp_path / "run", ["judge"], judge=Scales())
    made = filtered(tmp_path / "out", [{"random": {"keep": 3}}], tmp_path / "run")
    assert [row["sample"] for row in lines(made.out / "kept.jsonl")] == numbers(lines(made.out / "kept.jsonl"))
    assert len(load_dataset(made.out / "kept.jsonl").rows) == 3


def test_the_judges_temperature_is_zero(tmp_path: Path, server: SimulatedTeacher) -> None:
    for name in "ab":
        refed_dspy.filter_data(PAIRS[:4], ["judge"], judge=http(server), out=tmp_path / name)
    alike = [lines(tmp_path / name / file) for file in ("kept.jsonl", "dropped.jsonl") for name in "ab"]
    assert alike[0] == alike[1] and alike[2] == alike[3], "the server answers alike only at temperature 0"

"""No verdict is paid for twice: the same call again, other filters, caps, kills, and the folder's name."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import (
    ConfigError,
    RunDirError,
)
from refed_dspy.runs.filter.result import Filtering
from tests.runs.filter.helpers import (
    PAIRS,
    WON,
    NumberJudge,
    adds_up,
    filtered,
    http,
    lines,
    numbers,
    outputs,
    pair,
)
from tests.support import ROOT
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm


def test_the_same_command_again_pays_nothing_and_writes_the_same(tmp_path: Path) -> None:
    filters = ["refusals", {"judge": {"keep": 9}}, {"rubric": {"at_least": 3}}]
    first, again = NumberJudge(), NumberJudge()
    filtered(tmp_path / "out", filters, judge=first)
    files = outputs(tmp_path / "out")
    filtered(tmp_path / "out", filters, judge=again)
    assert len(first.requests) == 80 + 9 and not again.requests
    assert outputs(tmp_path / "out") == files and len(files) == 5
    filtered(tmp_path / "other", filters, judge=NumberJudge())
    files["funnel.txt"] = files["funnel.txt"].replace(b"/out/", b"/other/")
    assert outputs(tmp_path / "other") == files, "whichever call ended first"


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


def test_at_a_cap_what_is_decided_stands_and_the_next_start_goes_on(
    said: Said, server: SimulatedTeacher, tmp_path: Path
) -> None:
    def go(out: str, **caps: Any) -> Filtering:
        filters = [{"length": {"min_words": 2}}, "judge", {"rubric": {"at_least": 2}}]
        made = refed_dspy.filter_data(PAIRS, filters, judge=http(server), out=tmp_path / out, **caps)
        adds_up(made, 40)
        return made

    made = go("out", max_calls=31)
    assert made.stopped == "max_calls" and server.stats()["requests"] == 31
    said(made.state)
    assert len(made.filtered.undecided) >= 25 and not made.problem
    said(made.lines()[-2])
    assert go("out").stopped == "max_calls" and server.stats()["requests"] == 31, "the cap stays"
    done = go("out", max_calls=1000)
    assert not done.stopped and done.state == "done" and server.stats()["repeated"] == 0
    assert not (tmp_path / "out" / "undecided.jsonl").exists()
    asked = server.stats()["requests"]
    assert go("out").used is not None and server.stats()["requests"] == asked


def test_a_cap_below_one_verdict_is_the_judges(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    with said.by(ConfigError):
        refed_dspy.filter_data(PAIRS, ["judge"], judge=http(server), out=tmp_path / "out", max_cost=0.0000001)
    with said.by(ConfigError):
        filtered(tmp_path / "out", ["judge"], judge=NumberJudge(), max_calls=5)
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

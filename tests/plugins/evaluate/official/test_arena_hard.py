"""Arena-Hard's own code, from a clone, on 50 of its own questions: the same scores through our proxy as without it,
under our caps, paid for once. The clone is the folder that ARENA_HARD_CLONE names; without one nothing of this is run.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.evaluate.answers.formats import style_of
from refed_dspy.plugins.evaluate.arena_hard.evaluate import arena_hard
from refed_dspy.plugins.evaluate.arena_hard.result import Leaderboard, Score, read_table
from refed_dspy.plugins.evaluate.program import ARENA_HARD, Installed, environment
from tests.plugins.recycle.helpers import REFED, answers, stopped
from tests.support.compiling import requests
from tests.support.proxies import bill, calls, judge
from tests.support.toy_arena_hard import VERDICTS, rows_of

CLONE = Path(os.environ.get("ARENA_HARD_CLONE", "/nowhere"))
pytestmark = [
    pytest.mark.evaluate,
    pytest.mark.skipif(not CLONE.is_dir(), reason="set ARENA_HARD_CLONE to a clone of lmarena/arena-hard-auto"),
]
BENCHMARK, CATEGORY, BASELINE = "arena-hard-v2.0", "hard_prompt", "o3-mini-2025-01-31"
SIZE, AT_ONCE = 50, 8
ARMS = ("halves", "headed")
GAMES = 2 * SIZE * len(ARMS)
FEW = 2 * SIZE
"""Games of one arm."""
STYLE = ("--control-features", "length", "markdown")


@pytest.fixture(scope="session")
def installed() -> Installed:
    """What its code imports, in the user's own environment for it, or in the one that ARENA_HARD_PYTHON names."""
    chosen = os.environ.get("ARENA_HARD_PYTHON")
    return environment(ARENA_HARD, Path(chosen) if chosen else None)


@pytest.fixture
def home(server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two arms: the baseline's answers cut in half, and with headings."""
    monkeypatch.chdir(tmp_path)
    server.control(verdicts=VERDICTS)
    data = CLONE / "data" / BENCHMARK
    told = {
        row["uid"]: row["messages"][-1]["content"]["answer"] for row in rows_of(data / f"model_answer/{BASELINE}.jsonl")
    }
    for name, changed in (("halves", lambda text: text[: 20 + len(text) // 2]), ("headed", headed)):
        with Path(f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for question in questions():
                text = changed(told[question["uid"]])
                messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": {"answer": text}}]
                row = {"uid": question["uid"], "model": name, "messages": messages, "metadata": style_of(text)}
                file.write(json.dumps(row) + "\n")
    return tmp_path


def questions() -> list[Any]:
    rows = rows_of(CLONE / "data" / BENCHMARK / "question.jsonl")
    return [row for row in rows if row["category"] == CATEGORY][:SIZE]


def headed(text: str) -> str:
    return "\n\n".join(f"## Part {n}\n\n- **Point.** {part}" for n, part in enumerate(text.split("\n\n"), 1))


def evaluated(server: SimulatedTeacher, installed: Installed, **settings: Any) -> Leaderboard:
    values = {"clone": CLONE, "answers": [f"{arm}.jsonl" for arm in ARMS], "judge": judge(server), "out": "out"}
    return arena_hard(**{**values, "questions": SIZE, "environment": installed.python, **settings})


class Direct:
    """The clone's code in a folder, against the server itself, as its README says to run it."""

    def __init__(self, folder: Path, server: SimulatedTeacher, python: Path, arms: Sequence[str]) -> None:
        self.folder, self.python, self.arms = folder, python, arms
        self.data = folder / "data" / BENCHMARK
        (self.data / "model_answer").mkdir(parents=True)
        for name in ("gen_judgment.py", "show_result.py"):
            shutil.copy(CLONE / name, folder)
        shutil.copytree(CLONE / "utils", folder / "utils")
        shutil.copy(CLONE / "data" / BENCHMARK / "model_answer" / f"{BASELINE}.jsonl", self.data / "model_answer")
        for arm in arms:
            shutil.copy(f"{arm}.jsonl", self.data / "model_answer")
        asked = "".join(json.dumps(question) + "\n" for question in questions())
        (self.data / "question.jsonl").write_text(asked, "utf-8")
        settings = yaml.safe_load((CLONE / f"config/{BENCHMARK}.yaml").read_text("utf-8"))
        settings |= {"judge_model": "sim", "model_list": [*arms]}
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings), "utf-8")
        endpoint = {"api_base": server.base_url, "api_key": "none"}
        judges = {"sim": {"model": "judge", "endpoints": [endpoint], "api_type": "openai", "parallel": AT_ONCE}}
        (folder / "endpoints.yaml").write_text(yaml.safe_dump(judges), "utf-8")
        self.run("gen_judgment.py", "--setting-file", "settings.yaml", "--endpoint-file", "endpoints.yaml")

    def judgments(self, arm: str) -> dict[str, Any]:
        return {row["uid"]: row for row in rows_of(self.data / f"model_judgment/sim/{arm}.jsonl")}

    def sort(self) -> None:
        """Bring the judgments, which lie as threads wrote them, into the order of the questions, in one file: the code
        reads files as the disk lists them."""
        path = self.data / "model_judgment" / "sorted"
        path.mkdir()
        rows = [self.judgments(arm)[question["uid"]] for arm in self.arms for question in questions()]
        (path / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")

    def table(self, *control: str) -> dict[str, Score]:
        """Its bootstraps draw by NumPy's generator, without a seed of its own."""
        seeded = "import runpy, sys, numpy; numpy.random.seed(0); runpy.run_path('show_result.py', run_name='__main__')"
        named = ["-b", BENCHMARK, "-j", "sorted", "-c", CATEGORY]
        return read_table(self.run("-c", seeded, *named, *control), self.arms)

    def run(self, *arguments: str) -> str:
        command = [str(self.python), *arguments]
        return subprocess.run(command, cwd=self.folder, check=True, capture_output=True, text=True).stdout


def test_two_arms_score_as_in_a_direct_run_with_and_without_style_control(
    home: Path, server: SimulatedTeacher, installed: Installed
) -> None:
    made = evaluated(server, installed)
    assert requests(server) == GAMES and made.used.picodollars == bill(server) and not made.problem
    assert {each.decided for each in made.arms} == {SIZE} and not made.unstyled
    again = evaluated(server, installed)
    assert requests(server) == GAMES and again == made, "a second start asks nothing"
    direct = Direct(home / "direct", server, installed.python, ARMS)
    assert requests(server) == 2 * GAMES and server.stats()["repeated"] == GAMES, "what it asked was the same"
    for arm in ARMS:
        ours = {row["uid"]: row for row in rows_of(home / f"out/judgments/{arm}.jsonl")}
        assert {uid: row["games"] for uid, row in ours.items()} == {
            uid: row["games"] for uid, row in direct.judgments(arm).items()
        }
    direct.sort()
    assert {each.arm: each.score for each in made.arms} == direct.table()
    assert {each.arm: each.at_equal_style for each in made.arms} == direct.table(*STYLE)


def test_a_cap_in_the_middle_and_a_larger_one(home: Path, server: SimulatedTeacher, installed: Installed) -> None:
    cap = 0.1
    made = evaluated(server, installed, answers="halves.jsonl", max_cost=cap)
    spent = sum(cost for _, cost in calls(home / "out"))
    assert made.stopped == "max_cost" and not made.arms and 0 < bill(server) <= cap * 1e12 and spent <= cap * 1e12
    assert 0 < requests(server) < FEW
    made = evaluated(server, installed, answers="halves.jsonl", max_cost=float("inf"))
    assert requests(server) == FEW and server.stats()["repeated"] == 0, "nothing was asked twice"
    assert [each.decided for each in made.arms] == [SIZE] and not made.stopped


def test_killed_it_goes_on_and_pays_for_nothing_twice_but_what_was_in_flight(
    home: Path, server: SimulatedTeacher, installed: Installed
) -> None:
    Path("judge.yaml").write_text(json.dumps(judge(server, concurrency=AT_ONCE).model_dump(mode="json")), "utf-8")
    options = ["--clone", str(CLONE), "--judge", "judge.yaml", "--out", "out", "--questions", str(SIZE)]
    files = ["--answers", "halves.jsonl", "--environment", str(installed.python)]
    command = [*REFED, "evaluate", "arena-hard", *options, *files]
    server.control(latency=0.2, sigma=0.3)
    assert stopped(home, signal.SIGKILL, answers(server, 40), command)[0] == -signal.SIGKILL
    with Ledger.read(home / "out") as ledger:
        (kept,) = ledger.db.execute("SELECT count(*) FROM answers").fetchone()
    lost = requests(server) - kept
    assert kept >= 40 - AT_ONCE and lost <= AT_ONCE
    server.control(latency=0, sigma=0)
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "score % at equal style" in done.stdout, done.stderr
    assert requests(server) == FEW + lost
    direct = Direct(home / "direct", server, installed.python, ["halves"])
    direct.sort()
    scores = [str(table["halves"]) for table in (direct.table(), direct.table(*STYLE))]
    assert " ".join(done.stdout.splitlines()[1].split()) == " ".join(["halves", str(SIZE), *scores]), (
        "as in a direct run"
    )

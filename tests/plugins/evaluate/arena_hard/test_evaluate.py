"""A whole evaluation around a stand-in for Arena-Hard's code: what is asked, kept, written and told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ExportError, InputError, RunDirError, RunStopped
from refed_dspy.ledger.states import CAPPED, DONE, SHORT
from refed_dspy.plugins.evaluate.arena_hard.evaluate import arena_hard
from refed_dspy.plugins.evaluate.arena_hard.result import Leaderboard
from tests.conftest import reset_server
from tests.plugins.evaluate.arena_hard.conftest import QUESTIONS, furnished
from tests.support.compiling import requests
from tests.support.said import Said
from tests.support.toy_arena_hard import BASELINE, make_clone, rows_of, write_answers

GAMES = 2 * 2 * QUESTIONS
WRITTEN = {"arena-hard.log", "arena-hard-table.log", "evaluation.json", "evaluation.txt", "judgments", "win-rates.png"}
FEW = 4
"""Questions, where it does not matter how many there are."""


def evaluated(python: Path, **settings: Any) -> Leaderboard:
    values = {"clone": "clone", "answers": ["short.jsonl", "long.jsonl"], "judge": "judge.yaml", "out": "out"}
    return arena_hard(**{**values, "environment": python, **settings})


def undated(made: Leaderboard) -> list[str]:
    return [line.replace(made.date, "YYYY-MM-DD") for line in made.lines()]


@pytest.fixture(scope="module")
def whole(toy_python: Path, shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> Leaderboard:
    """An evaluation from its start to its end, for those who read it."""
    reset_server(shared_server)
    folder = furnished(make_clone(tmp_path_factory.mktemp("whole") / "clone", QUESTIONS).parent, shared_server)
    data = [{"instruction": f"What is there to say of {uid}?", "response": "It is."} for uid in ("q01", "q02", "q99")]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return evaluated(toy_python, out=folder / "out", data=data)


def test_it_asks_each_game_once_and_writes_its_files(whole: Leaderboard, clone: Path) -> None:
    assert GAMES == whole.asked == whole.used.calls and whole.state == DONE and not whole.problem
    assert {each.arm: each.decided for each in whole.arms} == {"short": QUESTIONS, "long": QUESTIONS}
    assert (whole.baseline, whole.judge, whole.judge_said) == (BASELINE, "openai/judge", ["judge"])
    assert {path.name for path in whole.out.iterdir()} >= WRITTEN and not (whole.out / "working").exists()
    used = whole.out.parent / "clone"
    before = {path.relative_to(clone): path.read_bytes() for path in clone.rglob("*") if path.is_file()}
    assert {path.relative_to(used): path.read_bytes() for path in used.rglob("*") if path.is_file()} == before


def test_scores_are_the_codes_own_and_stand_in_every_file(said: Said, whole: Leaderboard) -> None:
    scores = [each.score for each in whole.arms]
    assert all(score and score.low < score.value < score.high for score in scores)
    assert scores == sorted(scores, key=lambda score: -score.value if score else 0)
    assert all(each.at_equal_style and each.at_equal_style.value == pytest.approx(each.score.value + 1)
               for each in whole.arms if each.score)  # fmt: skip
    figures = json.loads((whole.out / "evaluation.json").read_text())["figures"]
    assert figures["long/score"] == next(each.score.value for each in whole.arms if each.arm == "long" and each.score)
    assert figures["short/questions"] == QUESTIONS and "short/score_at_equal_style_low" in figures
    assert figures["overlap_share"] == pytest.approx(2 / 3)
    assert (whole.out / "win-rates.png").read_bytes().startswith(b"\x89PNG")
    assert (whole.out / "evaluation.txt").read_text().splitlines() == whole.lines()
    said(undated(whole))
    rows = rows_of(whole.out / "judgments" / "long.jsonl")
    assert [row["uid"] for row in rows] == [f"q{n:02}" for n in range(QUESTIONS)], "in the order of the questions"
    assert {row["judge"] for row in rows} == {"openai/judge"} and {row["model"] for row in rows} == {"long"}
    assert all(game["judgment"]["answer"].endswith("]]") for row in rows for game in row["games"])


@pytest.mark.slow
def test_another_arm_and_more_questions_ask_only_what_is_new(
    home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    evaluated(toy_python, answers="short.jsonl", questions=5)
    assert requests(server) == 10
    evaluated(toy_python, questions=5)
    assert requests(server) == 20
    made = evaluated(toy_python)
    assert requests(server) == GAMES and len(made.arms) == 2
    fewer = evaluated(toy_python, answers=["long.jsonl"], questions=3)
    assert requests(server) == GAMES and [each.decided for each in fewer.arms] == [3]


def test_without_style_control_no_style_is_needed(said: Said, home: Path, toy_python: Path) -> None:
    write_answers(home / "short.jsonl", QUESTIONS, metadata=None)
    made = evaluated(toy_python, style_control=False, questions=FEW)
    assert [each.at_equal_style for each in made.arms] == [None, None]
    said(undated(made))


def test_the_simulated_teacher_judges_for_nothing_and_says_so(home: Path, toy_python: Path) -> None:
    made = evaluated(toy_python, judge="simulated", questions=FEW, style_control=False)
    assert made.used.cost == 0 and all(each.decided == FEW and each.score for each in made.arms)
    assert made.simulated and made.simulated in made.lines()


# --- early ends


def test_at_a_cap_it_keeps_what_was_judged(said: Said, home: Path, toy_python: Path) -> None:
    one_by_one = {**yaml.safe_load(Path("judge.yaml").read_text()), "concurrency": 1}
    made = evaluated(toy_python, judge=one_by_one, max_calls=6, questions=FEW)
    assert (made.stopped, made.state, made.arms, made.asked) == ("max_calls", CAPPED, [], 6)
    said(made.lines())
    assert not Path("out/judgments").exists()


def test_questions_without_an_answer_are_left_out_and_asked_again(
    said: Said, home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    one_by_one = {**yaml.safe_load(Path("judge.yaml").read_text()), "concurrency": 1}
    server.control(faults={"500": 0.15}, seed=2)
    made = evaluated(toy_python, judge=one_by_one, questions=FEW, style_control=False)
    assert made.state == SHORT and 0 < sum(each.decided for each in made.arms) < 2 * FEW
    said(made.problem)
    server.control(faults={})
    made = evaluated(toy_python, judge=one_by_one, questions=FEW, style_control=False)
    assert made.state == DONE and not made.problem and {each.decided for each in made.arms} == {FEW}


def test_a_verdict_that_the_code_has_no_number_for_counts_as_none(
    said: Said, home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    server.control(verdicts=["[[A>B]]", "[[A>>>B]]"])
    made = evaluated(toy_python, style_control=False)
    assert made.state == DONE
    said(made.problem)
    server.control(verdicts=["[[AB]]", "Who knows?"])
    with said.by(RunStopped):
        evaluated(toy_python, out="other", questions=FEW)


def test_code_that_fails_says_why_and_where_its_log_is(said: Said, home: Path, toy_python: Path) -> None:
    script = home / "clone" / "gen_judgment.py"
    script.write_text("raise ValueError('some cause')\n")
    with said.by(RunStopped):
        evaluated(toy_python)


def test_a_style_that_the_code_cannot_control_for_is_told(said: Said, home: Path, toy_python: Path) -> None:
    script = home / "clone" / "show_result.py"
    script.write_text("import sys\nassert '--control-features' not in sys.argv, 'alike'\n" + script.read_text().replace(
        "from __future__ import annotations\n", ""))  # fmt: skip
    made = evaluated(toy_python, questions=FEW)
    assert all(each.score and each.at_equal_style is None for each in made.arms)
    said(undated(made))


# --- refused before anything is paid for


@pytest.mark.parametrize(
    "changed",
    [
        {"clone": "nowhere"},
        {"clone": "."},
        {"benchmark": "arena-hard-v3"},
        {"category": "poems"},
        {"category": "creative_writing"},
        {"answers": []},
        {"answers": "none.jsonl"},
        {"judge": {"model": "openai/judge", "mode": "batch"}},
        {"environment": "nowhere"},
        {"max_cost": -1},
        {"questions": 0},
    ],
)
def test_bad_input_is_one_line_and_costs_nothing(
    said: Said, home: Path, toy_python: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, changed: Any
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef0123")
    with said.by(InputError) as refused:
        evaluated(toy_python, **changed)
    assert "\n" not in str(refused.value) and requests(server) == 0 and not (home / "out").exists()


def test_another_evaluation_or_a_file_of_somebody_elses_is_not_overwritten(
    said: Said, whole: Leaderboard, home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    shutil.copytree(whole.out, "out")
    (home / "clone" / "utils" / "math_utils.py").write_text("changed = True\n")
    with pytest.raises(RunDirError) as refused:
        evaluated(toy_python)
    said(re.sub("[0-9a-f]{16}", "DIGEST", str(refused.value)))
    (home / "taken" / "judgments").mkdir(parents=True)
    with said.by(ExportError):
        evaluated(toy_python, out="taken")
    assert requests(server) == 0

"""A whole evaluation around a stand-in for Arena-Hard's code: what is asked, kept, written and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, ExportError, ReferencesError, RunDirError, RunStopped
from refed_dspy.ledger.states import CAPPED, DONE, SHORT
from refed_dspy.plugins.evaluate.arena_hard.evaluate import arena_hard
from refed_dspy.plugins.evaluate.arena_hard.result import INTERVALS, SAME_JUDGE, Leaderboard
from tests.runs.evaluation.arena_hard.conftest import QUESTIONS
from tests.support.said import Said
from tests.support.toy_arena_hard import BASELINE, BENCHMARK, rows_of, write_answers

GAMES = 2 * 2 * QUESTIONS
WRITTEN = {"arena-hard.log", "arena-hard-table.log", "evaluation.json", "evaluation.txt", "judgments", "win-rates.png"}


def evaluated(python: Path, **settings: Any) -> Leaderboard:
    values = {"clone": "clone", "answers": ["short.jsonl", "long.jsonl"], "judge": "judge.yaml", "out": "out"}
    return arena_hard(**{**values, "environment": python, **settings})


def asked(server: SimulatedTeacher) -> int:
    return int(server.stats()["requests"])


def test_it_asks_each_game_once_and_a_second_start_nothing(
    home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (home / "clone").rglob("*")}
    made = evaluated(toy_python)
    assert asked(server) == GAMES == made.asked == made.used.calls and made.state == DONE and not made.problem
    assert {each.arm: each.decided for each in made.arms} == {"short": QUESTIONS, "long": QUESTIONS}
    assert (made.baseline, made.judge, made.judge_said) == (BASELINE, "openai/judge", ["judge"])
    again = evaluated(toy_python)
    assert asked(server) == GAMES and again == made
    assert {path.name for path in (home / "out").iterdir()} >= WRITTEN and not (home / "out" / "working").exists()
    assert {path: path.stat().st_mtime_ns for path in (home / "clone").rglob("*")} == before, "the clone stays as it is"


def test_scores_are_the_codes_own_and_stand_in_every_file(said: Said, home: Path, toy_python: Path) -> None:
    made = evaluated(toy_python)
    scores = [each.score for each in made.arms]
    assert all(score and score.low < score.value < score.high for score in scores)
    assert scores == sorted(scores, key=lambda score: -score.value if score else 0)
    assert all(each.at_equal_style and each.at_equal_style.value == pytest.approx(each.score.value + 1)
               for each in made.arms if each.score)  # fmt: skip
    figures = json.loads(Path("out/evaluation.json").read_text())["figures"]
    assert figures["long/score"] == next(each.score.value for each in made.arms if each.arm == "long" and each.score)
    assert figures["short/questions"] == QUESTIONS and "short/score_at_equal_style_low" in figures
    assert Path("out/win-rates.png").read_bytes().startswith(b"\x89PNG")
    text = Path("out/evaluation.txt").read_text()
    assert text.splitlines() == made.lines() and INTERVALS in text and SAME_JUDGE in text
    told = "12 questions of hard_prompt, over o3-toy (50 %), judged by openai/judge (which calls itself judge) until"
    assert f"{BENCHMARK}, {told} {made.date} (UTC)" in text
    said(text)
    rows = rows_of(Path("out/judgments/long.jsonl"))
    assert [row["uid"] for row in rows] == [f"q{n:02}" for n in range(QUESTIONS)], "in the order of the questions"
    assert {row["judge"] for row in rows} == {"openai/judge"} and {row["model"] for row in rows} == {"long"}
    assert all(game["judgment"]["answer"].endswith("]]") for row in rows for game in row["games"])


@pytest.mark.slow
def test_another_arm_and_more_questions_ask_only_what_is_new(
    home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    evaluated(toy_python, answers="short.jsonl", questions=5)
    assert asked(server) == 10
    evaluated(toy_python, questions=5)
    assert asked(server) == 20
    made = evaluated(toy_python)
    assert asked(server) == GAMES and len(made.arms) == 2
    fewer = evaluated(toy_python, answers=["long.jsonl"], questions=3)
    assert asked(server) == GAMES and [each.decided for each in fewer.arms] == [3]


def test_without_style_control_no_style_is_needed(said: Said, home: Path, toy_python: Path) -> None:
    write_answers(home / "short.jsonl", QUESTIONS, metadata=None)
    made = evaluated(toy_python, style_control=False)
    assert [each.at_equal_style for each in made.arms] == [None, None]
    said(made.lines())


def test_what_overlaps_with_the_training_data_is_told(home: Path, toy_python: Path) -> None:
    rows = [{"instruction": f"What is there to say of {uid}?", "response": "It is."} for uid in ("q01", "q02", "q99")]
    made = evaluated(toy_python, data=rows)
    assert made.overlap is not None and made.overlap.count == 2 and made.facts()["figures"]["overlap_share"] > 0.6


def test_the_simulated_teacher_judges_for_nothing_and_says_so(said: Said, home: Path, toy_python: Path) -> None:
    made = evaluated(toy_python, judge="simulated")
    assert made.used.cost == 0 and all(each.decided == QUESTIONS and each.score for each in made.arms)
    said("\n".join(made.lines()))


# --- early ends


def test_at_a_cap_it_keeps_what_was_judged_and_goes_on(
    said: Said, home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    made = evaluated(toy_python, max_calls=20)
    assert (made.stopped, made.state, made.arms, made.asked) == ("max_calls", CAPPED, [], 20) and asked(server) == 20
    said(made.lines())
    assert not Path("out/judgments").exists()
    made = evaluated(toy_python, max_calls=GAMES)
    assert made.state == DONE and asked(server) == GAMES and len(made.arms) == 2


def test_questions_without_an_answer_are_left_out_and_asked_again(
    home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    server.control(faults={"500": 0.15}, seed=2)
    made = evaluated(toy_python)
    missing = {each.arm: QUESTIONS - each.decided for each in made.arms}
    assert made.state == SHORT and 0 < sum(missing.values()) < 2 * QUESTIONS
    assert made.problem.startswith("questions without a verdict in both orders: ")
    assert all(f"{count} of {arm}" in made.problem for arm, count in missing.items() if count)
    assert "the same command asks again" in made.problem
    server.control(faults={})
    made = evaluated(toy_python)
    assert made.state == DONE and not made.problem and {each.decided for each in made.arms} == {QUESTIONS}


def test_a_verdict_that_the_code_has_no_number_for_counts_as_none(
    said: Said, home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    server.control(verdicts=["[[A>B]]", "[[A>>>B]]"])
    made = evaluated(toy_python)
    assert made.state == DONE
    said(made.problem)
    server.control(verdicts=["[[AB]]", "Who knows?"])
    with said.by(RunStopped):
        evaluated(toy_python, out="other")


def test_code_that_fails_says_why_and_where_its_log_is(said: Said, home: Path, toy_python: Path) -> None:
    script = home / "clone" / "gen_judgment.py"
    script.write_text("raise ValueError('some cause')\n")
    with said.by(RunStopped):
        evaluated(toy_python)


def test_a_style_that_the_code_cannot_control_for_is_told(said: Said, home: Path, toy_python: Path) -> None:
    script = home / "clone" / "show_result.py"
    script.write_text("import sys\nassert '--control-features' not in sys.argv, 'alike'\n" + script.read_text().replace(
        "from __future__ import annotations\n", ""))  # fmt: skip
    made = evaluated(toy_python)
    assert all(each.score and each.at_equal_style is None for each in made.arms)
    said("\n".join(made.lines()))


# --- refused before anything is paid for


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"clone": "nowhere"}, ConfigError, "clone: nowhere: no such folder; name your clone of https://github.com/"),
        ({"clone": "."}, ConfigError, "clone: . is not a whole clone of https://github.com/lmarena/arena-hard-auto:"),
        ({"benchmark": "arena-hard-v3"}, ConfigError, "benchmark: no 'arena-hard-v3'; choose arena-hard-v2.0 or"),
        ({"category": "poems"}, ConfigError, "category: arena-hard-v2.0 has no 'poems'; choose one of hard_prompt, "),
        ({"category": "creative_writing"}, ConfigError, "it lacks data/arena-hard-v2.0/model_answer/writer-toy.jsonl"),
        ({"answers": []}, ConfigError, "answers: none are named; name a file or folder"),
        ({"answers": "none.jsonl"}, ReferencesError, "none.jsonl: no such file"),
        ({"judge": {"model": "openai/judge", "mode": "batch"}}, ConfigError, "judge: a benchmark's code waits"),
        ({"environment": "nowhere"}, ConfigError, "environment: nowhere is no environment"),
        ({"max_cost": -1}, ConfigError, "max_cost: "),
        ({"questions": 0}, ConfigError, "questions: "),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_costs_nothing(
    home: Path, toy_python: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any], error: type[Exception], message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789abcdef0123")
    with pytest.raises(error) as raised:
        evaluated(toy_python, **changed)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert asked(server) == 0 and not (home / "out").exists()


def test_another_evaluation_or_a_file_of_somebody_elses_is_not_overwritten(
    said: Said, home: Path, toy_python: Path, server: SimulatedTeacher
) -> None:
    evaluated(toy_python, questions=1)
    code = home / "clone" / "utils" / "math_utils.py"
    code.write_text("changed = True\n")
    with said.by(RunDirError):
        evaluated(toy_python, questions=1)
    (home / "taken" / "judgments").mkdir(parents=True)
    with said.by(ExportError):
        evaluated(toy_python, out="taken")
    assert asked(server) == 4

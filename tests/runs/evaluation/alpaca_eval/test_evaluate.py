"""A whole evaluation around a stand-in for AlpacaEval's code: what is asked, kept, written and told."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, ExportError, ReferencesError, RunDirError, RunStopped
from refed_dspy.ledger.states import CAPPED, DONE, SHORT
from refed_dspy.plugins.evaluate.alpaca_eval.evaluate import alpaca_eval
from refed_dspy.plugins.evaluate.alpaca_eval.files import annotation_lines, read_annotations
from refed_dspy.plugins.evaluate.alpaca_eval.result import LICENCE, RETIRED, AlpacaEvaluation
from refed_dspy.text import NO_VALUE
from tests.runs.evaluation.alpaca_eval.conftest import SIZE, outputs
from tests.support.said import Said

WRITTEN = {
    "alpaca-eval.log", "annotations.json", "evaluation.json", "evaluation.txt", "leaderboard.csv", "win-rates.png",
}  # fmt: skip


def evaluated(toy: Path, **settings: Any) -> AlpacaEvaluation:
    values: dict[str, Any] = {"outputs": "mine.json", "baseline": "theirs.json", "judge": "judge.yaml", "out": "out"}
    return alpaca_eval(**{**values, "environment": toy, **settings})


def asked(server: SimulatedTeacher) -> int:
    return int(server.stats()["requests"])


def test_it_asks_each_pair_once_and_a_second_start_nothing(home: Path, toy: Path, server: SimulatedTeacher) -> None:
    made = evaluated(toy)
    assert made.judged is not None and made.judged.n == made.size == made.asked == SIZE == asked(server)
    assert made.state == DONE and not made.problem and made.used.calls == SIZE
    assert (made.model, made.baseline, made.judge, made.judge_said) == ("mine", "theirs", "openai/judge", ["judge"])
    again = evaluated(toy)
    assert asked(server) == SIZE and again == made
    assert {path.name for path in (home / "out").iterdir()} >= WRITTEN and not (home / "out" / "working").exists()


def test_the_figures_are_the_codes_own_and_ours_around_them(home: Path, toy: Path) -> None:
    judged = evaluated(toy).judged
    assert judged is not None and judged.standard_error == 1.5, "as the stand-in writes it"
    wins = [row["preference"] - 1 for row in json.loads(Path("out/annotations.json").read_text())]
    assert judged.win_rate == pytest.approx(100 * sum(wins) / SIZE) == judged.interval.mean
    assert judged.interval.low < judged.win_rate < judged.interval.high
    assert judged.length_controlled.interval is not None and not judged.length_controlled.official
    facts = json.loads(Path("out/evaluation.json").read_text())
    assert facts["figures"]["win_rate"] == judged.win_rate and facts["figures"]["n"] == SIZE
    assert "length_controlled_own_fit" in facts["figures"] and facts["used"]["cost"] > 0


def test_a_single_preference_has_a_win_rate_and_no_standard_error(home: Path, toy: Path) -> None:
    made = evaluated(toy, outputs=outputs("mine", 1))
    assert made.judged is not None and made.judged.n == made.size == 1 and made.state == DONE
    assert math.isnan(made.judged.standard_error)
    figures = json.loads(Path("out/evaluation.json").read_text(), parse_constant=pytest.fail)["figures"]
    assert figures["standard_error"] is None and figures["win_rate"] == made.judged.win_rate
    (annotations,) = read_annotations(Path("out/annotations.json"))
    for row in (Path("out/evaluation.txt").read_text().splitlines()[1], annotation_lines([annotations])[1]):
        cells = re.split(r"  +", row)
        assert cells[cells.index(f"{made.judged.win_rate:.2f}") + 1] == NO_VALUE


def test_what_must_be_known_stands_in_the_table(said: Said, home: Path, toy: Path) -> None:
    made = evaluated(toy)
    text = Path("out/evaluation.txt").read_text()
    assert text.splitlines() == made.lines() and RETIRED in text and LICENCE in text
    said(text)
    assert "gpt-4-1106-preview" in text and made.date in text


def test_what_overlaps_with_the_training_data_is_told(said: Said, home: Path, toy: Path) -> None:
    rows = [{"instruction": f"Explain to a child what number {n} is.", "response": "It is."} for n in (2, 3, 99)]
    made = evaluated(toy, data=rows)
    assert made.overlap is not None and made.overlap.count == 2
    said(made.lines())
    assert made.facts()["figures"]["overlap_share"] == pytest.approx(2 / 3)


def test_the_token_and_the_judges_key_are_in_no_file(
    home: Path, toy: Path, locked: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked.control(verdicts=["m", "M"])
    judge = {"model": "openai/judge", "api_base": locked.base_url, "api_key_env": "SIMULATED_TEACHER_KEY"}
    assert evaluated(toy, judge=judge).judged is not None
    stored = b"".join(path.read_bytes() for path in (home / "out").rglob("*") if path.is_file())
    assert b"sk-simulated" not in stored and b"127.0.0.1" in stored and b"api_key" not in stored


def test_the_simulated_judge_costs_nothing_and_says_so(said: Said, home: Path, toy: Path) -> None:
    made = evaluated(toy, judge="simulated")
    assert made.judged is not None and made.judged.n == SIZE and not made.used.picodollars
    said(made.lines())
    assert evaluated(toy, judge="simulated") == made


# --- early ends


def test_at_a_cap_it_keeps_what_was_judged_and_goes_on(
    said: Said, home: Path, toy: Path, server: SimulatedTeacher
) -> None:
    made = evaluated(toy, max_calls=9)
    assert (made.stopped, made.state, made.judged, made.asked) == ("max_calls", CAPPED, None, 9) and asked(server) == 9
    said(made.lines())
    assert not Path("out/annotations.json").exists()
    assert json.loads(Path("out/evaluation.json").read_text())["stopped"] == "max_calls"
    made = evaluated(toy, max_calls=SIZE)
    assert made.judged is not None and made.state == DONE and asked(server) == SIZE


def test_comparisons_without_an_answer_are_left_out_and_asked_again(
    said: Said, home: Path, toy: Path, server: SimulatedTeacher
) -> None:
    server.control(faults={"500": 0.3}, seed=2)
    made = evaluated(toy)
    assert made.judged is not None and 0 < made.judged.n < SIZE and made.state == SHORT
    said(made.problem)
    server.control(faults={})
    made = evaluated(toy)
    assert made.judged is not None and made.judged.n == SIZE and not made.problem and made.state == DONE


def test_code_that_fails_says_why_and_where_its_log_is(
    said: Said, home: Path, toy: Path, server: SimulatedTeacher
) -> None:
    server.control(verdicts=["x", "y"])
    with said.by(RunStopped):
        evaluated(toy)
    assert 0 < asked(server) <= SIZE


def test_after_a_failure_the_next_start_begins_in_a_folder_of_its_own(
    said: Said, home: Path, toy: Path, server: SimulatedTeacher
) -> None:
    server.control(logprobs=False)
    with said.by(RunStopped):
        evaluated(toy)
    (home / "out" / "working" / "results").mkdir()
    server.control(logprobs=True)
    made = evaluated(toy)
    assert made.judged is not None and made.judged.n == SIZE and not (home / "out" / "working").exists()


# --- refused before anything is paid for


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"outputs": "nowhere.json"}, ReferencesError, "nowhere.json: no such file"),
        ({"outputs": "."}, ReferencesError, "outputs: . has no model_outputs.json; make it with --format alpaca_eval"),
        ({"outputs": []}, ReferencesError, "outputs: no rows"),
        ({"outputs": [{"prompt": "Hm?"}]}, ReferencesError, "outputs row 1: no text in instruction"),
        ({"outputs": [{"instruction": "Hm?", "output": None}]}, ReferencesError, "outputs row 1: no text in output"),
        (
            {"outputs": [{"instruction": " ", "output": "x"}]},
            ReferencesError,
            "outputs row 1: its instruction is empty",
        ),
        ({"baseline": outputs("a", 2) + outputs("b", 2)}, ConfigError, "has outputs of several models (a, b)"),
        (
            {"baseline": outputs("a", 2) * 2},
            ConfigError,
            "baseline: baseline answers 'Explain to a child what number 0 is.' twice",
        ),
        ({"baseline": [{"instruction": "Other?", "output": "x"}]}, ConfigError, "answers none of the instructions of"),
        ({"judge": "anthropic/claude-x"}, ConfigError, "judge: Anthropic's API gives no log-probabilities"),
        ({"environment": "nowhere"}, ConfigError, "environment: nowhere is no environment"),
        ({"gamed": "judge.yaml"}, ConfigError, "gamed: judge.yaml is not AlpacaEval's df_gamed.csv"),
        ({"max_cost": -1}, ConfigError, "max_cost: "),
    ],
)
def test_bad_input_is_one_line_and_costs_nothing(
    home: Path, toy: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any], error: type[Exception], message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-0123456789abcdef")
    with pytest.raises(error) as raised:
        evaluated(toy, **changed)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert asked(server) == 0 and not (home / "out").exists()


def test_a_judge_in_batches_is_refused(said: Said, home: Path, toy: Path, server: SimulatedTeacher) -> None:
    judge = {"model": "openai/judge", "api_base": server.base_url, "mode": "batch"}
    with said.by(ConfigError):
        evaluated(toy, judge=judge)


def test_another_evaluation_or_a_file_of_somebody_elses_is_not_overwritten(
    said: Said, home: Path, toy: Path, server: SimulatedTeacher
) -> None:
    evaluated(toy)
    with said.by(RunDirError):
        evaluated(toy, outputs=outputs("other"))
    (home / "taken").mkdir()
    (home / "taken" / "annotations.json").write_text((home / "mine.json").read_text())
    with said.by(ExportError):
        evaluated(toy, out="taken")
    with said.by(ExportError):
        evaluated(toy, outputs="taken/annotations.json", out="taken")
    assert asked(server) == SIZE

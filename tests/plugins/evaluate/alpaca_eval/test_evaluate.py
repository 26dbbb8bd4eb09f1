"""A whole evaluation around a stand-in for AlpacaEval's code: what is asked, kept, written and told."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ExportError, InputError, RunDirError, RunStopped
from refed_dspy.ledger.states import CAPPED, DONE, SHORT
from refed_dspy.plugins.evaluate.alpaca_eval.evaluate import alpaca_eval
from refed_dspy.plugins.evaluate.alpaca_eval.files import annotation_lines, read_annotations
from refed_dspy.plugins.evaluate.alpaca_eval.result import AlpacaEvaluation
from refed_dspy.text import NO_VALUE
from tests.conftest import reset_server
from tests.plugins.evaluate.alpaca_eval.conftest import SIZE, furnished, outputs
from tests.support.compiling import requests
from tests.support.said import Said

WRITTEN = {
    "alpaca-eval.log", "annotations.json", "evaluation.json", "evaluation.txt", "leaderboard.csv", "win-rates.png",
}  # fmt: skip
FEW = 8


def evaluated(toy: Path, **settings: Any) -> AlpacaEvaluation:
    values: dict[str, Any] = {"outputs": "mine.json", "baseline": "theirs.json", "judge": "judge.yaml", "out": "out"}
    return alpaca_eval(**{**values, "environment": toy, **settings})


@pytest.fixture(scope="module")
def whole(toy: Path, shared_server: SimulatedTeacher, tmp_path_factory: pytest.TempPathFactory) -> AlpacaEvaluation:
    """An evaluation from its start to its end, for those who read it."""
    reset_server(shared_server)
    folder = furnished(tmp_path_factory.mktemp("whole"), shared_server)
    data = [{"instruction": f"Explain to a child what number {n} is.", "response": "It is."} for n in (2, 3, 99)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return evaluated(toy, out=folder / "out", data=data)


def test_it_asks_each_pair_once_and_writes_its_files(whole: AlpacaEvaluation) -> None:
    assert whole.judged is not None and whole.judged.n == whole.size == whole.asked == whole.used.calls == SIZE
    assert whole.state == DONE and not whole.problem
    names = (whole.model, whole.baseline, whole.judge, whole.judge_said)
    assert names == ("mine", "theirs", "openai/judge", ["judge"])
    assert {path.name for path in whole.out.iterdir()} >= WRITTEN and not (whole.out / "working").exists()
    stored = b"".join(path.read_bytes() for path in whole.out.rglob("*") if path.is_file())
    assert b"127.0.0.1" in stored and b"api_key" not in stored, "nor the token with which the code asked"


def test_the_figures_are_the_codes_own_and_ours_around_them(whole: AlpacaEvaluation) -> None:
    judged = whole.judged
    assert judged is not None and judged.standard_error == 1.5, "as the stand-in writes it"
    wins = [row["preference"] - 1 for row in json.loads((whole.out / "annotations.json").read_text())]
    assert judged.win_rate == pytest.approx(100 * sum(wins) / SIZE) == judged.interval.mean
    assert judged.interval.low < judged.win_rate < judged.interval.high
    assert judged.length_controlled.interval is not None and not judged.length_controlled.official
    facts = json.loads((whole.out / "evaluation.json").read_text())
    assert facts["figures"]["win_rate"] == judged.win_rate and facts["figures"]["n"] == SIZE
    assert "length_controlled_own_fit" in facts["figures"] and facts["used"]["cost"] > 0


def test_what_must_be_known_and_what_overlaps_stands_in_the_table(said: Said, whole: AlpacaEvaluation) -> None:
    assert (whole.out / "evaluation.txt").read_text().splitlines() == whole.lines()
    said([line.replace(whole.date, "YYYY-MM-DD") for line in whole.lines()])
    assert whole.overlap is not None and whole.overlap.count == 2
    assert whole.facts()["figures"]["overlap_share"] == pytest.approx(2 / 3)


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


def test_the_simulated_judge_costs_nothing_and_says_so(said: Said, home: Path, toy: Path) -> None:
    made = evaluated(toy, outputs=outputs("mine", FEW), judge="simulated")
    assert made.judged is not None and made.judged.n == FEW and not made.used.picodollars
    assert made.simulated in made.lines()
    said(made.simulated)


# --- early ends


def test_at_a_cap_it_keeps_what_was_judged(said: Said, home: Path, toy: Path) -> None:
    one_by_one = {**yaml.safe_load(Path("judge.yaml").read_text()), "concurrency": 1}
    made = evaluated(toy, judge=one_by_one, max_calls=9)
    assert (made.stopped, made.state, made.judged, made.asked) == ("max_calls", CAPPED, None, 9)
    said(made.lines())
    assert not Path("out/annotations.json").exists()
    assert json.loads(Path("out/evaluation.json").read_text())["stopped"] == "max_calls"


def test_comparisons_without_an_answer_are_left_out_and_asked_again(
    said: Said, home: Path, toy: Path, server: SimulatedTeacher
) -> None:
    server.control(faults={"500": 0.3}, seed=2)
    made = evaluated(toy, outputs=outputs("mine", FEW))
    assert made.judged is not None and 0 < made.judged.n < FEW and made.state == SHORT
    said(made.problem)
    server.control(faults={})
    made = evaluated(toy, outputs=outputs("mine", FEW))
    assert made.judged is not None and made.judged.n == FEW and not made.problem and made.state == DONE


def test_code_that_fails_says_why_and_where_its_log_is(
    said: Said, home: Path, toy: Path, server: SimulatedTeacher
) -> None:
    server.control(verdicts=["x", "y"])
    with said.by(RunStopped):
        evaluated(toy)
    assert 0 < requests(server) <= SIZE


def test_after_a_failure_the_next_start_begins_in_a_folder_of_its_own(
    said: Said, home: Path, toy: Path, server: SimulatedTeacher
) -> None:
    server.control(logprobs=False)
    with said.by(RunStopped):
        evaluated(toy, outputs=outputs("mine", FEW))
    (home / "out" / "working" / "results").mkdir()
    server.control(logprobs=True)
    made = evaluated(toy, outputs=outputs("mine", FEW))
    assert made.judged is not None and made.judged.n == FEW and not (home / "out" / "working").exists()


# --- refused before anything is paid for


@pytest.mark.parametrize(
    "changed",
    [
        {"outputs": "nowhere.json"},
        {"outputs": "."},
        {"outputs": []},
        {"outputs": [{"prompt": "Hm?"}]},
        {"outputs": [{"instruction": "Hm?", "output": None}]},
        {"outputs": [{"instruction": " ", "output": "x"}]},
        {"baseline": outputs("a", 2) + outputs("b", 2)},
        {"baseline": outputs("a", 2) * 2},
        {"baseline": [{"instruction": "Other?", "output": "x"}]},
        {"judge": "anthropic/claude-x"},
        {"judge": {"model": "openai/judge", "mode": "batch"}},
        {"environment": "nowhere"},
        {"gamed": "judge.yaml"},
        {"max_cost": -1},
    ],
)
def test_bad_input_is_one_line_and_costs_nothing(
    said: Said, home: Path, toy: Path, server: SimulatedTeacher, monkeypatch: pytest.MonkeyPatch, changed: Any
) -> None:
    for provider in ("ANTHROPIC", "OPENAI"):
        monkeypatch.setenv(f"{provider}_API_KEY", "sk-ant-0123456789abcdef")
    with said.by(InputError) as refused:
        evaluated(toy, **changed)
    assert "\n" not in str(refused.value) and requests(server) == 0 and not (home / "out").exists()


def test_another_evaluation_or_a_file_of_somebody_elses_is_not_overwritten(
    said: Said, whole: AlpacaEvaluation, home: Path, toy: Path, server: SimulatedTeacher
) -> None:
    shutil.copytree(whole.out, "out")
    with said.by(RunDirError):
        evaluated(toy, outputs=outputs("other"))
    (home / "taken").mkdir()
    (home / "taken" / "annotations.json").write_text((home / "mine.json").read_text())
    with said.by(ExportError):
        evaluated(toy, out="taken")
    with said.by(ExportError):
        evaluated(toy, outputs="taken/annotations.json", out="taken")
    assert requests(server) == 0

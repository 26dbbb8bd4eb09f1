"""Statistics of a data set: what is reported of its figures, and the win rate of improved over plain."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Request

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, RunDirError, RunStopped
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.metrics.figures import open_tools
from refed_dspy.plugins.metrics.stats import DataStats
from tests.support.compiling import config, requests
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references
from tests.support.toy_server import ToyServer, toy_served


def rows(count: int) -> list[dict[str, str]]:
    """Rows with both responses; the improved one of row n is n words longer."""
    return [
        {"instruction": f"Describe {n}.", "response": f"plain {n}", "improved_response": f"better {n}" + " and" * n}
        for n in range(count)
    ]


SYMBOLS = {"win": "A>B", "lose": "B>A", "tie": "A=B", "torn": "A>B", "mute": "?", "unsure": "cannot tell"}
OTHERWISE = {"A>B": "B>A", "B>A": "A>B"}


def judging(*verdicts: str) -> Writer:
    """A judge that answers for row n what `verdicts[n]` names: win, lose, tie, torn (depends on the order), unsure
    (abstains) or mute (nothing usable)."""
    writer = Writer()

    def verdict(request: Request) -> str:
        text = "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)
        (number,) = {n for n in range(len(verdicts)) if f"Describe {n}." in text}
        first = text.index(f"better {number}") < text.index(f"plain {number}")
        symbol = SYMBOLS[verdicts[number]]
        if not first and verdicts[number] in {"win", "lose"}:
            symbol = OTHERWISE[symbol]
        return json.dumps({"reason": "so", "verdict": symbol})

    writer.on_request = verdict
    return writer


def measured(data: Any, folder: Path | None = None, **settings: Any) -> DataStats:
    return refed_dspy.measure(data, out=folder, **{"embeddings": False, **settings})


def of_wins(made: DataStats) -> list[str]:
    return [line for line in made.lines() if re.match("improved over|length-controlled|.*judgements", line)]


# --- what is reported


def test_a_file_with_plain_responses_has_two_columns(said: Said, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows(5), {"instruction": "x"}]))
    made = measured(tmp_path / "d.jsonl")
    assert list(made.columns) == ["plain", "improved"] and made.wins is None
    assert [column["rows"] for column in made.columns.values()] == [5, 5]
    assert made.facts()["left_out"] == {"unrecognised": 1}
    said(made.lines())
    json.dumps(made.facts(), allow_nan=False)
    assert [path.name for path in tmp_path.iterdir()] == ["d.jsonl"], "nothing is written without a judge"


def test_a_file_without_has_one(said: Said, tmp_path: Path) -> None:
    assert list(measured(references(3)).columns) == ["data"]
    made = measured([*rows(3), {**rows(1)[0], "response": " "}])
    assert list(made.columns) == ["data"]
    said(made.lines())
    with said.by(ConfigError):
        measured([{**reference, "first": " "} for reference in references(3)], columns={"plain": "first"})


def test_a_runs_folder_is_measured_while_it_is_written(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    server.control(items=8)
    settings: Any = {"teacher": config(server, max_tokens=2048), "run_dir": tmp_path / "run"}
    refed_dspy.synthesize(None, references(3), size=8, **settings)
    with Ledger.create(tmp_path / "run"):  # as the run that is writing it has
        made = measured(tmp_path / "run", tmp_path / "v", judge=config(server))
    assert made.columns["plain"]["rows"] == made.columns["improved"]["rows"] == 8
    assert made.wins is not None and made.wins.judgements.asked == 8
    refed_dspy.synthesize(None, references(3), size=9, **settings)
    before = requests(server)
    again = measured(str(tmp_path / "run"), tmp_path / "v", judge=config(server))
    assert again.wins is not None and again.wins.judgements.asked == 9 and requests(server) == before + 2
    with said.by(RunDirError):
        measured(tmp_path / "run", tmp_path / "run", judge=config(server))


# --- the win rate


def test_the_win_rate_is_that_of_the_verdicts(said: Said, tmp_path: Path) -> None:
    writer = judging("win", "win", "lose", "tie", "torn", "mute")
    made = measured(rows(6), tmp_path / "v", judge=fake_lm(writer))
    wins = made.wins
    assert wins is not None and wins.rate is not None
    assert wins.rate.mean == pytest.approx(100 * (1 + 1 + 0 + 0.5 + 0.5) / 5) and wins.rate.n == 5
    assert (wins.judgements.asked, wins.rows, wins.judgements.failed, wins.judge) == (6, 6, 1, "fake/model")
    assert wins.rate.low < 60 < wins.rate.high
    said(of_wins(made))
    facts = made.facts()["win_rate"]
    assert (facts["mean"], facts["n"], facts["failed"], facts["judged"]) == (pytest.approx(60), 5, 1, 6)
    assert facts["calls"] == wins.used.calls == len(writer.requests) and facts["stopped"] == ""
    json.dumps(facts, allow_nan=False)


def test_a_rate_that_rests_on_fewer_than_half_says_so_first(said: Said, tmp_path: Path) -> None:
    for name, verdicts in (("half", "win lose mute mute"), ("fewer", "win lose unsure unsure mute")):
        judge = judging(*verdicts.split())
        said(of_wins(measured(rows(len(verdicts.split())), tmp_path / name, judge=fake_lm(judge))))


def test_the_length_controlled_rate_is_shown_with_its_note(said: Said, tmp_path: Path) -> None:
    made = measured(rows(16), tmp_path / "a", judge=fake_lm(judging(*["lose"] * 8, *["win"] * 8)))
    said(of_wins(made))
    assert made.facts()["win_rate"]["length_controlled"]["mean"] < 50, "only the longer ones won"
    won = measured(rows(12), tmp_path / "b", judge=fake_lm(judging(*["win"] * 12))).wins
    assert won is not None and won.rate is not None and won.rate.mean == 100 and won.length_controlled is not None
    said(won.length_controlled.note)


def test_responses_that_are_the_same_tie_and_cost_nothing(said: Said, tmp_path: Path) -> None:
    writer = judging()
    same = [{"instruction": f"Describe {n}.", "response": "x", "improved_response": "x "} for n in range(3)]
    made = measured(same, tmp_path / "v", judge=fake_lm(writer))
    assert made.wins is not None and made.wins.rate is not None and made.wins.rate.mean == 50
    assert not writer.requests
    said(made.lines())


def test_a_larger_sample_goes_on_and_another_one_is_paid_for_already(server: SimulatedTeacher, tmp_path: Path) -> None:
    for settings, asked, paid in (({"sample": 10}, 10, 20), ({}, 14, 28), ({"sample": 10, "seed": 5}, 10, 28)):
        made = measured(rows(14), tmp_path / "v", judge=config(server, temperature=0.0), **settings)
        assert requests(server) == paid and made.wins is not None and made.wins.judgements.asked == asked


def test_at_a_cap_the_verdicts_so_far_count(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    made = measured(rows(10), tmp_path / "v", judge=config(server, concurrency=1), max_calls=9)
    assert made.wins is not None and (made.wins.stopped, made.wins.judgements.asked) == ("max_calls", 4)
    said(made.lines())
    assert made.facts()["win_rate"]["stopped"] == "max_calls" and made.columns["plain"]["rows"] == 10


# --- where there is no win rate


def test_a_judge_without_plain_responses_is_one_line(said: Said) -> None:
    writer = judging()
    with said.by(ConfigError):
        measured(references(3), judge=fake_lm(writer))
    with said.by(ConfigError):
        measured([*rows(3), {**rows(1)[0], "response": " "}], judge=fake_lm(writer))
    assert not writer.requests


@pytest.mark.parametrize(("verdicts", "count"), [(["mute"], 3), (["mute"], 30), (["unsure", "mute"], 5)])
def test_a_judge_that_decides_nothing_is_one_line(said: Said, tmp_path: Path, verdicts: list[str], count: int) -> None:
    with pytest.raises(RunStopped) as error:
        measured(rows(count), tmp_path / "v", judge=fake_lm(judging(*(verdicts * count)[:count])))
    assert "\n" not in str(error.value)
    if count < 20:  # else it ends before all are asked
        said(re.sub(r"of \d+ ", "of ROW ", str(error.value)))  # whichever came last


@pytest.fixture(scope="module")
def toy() -> Iterator[ToyServer]:
    with toy_served() as server:
        yield server


def test_a_wrong_judge_is_reported_before_a_scorer_is_asked(said: Said, toy: ToyServer, tmp_path: Path) -> None:
    toy.reset()
    scorer = {"model": "toy", "api_base": toy.url}
    with said.by(ConfigError):
        measured(rows(3), tmp_path / "v", judge=5, scorer=scorer)
    assert not toy.prompts
    toy.fault = "401"
    with said.by(ConfigError):
        measured(rows(3), tmp_path / "v", judge=fake_lm(judging("win", "win", "win")), scorer=scorer)
    assert not (tmp_path / "v").exists()


def test_the_scorers_calls_are_reported(said: Said, toy: ToyServer) -> None:
    toy.reset()
    made = measured(rows(3), scorer={"model": "toy", "api_base": toy.url})
    said(made.lines())
    assert len(toy.prompts) == len({tuple(prompt) for prompt in toy.prompts}), "plain and improved share instructions"
    assert all(figure is not None for name, figure in made.columns["plain"].items() if name.startswith("perplexity"))


def test_embeddings_that_are_asked_for_must_be_there(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("REFED_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.setenv(variable, str(tmp_path))
    with said.by(ConfigError):
        measured(references(3), embeddings=True)
    assert [
        len([line for line in open_tools(asked, None).lacking if "coherence" in line]) for asked in (None, False)
    ] == [1, 0]

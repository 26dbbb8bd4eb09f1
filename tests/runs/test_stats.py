"""Statistics of a data set: what is reported of its figures, and the win rate of improved over plain."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dspy.lm15 import Request
from dspy.utils import exceptions as lm_errors

import refed_dspy
from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, RunDirError, RunStopped, TeacherRefused
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.metrics.figures import open_tools
from refed_dspy.plugins.metrics.stats import DataStats
from tests.support.compiling import config
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references
from tests.support.toy_server import ToyServer, toy_served


def rows(count: int, **more: str) -> list[dict[str, str]]:
    """Rows with both responses; the improved one of row n is n words longer."""
    return [
        {
            "instruction": f"Describe {n}.",
            "response": f"plain {n}",
            "improved_response": f"better {n}" + " and" * n,
            **more,
        }
        for n in range(count)
    ]


SYMBOLS = {"win": "A>B", "lose": "B>A", "tie": "A=B", "torn": "A>B", "mute": "?", "unsure": "cannot tell"}


def judging(*verdicts: str) -> Writer:
    """A judge that answers for row n what `verdicts[n]` names: win, lose, tie, torn (depends on the order), unsure
    (abstains) or mute (nothing usable)."""
    writer = Writer()

    def verdict(request: Request) -> str:
        text = "".join(str(getattr(part, "text", "")) for message in request.messages for part in message.parts)
        (number,) = {n for n in range(len(verdicts)) if f"Describe {n}." in text}
        first = text.index(f"better {number}") < text.index(f"plain {number}")
        symbol = {"win": "A>B", "lose": "B>A", "tie": "A=B", "torn": "A>B", "mute": "?", "unsure": "cannot tell"}[
            verdicts[number]
        ]
        if not first and verdicts[number] in {"win", "lose"}:
            symbol = {"A>B": "B>A", "B>A": "A>B"}[symbol]
        return json.dumps({"reason": "so", "verdict": symbol})

    writer.on_request = verdict
    return writer


def measured(data: Any, folder: Path | None = None, **settings: Any) -> DataStats:
    return refed_dspy.measure(data, out=folder, **{"embeddings": False, **settings})


def requests(server: SimulatedTeacher) -> int:
    return int(server.stats()["requests"])


# --- what is reported


def test_a_file_with_plain_responses_has_two_columns(said: Said, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows(5), {"instruction": "x"}]))
    made = measured(tmp_path / "d.jsonl")
    assert list(made.columns) == ["plain", "improved"] and made.wins is None
    assert made.columns["plain"]["response words, mean"] == 2 and made.columns["improved"]["response words, mean"] == 4
    assert made.facts()["left_out"] == {"unrecognised": 1}
    said(made.lines())
    said("\n".join(made.lines()))
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
    refed_dspy.synthesize(None, references(3), size=16, **settings)  # so many that the simulated judge decides on one
    with Ledger.create(tmp_path / "run"):  # as the run that is writing it has
        made = measured(tmp_path / "run", tmp_path / "v", judge=config(server))
    assert made.columns["plain"]["rows"] == made.columns["improved"]["rows"] == 16
    assert made.wins is not None and made.wins.judgements.asked == 16
    refed_dspy.synthesize(None, references(3), size=17, **settings)
    before = requests(server)
    again = measured(str(tmp_path / "run"), tmp_path / "v", judge=config(server))
    assert again.wins is not None and again.wins.judgements.asked == 17 and requests(server) == before + 2
    with said.by(RunDirError):
        measured(tmp_path / "run", tmp_path / "run", judge=config(server))


# --- the win rate


def test_the_win_rate_is_that_of_the_verdicts(tmp_path: Path) -> None:
    writer = judging("win", "win", "lose", "tie", "torn", "mute")
    made = measured(rows(6), tmp_path / "v", judge=fake_lm(writer))
    wins = made.wins
    assert wins is not None and wins.rate is not None
    assert wins.rate.mean == pytest.approx(100 * (1 + 1 + 0 + 0.5 + 0.5) / 5) and wins.rate.n == 5
    assert (wins.judgements.asked, wins.rows, wins.judgements.failed, wins.judge) == (6, 6, 1, "fake/model")
    assert wins.rate.low < 60 < wins.rate.high
    lines = made.lines()
    assert any(line.startswith("improved over plain, by fake/model: 60.0% of 5 rows") for line in lines)
    assert any(line.startswith("length-controlled: – (5 groups of rows are too few") for line in lines)
    facts = made.facts()["win_rate"]
    assert (facts["mean"], facts["n"], facts["failed"], facts["judged"]) == (pytest.approx(60), 5, 1, 6)
    assert facts["calls"] == wins.used.calls == len(writer.requests) and facts["stopped"] == ""
    json.dumps(facts, allow_nan=False)


def test_a_rate_that_rests_on_fewer_than_half_says_so_first(said: Said, tmp_path: Path) -> None:
    half = measured(rows(4), tmp_path / "a", judge=fake_lm(judging("win", "lose", "mute", "mute")))
    assert not any("based on only" in line for line in half.lines())
    made = measured(rows(5), tmp_path / "b", judge=fake_lm(judging("win", "lose", "unsure", "unsure", "mute")))
    lines = [line for line in made.lines() if "judgements" in line or "improved over plain" in line]
    said(lines[0])
    said(lines[1])


def test_the_winner_is_the_improved_response(said: Said, tmp_path: Path) -> None:
    won = measured(rows(12), tmp_path / "a", judge=fake_lm(judging(*["win"] * 12))).wins
    lost = measured(rows(12), tmp_path / "b", judge=fake_lm(judging(*["lose"] * 12))).wins
    assert won is not None and lost is not None and won.rate is not None and lost.rate is not None
    assert (won.rate.mean, lost.rate.mean) == (100, 0)
    assert won.length_controlled is not None
    said(won.length_controlled.note)


def test_the_length_controlled_rate_is_shown_with_its_note(said: Said, tmp_path: Path) -> None:
    made = measured(rows(16), tmp_path / "a", judge=fake_lm(judging(*["lose"] * 8, *["win"] * 8)))
    (line,) = [line for line in made.lines() if line.startswith("length-controlled: ")]
    assert "%" in line
    said(line)
    assert made.facts()["win_rate"]["length_controlled"]["mean"] < 50, "only the longer ones won"


def test_responses_that_are_the_same_tie_and_cost_nothing(said: Said, tmp_path: Path) -> None:
    writer = judging()
    same = [{"instruction": f"Describe {n}.", "response": "x", "improved_response": "x "} for n in range(3)]
    made = measured(same, tmp_path / "v", judge=fake_lm(writer))
    assert made.wins is not None and made.wins.rate is not None and made.wins.rate.mean == 50
    assert not writer.requests
    said(made.lines())


def test_verdicts_are_paid_once_and_a_larger_sample_goes_on(server: SimulatedTeacher, tmp_path: Path) -> None:
    judge = config(server, temperature=0.0)
    first = measured(rows(30), tmp_path / "v", judge=judge, sample=10)
    assert requests(server) == 20
    again = measured(rows(30), tmp_path / "v", judge=judge, sample=10)
    assert requests(server) == 20 and again.wins == first.wins
    whole = measured(rows(30), tmp_path / "v", judge=judge)
    assert requests(server) == 60 and whole.wins is not None and whole.wins.judgements.asked == 30
    other = measured(rows(30), tmp_path / "v", judge=judge, sample=10, seed=5)
    assert requests(server) == 60 and other.wins is not None and other.wins.judgements.asked == 10


def test_at_a_cap_the_verdicts_so_far_count(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    made = measured(rows(10), tmp_path / "v", judge=config(server, concurrency=1), max_calls=9)
    assert made.wins is not None and (made.wins.stopped, made.wins.judgements.asked) == ("max_calls", 4)
    said(made.lines())
    assert made.facts()["win_rate"]["stopped"] == "max_calls" and made.columns["plain"]["rows"] == 10
    made = measured(rows(10), tmp_path / "v", judge=config(server, concurrency=1), max_calls=20)
    assert made.wins is not None and made.wins.judgements.asked == 10 and requests(server) == 20


# --- where there is no win rate


def test_a_judge_without_plain_responses_is_one_line(said: Said) -> None:
    writer = judging()
    with said.by(ConfigError) as error:
        measured(references(3), judge=fake_lm(writer))
    with said.by(ConfigError):
        measured([*rows(3), {**rows(1)[0], "response": " "}], judge=fake_lm(writer))
    assert "\n" not in str(error.value) and not writer.requests


@pytest.mark.parametrize("count", [3, 30])
def test_a_judge_that_abstains_everywhere_is_one_line(said: Said, tmp_path: Path, count: int) -> None:
    with pytest.raises(RunStopped) as error:
        measured(rows(count), tmp_path / "v", judge=fake_lm(judging(*["mute"] * count)))
    assert "malformed" in str(error.value) and "\n" not in str(error.value)
    if count == 3:
        said(str(error.value))


def test_a_judge_that_decides_nothing_is_one_line(said: Said, tmp_path: Path) -> None:
    with pytest.raises(RunStopped) as error:
        measured(rows(5), tmp_path / "v", judge=fake_lm(judging("unsure", "mute", "unsure", "mute", "unsure")))
    message = str(error.value)
    said(message)
    assert "\n" not in message


def test_a_refused_judge_is_reported_before_anything_else(said: Said, tmp_path: Path) -> None:
    writer = judging()
    writer.on_request = lambda request: lm_errors.LMAuthError("wrong key")
    with said.by(TeacherRefused):
        measured(rows(3), tmp_path / "v", judge=fake_lm(writer))


@pytest.fixture(scope="module")
def toy() -> Iterator[ToyServer]:
    with toy_served() as server:
        yield server


def test_a_wrong_judge_is_reported_before_a_scorer_is_asked(said: Said, toy: ToyServer, tmp_path: Path) -> None:
    toy.reset()
    scorer = {"model": "toy", "api_base": toy.url}
    with pytest.raises(ConfigError, match="^judge: "):  # noqa: RUF043
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
    assert made.facts()["scorer"].startswith(f"{len(toy.prompts)} calls")
    assert made.columns["plain"]["perplexity of the instruction, mean"] is not None


def test_embeddings_that_are_asked_for_must_be_there(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFED_CACHE", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with said.by(ConfigError):
        measured(references(3), embeddings=True)
    assert [line for line in open_tools(None, None).lacking if line.startswith("coherence and semantic diversity: ")]
    assert not [line for line in open_tools(False, None).lacking if line.startswith("coherence")]

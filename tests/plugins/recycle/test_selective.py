"""Selective mode with a scorer behind an endpoint: caps, refusals, rows and figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dspy.lm15 import Request

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.errors import ConfigError, RunStopped, TeacherRefused
from refed_dspy.plugins.recycle.passes import UNIMPROVED
from refed_dspy.plugins.recycle.program import IMPROVED, ORIGINAL
from refed_dspy.teachers.progress import Progress
from tests.plugins.recycle.helpers import BY_SCORE, FIELDS, first_pass, read, recycled, selective, told
from tests.programs.test_reflection import Reflecting, improved, reflected
from tests.support.compiling import config, requests
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm, references
from tests.support.toy_server import ToyServer

ALPACA, VICUNA = "IFD (alpaca), mean", "IFD (vicuna), mean"
"""Names of figures."""


@pytest.mark.slow
@pytest.mark.parametrize(("calls", "done", "halfway"), [(4, 0, 4), (6, 0, 6), (9, 3, 3)])
def test_a_cap_in_either_pass_ends_it_in_order(
    said: Said, server: SimulatedTeacher, scoring: ToyServer, tmp_path: Path, calls: int, done: int, halfway: int
) -> None:
    teacher = config(server, concurrency=1)
    made = selective(tmp_path / "r", scoring, teacher, max_calls=calls)
    assert (made.stopped, len(made.rows), made.halfway, made.used.calls) == ("max_calls", done, halfway, calls)
    rows = read(tmp_path / "r" / "recycled.jsonl") + read(tmp_path / "r" / "dropped.jsonl")
    assert sorted(row["row"] for row in rows) == [1, 2, 3][:done]
    said(told(made))
    if calls < 6:
        assert len(scoring.prompts) == 1, "but for the first text nothing is scored that the next start scores again"
    made = selective(tmp_path / "r", scoring, teacher, max_calls=100)
    assert (made.stopped, len(made.rows), made.halfway, made.used.calls) == ("", 6, 0, 12)
    assert requests(server) == 12 and server.stats()["repeated"] == 0


@pytest.mark.slow
def test_a_cap_in_the_first_pass_keeps_the_rows_that_were_done(
    server: SimulatedTeacher, scoring: ToyServer, tmp_path: Path
) -> None:
    teacher = config(server, concurrency=1, malformed_retries=0)
    recycled(tmp_path / "r", teacher, references(20), size=1)
    server.control(fail_stage="better_response")
    first = selective(tmp_path / "r", scoring, teacher, references(20), size=4)
    reasons = {row["response_reason"].partition(":")[0] for row in [*first.kept(), *first.dropped()]}
    assert "malformed" in reasons, "a final failure counts as done"
    paid, prompts = requests(server), {tuple(prompt) for prompt in scoring.prompts}
    scoring.prompts.clear()
    made = selective(tmp_path / "r", scoring, teacher, references(20), max_calls=paid + 3)
    assert made.stopped == "max_calls" and requests(server) == paid + 3 and made.halfway == 3
    assert list(made.kept()) == list(first.kept()) and list(made.dropped()) == list(first.dropped())
    assert {tuple(prompt) for prompt in scoring.prompts} == prompts, "only what is done is scored"


@pytest.mark.slow
@pytest.mark.parametrize(("after", "refused"), [(0, TeacherRefused), (4, RunStopped), (6, RunStopped), (8, RunStopped)])
def test_a_teacher_that_is_refused_in_either_pass(
    said: Said, server: SimulatedTeacher, scoring: ToyServer, tmp_path: Path, after: int, refused: type[Exception]
) -> None:
    server.control(auth_fails_after=after)
    with said.by(refused):
        selective(tmp_path / "r", scoring, config(server, concurrency=1))


@pytest.mark.slow
def test_selective_rows_say_where_their_texts_are_from(
    said: Said, server: SimulatedTeacher, scoring: ToyServer, tmp_path: Path
) -> None:
    server.control(response_words=9)  # the toy's figures depend on the texts: with these it keeps some and drops some
    data, started = references(12), list[Progress]()
    made = selective(tmp_path / "r", scoring, config(server), data, on_progress=started.append)
    ended = {progress.unit: (progress.kept, progress.size) for progress in started}  # the last of each
    assert ended == {"instructions": (12, 12), "responses": (12, 12)}
    kept, dropped = read(tmp_path / "r" / "recycled.jsonl"), read(tmp_path / "r" / "dropped.jsonl")
    assert sorted(row["row"] for row in kept + dropped) == list(range(1, 13)) and kept and dropped
    sources: set[tuple[str, str]] = set()
    for row in kept + dropped:
        assert list(row) == [*FIELDS, *BY_SCORE]
        original = row["instruction_from"] == ORIGINAL
        sources.add((row["instruction_from"], row["response_from"]))
        assert (row["instruction"] == row["original_instruction"]) == original
        assert (row["response"] == row["original_response"]) == (row["response_from"] == ORIGINAL)
        assert bool(row["instruction_reason"]) == original
        assert bool(row["response_reason"]) == (row["response_from"] != IMPROVED)
    assert (ORIGINAL, IMPROVED) in sources and len(sources) > 2
    assert requests(server) == made.used.calls == 24
    assert all(row["ifd"] < 1 and row["r_ifd"] < 1 and row["response_from"] == IMPROVED for row in kept)
    assert all((row["selection_reason"] == UNIMPROVED) == (max(row["ifd"], row["r_ifd"]) < 1) for row in dropped)
    assert {row["template"] for row in kept + dropped} == {"vicuna"}
    (step,) = json.loads((tmp_path / "r" / "source.json").read_text())["funnel"]
    assert (step["in"], step["kept"], sum(step["reasons"].values())) == (12, len(kept), len(dropped))
    assert made.figures["new"]["rows"] == made.figures["old"]["rows"] == len(kept)
    assert made.figures["new"][VICUNA] == pytest.approx(sum(row["ifd"] for row in kept) / len(kept))
    said([line for line in made.lines() if line.startswith(("selected", "scorer"))])
    assert len(scoring.prompts) == len({tuple(prompt) for prompt in scoring.prompts}), "a text is scored once"
    again = recycled(tmp_path / "r", config(server), data)
    assert not again.selected and not (tmp_path / "r" / "dropped.jsonl").exists(), "of another selection"


def test_rows_without_a_better_response_are_dropped_and_counted_or_kept_by_a_setting(
    said: Said, scoring: ToyServer, tmp_path: Path
) -> None:
    scoring.fault = "by length"  # so the longer of two responses has the lower r-IFD, and all figures are below 1
    better = "N/A", "It is long. " * 9, "Short.", "It is. " * 9
    first, again = Reflecting(*[reflected("N/A")] * 4, *map(improved, better)), Reflecting()
    dropping = selective(tmp_path / "r", scoring, fake_lm(first), references(4))
    dropped = list(dropping.dropped())
    assert [row["response_from"] for row in dropping.kept()] == [IMPROVED] * 2
    assert [(row["response_from"], row["selection_reason"]) for row in dropped] == [(ORIGINAL, UNIMPROVED)] * 2
    said(told(dropping))
    keeping = selective(tmp_path / "r", scoring, fake_lm(again), references(4), unimproved="keep")
    assert not again.requests, "the same folder goes on, and nothing is paid for"
    back = [{**row, "selection_reason": ""} for row in dropped]
    assert list(keeping.kept()) == sorted([*dropping.kept(), *back], key=lambda row: row["row"])
    assert not list(keeping.dropped()) and not [line for line in keeping.lines() if UNIMPROVED in line]


@pytest.mark.slow
def test_the_template_is_asked_for_and_named_in_rows_and_figures(
    said: Said, scoring: ToyServer, tmp_path: Path
) -> None:
    scorer = {"model": "toy", "api_base": scoring.url, "template": "alpaca"}
    vicuna = selective(tmp_path / "r", scoring, fake_lm(Reflecting()))
    alpaca = recycled(tmp_path / "r", fake_lm(Reflecting()), selective=True, scorer=scorer)
    rows = {row["row"]: row for row in [*vicuna.kept(), *vicuna.dropped()]}
    written = read(tmp_path / "r" / "recycled.jsonl") + read(tmp_path / "r" / "dropped.jsonl")
    assert len(written) == len(rows) == 6 and {row["template"] for row in written} == {"alpaca"}
    assert all(row["original_ifd"] != rows[row["row"]]["original_ifd"] for row in written)
    assert ALPACA in alpaca.figures["new"].keys() - vicuna.figures["new"].keys()
    with said.by(ConfigError):
        recycled(tmp_path / "s", fake_lm(Reflecting()), scorer={**scorer, "template": "chatml"})


def test_a_scorer_alone_selects_nothing(scoring: ToyServer, tmp_path: Path) -> None:
    made = recycled(tmp_path / "r", fake_lm(Reflecting()), scorer={"model": "toy", "api_base": scoring.url})
    assert [list(row) for row in read(tmp_path / "r" / "recycled.jsonl")] == [FIELDS] * 6
    assert made.selected is None and made.figures["new"][VICUNA] is not None


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["401", "404", "500", "no tokenize", "no logprobs"])
def test_a_scorer_that_cannot_be_used_is_reported_before_anything_is_paid(
    server: SimulatedTeacher, scoring: ToyServer, tmp_path: Path, fault: str
) -> None:
    scoring.fault = fault
    with pytest.raises(ConfigError, match=r"^scorer: ") as raised:
        recycled(tmp_path / "r", config(server), scorer={"model": "toy", "api_base": scoring.url}, selective=True)
    assert "\n" not in str(raised.value) and requests(server) == 0 and not (tmp_path / "r").exists()


def test_selective_without_a_scorer_is_refused(said: Said, server: SimulatedTeacher, tmp_path: Path) -> None:
    with said.by(ConfigError):
        recycled(tmp_path / "r", config(server), selective=True)
    with said.by(ConfigError):
        scorer = {"model": "toy", "api_base": "http://127.0.0.1:9/v1", "api_key_env": "NOWHERE_KEY"}
        recycled(tmp_path / "r", config(server), scorer=scorer)
    assert requests(server) == 0


@pytest.mark.slow
def test_a_scorer_that_fails_later_says_how_to_go_on(said: Said, scoring: ToyServer, tmp_path: Path) -> None:
    writer = Reflecting()

    def then_broken(request: Request) -> None:
        scoring.fault = "no logprobs"

    writer.on_request = then_broken
    scorer = {"model": "toy", "api_base": scoring.url}
    with said.by(RunStopped):
        recycled(tmp_path / "r", fake_lm(writer), scorer=scorer, selective=True)
    assert [first_pass(request) for request in writer.requests] == [True] * 6
    scoring.reset()
    again = Reflecting()
    assert recycled(tmp_path / "r", fake_lm(again), scorer=scorer, selective=True).selected
    assert [first_pass(request) for request in again.requests] == [False] * 6

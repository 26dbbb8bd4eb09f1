"""A run's page: what is read from the ledger, what the charts show, and what the file must not do."""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

import refed_dspy
from refed_dspy.data.rows import data_rows, dropped_rows
from refed_dspy.errors import ExportError
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import End, write_end
from refed_dspy.plugins.share.report import charts
from refed_dspy.plugins.share.report.charts import funnel
from refed_dspy.plugins.share.report.drawing import Bars, Dots
from refed_dspy.plugins.share.report.map import draw_map, instruction_map
from refed_dspy.plugins.share.report.page import packed
from refed_dspy.plugins.share.report.report import no_map, read_page, report
from refed_dspy.plugins.share.report.rows import COLUMNS, Rows, read_rows
from refed_dspy.runs.result import full_status
from tests.plugins.share.conftest import SHOWN_SIZE, copy_run
from tests.support.annotators import page_data
from tests.support.command_line import refed, refused, without_numbers
from tests.support.hostile import EVERY
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references

WHY, MALFORMED = "by three", "failed: malformed"


@pytest.fixture(autouse=True)
def no_embedder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps go by words here: weights may lie in the cache of one machine and not of another."""
    monkeypatch.setenv("REFED_CACHE", str(tmp_path / "cache"))


# --- what is read


def test_rows_are_those_of_the_data_set(ledger: Ledger) -> None:
    rows, names = read_rows(ledger), read_rows(ledger).names
    assert set(rows.columns) == set(COLUMNS) and len({len(column) for column in rows.columns.values()}) == 1
    exported = list(data_rows(ledger))
    kept = [{name: column[at] for name, column in rows.columns.items()} for at in range(SHOWN_SIZE)]
    for row, same in zip(kept, exported, strict=True):
        assert row["kept"] == 1 and row["number"] == same["sample"] and row["round"] == same["round"]
        assert row["instruction"] == same["instruction"]
        assert (row["response"], row["improved"]) == (same["response"], same["improved_response"])
        assert row["analysis"] == list(same["analysis"].values())
        assert row["strategy"] == list(same["implementation_strategy"].values())
        assert names["references"][row["reference"]]["id"] == same["reference"]
        assert names["features"][row["feature"]] == same["feature"]
        assert names["programs"][row["program"]] == same["program"]
        asked, plain, final = (names["writers"][number] for number in row["writers"])
        assert (final["model"], final["endpoint"]) == (same["teacher"], same["endpoint"])
        assert (plain["model"], asked["model"]) == (same["response_teacher"], same["instruction_teacher"])
        assert (row["prompt_tokens"], row["completion_tokens"]) == (same["prompt_tokens"], same["completion_tokens"])
        assert [names["filters"][decision[0]] for decision in row["decisions"]] == ["early", "late"]
        assert row["score"] == row["decisions"][-1][2] and row["decisions"][-1][4] == EVERY


def test_dropped_rows_follow(ledger: Ledger) -> None:
    rows = read_rows(ledger)
    dropped = [at for at, kept in enumerate(rows.columns["kept"]) if not kept]
    assert dropped == list(range(SHOWN_SIZE, len(rows)))
    texts = {row["instruction"]: (row["response"], row["improved_response"]) for row in dropped_rows(ledger)}
    assert len(texts) == len(dropped) > 2
    for at in dropped:
        row = {name: column[at] for name, column in rows.columns.items()}
        assert row["number"] is None and texts[row["instruction"]] == (row["response"], row["improved"])
        assert row["decisions"][-1][1:4:2] == [0, WHY]
    assert any(rows.columns["response"][at] is None for at in dropped), "one was dropped early"


def test_a_reference_has_what_it_stands_under(said: Said, tmp_path: Path) -> None:
    row = {"system": "Be brief.", "earlier": "User: Well?", **references(1)[0]}
    made = refed_dspy.synthesize(None, [row], size=1, teacher=fake_lm(Writer()), run_dir=tmp_path / "run")
    with Ledger.read(made.run_dir) as ledger:
        [reference] = read_rows(ledger).names["references"]
    said((reference["system"], reference["earlier"]))


def test_what_was_learned_of_a_reference(ledger: Ledger) -> None:
    learned, features = read_rows(ledger).names["references"], ledger.meta("features")
    decided = {row["reference"] for row in [*data_rows(ledger), *dropped_rows(ledger)]}
    assert [reference["id"] for reference in learned] == [r.id for r in ledger.references() if r.id in decided]
    assert all(reference["source"] and EVERY in reference["instruction"] for reference in learned)
    for reference in learned:
        assert set(reference["features"]) == set(features) and all(reference["features"].values())
        assert reference["feedback"]


def test_the_calls_of_a_row(ledger: Ledger) -> None:
    rows = read_rows(ledger)
    stages = [[rows.names["stages"][call[0]] for call in calls] for calls in rows.columns["calls"][:SHOWN_SIZE]]
    assert all(asked == ["response_generation", "response_improvement"] for asked in stages)
    assert rows.columns["cost"][0] is None, "a borrowed model has no price"


def test_sample_level_feedback_is_on_the_row(tmp_path: Path) -> None:
    program = refed_dspy.programs.SampleLevelFeedback()
    refed_dspy.synthesize(program, references(1), size=2, teacher=fake_lm(Writer()), run_dir=tmp_path)
    with Ledger.read(tmp_path) as ledger:
        rows = read_rows(ledger)
    assert all(text.startswith("response_feedback") for text in rows.columns["feedback"])
    assert rows.names["references"][0]["feedback"] == "" and rows.columns["diff"][0]


def test_a_program_that_improves_nothing(said: Said, tmp_path: Path) -> None:
    program = refed_dspy.programs.InstructionFeedbackOnly()
    refed_dspy.synthesize(program, references(1), size=2, teacher=fake_lm(Writer()), run_dir=tmp_path)
    with Ledger.read(tmp_path) as ledger:
        rows, steps = read_rows(ledger), funnel(ledger, full_status(ledger))
    assert rows.columns["diff"] == [None, None] and rows.columns["analysis"] == [None, None]
    assert rows.columns["improved"] == [None, None] and all(rows.columns["response"])
    said([step.name for step in steps])


# --- the charts


def test_the_funnel_adds_up(said: Said, ledger: Ledger) -> None:
    status = full_status(ledger)
    steps = funnel(ledger, status)
    said([step.name for step in steps])
    for before, after in itertools.pairwise(steps):
        assert (
            before.count == after.count + sum(after.lost.values()) + after.open
            and min(after.lost.values(), default=1) > 0
        )
    early, late = status["filters"]
    assert steps[2].lost == {WHY: early["dropped"]} and steps[5].lost[WHY] == late["dropped"]
    failed = sum(failure["count"] for failure in status["failures"] if failure["stage"] == "response_generation")
    assert steps[3].lost[MALFORMED] == failed and steps[-1].count == SHOWN_SIZE


def test_the_map_has_every_row(said: Said, ledger: Ledger) -> None:
    rows = read_rows(ledger)
    chart = instruction_map(rows, draw_map(rows.columns["instruction"]))
    assert chart is not None and isinstance(chart.figure, Dots) and len(chart.figure.places) == len(rows)
    said(list(chart.figure.colourings))
    assert all(len(colors) == len(rows) for _, colors in chart.figure.colourings.values())
    assert all(0 <= x <= 100 and 0 <= y <= 100 for x, y in chart.figure.places)


def test_costs_without_a_price_are_tokens(said: Said) -> None:
    use = {"calls": 2, "prompt_tokens": 70, "cached_tokens": 0, "completion_tokens": 30, "cost": None, "unpriced": 2}
    use["in_flight_cost"] = 0
    figure = charts.costs({"judge": use}).figure
    assert isinstance(figure, Bars)
    said(figure.series)
    assert [(part.left, part.width) for part in figure.lines[0][1]] == [(0, 70), (70, 30)]
    priced = charts.costs({"judge": {**use, "cost": 0.5}, "other": use})
    assert isinstance(priced.figure, Bars) and priced.figure.series == {"dollars": [0.5, 0]} and "$0.50" in priced.text


# --- the map


def test_a_map_is_the_same_twice_and_likeness_is_nearness() -> None:
    texts = [f"Bake a loaf of rye bread with {n} seeds" for n in range(8)]
    texts += [f"Prove theorem {n} of linear algebra about matrices" for n in range(8)]
    first, second = draw_map(texts, 3), draw_map(texts, 3)
    assert first is not None and second is not None
    assert (first.points == second.points).all()
    bread, algebra = first.points[:8], first.points[8:]
    apart = ((bread.mean(0) - algebra.mean(0)) ** 2).sum() ** 0.5
    assert apart > 2 * max(bread.std(0).max(), algebra.std(0).max())


@pytest.mark.parametrize("texts", [[], ["one"] * 9, ["a", "b", "c", "d"]])
def test_too_little_for_a_map(texts: list[str]) -> None:
    assert draw_map(texts) is None
    empty = Rows({"features": [], "references": []}, {"reference": [], "feature": []})
    assert instruction_map(empty, None) is None


# --- the file


def test_the_page_holds_the_rows(folder: Path, tmp_path: Path) -> None:
    page = report(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    data = page_data(tmp_path / "page.html")
    assert data["columns"]["improved"][0].startswith(EVERY)
    assert "<b>run" not in page and "&lt;b&gt;run" in page
    with Ledger.read(folder) as ledger:
        assert data["names"]["references"] == read_rows(ledger).names["references"]


def test_only_the_scripts_of_the_page_may_run(folder: Path, tmp_path: Path) -> None:
    page = report(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in scripts}
    assert len(hashes) == 1 and set(rules.pop("script-src").split()) == hashes
    nothing = dict.fromkeys(("default-src", "base-uri", "form-action", "connect-src"), "'none'")
    drawn = {"style-src": "'unsafe-inline'", "img-src": "data: blob:"}
    assert rules == {**nothing, **drawn}
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", re.sub(r"(?s)<script>.*?</script>", "", page))


def test_a_lone_surrogate_does_no_harm() -> None:
    data = {"names": {}, "columns": {"number": [1], "instruction": ["\ud83d end"]}}
    assert base64.b64decode(packed(data))[4:8] == bytes(4), "no time in it: the same rows are the same bytes"
    assert json.loads(gzip.decompress(base64.b64decode(packed(data))))["columns"]["instruction"] == ["? end"]


def test_a_run_that_goes_on_can_be_shown(said: Said, folder: Path, tmp_path: Path) -> None:
    copy_run(folder, tmp_path)
    with Ledger.create(tmp_path) as copy:
        copy.set_meta(size=500)
        running = report(tmp_path)  # its writer holds the lock
        assert 'data-state="running"' in running.read_text(encoding="utf-8")
        goes_on = read_page(tmp_path, no_map)
        write_end(copy, End("stopped", "why"))
    stopped = report(tmp_path).read_text(encoding="utf-8")
    ended = read_page(tmp_path, no_map)
    assert 'data-state="stopped"' in stopped
    said([(page.state, page.reason, page.facts[0], without_numbers(" ".join(page.notes))) for page in (goes_on, ended)])


def test_where_it_goes(said: Said, folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    place.mkdir()
    shutil.copy(folder / FILE, place)
    first = report(place).stat().st_ino
    assert report(place) == place / "report.html", "it is made of nothing but the run"
    assert (place / "report.html").stat().st_ino != first, (
        "a new file takes the old one's place: no half of one is ever seen"
    )
    other = tmp_path / "mine.html"
    other.write_text("mine")
    with said.by(ExportError):
        report(place, other)
    assert other.read_text() == "mine"
    assert report(place, other, force=True).stat().st_size < 300_000, "no library is in it"
    with said.by(ExportError):
        report(place, tmp_path / "nowhere" / "page.html")


def test_bad_input_is_one_line(said: Said, folder: Path, tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "new") as ledger:
        ledger.begin([], identity={})
    with Ledger.create(tmp_path / "other") as ledger:
        ledger.set_meta(work="agreement")
    lines = []
    for place in (tmp_path, tmp_path / "new", tmp_path / "other"):
        refused(done := refed("report", place))
        lines.append(done.stderr)
    said(lines)
    out = tmp_path / "page.html"
    done = refed("report", folder, "--out", out)
    assert done.exit_code == 0 and done.stdout.startswith(f"{out} (") and out.exists()

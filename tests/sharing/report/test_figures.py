"""The page's figures where money, judges and rounds come in: what each row took, the run at a glance, its tables."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from refed_dspy.ledger.account import RunAccount
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report import charts, glance
from refed_dspy.plugins.share.report.charts import Chart, funnel
from refed_dspy.plugins.share.report.drawing import Bars
from refed_dspy.plugins.share.report.map import draw_map, instruction_map
from refed_dspy.plugins.share.report.page import Page, render
from refed_dspy.plugins.share.report.report import best_map, read_page
from refed_dspy.plugins.share.report.rows import COLUMNS, Extract, Gallery, Rows, changed, plain, read_rows
from refed_dspy.records import PICO, dollars
from refed_dspy.runs.result import full_status
from tests.support.example_run import HOSTILE, shown_run
from tests.support.said import Said

CALL = "INSERT INTO calls VALUES (NULL, 'k', ?, ?, 'other/model', 'other', ?, 1, 70, 40, 30, 0, ?, 0, NULL)"
ANSWER = "INSERT INTO answers SELECT ?, ?, ?, ?, ?, NULL, ?, created, NULL FROM answers LIMIT 1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shown_run(tmp_path_factory.mktemp("figures") / "run", size=12)


@pytest.fixture
def ledger(made: Path, tmp_path: Path) -> Iterator[Ledger]:
    """A copy of the run for a single test, in which every call cost $0.002."""
    shutil.copy(made / FILE, tmp_path)
    with Ledger.create(tmp_path) as opened:
        opened.db.execute("UPDATE calls SET cost = ?", (PICO // 500,))
        yield opened


def first_rows(ledger: Ledger, count: int = 2) -> list[str]:
    """The items of the first kept rows, under which their questions were asked."""
    records = ledger.db.execute("SELECT instruction FROM samples ORDER BY seq LIMIT ?", (count,))
    return [str(number) for (number,) in records]


def facts(ledger: Ledger) -> dict[str, tuple[str, str]]:
    return {fact.name: (fact.value, fact.note) for fact in glance.facts(ledger, full_status(ledger))}


def table(ledger: Ledger, name: str) -> list[list[str]]:
    tables = {each.id: each for each in glance.tables(ledger, RunAccount.of(ledger))}
    return [list(row) for row in tables[name].rows]


# --- rows


def test_what_a_row_cost_is_in_dollars_and_unknown_if_any_of_it_is(ledger: Ledger) -> None:
    priced, unpriced = first_rows(ledger)
    ledger.db.execute(CALL, ("rubric_judge", priced, "ok", PICO // 2))
    ledger.db.execute(CALL, ("rubric_judge", priced, "sent", PICO))
    ledger.db.execute(CALL, ("rubric_judge", unpriced, "ok", None))
    rows = read_rows(ledger)
    assert rows.columns["cost"][:2] == [pytest.approx(0.504), None]
    _, better, judge = rows.columns["calls"][0]
    assert rows.names["stages"][judge[0]] == "rubric_judge"
    assert judge[1:] == [1, 70, 40, 30, 0.5] and better[-1] == 0.002, "what was sent and not settled is not counted"
    assert rows.columns["calls"][1][-1][-1] is None
    assert rows.columns["prompt_tokens"][0] == 270 and rows.columns["completion_tokens"][0] == 70


def test_the_judges_verdicts_of_a_row(said: Said, ledger: Ledger) -> None:
    first, second = first_rows(ledger)
    for key, stage, item, answer in (
        ("a", "rubric_judge", first, f'{{"reason": "clear enough", "grade": "4", "x": {len(HOSTILE)}}}'),
        ("b", "pairwise_judge", second, '{"verdict": "A", "reason": "A is shorter"}'),
        ("c", "pairwise_judge", second, '{"verdict": "B", "reason": "B is longer"}'),
    ):
        ledger.db.execute(ANSWER, (key, stage, item, 0, answer, "there"))
    rows = read_rows(ledger)
    stages = rows.names["stages"]
    shown = [[[stages[stage], *texts] for stage, *texts in verdicts] for verdicts in rows.columns["verdicts"][:3]]
    said(shown)


def test_an_instructions_writer_is_who_wrote_that_round(ledger: Ledger) -> None:
    (first,) = first_rows(ledger, 1)
    id_, feature = ledger.db.execute(
        "SELECT refs.id, feature FROM instructions i JOIN refs ON position = reference WHERE i.id = ?", (first,)
    ).fetchone()
    ledger.db.execute(ANSWER, ("w", "instruction_synthesis", f"{id_}/{feature}", 7, "{}", "elsewhere"))
    here = read_rows(ledger)
    ledger.db.execute("UPDATE instructions SET round = 7 WHERE id = ?", (first,))
    there = read_rows(ledger)
    assert here.names["writers"][here.columns["writers"][0][0]]["endpoint"] != "elsewhere"
    assert there.names["writers"][there.columns["writers"][0][0]]["endpoint"] == "elsewhere"
    assert len(here) == len(there), "one row an instruction, however many answers fit it"


# --- the funnel


def test_what_was_never_new_and_what_is_open_are_counted(ledger: Ledger) -> None:
    ledger.db.execute("UPDATE proposals SET duplicates = 0, surplus = 0")
    least = "(reference, feature, round) = (SELECT reference, feature, round FROM proposals LIMIT 1)"
    ledger.db.execute(f"UPDATE proposals SET duplicates = 3, surplus = 2 WHERE {least}")
    (first,) = first_rows(ledger, 1)
    ledger.db.execute("DELETE FROM samples WHERE instruction = ?", (first,))
    ledger.db.execute("DELETE FROM decisions WHERE instruction = ? AND filter = 'late'", (first,))
    ledger.db.execute("DELETE FROM answers WHERE item = ? AND stage = 'response_improvement'", (first,))
    steps = {step.name: step for step in funnel(ledger, full_status(ledger))}
    assert steps["new ones"].lost == {"duplicates": 3, "surplus": 2}
    assert steps["instructions written"].count == steps["new ones"].count + 5
    assert steps["improved"].open == 1 and steps["kept by late"].open == 0
    flow = charts.flow(list(steps.values()), "", "")
    assert flow is not None and isinstance(flow.figure, Bars)
    assert flow.figure.series["not asked, or in flight"] == list(
        itertools.accumulate(step.open for step in steps.values())
    ), "what is open is not lost"


def test_an_early_filter_that_dropped_nothing_still_stands_before_the_answers(said: Said, ledger: Ledger) -> None:
    answered = "SELECT item FROM answers WHERE stage = 'response_generation'"
    for table_, column in (("decisions", "instruction"), ("instructions", "id")):
        ledger.db.execute(f"DELETE FROM {table_} WHERE CAST({column} AS TEXT) NOT IN ({answered})")
    (first,) = first_rows(ledger, 1)
    ledger.db.execute("DELETE FROM samples WHERE instruction = ?", (first,))
    ledger.db.execute("DELETE FROM decisions WHERE instruction = ? AND filter = 'late'", (first,))
    ledger.db.execute("DELETE FROM answers WHERE item = ? AND stage = 'response_improvement'", (first,))
    steps = funnel(ledger, full_status(ledger))
    said([step.name for step in steps][2:5])
    for before, after in itertools.pairwise(steps):
        assert before.count == after.count + sum(after.lost.values()) + after.open


@pytest.mark.slow
def test_the_map_goes_by_the_runs_seed(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFED_CACHE", str(tmp_path / "cache"))
    ledger.set_meta(identity={**ledger.meta("identity"), "seed": 5})
    rows = read_rows(ledger)
    shown = next(chart for chart in read_page(tmp_path, best_map(lambda _: None)).charts if chart.id == "map")
    by_seed = [instruction_map(rows, draw_map(rows.columns["instruction"], seed)) for seed in (5, 0)]
    assert by_seed[0] is not None and by_seed[1] is not None
    assert shown.figure == by_seed[0].figure != by_seed[1].figure


# --- at a glance


def test_the_facts_are_the_ledgers(ledger: Ledger) -> None:
    (first,) = first_rows(ledger, 1)
    ledger.db.execute(CALL, ("rubric_judge", first, "http 500", 0))
    ledger.db.execute("UPDATE calls SET created = 1000, seconds = 5")
    ledger.db.execute("UPDATE answers SET created = 1000")
    ledger.db.execute("UPDATE starts SET begun = 1000 - 3780, last = 1005")
    count, ok, read, cached, written = ledger.db.execute(
        "SELECT count(*), sum(outcome = 'ok'), total(prompt_tokens), total(cached_tokens), total(completion_tokens)"
        " FROM calls"
    ).fetchone()
    (failed,) = ledger.db.execute("SELECT count(*) FROM failures").fetchone()
    (dropped,) = ledger.db.execute("SELECT count(*) FROM decisions WHERE NOT kept").fetchone()
    shown = facts(ledger)
    cost = (count - 1) * PICO // 500
    assert shown["Samples"] == ("12", "of 12 requested")
    assert shown["Calls"] == (str(count), f"{ok} answered") and ok < count
    assert shown["Tokens read"] == (f"{read:,.0f}", f"{cached:.0f} of them cached") and cached == 40
    assert shown["Tokens written"][0] == f"{written:,.0f}"
    assert shown["Time at work"][0] == "1 h 3 min"
    assert shown["Failures"][0] == str(failed) and failed > 1
    assert shown["Dropped"][0] == str(dropped) and dropped > 2
    assert shown["References"] == (f"{shown['References'][0]}", "used of 4")
    assert shown["Cost"] == (dollars(cost), f"{dollars(cost / 12)} per sample")


@pytest.mark.parametrize(
    ("seconds", "duration"), [(0, "0 s"), (0.25, "0.25 s"), (59, "59 s"), (99.6, "1 min 40 s"), (3700, "1 h 1 min")]
)
def test_time_at_work_is_for_people(ledger: Ledger, seconds: float, duration: str) -> None:
    ledger.db.execute("UPDATE starts SET begun = 1000, last = 1000 + ?", (seconds,))
    assert facts(ledger)["Time at work"][0] == duration


def test_an_unknown_price_is_never_zero(ledger: Ledger) -> None:
    ledger.db.execute("UPDATE calls SET cost = NULL")
    status = full_status(ledger)
    (calls,) = ledger.db.execute("SELECT count(*) FROM calls").fetchone()
    assert facts(ledger)["Cost"] == ("price unknown", "")
    assert str(glance.lead(status, 2, read_rows(ledger))).endswith("by fake/model: price unknown")
    assert f"{calls:,} calls without a known price, not counted in dollars." in glance.notes(status)
    assert [row[-1] for row in table(ledger, "models")] == ["unknown"]
    free = "UPDATE calls SET cost = 0 WHERE stage = 'response_generation'"
    ledger.db.execute(free)
    assert facts(ledger)["Cost"][0] == "price unknown", "what is free is not all of it"
    ledger.db.execute("UPDATE calls SET cost = 0")
    assert facts(ledger)["Cost"][0] == "$0"


def test_what_to_know_first(said: Said, ledger: Ledger) -> None:
    assert glance.notes(full_status(ledger)) == []
    last = "(SELECT max(id) FROM calls)"
    ledger.db.execute(f"UPDATE calls SET outcome = 'lost', prompt_tokens = NULL, cost = {PICO // 4} WHERE id = {last}")
    ledger.set_meta(size=20, left_out={"no response": 1_200})
    reserved, unfinished, left = glance.notes({**full_status(ledger), "state": "killed"})
    said(unfinished)
    said(reserved)
    said(left)
    assert glance.self_judged("a", "b") == glance.self_judged("a", None) == glance.self_judged(None, None) == []
    said(glance.self_judged("a", "a")[0])


def test_the_tables_list_failures_models_and_settings(said: Said, ledger: Ledger) -> None:
    (first,) = first_rows(ledger, 1)
    ledger.db.execute(CALL, ("rubric_judge", first, "ok", 3 * PICO))
    ledger.set_meta(max_cost=7.5, program_source={"name": "refed", "version": 3, "alias": None})
    failures = {(row[0], row[1]): row[2:] for row in table(ledger, "failures")}
    count, reason = ledger.db.execute(
        "SELECT count(*), min(reason) FROM failures WHERE stage = 'response_generation' AND kind = 'malformed'"
    ).fetchone()
    assert failures["response generation", "malformed"] == [str(count), reason]
    models = {row[0]: row[1:] for row in table(ledger, "models")}
    (calls,) = ledger.db.execute("SELECT count(*) FROM calls WHERE model = 'fake/model'").fetchone()
    assert models["other/model"] == ["other", "1", "70", "30", "$3.00"]
    assert models["fake/model"][1] == str(calls) and models["fake/model"][-1] == dollars(calls * PICO // 500)
    settings = dict(table(ledger, "settings"))
    digests = next(each.digests for each in glance.tables(ledger, RunAccount.of(ledger)) if each.id == "settings")
    prompts = ledger.meta("identity")["program"]
    assert settings["saved program"] == "name refed, version 3" and settings["max cost"] == "7.5"
    assert ["prompt of response generation", prompts["response_generation"]] in list(digests)
    assert len(digests) == 1 + len(prompts)
    said(digests[0][0])
    assert not {*settings.values()} & {*prompts.values()} and settings["features"]
    assert "early" in settings["filters"] and settings["teacher"] == "fake/model"


def test_the_pace_is_that_of_the_last_seconds(ledger: Ledger) -> None:
    (count,) = ledger.db.execute("SELECT count(*) FROM calls WHERE stage = 'response_generation'").fetchone()
    ledger.db.execute("UPDATE calls SET created = 0, seconds = 1")
    assert glance.pace(ledger).value == "0.0"
    ledger.db.execute("UPDATE calls SET created = ? WHERE stage = 'response_generation'", (time.time(),))
    assert glance.pace(ledger).value == f"{count / 10:.1f}"


def test_what_stopped_it_and_a_charts_text_are_data() -> None:
    rows = Rows({}, {name: [] for name in COLUMNS})
    lead = glance.Lead(0, 0, (HOSTILE,), "$0")
    bars = Bars([HOSTILE], {HOSTILE: [1.0], "other": [1.0]}, [HOSTILE])
    chart = Chart("one", HOSTILE, HOSTILE, bars, (HOSTILE,), ((HOSTILE,),))
    table_ = glance.Table("t", HOSTILE, HOSTILE, (HOSTILE,), ((HOSTILE,),), ((HOSTILE,),))
    extract = Extract(HOSTILE, [plain(HOSTILE, HOSTILE, HOSTILE), changed(HOSTILE, HOSTILE, f"{HOSTILE} more")])
    shown_in = [Gallery(name, HOSTILE, HOSTILE, [extract], wide=name == "wide") for name in ("wide", "cards")]
    facts_ = [glance.Fact(HOSTILE, HOSTILE, HOSTILE)]
    page = Page(HOSTILE, lead, "at its cap", f"the cap {HOSTILE}", facts_, [HOSTILE], shown_in, [chart], [table_], rows)
    text = render(page, "0").decode()
    shown = text[: text.index("<script>")]
    assert "At its cap: the cap &lt;script&gt;" in shown
    assert "alert(1)</script>" not in shown and "<img" not in shown and "{{ 7*7 }}" in shown
    assert text.count("<script") == text.count("</script>") == 1

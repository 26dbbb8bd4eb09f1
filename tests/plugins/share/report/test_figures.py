"""The page's figures where money, judges and rounds come in: what each row took, the run at a glance, its tables."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from refed_dspy.ledger.account import RunAccount
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report import charts, glance
from refed_dspy.plugins.share.report.charts import funnel
from refed_dspy.plugins.share.report.drawing import Bars
from refed_dspy.plugins.share.report.map import draw_map, instruction_map
from refed_dspy.plugins.share.report.report import best_map, read_page
from refed_dspy.plugins.share.report.rows import read_rows
from refed_dspy.records import PICO, dollars
from refed_dspy.runs.result import full_status
from tests.plugins.share.conftest import SHOWN_SIZE, copy_run
from tests.support.command_line import without_numbers
from tests.support.said import Said

CALL = "INSERT INTO calls VALUES (NULL, 'k', ?, ?, 'other/model', 'other', ?, 1, 70, 40, 30, 0, ?, 0, NULL)"
ANSWER = "INSERT INTO answers SELECT ?, ?, ?, ?, ?, NULL, ?, created, NULL FROM answers LIMIT 1"

TOTALS = "SELECT count(*), sum(outcome = 'ok'), total(prompt_tokens), total(completion_tokens) FROM calls"
WORK = "Time at work"


@pytest.fixture
def ledger(shown: Path, tmp_path: Path) -> Iterator[Ledger]:
    """A copy of the run for a single test, in which every call cost $0.002."""
    with Ledger.create(copy_run(shown, tmp_path)) as opened:
        opened.db.execute("UPDATE calls SET cost = ?", (PICO // 500,))
        yield opened


def first_rows(ledger: Ledger, count: int = 2) -> list[str]:
    """The items of the first kept rows, under which their questions were asked."""
    records = ledger.db.execute("SELECT instruction FROM samples ORDER BY seq LIMIT ?", (count,))
    return [str(number) for (number,) in records]


def reopened(ledger: Ledger, item: str) -> None:
    """As if the row had not been improved yet."""
    ledger.db.execute("DELETE FROM samples WHERE instruction = ?", (item,))
    ledger.db.execute("DELETE FROM decisions WHERE instruction = ? AND filter = 'late'", (item,))
    ledger.db.execute("DELETE FROM answers WHERE item = ? AND stage = 'response_improvement'", (item,))


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
        ("a", "rubric_judge", first, '{"reason": "clear enough", "grade": "4", "x": 86}'),
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
    reopened(ledger, *first_rows(ledger, 1))
    steps = funnel(ledger, full_status(ledger))
    written, new, *_, improved, late, _ = steps
    assert new.lost == {"duplicates": 3, "surplus": 2} and written.count == new.count + 5
    assert (improved.open, late.open) == (1, 0)
    flow = charts.flow(steps, "", "")
    assert flow is not None and isinstance(flow.figure, Bars)
    opened = list(itertools.accumulate(step.open for step in steps))
    assert opened in flow.figure.series.values(), "what is open is not lost"


def test_an_early_filter_that_dropped_nothing_still_stands_before_the_answers(said: Said, ledger: Ledger) -> None:
    answered = "SELECT item FROM answers WHERE stage = 'response_generation'"
    for table_, column in (("decisions", "instruction"), ("instructions", "id")):
        ledger.db.execute(f"DELETE FROM {table_} WHERE CAST({column} AS TEXT) NOT IN ({answered})")
    reopened(ledger, *first_rows(ledger, 1))
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


def test_the_facts_are_the_ledgers(said: Said, ledger: Ledger) -> None:
    """The numbers of a run of 24 samples, of whose calls one failed; the other ones cost $0.002 each."""
    (first,) = first_rows(ledger, 1)
    ledger.db.execute(CALL, ("rubric_judge", first, "http 500", 0))
    ledger.db.execute("UPDATE calls SET created = 1000, seconds = 5")
    ledger.db.execute("UPDATE answers SET created = 1000")
    ledger.db.execute("UPDATE starts SET begun = 1000 - 3780, last = 1005")
    count, ok, read, written = ledger.db.execute(TOTALS).fetchone()
    shown = facts(ledger)
    said({name: without_numbers(" ".join(texts)) for name, texts in shown.items()})
    cost = (count - 1) * PICO // 500
    assert [shown[name][0] for name in ("Samples", "Calls", "Cost")] == [str(SHOWN_SIZE), str(count), dollars(cost)]
    assert shown["Calls"][1].startswith(f"{ok} ") and shown["References"][1].endswith("4")
    assert shown["Cost"][1].startswith(dollars(cost / SHOWN_SIZE))
    tokens = [value for name, (value, _) in shown.items() if name.startswith("Tokens")]
    assert tokens == [f"{read:,.0f}", f"{written:,.0f}"]
    for name, table_ in (("Failures", "failures"), ("Dropped", "decisions WHERE NOT kept")):
        (number,) = ledger.db.execute(f"SELECT count(*) FROM {table_}").fetchone()
        assert shown[name][0] == str(number) and number > 1


@pytest.mark.parametrize(
    ("seconds", "duration"), [(0, "0 s"), (0.25, "0.25 s"), (59, "59 s"), (99.6, "1 min 40 s"), (3700, "1 h 1 min")]
)
def test_time_at_work_is_for_people(ledger: Ledger, seconds: float, duration: str) -> None:
    ledger.db.execute("UPDATE starts SET begun = 1000, last = 1000 + ?", (seconds,))
    assert facts(ledger)[WORK][0] == duration


def test_an_unknown_price_is_never_zero(said: Said, ledger: Ledger) -> None:
    ledger.db.execute("UPDATE calls SET cost = NULL")
    status = full_status(ledger)
    cost = facts(ledger)["Cost"]
    lead = str(glance.lead(status, 2, read_rows(ledger)))
    said((cost, *map(without_numbers, [lead, *glance.notes(status)])))
    assert [row[-1] for row in table(ledger, "models")] == ["unknown"]
    ledger.db.execute("UPDATE calls SET cost = 0 WHERE stage = 'response_generation'")
    assert facts(ledger)["Cost"][0] == cost[0], "what is free is not all of it"
    ledger.db.execute("UPDATE calls SET cost = 0")
    assert facts(ledger)["Cost"][0] == "$0"


def test_what_to_know_first(said: Said, ledger: Ledger) -> None:
    assert glance.notes(full_status(ledger)) == []
    last = "(SELECT max(id) FROM calls)"
    ledger.db.execute(f"UPDATE calls SET outcome = 'lost', prompt_tokens = NULL, cost = {PICO // 4} WHERE id = {last}")
    ledger.set_meta(size=2 * SHOWN_SIZE, left_out={"no response": 1_200})
    said(glance.notes({**full_status(ledger), "state": "killed"}))
    assert glance.self_judged("a", "b") == glance.self_judged("a", None) == glance.self_judged(None, None) == []
    said(glance.self_judged("a", "a")[0])


def test_the_tables_list_failures_models_and_settings(ledger: Ledger) -> None:
    (first,) = first_rows(ledger, 1)
    ledger.db.execute(CALL, ("rubric_judge", first, "ok", 3 * PICO))
    ledger.set_meta(max_cost=7.5, program_source={"name": "refed", "version": 3, "alias": None})
    (failures,) = table(ledger, "failures")
    known = ledger.db.execute("SELECT count(*), min(reason) FROM failures").fetchone()
    assert failures[2:] == list(map(str, known))
    models = {row[0]: row[1:] for row in table(ledger, "models")}
    (calls,) = ledger.db.execute("SELECT count(*) FROM calls WHERE model = 'fake/model'").fetchone()
    assert models["other/model"] == ["other", "1", "70", "30", "$3.00"]
    assert models["fake/model"][1] == str(calls) and models["fake/model"][-1] == dollars(calls * PICO // 500)
    settings = dict(table(ledger, "settings"))
    digests = next(each.digests for each in glance.tables(ledger, RunAccount.of(ledger)) if each.id == "settings")
    prompts = ledger.meta("identity")["program"]
    own = ("name refed, version 3", "7.5", "fake/model")
    assert {*own} < {*settings.values()} and settings["features"] and "early" in settings["filters"]
    assert [row[1] for row in digests[1:]] == list(prompts.values()), "the first is of all prompts"
    assert not {*settings.values()} & {*prompts.values()}


def test_the_pace_is_that_of_the_last_seconds(ledger: Ledger) -> None:
    (count,) = ledger.db.execute("SELECT count(*) FROM calls WHERE stage = 'response_generation'").fetchone()
    ledger.db.execute("UPDATE calls SET created = 0, seconds = 1")
    assert glance.pace(ledger).value == "0.0"
    ledger.db.execute("UPDATE calls SET created = ? WHERE stage = 'response_generation'", (time.time(),))
    assert glance.pace(ledger).value == f"{count / 10:.1f}"

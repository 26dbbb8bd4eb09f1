"""The page of a run with more rows than it lists: what is drawn, that it says so, and that its figures are of all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report.charts import Chart
from refed_dspy.plugins.share.report.drawing import Dots
from refed_dspy.plugins.share.report.map import Map
from refed_dspy.plugins.share.report.page import Page
from refed_dspy.plugins.share.report.report import read_page
from refed_dspy.plugins.share.report.rows import COLUMNS, Rows, drawn, read_rows
from tests.plugins.share.conftest import SHOWN_SIZE, copy_run
from tests.support.command_line import without_numbers
from tests.support.said import Said

KEPT, LISTED = SHOWN_SIZE, 8


@pytest.fixture
def every(ledger: Ledger) -> Rows:
    return read_rows(ledger)


def page(folder: Path, most: int) -> tuple[Page, dict[str, Chart]]:
    made = read_page(folder, lambda texts, _: Map(np.arange(2.0 * len(texts)).reshape(-1, 2), "words"), most)
    return made, {chart.id: chart for chart in made.charts}


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def as_read(rows: Rows) -> dict[str, dict[str, object]]:
    """Instruction → what belongs to its row alone."""
    own = [name for name in COLUMNS if name not in {"reference", "writers", "calls", "verdicts", "decisions"}]
    by_row = zip(*(rows.columns[name] for name in own), strict=True)
    return {str(row[own.index("instruction")]): dict(zip(own, row, strict=True)) for row in by_row}


def test_a_page_says_that_it_lists_some_rows_and_its_figures_are_of_all(said: Said, folder: Path, every: Rows) -> None:
    (some, drawn_charts), (whole, charts) = page(folder, LISTED), page(folder, len(every))
    assert some.rows is not None and len(some.rows) == LISTED and whole.rows is not None
    kept = sum(some.rows.columns["kept"])
    assert 0 < kept < LISTED and numbers(some.notes[1]) == [kept, KEPT, LISTED - kept, len(every) - KEPT]
    said([without_numbers(note) for note in some.notes])
    assert (whole.notes, len(whole.rows), whole.rows.left_out) == (some.notes[:1], len(every), 0)
    assert (some.lead, some.facts) == (whole.lead, whole.facts)
    assert {"lengths", "funnel", "scores-0", "scores-1", "cost"} < drawn_charts.keys() == charts.keys()
    assert all(drawn_charts[name] == charts[name] for name in charts.keys() - {"map"})
    assert [row[1] for row in charts["lengths"].rows] == [str(KEPT)] * 3
    map_ = drawn_charts["map"]
    assert isinstance(map_.figure, Dots) and len(map_.figure.places) == LISTED
    said(without_numbers(f"{charts['scores-1'].text} {map_.text}"))
    assert numbers(charts["scores-1"].text)[0] == KEPT and numbers(map_.text)[:2] == [LISTED, len(every)]


def test_without_dropped_rows_none_are_spoken_of(said: Said, folder: Path, tmp_path: Path) -> None:
    copy_run(folder, tmp_path, "DELETE FROM decisions WHERE NOT kept")
    made, _ = page(tmp_path, LISTED)
    said(without_numbers(made.notes[-1]))


def test_listed_rows_are_as_they_are_among_all_and_in_their_order(ledger: Ledger, every: Rows) -> None:
    some, all_ = read_rows(ledger, LISTED), as_read(every)
    shown = as_read(some)
    assert len(shown) == LISTED and all(all_[text] == row for text, row in shown.items())
    assert list(shown) == [text for text in all_ if text in shown]
    references = dict(zip(every.columns["instruction"], every.columns["reference"], strict=True))
    for text, reference in zip(some.columns["instruction"], some.columns["reference"], strict=True):
        assert some.names["references"][reference] == every.names["references"][references[text]]
    assert len(some.names["references"]) == len(set(some.columns["reference"])), "no other is on the page"
    assert read_rows(ledger, LISTED) == some


def test_another_seed_draws_other_rows(folder: Path, ledger: Ledger, tmp_path: Path) -> None:
    with Ledger.create(copy_run(folder, tmp_path)) as copy:
        copy.set_meta(identity={**ledger.meta("identity"), "seed": 5})
        assert read_rows(copy, LISTED).columns["instruction"] != read_rows(ledger, LISTED).columns["instruction"]


def test_rows_that_are_long_are_fewer(ledger: Ledger, every: Rows) -> None:
    few = read_rows(ledger, most_bytes=30_000)
    assert 1 < len(few) < len(every) and few.left_out == len(every) - len(few)
    assert len(read_rows(ledger, most_bytes=0)) == 1, "a single one is always shown"


def test_while_a_run_goes_on_few_of_the_rows_change() -> None:
    numbers = range(3, 2_003)
    earlier = [number for number in numbers if number % 5]  # the others came later
    before, after = (set(drawn(decided, 200, seed=1)) for decided in (earlier, numbers))
    assert len(before) == len(after) == 200 and 140 < len(before & after) < 180, "a fifth of the rows are others"
    assert not any(drawn([], 200, seed=1))
    third, last = (sum(number % 2 for number in drawn(numbers, 200, seed)) for seed in (2, 3))
    assert 70 < third < 130 and 70 < last < 130, "as many of one kind as of the other"

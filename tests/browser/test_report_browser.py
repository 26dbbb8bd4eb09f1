"""The sample browser over rows made by hand: names that are markup, searches, filters, orders, keys, addresses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refed_dspy.data.differences import difference
from refed_dspy.plugins.share.report.glance import Lead
from refed_dspy.plugins.share.report.map import Map, instruction_map
from refed_dspy.plugins.share.report.page import Page, render
from refed_dspy.plugins.share.report.rows import COLUMNS, Rows
from tests.browser.test_report_page import Browse, counted, focused, listed
from tests.support.example_run import HOSTILE

pytestmark = pytest.mark.browser
KEPT, SIZE = 110, 120
ODD = 3
"""The row whose names, verdicts and feedback are markup."""


def row(at: int) -> dict[str, Any]:
    hard, kept = at == ODD, at < KEPT
    asks = "Zeta Omega" if at % 2 else "Omega Zeta"
    plain = f"word {at} one two three alpha" + " more" * (at % 7)
    better = f"word {at} {'uno dos' if at % 2 else 'one two'} three beta" + " more" * (at % 7)
    columns = {
        "number": at + 1 if kept else None, "kept": int(kept), "reference": int(hard), "feature": int(hard),
        "round": at % 3, "instruction": f"Task {at * 37 % SIZE}: {asks}{HOSTILE * hard}",
        "response": plain, "improved": better, "diff": difference(plain, better),
        "feedback": f"row feedback {HOSTILE}" if hard else None, "analysis": None, "strategy": None,
        "writers": [0, int(hard), int(hard)], "program": int(hard), "cost": None if hard else at % 11 / 1000,
        "calls": [[0, 1, 10, 2, 3, at % 11 / 1000], [1, 1, 1, 0, 1, None]] if hard else [[0, 1, 10, 2, 3, 0.5]],
        "prompt_tokens": 1234, "completion_tokens": 56, "score": float(at % 5),
        "decisions": [[int(hard), int(kept), float(at % 5), "" if kept else f"bad {at % 2}", HOSTILE if hard else ""]],
        "verdicts": [[1, "the judge's reason", f"verdict: A {HOSTILE}"]] if hard else [],
    }  # fmt: skip
    assert set(columns) == set(COLUMNS)
    return columns


@pytest.fixture(scope="module")
def rows() -> Rows:
    made = [row(at) for at in range(SIZE)]
    origin: dict[str, Any] = {
        "system": f"Be brief {HOSTILE}",
        "earlier": f"User: well {HOSTILE}",
        "instruction": f"Do {HOSTILE}",
        "response": "Done.",
        "features": {},
        "feedback": f"on it {HOSTILE}",
    }
    names = {
        "features": ["form", f"feature {HOSTILE}"],
        "writers": [{"model": "one", "endpoint": ""}, {"model": f"model {HOSTILE}", "endpoint": "there"}],
        "programs": ["prompt-one", "prompt-two"],
        "filters": ["short", f"filter {HOSTILE}"],
        "stages": ["response_generation", f"stage {HOSTILE}"],
        "references": [
            {"id": "ref a", "source": "s", **origin, "system": "Be brief"},
            {"id": f"id {HOSTILE}", "source": HOSTILE, **origin},
        ],
    }
    return Rows(names, {name: [row[name] for row in made] for name in COLUMNS})


@pytest.fixture(scope="module")
def made_page(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    places = np.stack([np.arange(SIZE) % 12 * 10.0, np.arange(SIZE) // 12 * 10.0], axis=1)
    chart = instruction_map(rows, Map(places, "words"))
    assert chart is not None
    path = tmp_path_factory.mktemp("made") / "page.html"
    path.write_bytes(render(Page("by hand", Lead(KEPT, 2, ("one",), "$1"), "", "", (), (), (), [chart], (), rows), "0"))
    return path


def anchor(page: Any) -> str:
    return str(page.evaluate("location.hash"))


def test_names_from_models_and_settings_are_text_wherever_they_stand(browse: Browse, made_page: Path) -> None:
    opened = browse(made_page, f"#sample-{ODD + 1}")
    page = opened.ready()
    page.evaluate("document.querySelectorAll('#detail details').forEach(fold => (fold.open = true))")
    shown = page.inner_text("#detail")
    for text in (
        f"row feedback {HOSTILE}",
        f"feature {HOSTILE}",
        f"model {HOSTILE} (there)",
        f"filter {HOSTILE}",
        f"stage {HOSTILE}",
        f"id {HOSTILE}",
        f"Do {HOSTILE}"[:69],
        f"verdict: A {HOSTILE}",
        "the judge's reason",
        f"on it {HOSTILE}",
        f"Be brief {HOSTILE}",
        f"User: well {HOSTILE}",
        "prompt-two",
        "price unknown",
        "1,234 tokens read, 56 written",
        "$0.0030",
        "unknown",
    ):
        assert text in shown, text
    assert page.locator("#detail .calls tbody tr").last.locator("td").last.inner_text() == "unknown", "and not free"
    page.fill("#search", "onerror")
    assert counted(page) == 1 and "<img" in page.inner_text("#rows-body .line >> nth=0")
    page.fill("#search", "")
    page.click("#detail-next")
    assert page.inner_text("#detail-title") == f"Sample {ODD + 2}"
    chart = page.locator("#chart-map")
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg path").nth(ODD).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("document.querySelector('.readout').textContent !== ''")
    readout = page.inner_text(".readout")
    assert readout.startswith(f"Sample {ODD + 1}: Task ") and HOSTILE in readout
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(f"document.getElementById('detail-title').textContent === 'Sample {ODD + 1}'")
    assert page.locator("body img, #browser script, .readout *").count() == 0 and opened.complaints == []


def test_a_name_in_the_maps_legend_is_text(browse: Browse, made_page: Path) -> None:
    opened = browse(made_page)
    page = opened.ready()
    assert page.locator("#chart-map img, #chart-map a, #chart-map script").count() == 0
    assert "<script>" in page.inner_text("#chart-map .legend >> nth=0") and opened.complaints == []


FIND = """([data, queries]) => {
  const store = new refed.Store(data);
  const find = () => queries.map((query) => Array.from(store.find(refed.terms(query))));
  const before = find();
  while (!store.prepare(1000));
  return [before, find()];
}"""


def test_a_search_finds_the_same_before_and_after_the_index_is_made(
    browse: Browse, made_page: Path, rows: Rows
) -> None:
    page = browse(made_page).ready()
    queries = ["O", "om", "Omega", '"omega zeta"', '"zeta omega"', "zeta 7", '"mega ze', "beta bad"]
    queries += ['"omega word"', '"one two three"', "alpha uno", '"three  BETA"', "zzz", "onerror", "bad"]
    queries += ['"7: omega zeta"']
    data = {"names": rows.names, "columns": rows.columns}
    before, after = page.evaluate(FIND, [data, queries])
    assert before == after
    counts = dict(zip(queries, map(sum, after), strict=True))
    assert counts["O"] == SIZE and counts["zzz"] == counts['"omega word"'] == 0, "no phrase spans two texts"
    assert counts['"omega zeta"'] == counts['"zeta omega"'] == counts['"mega ze'] == SIZE // 2
    assert counts['"three  BETA"'] == SIZE and counts["onerror"] == 1 and counts["bad"] == SIZE - KEPT
    assert counts["alpha uno"] == counts['"one two three"'] - SIZE // 2 == SIZE // 2
    assert counts["beta bad"] == SIZE - KEPT, "a word that is not within the other is looked for anew"


def test_hits_are_marked_and_their_column_is_named(browse: Browse, made_page: Path) -> None:
    page = browse(made_page).ready()
    page.focus("#search")
    page.keyboard.type("omega uno")
    assert counted(page) == SIZE // 2
    assert page.inner_text("#rows-body .small >> nth=0").startswith("improved: ")
    page.fill("#search", "brief")
    assert counted(page) == SIZE and page.inner_text("#rows-body .small >> nth=0").startswith("system prompt: ")
    page.fill("#search", "omega uno")
    page.click("#rows-body [role=row]")
    assert {"Omega", "uno"} <= set(page.locator("#detail mark").all_inner_texts())


def test_columns_without_a_value_are_not_shown(browse: Browse, rows: Rows, tmp_path: Path) -> None:
    bare = {
        name: [None] * SIZE if name in {"score", "cost", "diff"} else values for name, values in rows.columns.items()
    }
    path = tmp_path / "bare.html"
    page = Page("bare", Lead(KEPT, 2, ("one",), "$1"), "done", "", (), (), (), (), (), Rows(rows.names, bare))
    path.write_bytes(render(page, "0"))
    opened = browse(path)
    heads = opened.ready().eval_on_selector_all("#grid [data-column]", "all => all.map(head => head.dataset.column)")
    assert heads == ["number", "instruction", "words"] and opened.complaints == []
    assert opened.page.inner_text(".state") == "done"


def test_every_filter_and_the_way_back(browse: Browse, made_page: Path, rows: Rows) -> None:
    page = browse(made_page).ready()
    page.select_option("#filter-reason", label="short: bad 1 (5)")
    assert listed(page) == [at for at in range(KEPT, SIZE) if at % 2]
    page.select_option("#filter-reason", "")
    page.select_option("#filter-reference", index=2)
    assert listed(page) == [ODD]
    page.select_option("#filter-reference", "")
    page.select_option("#filter-writer", index=2)
    assert listed(page) == [ODD]
    page.click("#reset")
    assert counted(page) == SIZE and page.input_value("#filter-writer") == ""
    page.fill("#score-to", "1")
    page.fill("#score-from", "1")
    assert counted(page) == rows.columns["score"].count(1.0)
    assert page.get_attribute("#grid", "aria-rowcount") == str(rows.columns["score"].count(1.0) + 1)


@pytest.mark.parametrize("column", ["instruction", "change", "cost"])
def test_sorting_by_the_other_heads(browse: Browse, made_page: Path, rows: Rows, column: str) -> None:
    page = browse(made_page).ready()

    def changed(diff: list[int]) -> float:
        kinds = list(zip(diff[::2], diff[1::2], strict=True))
        return sum(length for kind, length in kinds if kind) / sum(length for _, length in kinds)

    columns: dict[str, list[Any]] = {
        "instruction": [int(text.split(":")[0].removeprefix("Task ")) for text in rows.columns["instruction"]],
        "change": [changed(diff) for diff in rows.columns["diff"]],
        "cost": rows.columns["cost"],
    }
    keys = columns[column]
    for descending in (False, True):
        page.click(f"[data-column={column}] button")
        shown = [keys[at] for at in listed(page)]
        assert shown == sorted((key for key in keys if key is not None), reverse=descending)[: len(shown)]
    page.focus("#rows-body [tabindex='0']")
    page.keyboard.press("End")
    assert keys[int(focused(page))] == (None if column == "cost" else min(keys)), "without a value: last"


def test_keys_do_what_the_hint_says_and_nothing_while_typing(browse: Browse, made_page: Path) -> None:
    page = browse(made_page, "#sample-1").ready()
    title = "#detail-title"
    page.keyboard.press("Control+j")
    page.keyboard.press("Alt+j")
    assert page.inner_text(title) == "Sample 1" and page.get_attribute("#detail-previous", "aria-disabled") == "true"
    page.click("#detail-next")
    assert page.inner_text(title) == "Sample 2" and anchor(page) == "#sample-2"
    assert page.get_attribute("#rows-body [data-row='1']", "aria-selected") == "true"
    assert page.locator("#rows-body [aria-selected=true]").count() == 1
    page.focus("#rows-body [data-row='1']")
    page.keyboard.press("Enter")
    assert focused(page) == "detail-title", "an open panel takes the focus, too"
    page.click("#detail-previous")
    page.keyboard.press("k")
    assert page.inner_text(title) == "Sample 1" and anchor(page) == "#sample-1"
    page.keyboard.press("/")
    page.keyboard.type("task j")
    assert page.input_value("#search") == "task j" and page.inner_text(title) == "Sample 1"
    page.keyboard.press("Escape")
    assert page.input_value("#search") == "" and page.is_visible("#detail"), "the first one empties the search"
    page.keyboard.press("Escape")
    assert not page.is_visible("#detail") and anchor(page) == "#samples" and focused(page) == "0"
    page.focus("#rows-body [tabindex='0']")
    page.keyboard.press("PageDown")
    assert int(focused(page)) > 4
    page.keyboard.press("PageUp")
    assert focused(page) == "0"


def test_rows_appear_on_scrolling_and_few_are_in_the_document(browse: Browse, made_page: Path) -> None:
    page = browse(made_page).ready()
    page.evaluate("document.getElementById('rows-scroller').scrollTop = 60 * 48")
    page.wait_for_selector("#rows-body [data-row='60']")
    assert page.locator("#rows-body [role=row]").count() < 60
    page.fill("#search", "task")
    assert page.evaluate("document.getElementById('rows-scroller').scrollTop") == 0


def test_an_address_opens_its_row_and_what_was_folded_stays_folded(browse: Browse, made_page: Path) -> None:
    page = browse(made_page, f"#dropped-{KEPT + 2}").ready()
    assert page.inner_text("#detail-title") == f"Dropped row {KEPT + 2}" and "bad 1" in page.inner_text("#detail")
    page.click("#detail .feedback summary")
    page.wait_for_function("!document.querySelector('#detail .feedback details').open")
    page.wait_for_timeout(50)  # the toggle event comes in a later task
    page.keyboard.press("j")
    assert page.inner_text("#detail-title") == f"Dropped row {KEPT + 3}"
    assert page.get_attribute("#detail .feedback details", "open") is None
    page.evaluate("location.hash = '#sample-7'")
    page.wait_for_function("document.getElementById('detail-title').textContent === 'Sample 7'")
    page.evaluate("location.hash = '#dropped-7'")  # a kept row has one address
    page.wait_for_timeout(50)
    assert page.inner_text("#detail-title") == "Sample 7"


def test_charts_and_paper_follow_the_theme(browse: Browse, made_page: Path) -> None:
    page = browse(made_page).ready()
    legend = "getComputedStyle(document.querySelector('#chart-map .legend')).color"
    light = page.evaluate(legend)
    page.check("#theme input[value=dark]", force=True)
    page.wait_for_function(f"{legend} !== '{light}'")
    page.emulate_media(media="print")
    assert not page.is_visible("#samples") and not page.is_visible("#theme") and page.is_visible("#chart-map")
    assert page.evaluate("getComputedStyle(document.body).colorScheme") == "light"

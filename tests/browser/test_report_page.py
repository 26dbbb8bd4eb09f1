"""The report in a real browser: what it loads, runs, finds and shows; by mouse, by keyboard, by ear."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report.rows import Rows, read_rows
from tests.browser.conftest import Opened
from tests.support.example_run import HOSTILE

pytestmark = pytest.mark.browser
Browse = Callable[..., Opened]


@pytest.fixture(scope="session")
def rows(run_dir: Path) -> Rows:
    with Ledger.read(run_dir) as ledger:
        return read_rows(ledger)


def listed(page: Any) -> list[int]:
    """The rows in view, from the top, by their index."""
    indexes = page.eval_on_selector_all("#rows-body [role=row]", "rows => rows.map(row => Number(row.dataset.row))")
    return list(indexes)


def status(page: Any) -> str:
    return str(page.inner_text("#status"))


def counted(page: Any) -> int:
    """How many rows are listed, kept and dropped ones together."""
    return sum(map(int, re.findall(r"(?:^|, )(\d+)", status(page))))


def focused(page: Any) -> str:
    """What has the keyboard's focus: an id, or a row's number in the list."""
    return str(
        page.evaluate(
            "document.activeElement.id || document.activeElement.dataset.row || document.activeElement.tagName"
        )
    )


# --- it loads nothing and runs nothing but itself


def test_opens_from_disk_alone(browse: Browse, page_file: Path) -> None:
    opened = browse(page_file)
    page = opened.ready()
    assert page.locator(".chart .bars, .chart .plot, .chart .dots").count() >= 4
    page.click("#rows-body [role=row]")
    assert [url for url in opened.requests if not url.startswith("data:")] == [page_file.as_uri()]
    assert opened.complaints == []


def test_planted_scripts_do_not_run(browse: Browse, page_file: Path, rows: Rows) -> None:
    opened = browse(page_file)
    page = opened.ready()
    page.fill("#search", "onerror alert")
    assert counted(page) == len(rows)
    page.keyboard.press("Tab")
    page.click("#rows-body [role=row]")
    page.check("#detail input[value='side by side']")
    shown = page.inner_text("#detail")
    for _ in range(len(rows)):
        page.keyboard.press("j")
    assert "<script>alert(1)</script>" in shown and "{{ 7*7 }}" in shown
    assert page.locator("#browser script, #browser img, #browser iframe").count() == 0
    assert opened.complaints == []


def test_the_policy_blocks_what_the_page_would_not(browse: Browse, page_file: Path) -> None:
    opened = browse(page_file)
    page = opened.ready()
    page.evaluate(
        """planted => {
          const place = document.body.appendChild(document.createElement("div"));
          place.innerHTML = planted;
          place.append(document.createRange().createContextualFragment("<script>window.ran = true</script>"));
        }""",
        "<img src=x onerror='window.ran = true'>",
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.ran") is None and any("Content Security Policy" in text for text in opened.complaints)


# --- what comes first


def test_samples_come_right_after_the_glance_with_the_change_marked(browse: Browse, page_file: Path) -> None:
    page = browse(page_file).ready()
    sections = page.eval_on_selector_all("main > section", "sections => sections.map(section => section.id)")
    assert sections == ["glance", "strip", "samples", "charts", "tables"]
    assert page.locator("#strip ins").count() and page.locator("#strip del").count()
    assert page.locator("#strip script, #strip img").count() == 0
    page.click("#strip h3 a >> nth=1")
    page.wait_for_selector("#detail[open]")
    assert page.inner_text("#detail-title") == page.inner_text("#strip h3 >> nth=1")


@pytest.mark.parametrize("width", [1700, 1400, 1000, 390])
def test_no_tile_stands_alone_and_no_row_is_half_empty(browse: Browse, page_file: Path, width: int) -> None:
    page = browse(page_file, viewport={"width": width, "height": 900}).ready()
    for one, all_ in ((".tile", ".tiles"), ("#charts .card", "#charts .cards"), ("#tables .card", "#tables .cards")):
        boxes = [element.bounding_box() for element in page.locator(one).all()]
        ends = {round(box["y"]): round(box["x"] + box["width"]) for box in boxes}  # of the last one in each row
        outer = page.locator(all_).bounding_box()
        assert len(boxes) > 1 and set(ends.values()) == {round(outer["x"] + outer["width"])}, one


def test_what_opens_has_no_heavy_ring(browse: Browse, page_file: Path) -> None:
    page = browse(page_file, "#sample-1").ready()
    assert focused(page) == "detail-title"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "none"


# --- search, filters, order


def test_search_finds_what_the_texts_hold(browse: Browse, page_file: Path, rows: Rows) -> None:
    page = browse(page_file).ready()
    columns, names = rows.columns, rows.names

    def texts(at: int) -> str:
        searched = ("instruction", "response", "improved", "feedback", "analysis", "strategy", "verdicts")
        reasons = [decision[3:] for decision in columns["decisions"][at]]
        origin = names["references"][columns["reference"][at]]["id"], names["features"][columns["feature"][at]]
        return str([*(columns[name][at] for name in searched), reasons, origin]).lower()

    for query in ("Task 12", "number 4", "response number", "zzz"):
        words = query.lower().split()
        want = sum(all(word in texts(at) for word in words) for at in range(len(rows)))
        page.fill("#search", query)
        assert counted(page) == want
    page.fill("#search", '"task 12:"')
    hits = [at for at in range(len(rows)) if "task 12:" in texts(at)]
    assert listed(page) == hits and len(hits) == 1
    assert page.locator("#rows-body mark").first.inner_text().lower() == "task 12:"
    page.fill("#search", "nothing has this word")
    assert page.is_visible("#none") and counted(page) == 0
    page.click("#reset")
    assert counted(page) == len(rows) and page.input_value("#search") == ""


def test_filters(browse: Browse, page_file: Path, rows: Rows) -> None:
    page = browse(page_file).ready()
    dropped = rows.columns["kept"].count(0)
    assert status(page) == f"{len(rows) - dropped} samples, {dropped} dropped rows"
    page.select_option("#filter-kept", label=f"dropped ({dropped})")
    assert status(page) == f"0 of {len(rows) - dropped} samples, {dropped} dropped rows"
    assert counted(page) == dropped
    page.select_option("#filter-kept", "")
    last = rows.columns["feature"].count(1)
    page.select_option("#filter-feature", index=2)
    assert counted(page) == last
    page.select_option("#filter-feature", "")
    scores = [score for score in rows.columns["score"] if score is not None]
    middle = sorted(scores)[len(scores) // 2]
    page.fill("#score-from", str(middle))
    assert counted(page) == sum(score >= middle for score in scores)
    assert not page.query_selector("#filter-writer"), "one writer is no choice"


@pytest.mark.parametrize("column", ["number", "words", "score"])
def test_sorting_by_a_head_and_back(browse: Browse, page_file: Path, rows: Rows, column: str) -> None:
    page = browse(page_file).ready()
    values = {
        "number": rows.columns["number"],
        "score": rows.columns["score"],
        "words": [None if text is None else len(text.split()) for text in rows.columns["improved"]],
    }[column]
    ordered = sorted(value for value in values if value is not None)
    head = f"[data-column={column}]"
    if column != "number":  # which it is sorted by from the start
        page.click(f"{head} button")
    assert page.get_attribute(head, "aria-sort") == "ascending"
    shown = [values[at] for at in listed(page)]
    assert shown == (ordered + [None] * len(values))[: len(shown)]
    page.click(f"{head} button")
    assert page.get_attribute(head, "aria-sort") == "descending"
    shown = [values[at] for at in listed(page)]
    assert shown == ordered[::-1][: len(shown)], "rows without a value come last either way"


# --- a row's lineage


def test_a_row_shows_where_it_comes_from(browse: Browse, page_file: Path, rows: Rows) -> None:
    page = browse(page_file, "#sample-3").ready()
    at = rows.columns["number"].index(3)
    reference = rows.names["references"][rows.columns["reference"][at]]
    page.click("#detail .reference summary")
    page.click("#detail .program summary")
    shown = page.inner_text("#detail")
    feature = rows.names["features"][rows.columns["feature"][at]]
    for text in (
        "Sample 3", reference["id"], reference["source"], reference["instruction"], reference["response"],
        reference["features"][feature], reference["feedback"], rows.columns["instruction"][at],
        *rows.columns["analysis"][at][0], *rows.columns["strategy"][at][0], "fake/model", "by late",
        "response generation", "response improvement", rows.names["programs"][0],
    ):  # fmt: skip
        assert text in shown, text
    assert page.url.endswith("#sample-3")


def test_the_difference_shows(browse: Browse, page_file: Path, rows: Rows) -> None:
    page = browse(page_file, "#sample-1").ready()
    diff = page.locator("#detail .diff").first
    gone, new = diff.locator("del").all_inner_texts(), diff.locator("ins").all_inner_texts()
    assert gone and new
    without = (
        "(element, tag) => { const copy = element.cloneNode(true);"
        " copy.querySelectorAll(tag).forEach(child => child.remove()); return copy.textContent; }"
    )
    plain, better = diff.evaluate(without, "ins"), diff.evaluate(without, "del")
    assert (plain, better) == (rows.columns["response"][0], rows.columns["improved"][0])
    style = diff.locator("ins").first.evaluate(
        "e => [getComputedStyle(e).textDecorationLine, getComputedStyle(e).backgroundColor]"
    )
    assert "underline" in style[0] and style[1] != "rgba(0, 0, 0, 0)", "shown by more than colour"
    assert "line-through" in diff.locator("del").first.evaluate("e => getComputedStyle(e).textDecorationLine")
    page.check("#detail input[value='side by side']")
    assert page.locator("#detail .plain del").count() and not page.locator("#detail .plain ins").count()
    assert page.locator("#detail .improved ins").count() and not page.locator("#detail .improved del").count()


def test_a_point_of_the_map_opens_its_row(browse: Browse, page_file: Path) -> None:
    page = browse(page_file).ready()
    chart = page.locator("#chart-map")
    chart.scroll_into_view_if_needed()
    box = chart.locator("svg path").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("#detail[open]")
    assert re.match("Sample|Dropped row", page.inner_text("#detail-title"))
    page.click("#detail-close")
    colour = "getComputedStyle(document.querySelector('#chart-map path')).stroke"
    by_reference = {page.evaluate(colour), *page.locator("#chart-map .legend:visible li").all_inner_texts()}
    page.check("#chart-map input[value=b]", force=True)
    by_feature = {page.evaluate(colour), *page.locator("#chart-map .legend:visible li").all_inner_texts()}
    assert {"subject_areas", "relevant_skills"} <= by_feature and not by_reference & {"subject_areas"}


# --- by keyboard


def test_keyboard_only(browse: Browse, page_file: Path) -> None:
    page = browse(page_file).ready()
    page.keyboard.press("/")
    assert focused(page) == "search"
    page.keyboard.type("task")
    for _ in range(30):  # through the filters and the heads of the columns
        page.keyboard.press("Tab")
        if focused(page).isdigit():
            break
    first = listed(page)[0]
    assert focused(page) == str(first)
    page.keyboard.press("ArrowDown")
    second = focused(page)
    assert second.isdigit() and second != str(first)
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail[open]")
    assert focused(page) == "detail-title" and page.inner_text("#detail-title").startswith("Sample")
    title = page.inner_text("#detail-title")
    page.keyboard.press("j")
    assert page.inner_text("#detail-title") != title
    page.keyboard.press("k")
    assert page.inner_text("#detail-title") == title
    page.keyboard.press("Escape")
    assert not page.query_selector("#detail[open]") and focused(page) == second
    page.keyboard.press("End")
    last = focused(page)
    page.keyboard.press("ArrowDown")
    assert focused(page) == last
    page.keyboard.press("Home")
    assert focused(page) == str(first)


def test_the_theme_and_the_figures_by_keyboard(browse: Browse, page_file: Path) -> None:
    page = browse(page_file).ready()
    page.focus("#theme input[value=system]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("html", "data-theme") == "dark"
    page.locator(".figures summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".figures table").first.is_visible()


# --- by ear, on a phone, in the dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 375])
def test_axe_finds_no_serious_fault(browse: Browse, page_file: Path, scheme: str, width: int) -> None:
    page = browse(page_file, color_scheme=scheme, viewport={"width": width, "height": 800}).ready()
    page.click(".figures summary >> nth=0")
    for panel in ("closed", "open"):
        if panel == "open":
            page.click("#rows-body [role=row]")
            page.wait_for_selector("#detail[open]")
        violations = Axe().run(page).response["violations"]
        faults = [fault for fault in violations if fault["impact"] in {"serious", "critical"}]
        assert not faults, [(fault["id"], [node["html"][:200] for node in fault["nodes"]][:3]) for fault in faults]


def test_phone_width_does_not_scroll_sideways(browse: Browse, page_file: Path) -> None:
    page = browse(page_file, viewport={"width": 375, "height": 800}, has_touch=True, is_mobile=True).ready()
    assert page.evaluate("document.documentElement.scrollWidth") <= 375
    page.click("#rows-body [role=row]")
    page.wait_for_selector("#detail[open]")
    assert page.evaluate("document.querySelector('#detail').scrollWidth") <= 375
    page.click("#detail-close")
    assert not page.query_selector("#detail[open]")


def test_light_and_dark_differ_and_follow_the_system(browse: Browse, page_file: Path) -> None:
    back = "getComputedStyle(document.body).backgroundColor"
    light = browse(page_file, color_scheme="light").ready().evaluate(back)
    page = browse(page_file, color_scheme="dark").ready()
    assert page.evaluate(back) != light
    page.check("#theme input[value=light]", force=True)
    assert page.evaluate(back) == light


# --- what is broken says so


def test_a_file_cut_short_says_so(browse: Browse, page_file: Path, tmp_path: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    cut = re.sub(r'(id="rows">\s*[A-Za-z0-9+/=]{400})[A-Za-z0-9+/=]+', r"\1", text)
    broken.write_text(cut, encoding="utf-8")
    page = browse(broken).page
    page.wait_for_selector("html[data-state=failed]")
    assert "cannot be read" in status(page)


def test_the_hostile_text_is_there_to_be_read(rows: Rows) -> None:
    """The other tests would show nothing if the run had none."""
    for name in ("instruction", "response", "improved"):
        assert sum(HOSTILE in (text or "") for text in rows.columns[name]) > 20

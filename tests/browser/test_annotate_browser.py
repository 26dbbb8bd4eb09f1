"""A page for annotators in a real browser: judged by keyboard alone, downloaded, read; nothing lost, nothing asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from refed_dspy import annotate
from refed_dspy.data.pairs import load_pairs
from tests.browser.conftest import Opened
from tests.support.annotators import page_data
from tests.support.command_line import refed
from tests.support.example_run import HOSTILE

pytestmark = pytest.mark.browser
Browse = Callable[..., Opened]
SIGNS = "\u202e\u2066\x00\x07\x1b[31m\u200f"
"""What turns the direction of text around, and control characters."""
NO_STORAGE = (
    "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } })"
)


def rows(count: int) -> list[dict[str, str]]:
    return [
        {
            "instruction": f"Task {i}: {HOSTILE}{SIGNS}",
            "response": f"a good answer to {i} {HOSTILE}",
            "plain": f"a bad answer to {i}{SIGNS}\n\n{'many words ' * (i % 50)}",
        }
        for i in range(count)
    ]


def make(folder: Path, count: int, **settings: Any) -> list[Path]:
    return list(annotate(rows(count), folder, pairs=count, columns={"plain": "plain"}, **settings).files)


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    """A page with six pairs."""
    return make(tmp_path / "pages", 6)[0]


@pytest.fixture
def graded_file(tmp_path: Path) -> Path:
    """A page with four pairs and two criteria."""
    return make(tmp_path / "pages", 4, criteria={"content_quality": "", f"depth {HOSTILE}": f"deep {HOSTILE}"})[0]


def ready(opened: Opened) -> Any:
    opened.page.wait_for_selector("html[data-state=ready]")
    return opened.page


def title(page: Any) -> str:
    return str(page.inner_text("#pair-title"))


def judged(page: Any) -> str:
    return str(page.inner_text("#status"))


def good_side(page: Any) -> str:
    """The key for the side with the better answer."""
    return "a" if "good" in page.inner_text("#answer-A") else "b"


def pressed(page: Any) -> list[str]:
    return list(page.locator(".choice[aria-pressed=true]").evaluate_all("all => all.map(one => one.dataset.verdict)"))


def downloaded(page: Any, path: Path, key: str = "") -> list[dict[str, Any]]:
    """The lines of the file that the key downloads; without one, the button."""
    with page.expect_download() as download:
        page.keyboard.press(key) if key else page.click("#download")
    download.value.save_as(path)
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_two_hundred_pairs_by_keyboard_and_the_file_is_read(browse: Browse, tmp_path: Path) -> None:
    first, second = make(tmp_path / "pages", 200)
    for file, tie in ((first, "Task 1"), (second, "Task 2")):
        opened = browse(file, accept_downloads=True)
        page = ready(opened)
        for number in range(1, 201):
            assert title(page) == f"Pair {number} of 200"
            page.keyboard.press("t" if page.inner_text("#instruction").startswith(tie) else good_side(page))
        page.wait_for_selector("html[data-state=done]")
        assert judged(page) == "200 of 200 judged" and page.is_visible("#done")
        lines = downloaded(page, file.with_name(f"{file.stem}.jsonl"), "d")
        assert len(lines) == 200 and {line["annotator"] for line in lines} == {file.stem}
        assert "200 of 200 pairs, in verdicts-annotator-" in page.inner_text("#message")
        asked = [url for url in opened.requests if not url.startswith("blob:")]  # which stay within the browser
        assert asked == [file.as_uri()]
        assert opened.complaints == []
    loaded = load_pairs(first.parent)
    assert len(loaded) == 200 and all("good" in pair.answer_a for pair in loaded)
    assert sum(pair.verdict == 1 for pair in loaded) == 200 - 111 - 11, "one tie and one win is no majority"
    result = refed("judge", "people", first.parent)
    assert result.exit_code == 0 and "overall quality  verdicts  2           200" in result.stdout
    assert "improved   plain  200    122" in result.stdout
    measured = refed("judge", "agreement", "--pairs", first.parent, "--judge", "simulated", "--out", tmp_path / "v")
    assert measured.exit_code == 0 and "same as the judge" in measured.stdout, measured.output


def test_progress_survives_a_reload_and_another_page_has_its_own(browse: Browse, tmp_path: Path) -> None:
    first, second = make(tmp_path / "pages", 6)
    opened = browse(first)
    page = ready(opened)
    for key in "abt":
        page.keyboard.press(key)
    assert (title(page), judged(page)) == ("Pair 4 of 6", "3 of 6 judged")
    page.reload()
    page = ready(opened)
    assert (title(page), judged(page)) == ("Pair 4 of 6", "3 of 6 judged")
    page.keyboard.press("ArrowLeft")
    assert pressed(page) == ["tie"]
    page.goto(second.as_uri())
    assert judged(ready(opened)) == "0 of 6 judged"
    page.goto(first.as_uri())
    assert judged(ready(opened)) == "3 of 6 judged" and opened.complaints == []


def test_back_change_and_undo(browse: Browse, page_file: Path, tmp_path: Path) -> None:
    opened = browse(page_file)
    page = ready(opened)
    for key in "abc":
        page.keyboard.press(key)
    for _ in range(9):
        page.keyboard.press("ArrowLeft")
    assert title(page) == "Pair 1 of 6" and pressed(page) == ["A"], "it ends at the first"
    assert page.get_attribute("#back", "aria-disabled") == "true"
    page.keyboard.press("t")
    assert title(page) == "Pair 4 of 6", "back to where it was"
    page.keyboard.press("k")
    page.keyboard.press("k")
    page.keyboard.press("j")
    assert title(page) == "Pair 3 of 6" and pressed(page) == ["cannot tell"]
    page.keyboard.press("u")
    assert title(page) == "Pair 1 of 6" and pressed(page) == [] and judged(page) == "2 of 6 judged"
    page.reload()
    ready(opened).keyboard.press("u")
    assert title(page) == "Pair 3 of 6" and judged(page) == "1 of 6 judged"
    page.keyboard.press("u")
    page.keyboard.press("u")
    assert "no verdict to take back" in page.inner_text("#message") and judged(page) == "0 of 6 judged"
    page.keyboard.press("d")
    assert "nothing to download" in page.inner_text("#message") and opened.complaints == []


def test_what_was_changed_is_what_is_downloaded(browse: Browse, page_file: Path, tmp_path: Path) -> None:
    page = ready(browse(page_file, accept_downloads=True))
    for key in ("a", "b", "ArrowLeft", "c", "ArrowRight", "t"):  # the fourth is skipped
        page.keyboard.press(key)
    lines = downloaded(page, tmp_path / "v.jsonl")
    data = page_data(page_file)
    assert [line["pair"] for line in lines] == [data["pairs"][at]["id"] for at in (0, 1, 3)]
    assert [line["verdict"] for line in lines] == ["A", "cannot tell", "tie"]
    assert {line["set"] for line in lines} == {data["set"]} and len({line["session"] for line in lines}) == 1
    (page_file.parent / "v.jsonl").write_bytes((tmp_path / "v.jsonl").read_bytes())
    assert len(load_pairs(page_file.parent)) == 2


def test_grades_by_keyboard(browse: Browse, graded_file: Path) -> None:
    opened = browse(graded_file, accept_downloads=True)
    page = ready(opened)
    page.keyboard.press("Enter")
    assert page.inner_text("#message") == "Still missing: which answer is better."
    page.keyboard.press("a")
    page.keyboard.press("4")
    page.keyboard.press("Enter")
    assert title(page) == "Pair 1 of 4" and judged(page) == "0 of 4 judged"
    assert page.inner_text("#message").startswith("Still missing: the grade of answer B for content quality")
    for key in ("2", "0", "5"):
        page.keyboard.press(key)
    assert judged(page) == "1 of 4 judged"
    page.keyboard.press("Enter")
    assert title(page) == "Pair 2 of 4"
    page.reload()
    assert title(ready(opened)) == "Pair 2 of 4"
    page.keyboard.press("3")
    page.reload()
    ready(opened)
    assert page.locator("#grades-A input:checked").count() == 1, "a grade alone is kept, too"
    page.keyboard.press("k")
    page.locator("#grades-B fieldset").nth(0).locator("input").nth(1).focus()
    page.keyboard.press("1")
    lines = downloaded(page, graded_file.with_name("v.jsonl"), "d")
    (line,) = lines
    names = [each["name"] for each in page_data(graded_file)["criteria"]]
    assert line["grades"] == {names[0]: {"A": 4, "B": 1}, names[1]: {"A": None, "B": 5}}
    quality = load_pairs(graded_file.parent, ["content quality"])[0]
    assert {quality.annotations["annotator-1"].grade_a, quality.annotations["annotator-1"].grade_b} == {4, 1}
    assert opened.complaints == []


def test_by_mouse(browse: Browse, graded_file: Path) -> None:
    page = ready(browse(graded_file))
    for side, labels in (("A", ("5", "cannot tell")), ("B", ("1", "2"))):
        for at, label in enumerate(labels):
            page.locator(f"#grades-{side} fieldset").nth(at).locator("label", has_text=label).locator("input").check()
    page.click("text=B is better")
    assert pressed(page) == ["B"] and title(page) == "Pair 1 of 4"
    page.click("#next")
    assert title(page) == "Pair 2 of 4" and judged(page) == "1 of 4 judged"
    assert page.evaluate("document.activeElement.id") == "pair-title", "so that a blank presses nothing"


def test_keys_with_ctrl_and_keys_held_down_do_nothing(browse: Browse, page_file: Path) -> None:
    page = ready(browse(page_file))
    for keys in ("Control+b", "Alt+b", "Meta+b"):
        page.keyboard.press(keys)
    assert judged(page) == "0 of 6 judged"
    for _ in range(5):
        page.keyboard.down("a")
    page.keyboard.up("a")
    assert judged(page) == "1 of 6 judged"


def test_hostile_text_stays_text(browse: Browse, graded_file: Path) -> None:
    opened = browse(graded_file)
    page = ready(opened)
    texts = {pair["instruction"]: pair for pair in page_data(graded_file)["pairs"]}
    for _ in range(4):
        instruction = page.evaluate("document.getElementById('instruction').textContent")
        assert instruction.endswith(HOSTILE + SIGNS)
        for side in "AB":
            assert page.evaluate(f"document.getElementById('answer-{side}').textContent") == texts[instruction][side]
        assert page.locator("#pair :is(img, script), .text *").count() == 0
        page.keyboard.press("j")
    assert f"depth {HOSTILE}" in page.evaluate("document.getElementById('grades-A').textContent")
    assert opened.complaints == [] and opened.requests == [graded_file.as_uri()]


def test_a_browser_that_keeps_nothing_says_so(browse: Browse, page_file: Path, tmp_path: Path) -> None:
    opened = browse(page_file, accept_downloads=True)
    ready(opened)
    assert not opened.page.is_visible("#warning")
    opened.page.add_init_script(NO_STORAGE)
    opened.page.reload()
    page = ready(opened)
    assert "This browser keeps nothing for this page" in page.inner_text("#warning")
    for key in "ab":
        page.keyboard.press(key)
    assert len(downloaded(page, tmp_path / "v.jsonl", "d")) == 2
    assert opened.complaints == []


def test_two_tabs_lose_nothing_of_each_other(browse: Browse, page_file: Path, tmp_path: Path) -> None:
    first = browse(page_file, accept_downloads=True)
    page = ready(first)
    other = page.context.new_page()
    other.goto(page_file.as_uri())
    other.wait_for_selector("html[data-state=ready]")
    page.keyboard.press("a")
    other.keyboard.press("j")
    other.keyboard.press("b")
    page.wait_for_function("document.getElementById('status').textContent === '2 of 6 judged'")
    lines = downloaded(page, tmp_path / "v.jsonl", "d")
    assert [line["verdict"] for line in lines] == ["A", "B"]
    page.reload()
    assert judged(ready(first)) == "2 of 6 judged"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 375])
def test_axe_finds_no_serious_fault(browse: Browse, graded_file: Path, scheme: str, width: int) -> None:
    opened = browse(graded_file, color_scheme=scheme, viewport={"width": width, "height": 800})
    page = ready(opened)
    judged_all = ("Enter", "b", *"3333", "Enter", "t", *"4444", "Enter", "c", *"1111", "Enter")
    for keys in ((), ("Enter", "a", "3", "4", "0", "1"), judged_all):
        for key in keys:
            page.keyboard.press(key)
        violations = Axe().run(page).response["violations"]
        faults = [fault for fault in violations if fault["impact"] in {"serious", "critical"}]
        assert not faults, [(fault["id"], [node["html"][:200] for node in fault["nodes"]][:3]) for fault in faults]
    assert page.is_visible("#done"), "that was looked at, too"
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_file_cut_short_says_so(browse: Browse, page_file: Path, tmp_path: Path) -> None:
    text = page_file.read_text(encoding="utf-8")
    at = text.index('id="rows">') + 60
    broken = tmp_path / "broken.html"
    broken.write_text(text[:at] + text[at + 40 :], encoding="utf-8")
    page = browse(broken).page
    page.wait_for_selector("html[data-state=failed]")
    assert "cannot be read" in judged(page) and not page.is_visible("#pair")

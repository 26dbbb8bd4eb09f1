"""Hostile texts stay texts on every face: one list of them, and one run in which every text has them all."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from refed_dspy import annotate, load_references, report, synthesize
from refed_dspy.data.differences import BOTH, IMPROVED, PLAIN
from refed_dspy.filters.base import Decision
from refed_dspy.plugins.share.card import block, code, plain
from refed_dspy.plugins.share.report import glance
from refed_dspy.plugins.share.report.charts import Chart
from refed_dspy.plugins.share.report.drawing import Bars
from refed_dspy.plugins.share.report.page import Page, render
from refed_dspy.plugins.share.report.rows import COLUMNS, Extract, Gallery, Rows, Text
from refed_dspy.plugins.share.report.rows import plain as plain_text
from refed_dspy.plugins.share.share import share
from refed_dspy.records import DataRow
from tests.support import mlflow_stores
from tests.support.annotators import page_data
from tests.support.command_line import refed
from tests.support.example_run import Length, hostile, hostile_references
from tests.support.hostile import EVERY, HOSTILE, STEERING, TAGS, TERMINAL
from tests.support.scripted_engine import Writer, fake_lm

mlflow_template, tracked = mlflow_stores.mlflow_template, mlflow_stores.tracked
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
FLAT = EVERY.replace("\n", " ")


class Odd(Length):
    """Drops every third instruction, for a hostile reason."""

    def check(self, row: DataRow) -> Decision:
        decision = super().check(row)
        return decision if decision.kept else replace(decision, reason=EVERY)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which references, their source, a filter, its reasons, the model and the folder are hostile."""
    folder = tmp_path_factory.mktemp("hostile") / f"<b>{HOSTILE[4].replace('/', '')}"
    rows = [{**row, "source": EVERY} for row in hostile_references(1, EVERY)]
    lm = fake_lm(hostile(Writer(), EVERY), f"fake/{FLAT}")
    synthesize(None, rows, size=6, teacher=lm, run_dir=folder, filters=[Odd(FLAT, True, EVERY)], guards=False)
    return folder


def page_is_harmless(page: str, scripts: int) -> None:
    """No text of the list became markup; the scripts are the page's own."""
    assert page.count("<script") == page.count("</script>") == scripts
    head = page[: page.index("<script")] if scripts else page
    assert not [tag for tag in TAGS if tag in head]


@pytest.mark.parametrize("words", ["status", "status --tokens", "show", "show --dropped"])
def test_a_terminal(run: Path, words: str) -> None:
    command, *flags = words.split()
    shown = refed(command, run, *flags)
    assert shown.exit_code == 0 and not STEERING.search(shown.output)


def test_a_report(run: Path, tmp_path: Path) -> None:
    page = report(run, tmp_path / "page.html").read_text(encoding="utf-8")
    page_is_harmless(page, 2)
    assert (
        not re.search(r"[<>]alert\(1\)", page) and EVERY in page_data(tmp_path / "page.html")["columns"]["improved"][0]
    )


def test_every_part_of_a_report() -> None:
    rows = Rows({}, {name: [] for name in COLUMNS})
    lead = glance.Lead(0, 0, (EVERY,), "$0")
    bars = Bars([EVERY], {EVERY: [1.0], "other": [1.0]}, [EVERY])
    chart = Chart("one", EVERY, EVERY, bars, (EVERY,), ((EVERY,),))
    table = glance.Table("t", EVERY, EVERY, (EVERY,), ((EVERY,),), ((EVERY,),))
    both = [(BOTH, EVERY), (PLAIN, EVERY), (IMPROVED, EVERY)]
    looks: tuple[Literal["", "folded", "half"], ...] = ("", "folded", "half")
    extract = Extract(EVERY, [plain_text(EVERY, EVERY, EVERY), *(Text(EVERY, both, EVERY, look) for look in looks)])
    galleries = [Gallery(name, EVERY, EVERY, [extract], wide=name == "wide") for name in ("wide", "cards")]
    facts = [glance.Fact(EVERY, EVERY, EVERY)]
    page = Page(EVERY, lead, "at its cap", EVERY, facts, [EVERY], galleries, [chart], [table], rows)
    text = render(page, "0").decode()
    page_is_harmless(text, 1)
    assert "&lt;script&gt;" in text and "{{ 7*7 }}" in text


def test_pages_for_annotators(tmp_path: Path) -> None:
    rows = [{name: f"{text} {n} {EVERY}" for name, text in (("instruction", "i"), ("response", "r"))} for n in range(3)]
    pairs = [{**row, "plain": f"bad {EVERY}"} for row in rows]
    made = annotate(pairs, tmp_path / "pages", pairs=3, columns={"plain": "plain"}, criteria={f"depth {FLAT}": EVERY})
    page_is_harmless(made.files[0].read_text(encoding="utf-8"), 2)
    shown = page_data(made.files[0])["pairs"]
    assert all(EVERY in pair[name] for pair in shown for name in ("instruction", "A", "B"))


def test_a_card(run: Path, tmp_path: Path) -> None:
    citation = tmp_path / "c.bib"
    citation.write_text(f"```\n{EVERY}", encoding="utf-8")
    share(run, tmp_path / "out", name=EVERY, reference_license=EVERY, citation=citation)
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    name = DatasetCard(text).data.pretty_name
    assert name.startswith(HOSTILE[0][:20]) and "\n" not in name
    page = str(MARKDOWN.render(text.split("\n---\n", 1)[1]))
    page_is_harmless(page, 0)
    assert page.count("<h1>") == page.count("<details>") == page.count("</details>") == page.count("</summary>") == 1
    assert (
        page.count("<table>") == text.count("\n| ---")
        and "&lt;script&gt;" in page
        and "<a " not in page
        and "{{ 7*7 }}" in page
    )
    assert all(line.endswith("|") for line in text.splitlines() if line.startswith("|"))


@pytest.mark.parametrize("text", [*HOSTILE, "`", "``a`", "a|b"], ids=range(10))
def test_a_cell_and_a_block_of_a_card(text: str) -> None:
    shown = STEERING.sub("?", " ".join(text.split()))
    for markdown in (plain(text), code(text)):
        tokens = MARKDOWN.parse(f"| a |\n| --- |\n| {markdown} |\n")
        cells = [token for token in tokens if token.type == "inline"]
        children = cells[1].children or []
        assert len(cells) == 2 and {child.type for child in children} <= {"text", "text_special", "code_inline"}
        assert "".join(child.content for child in children).strip() == shown
    links = ("p://", "s://", "www.", "e@")  # what some renderers make links of
    assert not any(link in plain(text) for link in links)
    fenced = MarkdownIt().parse(str(block(text)))[0].content
    assert fenced.strip() == STEERING.sub("?", text.strip().replace("\r", "\n"))


def test_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    texts = [text.replace("\r", "") for text in (*HOSTILE, EVERY)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("instruction", "response"), *((f"i {text}", f"r {text}") for text in texts)])
    assert [(row.instruction, row.response) for row in load_references(path)] == [
        (f"i {text}".strip(), f"r {text}".strip()) for text in texts
    ]


@pytest.mark.slow
def test_mlflow(run: Path, tracked: mlflow_stores.Mlflow) -> None:
    before = EVERY in json.dumps(tracked.everything())
    assert refed("track", run).exit_code == 0
    (known,) = tracked.runs()
    assert not before and known.info.status == "FINISHED" and TERMINAL not in known.info.run_name

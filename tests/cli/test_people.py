"""refed judge annotate, judge people and judge agreement over a folder of pages, as a person meets them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.cli import test_compile
from tests.support.annotators import annotated, lines_of, page_data, prefers, write
from tests.support.command_line import refed, refusal, teacher_file
from tests.support.said import Said

home = test_compile.home


@pytest.fixture
def pages(home: Path) -> Path:
    """Three annotators' pages with 20 pairs of 30."""
    rows = [{"instruction": f"Task {i}.", "improved_response": f"good {i}", "response": f"bad {i}"} for i in range(30)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = refed(
        "judge", "annotate", "rows.jsonl", "--pairs", 20, "--annotators", 3, "--out", "pages",
        "--criteria", "content_quality,tone", "--criteria", "depth: how deep, or shallow, it goes",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    (home / "told").write_text(made.stdout)
    return home / "pages"


def judge_all(pages: Path) -> None:
    rng = random.Random(4)
    for page in sorted(pages.glob("*.html")):
        right = prefers("good")
        annotated(
            page, lambda pair, right=right: right(pair) if rng.random() < 0.8 else "tie",  # type: ignore[misc]
            lambda text: rng.randint(3, 5) if "good" in text else rng.randint(1, 3),
        )  # fmt: skip


def test_from_pages_to_figures(said: Said, pages: Path, server: SimulatedTeacher) -> None:
    said((pages.parent / "told").read_text())
    said({each["name"]: each["description"] for each in page_data(pages / "annotator-1.html")["criteria"]})
    judge_all(pages)
    people = refed("judge", "people", pages)
    assert people.exit_code == 0
    said(people.stdout)
    chosen = refed("judge", "people", pages, "--criteria", "tone, overall quality")
    assert "depth" not in chosen.stdout and "tone" in chosen.stdout
    judge = "--judge", teacher_file(pages.parent, server), "--out", "verdicts", "--criteria", "overall quality"
    measured = refed("judge", "agreement", "--pairs", pages, *judge)
    assert measured.exit_code == 0 and measured.stdout.startswith("criterion"), measured.output
    assert server.stats()["requests"] == 40, "each pair in both orders, by one criterion"


def test_what_cannot_be_used_is_one_line(said: Said, pages: Path, server: SimulatedTeacher) -> None:
    page, annotate = pages / "annotator-1.html", ("judge", "annotate", "rows.jsonl", "--pairs")
    teacher = teacher_file(pages.parent, server)
    lines = [refusal(refed("judge", "people", pages)), refusal(refed("judge", "agreement", "--pairs", pages))]
    annotated(page, prefers("good"))
    lines += [
        refusal(refed("judge", "people", pages, "--criteria", "overall quality")),
        refusal(refed("judge", "people", pages)),
        refusal(refed(*annotate, 31, "--out", "more")),
        refusal(refed(*annotate, 3, "--out", "pages")),
        refusal(refed("judge", "annotate", "references.jsonl", "--pairs", 3, "--out", "more")),
        refusal(refed(*annotate, 3, "--out", "more", "--between", "a,b")),
    ]
    write(pages / "verdicts-annotator-1.jsonl", [{**lines_of(page, prefers("good"))[0], "set": "another"}])
    lines.append(refusal(refed("judge", "agreement", "--pairs", pages, "--judge", teacher)))
    said(lines)
    assert server.stats()["requests"] == 0 and not Path("more").exists()

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
    *files, told, then = made.stdout.splitlines()
    assert files == [f"pages/annotator-{number}.html" for number in (1, 2, 3)]
    assert told == "20 pairs on each page; send each person a page and keep key.json, which says what was whose;"
    assert then == "put the files that come back into pages, then: refed judge people pages"
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
    criteria = {each["name"]: each["description"] for each in page_data(pages / "annotator-1.html")["criteria"]}
    said(criteria["depth"])
    said(list(criteria))
    judge_all(pages)
    people = refed("judge", "people", pages)
    assert people.exit_code == 0, people.output
    lines = people.stdout.splitlines()
    said(lines[0])
    said(lines[2])
    assert [line.split()[0] for line in lines[3:6]] == ["content", "tone", "depth"]
    assert any(line.startswith("overall quality  improved   plain  20") for line in lines)
    chosen = refed("judge", "people", pages, "--criteria", "tone, overall quality")
    assert "depth" not in chosen.stdout and "tone" in chosen.stdout
    judge = "--judge", teacher_file(pages.parent, server), "--out", "verdicts", "--criteria", "overall quality"
    measured = refed("judge", "agreement", "--pairs", pages, *judge)
    assert measured.exit_code == 0, measured.output
    assert measured.stdout.startswith("criterion")
    said(measured.stdout)
    assert server.stats()["requests"] == 40, "each pair in both orders, by one criterion"
    assert refed("judge", "agreement", "--pairs", pages, *judge).stdout == measured.stdout
    assert server.stats()["requests"] == 40


def test_what_cannot_be_used_is_one_line(said: Said, pages: Path, server: SimulatedTeacher) -> None:
    said(refusal(refed("judge", "people", pages)))
    page = pages / "annotator-1.html"
    annotated(page, prefers("good"))
    said(
        [
            refusal(refed("judge", "people", pages, "--criteria", "overall quality")),
            refusal(refed("judge", "people", pages)),
            refusal(refed("judge", "annotate", "rows.jsonl", "--pairs", 31, "--out", "more")),
            refusal(refed("judge", "annotate", "rows.jsonl", "--pairs", 3, "--out", "pages")),
            refusal(refed("judge", "annotate", "references.jsonl", "--pairs", 3, "--out", "more")),
            refusal(refed("judge", "annotate", "rows.jsonl", "--pairs", 3, "--out", "more", "--between", "a,b")),
        ]
    )
    write(pages / "verdicts-annotator-1.jsonl", [{**lines_of(page, prefers("good"))[0], "set": "another"}])
    said(refusal(refed("judge", "agreement", "--pairs", pages, "--judge", teacher_file(pages.parent, server))))
    assert server.stats()["requests"] == 0 and not Path("more").exists()


def test_without_a_judge_people_are_named(said: Said, pages: Path) -> None:
    said(refusal(refed("judge", "agreement", "--pairs", pages)))

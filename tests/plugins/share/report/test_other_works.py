"""The pages of comparisons, filterings and compiles."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from refed_dspy.data.differences import BOTH, IMPROVED
from refed_dspy.errors import RunDirError
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.share.report.drawing import Bars, Intervals
from refed_dspy.plugins.share.report.page import Page
from refed_dspy.plugins.share.report.report import no_map, read_page, report
from tests.support.hostile import EVERY
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm
from tests.support.simulated_compiles import PREFERENCE, QUESTIONS, Knows, answerer, compiled, marks

ROWS = [
    {"instruction": f"Task {at} {EVERY}", "response": "I cannot help." if at % 4 == 0 else f"Answer {at} {EVERY}"}
    for at in range(12)
]


def chart(page: Page, name: str) -> Bars | Intervals:
    figure = next(each.figure for each in page.charts if each.id == name)
    assert isinstance(figure, Bars | Intervals)
    return figure


def facts(page: Page) -> dict[str, tuple[str, str]]:
    return {fact.name: (fact.value, fact.note) for fact in page.facts}


def written(folder: Path) -> str:
    """The page's file, without its script."""
    text = report(folder).read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 1 and "<img" not in text
    return text[: text.index("<script>")]


# --- comparisons


def test_a_comparison_shows_win_rates_and_the_answers_side_by_side(said: Said, comparison: Path) -> None:
    page = read_page(comparison, no_map)
    made = json.loads((comparison / "comparison.json").read_text())
    rates = {line["program"]: line["win_rate"]["mean"] for line in made["programs"] if line["win_rate"]}
    wins, grades = chart(page, "wins"), chart(page, "grades")
    assert isinstance(wins, Intervals) and (wins.low, wins.middle, wins.high) == (0, 50, 100)
    ((_, means),) = wins.series.items()
    assert dict(zip(wins.labels, (each and each.mean for each in means), strict=True)) == rates
    assert len(rates) == 2 and isinstance(grades, Intervals) and set(grades.labels) > set(rates)
    (gallery,) = page.galleries
    assert len(gallery.extracts) == 6 and gallery.wide
    assert [text.title for text in gallery.extracts[0].texts] == ["instruction-only", "sample-level", "reference-level"]
    assert gallery.extracts[0].texts[1].note.endswith("4")
    said((facts(page)["Instructions"], str(page.lead), [each.title for each in page.charts]))
    assert made["notes"] and set(made["notes"]) <= set(page.notes), "what the command says of its figures"
    assert next(each.title for each in page.charts if each.id == "wins") in written(comparison)


def test_a_comparison_without_figures_shows_what_was_paid(said: Said, comparison: Path, tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes((comparison / "ledger.sqlite").read_bytes())
    page = read_page(tmp_path, no_map)
    assert not page.galleries and [each.id for each in page.charts] == ["cost"] and facts(page)["Calls"][0] != "0"
    (tmp_path / "comparison.json").write_text("{half")
    with said.by(RunDirError):
        read_page(tmp_path, no_map)


# --- filterings


def test_a_filtering_without_a_judge_shows_examples_of_each_reason(said: Said, tmp_path: Path) -> None:
    refed_dspy.filter_data(ROWS, ["refusals", {"length": {"of": "response", "max_words": 3}}], out=tmp_path / "f")
    page = read_page(tmp_path / "f", no_map)
    funnel = json.loads((tmp_path / "f" / "funnel.json").read_text())
    flow = chart(page, "funnel")
    assert isinstance(flow, Bars) and flow.series["rows"] == [12, *(each["kept"] for each in funnel)]
    kept = funnel[-1]["kept"]
    assert facts(page)["Kept"] == (str(kept), f"{kept / 12:.0%}") and "Cost" not in facts(page)
    shown = {gallery.title: gallery.extracts for gallery in page.galleries}
    said({title: [each.title for each in extracts] for title, extracts in shown.items()})
    first = next(each for extracts in shown.values() for each in extracts if each.title == "Row 1")
    assert [text.title for text in first.texts][:2] == ["Instruction", "Response"]
    assert first.texts[1].segments == [(BOTH, ROWS[0]["response"])]
    assert EVERY not in written(tmp_path / "f")


def test_a_filtering_by_a_judge_shows_what_it_cost(said: Said, tmp_path: Path) -> None:
    judge = Writer()
    judge.on_request = lambda request: json.dumps(
        {"reason": "so", **{name: "2" for name in judge.fields(request) if name != "reason"}}
    )
    settings = {"rubric": {"at_least": 3}}
    refed_dspy.filter_data(ROWS[1:3], [settings], judge=fake_lm(judge), out=tmp_path / "f")
    page = read_page(tmp_path / "f", no_map)
    assert facts(page)["Calls"][0] == "2" and [each.id for each in page.charts] == ["funnel", "cost"]
    (gallery,) = page.galleries
    said((gallery.extracts[0].title, [each.title for each in page.charts]))
    assert page.charts[1].title in written(tmp_path / "f")


def test_rows_without_a_known_shape_show_their_texts(tmp_path: Path) -> None:
    data = [{"ask": f"Task {at}", "say": f"Answer {at}", "at": at} for at in range(3)]
    columns = {"instruction": "ask", "response": "say"}
    refed_dspy.filter_data(data, ["refusals"], columns=columns, out=tmp_path / "f")
    page = read_page(tmp_path / "f", no_map)
    assert [text.title for text in page.galleries[0].extracts[0].texts] == ["ask", "say"]
    assert not page.charts, "nothing was dropped"


# --- compiles

KNOWS = "tests.support.simulated_compiles.Knows"
LONG = f"{'why ' * 3_000}{EVERY}"


class Shows(Knows):
    """An optimizer that adds a demonstration, too."""

    def compile(self, student: dspy.Module, *, trainset: list[Any], valset: list[Any]) -> dspy.Module:
        program = super().compile(student, trainset=trainset, valset=valset)
        demo = {"question": LONG, "reasoning": "So I was told.", "response": "Yes.\nAlways."}
        program.predictors()[0].demos = [dspy.Example(**demo, augmented=True)]
        return program


def note_answers(folder: Path, stage: str, text: str) -> None:
    """Answers before and after in a compile's outcome."""
    with Ledger.create(folder) as ledger:
        before, after = ({stage: {"given": text, "answer": f"{text}{end}"}} for end in (" before", ""))
        answers = {"example": text, "before": before, "after": after}
        ledger.set_meta(outcome={**ledger.meta("outcome"), "answers": answers})


def test_a_compile_shows_its_gain_and_what_changed_stage_by_stage(said: Said, tmp_path: Path) -> None:
    made = compiled(tmp_path, answerer(), QUESTIONS, metric=marks, optimizer=f"{__name__}.Shows")
    assert made.proof is not None
    note_answers(tmp_path, "predict", EVERY)
    page = read_page(tmp_path, no_map)
    first = chart(page, "changes").series["change"][0]
    assert isinstance(first, Interval) and first.mean == pytest.approx(made.proof.gain.raw.mean)
    assert list(facts(page))[:2] == ["Gain", "Proved better"]
    candidates = next(table for table in page.tables if table.id == "candidates")
    assert [row[0] for row in candidates.rows] == ["0, uncompiled", "1, kept"]
    (gallery,) = page.galleries
    changed, example = gallery.extracts
    assert any(kind == IMPROVED and PREFERENCE.answers[0] in text for kind, text in changed.texts[0].segments)
    assert changed.texts[-1].segments == example.texts[0].segments == [(BOTH, EVERY)]
    shown = {each.title: "".join(text for _, text in each.segments) for each in changed.texts}
    given, answer = (text for title, text in shown.items() if title.startswith("Demonstration"))
    assert given.split() == f"question: {LONG}".split() and answer.endswith("Yes.\n  Always.")
    said([(each.title, each.look) for each in changed.texts])
    said([row[0] for row in next(table for table in page.tables if table.id == "words").rows])
    text = written(tmp_path)
    assert EVERY not in text and text.index('id="chart-changes"') < text.index('id="prompts"'), "first: did it help?"


def test_a_compile_that_kept_the_uncompiled_program_has_no_changes_to_show(said: Said, tmp_path: Path) -> None:
    made = compiled(tmp_path, answerer(), QUESTIONS, metric=marks)
    assert made.proof is not None and not made.changed
    note_answers(tmp_path, "predict", "of the same program, so that they tell nothing")
    page = read_page(tmp_path, no_map)
    assert not page.galleries and set(made.proof.doubts()) <= set(page.notes) and made.proof.doubts()
    said((next(iter(facts(page).items())), [each.title for each in page.charts]))


def test_a_compile_proved_on_one_reference_has_no_intervals(
    said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier version proved them."""
    monkeypatch.setattr("refed_dspy.optimizers.compile.refuse_unprovable", lambda *_: None)
    knows: dict[str, Any] = {
        "optimizer": KNOWS,
        "train": 2,
        "validation": 2,
        "test": 1,
    }
    made = compiled(tmp_path, answerer(), QUESTIONS[:5], metric=marks, **knows)
    assert made.proof is not None and made.proof.gain.raw.low == -math.inf
    page = read_page(tmp_path, no_map)
    said(next(fact.note for fact in page.facts))
    scores, changes = chart(page, "scores"), chart(page, "changes")
    assert isinstance(scores, Intervals) and scores.series["score"] == [None, None]
    assert isinstance(changes, Intervals) and not changes.labels
    assert page.facts[0].note.partition(",")[0] in written(tmp_path)

"""Folders of pages: what the files that annotators downloaded become, and what is refused in one line."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from refed_dspy import annotate
from refed_dspy.data.pairs import OVERALL, Annotation, Pair, load_pairs
from refed_dspy.data.verdicts import KEY, Turnout, turnout
from refed_dspy.errors import ReferencesError
from refed_dspy.programs import judges
from tests.support.annotators import annotated, lines_of, page_data, prefers, write
from tests.support.refusals import refusal
from tests.support.said import Said

GRADES = {"good": 5, "bad": 2}
QUALITY = "content quality"
refused = partial(refusal, ReferencesError, load_pairs)


def grade(text: str) -> int | None:
    return next((each for word, each in GRADES.items() if word in text), None)


def rows(count: int) -> list[dict[str, str]]:
    return [{"instruction": f"Task {i}.", "response": f"a good {i}", "plain": f"a bad {i}"} for i in range(count)]


def pages(tmp_path: Path, count: int = 12, **settings: Any) -> list[Path]:
    made = annotate(rows(count), tmp_path / "pages", pairs=count, columns={"plain": "plain"}, **settings)
    return list(made.files)


# --- what is read


def test_verdicts_are_read_by_the_pairs_own_sides(tmp_path: Path) -> None:
    for page in (files := pages(tmp_path)):
        annotated(page, prefers("good"))
    loaded = load_pairs(tmp_path / "pages")
    assert len(loaded) == 12 and {pair.verdict for pair in loaded} == {1}
    assert all(pair.answer_a.startswith("a good") and pair.answer_b.startswith("a bad") for pair in loaded)
    assert {(pair.system_a, pair.system_b) for pair in loaded} == {("improved", "plain")}
    names = {"annotator-1": Annotation(verdict=1), "annotator-2": Annotation(verdict=1)}
    assert all(pair.annotations == names for pair in loaded)
    said = [{line["verdict"] for line in lines_of(page, prefers("good"))} for page in files]
    assert said == [{"A", "B"}] * 2, "the pages had them on both sides"


def test_the_same_pair_follows_once_more_for_each_criterion(tmp_path: Path) -> None:
    criteria = {"content_quality": "", "depth": "how deep"}
    for page in pages(tmp_path, 3, criteria=criteria):
        annotated(page, prefers("nothing"), grade)
    loaded = load_pairs(str(tmp_path / "pages"))
    assert [pair.criterion for pair in loaded] == ["", QUALITY, "depth"] * 3
    overall, quality, depth = loaded[:3]
    assert overall.verdict == 0 and quality.verdict == depth.verdict == 1
    said = Annotation(verdict=1, grade_a=5, grade_b=2)
    assert {pair.criterion: pair.annotations for pair in loaded} == {
        "": dict.fromkeys(("annotator-1", "annotator-2"), Annotation(verdict=0)),
        **dict.fromkeys((QUALITY, "depth"), dict.fromkeys(("annotator-1", "annotator-2"), said)),
    }
    assert all(pair.verdict == 1 for pair in loaded if pair.criterion), "whichever side it stood on"
    assert quality.description == judges.RESPONSE_CRITERIA["content_quality"].description
    assert depth.description == criteria["depth"]
    assert overall.texts_id == depth.texts_id and len({pair.id for pair in loaded}) == 9


def test_criteria_are_chosen_by_name(said: Said, tmp_path: Path) -> None:
    for page in pages(tmp_path, 3, criteria=["content_quality", "depth"]):
        annotated(page, prefers("good"), grade)
    assert judges.OVERALL.name == OVERALL
    chosen = load_pairs(tmp_path / "pages", ["content_quality", OVERALL])
    assert {pair.criterion for pair in chosen} == {"", QUALITY}
    said(refused(tmp_path / "pages", ["width"]))


def test_what_was_said_last_counts_and_a_file_may_be_there_twice(tmp_path: Path) -> None:
    page = pages(tmp_path, 5, annotators=1)[0]
    later = [{**line, "at": "2026-02-01T00:00:00.000Z"} for line in lines_of(page, prefers("good"))]
    write(page.with_name("a.jsonl"), later)
    write(page.with_name("b (1).jsonl"), lines_of(page, prefers("bad"))[:3])
    for _ in range(2):
        assert [pair.verdict for pair in load_pairs(page.parent)] == [1] * 5
        write(page.with_name("c.jsonl"), later)


def test_a_file_that_is_not_finished_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    one, two = pages(tmp_path, 6)
    annotated(one, lambda pair: "cannot tell" if "Task 3" in pair["instruction"] else prefers("good")(pair))
    write(two.with_name("two.jsonl"), lines_of(two, prefers("good"))[:2])
    assert turnout(one.parent) == [Turnout("annotator-1", 6, 1, 6), Turnout("annotator-2", 2, 0, 6)]
    loaded = load_pairs(one.parent)
    judged_by_both = [pair for pair in loaded if len(pair.annotations) == 2]
    assert len(judged_by_both) == 2 and len(loaded) in (5, 6)


def test_pairs_of_a_folder_are_like_any_others(tmp_path: Path) -> None:
    """Written out by hand, they read the same."""
    for page in pages(tmp_path, 3, criteria=["depth"]):
        annotated(page, prefers("good"), grade)
    loaded = load_pairs(tmp_path / "pages")
    names = {1.0: "A", 0.0: "tie", -1.0: "B", None: "cannot tell"}
    lines = []
    for pair in loaded:
        said = {name: {**each.model_dump(), "verdict": names[each.verdict]} for name, each in pair.annotations.items()}
        lines.append({**pair.model_dump(exclude={"verdict"}), "annotations": said})
    write(tmp_path / "pairs.jsonl", lines)
    assert load_pairs(tmp_path / "pairs.jsonl") == loaded and isinstance(loaded[0], Pair)


# --- what is refused


def judged(tmp_path: Path, **settings: Any) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a page with three pairs, and the lines of its file."""
    page = pages(tmp_path, 3, annotators=1, **settings)[0]
    return page.parent, lines_of(page, prefers("good"), grade)


def test_no_files_yet_and_a_damaged_line(said: Said, tmp_path: Path) -> None:
    folder, lines = judged(tmp_path)
    said(refused(folder))
    text = json.dumps(lines[0]) + "\n" + json.dumps(lines[1])[:-20]
    (folder / "v.jsonl").write_text(text, encoding="utf-8")
    said(refused(folder))


def test_a_line_that_no_page_wrote_is_named(said: Said, tmp_path: Path) -> None:
    folder, lines = judged(tmp_path, criteria=["depth"])
    changes: list[dict[str, Any]] = [
        {"set": "0123456789abcdef"}, {"verdict": "C"}, {"verdict": None}, {"grades": {"depth": {"A": 6, "B": 1}}},
        {"grades": {"depth": {"A": 3}}}, {"grades": {"width": {"A": 3, "B": 3}}}, {"pair": "abc"},
        {"annotator": "annotator-9"}, {"more": 1},
    ]  # fmt: skip
    for changed in changes:
        path = write(folder / "v.jsonl", [lines[0], {**lines[1], **changed}])
        told = refused(folder)
        assert told.startswith(f"{path} line 2: ")
        said(told)


def test_the_same_pairs_with_other_sides_are_another_set(said: Said, tmp_path: Path) -> None:
    """Else verdicts would count for the other side. So are other pairs."""
    folder, _ = judged(tmp_path)
    again = annotate(rows(3), tmp_path / "again", pairs=3, annotators=1, seed=1, columns={"plain": "plain"})
    assert {pair["id"] for pair in page_data(again.files[0])["pairs"]} == {
        pair["id"] for pair in page_data(folder / "annotator-1.html")["pairs"]
    }
    write(folder / "v.jsonl", lines_of(again.files[0], prefers("good")))
    said(refused(folder))


def test_two_people_at_one_page_are_noticed(said: Said, tmp_path: Path) -> None:
    folder, lines = judged(tmp_path)
    write(folder / "ann.jsonl", lines)
    write(folder / "bob.jsonl", [{**line, "session": "another browser"} for line in lines])
    said(refused(folder))


def test_who_goes_on_in_another_browser_is_one_person(tmp_path: Path) -> None:
    folder, lines = judged(tmp_path)
    write(folder / "office.jsonl", lines[:1])
    write(folder / "home.jsonl", [{**line, "session": "at home"} for line in lines[1:]])
    assert len(load_pairs(folder)) == 3


def test_a_criterion_that_nobody_graded_is_named(said: Said, tmp_path: Path) -> None:
    folder, lines = judged(tmp_path, criteria=["depth", "tone"])
    nobody = {"A": None, "B": None}
    for grades in ({"depth": {"A": 4, "B": 3}}, {"depth": {"A": 4, "B": 3}, "tone": nobody}):
        write(folder / "v.jsonl", [{**line, "grades": grades} for line in lines])
        said(refused(folder))
        assert len(load_pairs(folder, ["depth"])) == 3


def test_a_damaged_key_and_a_file_by_itself(said: Said, tmp_path: Path) -> None:
    folder, lines = judged(tmp_path)
    path = write(folder / "v.jsonl", lines)
    said(refused(path))
    (folder / KEY).write_text("{}", encoding="utf-8")
    said(refused(folder))
    (folder / KEY).write_bytes(b"\xff")
    said(refused(folder))

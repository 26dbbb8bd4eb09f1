"""How people agree with each other and with a judge, what they prefer, and what is refused in one line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from refed_dspy import annotate
from refed_dspy.data.pairs import Annotation, Pair, load_pairs
from refed_dspy.errors import ReferencesError
from refed_dspy.optimizers.examples import as_examples
from refed_dspy.plugins.judge.agree import measure_agreement
from refed_dspy.plugins.judge.people import Annotator, alpha_interval, people_agreement, people_of
from refed_dspy.programs.judges import OVERALL, Verdict
from tests.plugins.judge.test_agreement import perfect, writer_by
from tests.support import ROOT
from tests.support.annotators import annotated, prefers
from tests.support.said import Said
from tests.support.scripted_engine import fake_lm

PANDALM = ROOT.parent / "shared/data/pandalm_testset_v1.json"


def pair(number: int, *said: float | None, **more: Any) -> Pair:
    """A pair on which annotators a, b, … said this."""
    annotations = {"abc"[i]: Annotation(verdict=each) for i, each in enumerate(said)}
    texts = {"instruction": f"Task {number}.", "answer_a": f"one {number}", "answer_b": f"two {number}"}
    return Pair(**{**texts, "verdict": 0.0, "annotations": annotations, **more})


def graded(number: int, *grades: tuple[int | None, int | None], **more: Any) -> Pair:
    said = {"abc"[i]: Annotation(verdict=None, grade_a=a, grade_b=b) for i, (a, b) in enumerate(grades)}
    return pair(number, criterion="depth", **more).model_copy(update={"annotations": said})


# --- agreement


def test_alpha_is_that_of_the_verdicts_and_of_the_grades() -> None:
    rng = random.Random(2)
    verdicts = [[float(rng.choice([1, 1, 0, -1])) for _ in range(3)] for _ in range(40)]
    grades = [[(rng.randint(1, 5), rng.randint(2, 4)) for _ in range(2)] for _ in range(40)]
    pairs = [pair(i, *each) for i, each in enumerate(verdicts)] + [graded(i, *each) for i, each in enumerate(grades)]
    overall, depth = people_agreement(pairs).reliability
    assert (overall.criterion, overall.of, overall.annotators, overall.items) == (OVERALL.name, "verdicts", 3, 40)
    assert overall.alpha == alpha_interval(verdicts, "nominal")
    assert (depth.criterion, depth.of, depth.annotators, depth.items) == ("depth", "grades", 2, 80)
    units = [[float(each[side]) for each in said] for side in (0, 1) for said in grades]
    assert depth.alpha == alpha_interval(units, "ordinal", [i % 40 for i in range(80)])


def pairs_file(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_how_often_two_said_the_same() -> None:
    (row,) = people_agreement(
        [pair(1, 1, 1, 1), pair(2, 1, 1, -1), pair(3, 0, None, 0), pair(4, 1, None, None)]
    ).reliability
    assert row.same is not None and row.same.mean == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert (row.items, row.same.n) == (3, 3), "who could not tell is not among the two"


def test_each_annotator_beside_the_others_majority_and_the_judge() -> None:
    pairs = [pair(1, 1, 1, -1), pair(2, 1, -1, -1), pair(3, 0, 0, None), pair(4, 1, 0, -1), pair(5, -1, None, None)]
    judged = {each.id: Verdict(2, True, ()) for each in pairs[:3]}
    a, b, c = people_of(pairs, judged).annotators
    assert (a.annotator, a.verdicts, a.cannot_tell) == ("a", 5, 0)
    # Beside b and c: a tie, as they disagree; -1; 0; a tie.
    assert a.same_as_others is not None and (a.same_as_others.mean, a.same_as_others.n) == (0.25, 4)
    assert a.same_as_judge is not None and a.same_as_judge.n == 3
    assert a.same_as_judge.mean == pytest.approx(2 / 3)
    assert (b.verdicts, b.cannot_tell, c.verdicts, c.cannot_tell) == (4, 1, 3, 2)
    assert people_of(pairs).annotators[0] == Annotator("a", 5, 0, a.same_as_others, None)


def test_a_judge_without_a_verdict_agrees_with_nobody_and_disagrees_with_nobody() -> None:
    pairs = [pair(1, 1, 1), pair(2, 1, 1)]
    judged = {pairs[0].id: Verdict(None, None, (), "it could not tell"), pairs[1].id: Verdict(1, True, ())}
    row = people_of(pairs, judged).annotators[0]
    assert row.same_as_judge is not None and (row.same_as_judge.mean, row.same_as_judge.n) == (1, 1)


def test_what_people_prefer_whichever_side_it_stood_on() -> None:
    systems = {"system_a": "ours", "system_b": "theirs"}
    turned = {"system_a": "theirs", "system_b": "ours"}
    pairs = [pair(1, 1, 1, verdict=1.0, **systems), pair(2, -1, -1, verdict=-1.0, **turned), pair(3, 0, 0, **systems)]
    pairs += [pair(4, -1, -1, verdict=-1.0, **turned), pair(5, 1, 1, verdict=1.0)]
    pairs += [pair(6, 1, verdict=1.0, system_a="ours", system_b="x")]
    first, second = people_agreement(pairs).preferred
    assert (first.system, first.over, first.pairs, first.ties) == ("ours", "theirs", 4, 1)
    assert first.win_rate.mean == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert (second.over, second.pairs, second.win_rate.mean) == ("x", 1, 1)
    assert (second.win_rate.low, second.win_rate.high) == (0, 1), "one instruction says nothing of others"


def test_the_tables(said: Said) -> None:
    systems = {"system_a": "ours", "system_b": "theirs", "verdict": 1.0}
    people = people_agreement([pair(i, 1, 1 - i % 2, **systems) for i in range(8)])
    said(people.lines())
    said(repr(people))
    assert "alpha" in people._repr_html_()


def test_a_folder_of_pages_says_who_is_not_done(said: Said, tmp_path: Path) -> None:
    rows = [{"instruction": f"Task {i}.", "response": f"good {i}", "plain": f"bad {i}"} for i in range(6)]
    made = annotate(rows, tmp_path / "p", pairs=6, columns={"plain": "plain"}, annotators=3)
    one, two, _ = made.files
    annotated(one, prefers("good"))
    path = annotated(two, prefers("good"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]))
    people = people_agreement(tmp_path / "p")
    said(people.lines()[:2])
    assert people.preferred[0].win_rate.mean == 1 and people.preferred[0].system == "improved"
    assert len(as_examples("instructions", str(tmp_path / "p"))) == 6, "a judge can be compiled on them"


# --- with a judge


def test_a_judge_is_measured_against_all_of_them(said: Said, tmp_path: Path) -> None:
    verdicts = [{"ann": "A", "bob": "A" if i % 2 else "B", "cy": "A"} for i in range(10)]
    path = pairs_file(
        tmp_path,
        *(
            {
                "instruction": f"Task {i}.", "answer_a": f"[better] {i}", "answer_b": f"other {i}",
                "annotations": {name: {"verdict": verdict} for name, verdict in each.items()},
            }
            for i, each in enumerate(verdicts)
        ),
    )  # fmt: skip
    measured = measure_agreement(path, fake_lm(writer_by(perfect)), tmp_path / "v", progress=False)
    assert measured.rows[0].accuracy is not None and measured.rows[0].accuracy.mean == 1
    assert measured.people is not None
    same = {each.annotator: each.same_as_judge and each.same_as_judge.mean for each in measured.people.annotators}
    assert same == {"ann": 1, "bob": 0.5, "cy": 1}
    said(measured.lines())


def test_with_one_annotator_a_judge_is_measured_and_people_are_not(tmp_path: Path) -> None:
    pairs = [pair(i, 1, verdict=1.0, answer_a=f"[better] {i}") for i in range(4)]
    measured = measure_agreement(pairs, fake_lm(writer_by(perfect)), tmp_path / "v", progress=False)
    assert measured.people is None and measured.rows[0].pairs == 4


def test_only_the_criteria_asked_for_are_judged(tmp_path: Path) -> None:
    row = {"instruction": "i", "answer_a": "[better] x", "answer_b": "y", "preferred": "A"}
    path = pairs_file(tmp_path, *({**row, "criterion": criterion} for criterion in ("", "depth", "tone")))
    writer = writer_by(perfect)
    measured = measure_agreement(path, fake_lm(writer), tmp_path / "v", criteria=["depth"], progress=False)
    assert [row.criterion for row in measured.rows] == ["depth"] and len(writer.requests) == 2


# --- what is refused


@pytest.mark.parametrize(
    "pairs",
    [[pair(1, 1), pair(2, 1)], [pair(1)], [pair(1, 1, None), pair(2, None, 1)]],
    ids=["one annotator", "no names", "no pair of two"],
)
def test_without_two_annotators_there_is_no_agreement(said: Said, pairs: list[Pair]) -> None:
    with said.by(ReferencesError) as caught:
        people_agreement(pairs)
    assert len(str(caught.value).splitlines()) == 1


# --- real data


@pytest.mark.skipif(not PANDALM.is_file(), reason="the shared file is not here")
def test_of_the_real_pandalm_file() -> None:
    people = people_agreement(PANDALM)
    (row,) = people.reliability
    assert row.alpha is not None and row.alpha.mean == pytest.approx(0.86422, abs=1e-5), "as PyPI's krippendorff has it"
    assert [each.verdicts for each in people.annotators] == [999] * 3 and not people.preferred
    assert len(load_pairs(PANDALM)) == 999

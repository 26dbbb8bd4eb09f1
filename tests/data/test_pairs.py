"""Pairs that people have judged: their shapes, their files, and errors in one line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.data.pairs import Annotation, Pair, load_pairs, majority, merged, sample_pairs, texts_id
from refed_dspy.errors import ConfigError, InputError, ReferencesError
from tests.support import ROOT
from tests.support.said import Said

DATA = ROOT.parent / "shared/data"
LLMBAR, PANDALM = DATA / "llmbar_mtbench_200.json", DATA / "pandalm_testset_v1.json"
REFED = {"instruction": "Name a river.", "answer_a": "The Rhine.", "answer_b": "A hill.", "preferred": "A"}
BAR = {"input": "Name a river.", "output_1": "The Rhine.", "output_2": "A hill.", "label": 1}
PANDA = {
    "idx": 3, "instruction": "Name it.", "input": "A river in Bonn.", "response1": "The Rhine.", "response2": "Ah.",
    "annotator1": 1, "annotator2": 1, "annotator3": 2,
}  # fmt: skip


def written(tmp_path: Path, *rows: Any, name: str = "pairs.jsonl") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def only(tmp_path: Path, row: Any) -> Pair:
    (pair,) = load_pairs(written(tmp_path, row))
    return pair


def refusal(path: Path) -> str:
    """The message of a file that is refused: one line, and bad input."""
    with pytest.raises(ReferencesError) as caught:
        load_pairs(path)
    message = str(caught.value)
    assert isinstance(caught.value, InputError)
    assert caught.value.exit_code == 2
    assert len(message.splitlines()) == 1
    assert message.startswith(str(path))
    return message.removeprefix(str(path))


# --- a pair


def test_a_pair_is_a_fact(said: Said) -> None:
    pair = Pair(instruction="i", answer_a="a", answer_b="", verdict=0)
    with pytest.raises(ValueError, match="frozen"):
        pair.verdict = 1.0
    for wrong in (0.5, 2, float("nan")):
        with said.by(ValueError):
            Pair(instruction="i", answer_a="a", answer_b="b", verdict=wrong)
    with said.by(ValueError):
        Pair(instruction="", answer_a="a", answer_b="b", verdict=1)


def test_the_id_is_that_of_what_the_judge_sees() -> None:
    pair = Pair(instruction="i", answer_a="a", answer_b="b", verdict=1)
    assert len(pair.id) == 12
    int(pair.id, 16)
    assert pair.model_copy(update={"verdict": -1.0}).id == pair.id
    others = {
        pair.model_copy(update={name: "x"}).id
        for name in ("instruction", "answer_a", "answer_b", "criterion", "description")
    }
    assert len(others - {pair.id}) == 5
    # The answers' places count, and so does where one ends.
    assert Pair(instruction="i", answer_a="b", answer_b="a", verdict=1).id != pair.id
    assert Pair(instruction="i", answer_a="ab", answer_b="", verdict=1).id != pair.id


def test_the_same_answers_by_several_criteria_share_an_id_of_their_texts() -> None:
    pair = Pair(instruction="i", answer_a="a", answer_b="b", verdict=1)
    by_depth = pair.model_copy(update={"criterion": "depth", "system_a": "one", "annotations": {"x": Annotation()}})
    assert by_depth.id != pair.id and by_depth.texts_id == pair.texts_id == texts_id("i", "a", "b") != pair.id


# --- shapes


@pytest.mark.parametrize(
    ("preferred", "verdict"), [("A", 1), ("B", -1), ("tie", 0), ("a", 1), (" b ", -1), ("Tie", 0), ("TIE", 0)]
)
def test_the_packages_shape(tmp_path: Path, preferred: str, verdict: float) -> None:
    pair = only(tmp_path, {**REFED, "preferred": preferred})
    assert pair == Pair(instruction="Name a river.", answer_a="The Rhine.", answer_b="A hill.", verdict=verdict)
    assert (pair.criterion, pair.description) == ("", "")


def test_a_criterion_and_what_it_means_are_read(said: Said, tmp_path: Path) -> None:
    pair = only(tmp_path, {**REFED, "criterion": "depth", "description": "how deep it goes", "note": "left alone"})
    said((pair.criterion, pair.description))
    assert only(tmp_path, {**REFED, "criterion": None}).criterion == ""


@pytest.mark.parametrize(("label", "verdict"), [(1, 1), (2, -1), ("2", -1)])
def test_llmbars_shape(tmp_path: Path, label: Any, verdict: float) -> None:
    pair = only(tmp_path, {**BAR, "label": label})
    assert pair == Pair(instruction="Name a river.", answer_a="The Rhine.", answer_b="A hill.", verdict=verdict)


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [((1, 1, 1), 1), ((2, 0, 2), -1), ((0, 1, 0), 0), ((0, 1, 2), 0), ((2, 1, 1), 1), (("2", "1", "2"), -1)],
)
def test_in_pandalms_shape_most_annotators_decide(
    said: Said, tmp_path: Path, votes: tuple[Any, ...], verdict: float
) -> None:
    names = ("annotator1", "annotator2", "annotator3")
    pair = only(tmp_path, {**PANDA, **dict(zip(names, votes, strict=True))})
    said((pair.instruction, pair.answer_a))
    assert pair.verdict == verdict


def test_pandalms_instruction_may_have_no_input_and_its_answers_may_be_values(said: Said, tmp_path: Path) -> None:
    said(only(tmp_path, {**PANDA, "input": ""}).instruction)
    said(only(tmp_path, {k: v for k, v in PANDA.items() if k != "input"}).instruction)
    assert only(tmp_path, {**PANDA, "response1": True, "response2": 4}).answer_a == "True"
    assert only(tmp_path, {**PANDA, "response1": ""}).answer_a == ""


def test_pandalms_annotators_keep_their_verdicts(tmp_path: Path) -> None:
    said = {name: each.verdict for name, each in only(tmp_path, PANDA).annotations.items()}
    assert said == {"annotator1": 1, "annotator2": 1, "annotator3": -1}


# --- several annotators


def annotated(**annotations: Any) -> dict[str, Any]:
    return {**{name: text for name, text in REFED.items() if name != "preferred"}, "annotations": annotations}


def verdict(text: str) -> dict[str, str]:
    return {"verdict": text}


def test_annotations_carry_who_said_what_and_who_wrote_what(tmp_path: Path) -> None:
    ann, bob = {"verdict": "A", "grade_a": 5, "grade_b": 2}, {"grade_a": 3, "grade_b": 4}
    row = annotated(ann=ann, bob=bob, cy={"verdict": "cannot tell", "grade_a": 4, "grade_b": None})
    pair = only(tmp_path, {**row, "criterion": "depth", "system_a": "improved", "system_b": "plain"})
    assert pair.annotations == {
        "ann": Annotation(verdict=1, grade_a=5, grade_b=2),
        "bob": Annotation(verdict=-1, grade_a=3, grade_b=4),
        "cy": Annotation(verdict=None, grade_a=4),
    }
    assert (pair.verdict, pair.criterion, pair.system_a, pair.system_b) == (0, "depth", "improved", "plain")


def test_a_verdict_counts_more_than_the_grades_and_one_settled_by_hand_more_than_the_majority(tmp_path: Path) -> None:
    said = {"verdict": "tie", "grade_a": 5, "grade_b": 2}
    assert only(tmp_path, annotated(ann=said)).verdict == 0
    settled = {**annotated(ann=verdict("A"), bob=verdict("A")), "preferred": "B"}
    pair = only(tmp_path, settled)
    assert pair.verdict == -1 and len(pair.annotations) == 2


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ((1, 1, -1), 1), ((1, None, None), 1), ((1, -1), 0), ((1, 0), 0), ((0, 0, 1), 0), ((1, 0, -1), 0),
        ((None, None), None), ((), None), ((-1, -1, None, 1), -1),
    ],
)  # fmt: skip
def test_the_majority_of_those_who_could_tell(said: tuple[float | None, ...], expected: float | None) -> None:
    assert majority(Annotation(verdict=each) for each in said) == expected


@pytest.mark.parametrize(
    ("verdicts", "expected"), [((1, 1, -1), 1), ((1, -1), 0), ((0, 1, -1), 0), ((-1, -1), -1), ((0, 0, 1), 0)]
)
def test_equal_pairs_are_one_with_the_verdict_of_most(
    said: Said, verdicts: tuple[float, ...], expected: float, caplog: pytest.LogCaptureFixture
) -> None:
    texts: dict[str, Any] = {"instruction": "i", "answer_a": "a", "answer_b": "b"}
    rows = [
        Pair(**texts, verdict=each, annotations={f"p{number}": Annotation(verdict=each)}, system_a=f"s{number}")
        for number, each in enumerate(verdicts)
    ]
    other = Pair(**texts, verdict=1, criterion="depth")
    one, two = merged([rows[0], other, *rows[1:]])
    assert (one.id, one.verdict, one.system_a, two) == (rows[0].id, expected, "s0", other)
    assert [said.verdict for said in one.annotations.values()] == list(verdicts)
    said(caplog.text)


def test_pairs_that_differ_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [Pair(instruction="i", answer_a=answer, answer_b="b", verdict=0) for answer in "ac"]
    assert merged(pairs) == pairs and not caplog.text


def test_a_pair_of_which_nobody_could_tell_is_left_out(said: Said, tmp_path: Path) -> None:
    nobody = annotated(ann=verdict("cannot tell"), bob={"grade_a": 4})
    assert len(load_pairs(written(tmp_path, nobody, REFED))) == 1
    said(refusal(written(tmp_path, nobody)))


@pytest.mark.parametrize(
    ("annotations", "fault"),
    [
        ({}, "annotations must be an object with each annotator's: {NAME: {verdict: A}}"),
        ({"ann": "A"}, "ann: has no verdict, grade_a or grade_b; add one or remove the annotator"),
        ({"ann": {"note": "x"}}, "ann: has no verdict, grade_a or grade_b; add one or remove the annotator"),
        ({"ann": {"verdict": "C"}}, "ann: verdict is C; it must be A, B, tie or cannot tell"),
        ({"ann": {"grade_a": 6}}, "ann: grade_a is 6; it must be a whole number from 1 to 5"),
        ({"ann": {"grade_b": True}}, "ann: grade_b is True; it must be a whole number from 1 to 5"),
        ({"ann": {"grade_b": "4"}}, "ann: grade_b is 4; it must be a whole number from 1 to 5"),
    ],
)
def test_an_annotation_that_is_none_is_named(tmp_path: Path, annotations: Any, fault: str) -> None:
    message = refusal(written(tmp_path, REFED, annotated(**annotations)))
    assert message.startswith(" row 2") and message.endswith(fault)


def test_one_file_may_mix_shapes_as_json_or_jsonl(tmp_path: Path) -> None:
    for name in ("pairs.json", "pairs.jsonl"):
        pairs = load_pairs(written(tmp_path, REFED, BAR, PANDA, name=name))
        assert [pair.verdict for pair in pairs] == [1, 1, 1]
        assert pairs[0].id == pairs[1].id != pairs[2].id


# --- files that cannot be used


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"instruction": "i", "chosen": "a", "rejected": "b"}, "its columns are instruction, chosen, rejected; a pair"),
        (
            {},
            "its columns are none; a pair needs instruction, answer_a, answer_b, preferred or annotations; or input, "
            "output_1",
        ),
        ({**REFED, "preferred": "C"}, "preferred is C; it must be A, B or tie"),
        ({**REFED, "preferred": None}, "preferred is None; it must be A, B or tie"),
        ({**REFED, "preferred": {"a": ["\n"] * 99}}, "preferred is {'a': ["),
        ({**REFED, "answer_b": None}, "answer_b is missing; add it or remove the row"),
        ({**REFED, "answer_b": ["x"]}, "answer_b is a list; it must be text"),
        ({**REFED, "instruction": " \n"}, "the instruction is empty; add one or remove the row"),
        ({**REFED, "description": "deep"}, "a description without a criterion; add the criterion's name"),
        ({**REFED, "answer_a": "\ud83d"}, "answer_a is not valid text; fix it or remove the row"),
        ({**BAR, "label": 0}, "label is 0; it must be 1 or 2"),
        ({**BAR, "label": True}, "label is True; it must be 1 or 2"),
        ({**PANDA, "annotator2": 3}, "annotator2 is 3; it must be 0 (a tie), 1 or 2"),
        ([REFED], "is a list; each row must be an object"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path: Path, row: Any, fault: str) -> None:
    message = refusal(written(tmp_path, REFED, row))
    assert message.startswith(f" row 2: {fault}")
    assert len(message) < 400


def test_a_broken_file_is_named(said: Said, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(f'{json.dumps(REFED)}\n{{"instruction": "i', encoding="utf-8")
    said(refusal(path))
    path.write_text("\n\n", encoding="utf-8")
    said(refusal(path))
    path.write_bytes(b'{"instruction": "\xff"}')
    said(refusal(path))
    said(refusal(tmp_path / "none.json"))
    said(refusal(tmp_path))
    single = tmp_path / "one.json"
    single.write_text(json.dumps(REFED), encoding="utf-8")
    said(refusal(single))
    single.write_text("[" * 100_000, encoding="utf-8")
    said(refusal(single))


# --- drawing


def test_a_draw_is_seeded_and_takes_nothing_twice(said: Said, tmp_path: Path) -> None:
    pairs = load_pairs(written(tmp_path, *({**REFED, "instruction": f"Task {i}"} for i in range(50))))
    drawn = sample_pairs(pairs, 20, seed=3)
    assert sample_pairs(pairs, 20, seed=3) == drawn
    assert sample_pairs(pairs, 20, seed=4) != drawn
    assert len({pair.id for pair in drawn}) == 20
    everything = sample_pairs(pairs, 999, seed=3)
    assert sorted(pair.id for pair in everything) == sorted(pair.id for pair in pairs)
    with said.by(ConfigError):
        sample_pairs(pairs, 0, seed=3)


# --- real files


@pytest.mark.skipif(not LLMBAR.is_file(), reason="the shared file is not here")
def test_the_real_mtbench_file_is_read_whole() -> None:
    pairs = load_pairs(LLMBAR)
    assert Counter(pair.verdict for pair in pairs) == {1: 101, -1: 99}
    assert len({pair.id for pair in pairs}) == 200
    assert len({pair.instruction for pair in pairs}) == 75


@pytest.mark.skipif(not PANDALM.is_file(), reason="the shared file is not here")
def test_the_real_pandalm_file_is_read_whole() -> None:
    pairs = load_pairs(PANDALM)
    assert Counter(pair.verdict for pair in pairs) == {1: 422, -1: 472, 0: 105}
    assert len({pair.instruction for pair in pairs}) == 170
    assert sum(not (pair.answer_a and pair.answer_b) for pair in pairs) == 54
    assert {"True", "True."} == {pair.answer_a for pair in pairs if pair.answer_a.startswith("True")}

"""Pairs that people have judged: their shapes, their files, and errors in one line."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from refed_dspy.data.pairs import Annotation, Pair, load_pairs, majority, merged, sample_pairs, texts_id
from refed_dspy.errors import ConfigError, ReferencesError
from tests.support import ROOT
from tests.support.refusals import refusal
from tests.support.said import Said

DATA = ROOT.parent / "shared/data"
LLMBAR, PANDALM = DATA / "llmbar_mtbench_200.json", DATA / "pandalm_testset_v1.json"
TEXTS: dict[str, Any] = {"instruction": "Name a river.", "answer_a": "The Rhine.", "answer_b": "A hill."}
REFED = {**TEXTS, "preferred": "A"}
BAR = {"input": TEXTS["instruction"], "output_1": TEXTS["answer_a"], "output_2": TEXTS["answer_b"], "label": 1}
PANDA = {
    "idx": 3, "instruction": "Name it.", "input": "A river in Bonn.", "response1": "The Rhine.", "response2": "Ah.",
    "annotator1": 1, "annotator2": 1, "annotator3": 2,
}  # fmt: skip
VOTES = ("annotator1", "annotator2", "annotator3")
refused = partial(refusal, ReferencesError, load_pairs)


def written(tmp_path: Path, *rows: Any, name: str = "pairs.jsonl") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps(rows) if name.endswith(".json") else "\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def only(tmp_path: Path, row: Any) -> Pair:
    (pair,) = load_pairs(written(tmp_path, row))
    return pair


# --- a pair


def test_a_pair_is_a_fact() -> None:
    pair = Pair(instruction="i", answer_a="a", answer_b="", verdict=0)
    with pytest.raises(ValueError, match="frozen"):
        pair.verdict = 1.0
    for wrong in ({"verdict": 0.5}, {"verdict": 2}, {"verdict": float("nan")}, {"instruction": ""}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Pair.model_validate({**pair.model_dump(), **wrong})


def test_the_id_is_that_of_what_the_judge_sees() -> None:
    pair = Pair(instruction="i", answer_a="a", answer_b="b", verdict=1)
    assert len(pair.id) == 12 and int(pair.id, 16)
    assert pair.model_copy(update={"verdict": -1.0}).id == pair.id
    others = [
        *({name: "x"} for name in ("instruction", "answer_a", "answer_b", "criterion", "description")),
        {"answer_a": "b", "answer_b": "a"},  # the answers' places count,
        {"answer_a": "ab", "answer_b": ""},  # and so does where one ends
    ]
    assert len({pair.id, *(pair.model_copy(update=other).id for other in others)}) == 8
    by_depth = pair.model_copy(update={"criterion": "depth", "system_a": "one", "annotations": {"x": Annotation()}})
    assert by_depth.texts_id == pair.texts_id == texts_id("i", "a", "b") != pair.id, (
        "that of the texts by any criterion"
    )


# --- shapes


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        *(({**TEXTS, "preferred": word}, 1) for word in ("A", "a")),
        *(({**TEXTS, "preferred": word}, -1) for word in ("B", " b ")),
        *(({**TEXTS, "preferred": word}, 0) for word in ("tie", "Tie", "TIE")),
        *(({**BAR, "label": label}, verdict) for label, verdict in ((1, 1), (2, -1), ("2", -1))),
    ],
)
def test_the_packages_shape_and_llmbars(tmp_path: Path, row: dict[str, Any], verdict: float) -> None:
    assert only(tmp_path, row) == Pair(**TEXTS, verdict=verdict)


def test_a_criterion_and_what_it_means_are_read(tmp_path: Path) -> None:
    told = {"criterion": "depth", "description": "how deep"}
    pair = only(tmp_path, {**REFED, **told, "note": "left alone"})
    assert {"criterion": pair.criterion, "description": pair.description} == told
    assert only(tmp_path, {**REFED, "criterion": None}).criterion == ""


@pytest.mark.parametrize(
    ("votes", "verdict"),
    [((1, 1, 1), 1), ((2, 0, 2), -1), ((0, 1, 0), 0), ((0, 1, 2), 0), ((2, 1, 1), 1), (("2", "1", "2"), -1)],
)
def test_in_pandalms_shape_most_annotators_decide(tmp_path: Path, votes: tuple[Any, ...], verdict: float) -> None:
    pair = only(tmp_path, {**PANDA, **dict(zip(VOTES, votes, strict=True))})
    assert pair.verdict == verdict
    kept = [pair.annotations[name].verdict for name in VOTES]
    assert kept == [{"0": 0, "1": 1, "2": -1}[str(vote)] for vote in votes]


def test_pandalms_instruction_may_have_no_input_and_its_answers_may_be_values(tmp_path: Path) -> None:
    asked, about = PANDA["instruction"], PANDA["input"]
    assert only(tmp_path, PANDA).instruction == f"{asked}\n\n{about}"
    for row in ({**PANDA, "input": ""}, {name: value for name, value in PANDA.items() if name != "input"}):
        assert only(tmp_path, row).instruction == asked
    assert only(tmp_path, {**PANDA, "response1": True, "response2": 4}).answer_a == "True"
    assert only(tmp_path, {**PANDA, "response1": ""}).answer_a == ""


# --- several annotators


def annotated(**annotations: Any) -> dict[str, Any]:
    return {**TEXTS, "annotations": annotations}


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
    assert only(tmp_path, annotated(ann={"verdict": "tie", "grade_a": 5, "grade_b": 2})).verdict == 0
    pair = only(tmp_path, annotated(ann={"verdict": "A"}, bob={"verdict": "A"}) | {"preferred": "B"})
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


def test_equal_pairs_are_one_with_the_verdict_of_most_and_others_stay(
    said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    verdicts, other = (1, 1, -1), Pair(**TEXTS, verdict=1, criterion="depth")
    rows = [
        Pair(**TEXTS, verdict=each, annotations={f"p{number}": Annotation(verdict=each)}, system_a=f"s{number}")
        for number, each in enumerate(verdicts)
    ]
    assert merged([rows[0], other]) == [rows[0], other] and not caplog.messages
    one, two = merged([rows[0], other, *rows[1:]])
    assert (one.id, one.verdict, one.system_a, two) == (rows[0].id, 1, "s0", other)
    assert [each.verdict for each in one.annotations.values()] == list(verdicts)
    said(caplog.messages)


def test_a_pair_of_which_nobody_could_tell_is_left_out(said: Said, tmp_path: Path) -> None:
    nobody = annotated(ann={"verdict": "cannot tell"}, bob={"grade_a": 4})
    assert len(load_pairs(written(tmp_path, nobody, REFED))) == 1
    said(refused(written(tmp_path, nobody)))


def test_one_file_may_mix_shapes_as_json_or_jsonl(tmp_path: Path) -> None:
    for name in ("pairs.json", "pairs.jsonl"):
        assert [pair.verdict for pair in load_pairs(written(tmp_path, REFED, BAR, PANDA, name=name))] == [1, 1, 1]


# --- what cannot be used


WRONG: list[Any] = [
    {"instruction": "i", "chosen": "a", "rejected": "b"},
    {},
    {**REFED, "preferred": "C"},
    {**REFED, "preferred": None},
    {**REFED, "preferred": {"a": ["\n"] * 99}},
    {**REFED, "answer_b": None},
    {**REFED, "answer_b": ["x"]},
    {**REFED, "instruction": " \n"},
    {**REFED, "description": "deep"},
    {**REFED, "answer_a": "\ud83d"},
    {**BAR, "label": 0},
    {**BAR, "label": True},
    {**PANDA, "annotator2": 3},
    [REFED],
    annotated(),
    *(
        annotated(ann=of)
        for of in (
            "A", {"note": "x"}, {"verdict": "C"}, {"grade_a": 6}, {"grade_b": True}, {"grade_b": "4"},
        )
    ),
]  # fmt: skip


def test_a_row_that_is_no_pair_is_named(said: Said, tmp_path: Path) -> None:
    told = [refused(written(tmp_path, REFED, row)) for row in WRONG]
    assert all(line.startswith(f"{tmp_path / 'pairs.jsonl'} row 2") and len(line) < 500 for line in told)
    said(told)


def test_a_broken_file_is_named(said: Said, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    for content in (f'{json.dumps(REFED)}\n{{"instruction": "i'.encode(), b"\n\n", b'{"instruction": "\xff"}'):
        path.write_bytes(content)
        said(refused(path))


# --- drawing


def test_a_draw_is_seeded_and_takes_nothing_twice(said: Said) -> None:
    pairs = [Pair(**{**TEXTS, "instruction": f"Task {i}"}, verdict=1) for i in range(50)]
    drawn = sample_pairs(pairs, 20, seed=3)
    assert sample_pairs(pairs, 20, seed=3) == drawn != sample_pairs(pairs, 20, seed=4)
    assert len({pair.id for pair in drawn}) == 20
    assert {pair.id for pair in sample_pairs(pairs, 999, seed=3)} == {pair.id for pair in pairs}
    said(refusal(ConfigError, sample_pairs, pairs, 0, seed=3))


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

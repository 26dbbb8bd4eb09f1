"""Pairs of answers with the verdict of people: judges are measured against them and tuned on them."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field

from refed_dspy.data.read import read_rows
from refed_dspy.data.verdicts import CANNOT_TELL, PosedPair, is_folder_of_pages, verdict_rows
from refed_dspy.errors import ConfigError, ReferencesError, one_line, setting
from refed_dspy.records import Record

log = logging.getLogger("refed_dspy.data")
T = TypeVar("T")
SHAPES = {
    "refed": ("instruction", "answer_a", "answer_b", "preferred"),
    "annotated": ("instruction", "answer_a", "answer_b", "annotations"),
    "LLMBar": ("input", "output_1", "output_2", "label"),
    "PandaLM": ("instruction", "response1", "response2", "annotator1", "annotator2", "annotator3"),
}
"""The shapes that `load_pairs` reads, with the columns that each must have."""

GRADES = (1, 2, 3, 4, 5)
OVERALL = "overall quality"
"""What a pair without a criterion is judged by."""
_PREFERRED = {"a": 1.0, "b": -1.0, "tie": 0.0}
_SAID = {**_PREFERRED, CANNOT_TELL: None}
_NUMBERED = {"1": 1.0, "2": -1.0, "0": 0.0}
_OWN = ("refed", "annotated")
"""This package's shapes, which may have a criterion and systems."""


def _is_verdict(value: float) -> float:
    if value not in (1, 0, -1):
        raise ValueError("must be 1 (A is preferred), 0 (a tie) or -1 (B)")
    return value


def _is_grade(value: int) -> int:
    if value not in GRADES:
        raise ValueError("must be a grade from 1 to 5")
    return value


_Verdict = Annotated[float, AfterValidator(_is_verdict)]
_Grade = Annotated[int, AfterValidator(_is_grade)]


class Annotation(Record):
    """What one annotator said of a pair, by the pair's criterion.

    `verdict`: as a pair's, None where they could not tell. `grade_a` and `grade_b`: their grades of the two answers, 1
    (fails the criterion) to 5 (could not be better), None where there is none. Where only grades were asked for, the
    verdict is the higher grade's.
    """

    verdict: _Verdict | None = None
    grade_a: _Grade | None = None
    grade_b: _Grade | None = None


class Pair(Record):
    """Two answers to one instruction, and which of them people prefer.

    `verdict`: 1 for A, 0 for a tie, -1 for B; of several annotators the majority's, a tie where there is none.
    `criterion` is what they judged by and `description` what it means; both are empty where they judged the answers'
    overall quality. An answer may be empty: some models answer nothing.

    `annotations`: annotator → what they said; empty where a verdict alone is known. `system_a` and `system_b`: the
    program or model that wrote each answer, empty where that is not known; often the same one wrote every A, so whoever
    fits something to the sides must exchange them at random first. The same two answers judged by several criteria are
    as many pairs, with one `texts_id`.
    """

    instruction: str = Field(min_length=1)
    answer_a: str
    answer_b: str
    verdict: _Verdict
    criterion: str = ""
    description: str = ""
    annotations: Mapping[str, Annotation] = Field(default_factory=dict)
    system_a: str = ""
    system_b: str = ""

    @property
    def id(self) -> str:
        """Twelve hex digits of what a judge sees, so of everything but what people said and who wrote it."""
        return _digits(self.instruction, self.answer_a, self.answer_b, self.criterion, self.description)

    @property
    def texts_id(self) -> str:
        """The same of the three texts alone: the id that the pair has before anybody judged it by a criterion."""
        return texts_id(self.instruction, self.answer_a, self.answer_b)


def texts_id(instruction: str, answer_a: str, answer_b: str) -> str:
    """Twelve hex digits of two answers to an instruction, in this order."""
    return _digits(instruction, answer_a, answer_b)


def _digits(*texts: str) -> str:
    return sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def majority(annotations: Iterable[Annotation]) -> float | None:
    """The verdict of more than half of the annotators who could tell; a tie where no verdict has so many; None where
    nobody could tell."""
    verdicts = Counter(said.verdict for said in annotations if said.verdict is not None)
    if not verdicts:
        return None
    verdict, count = verdicts.most_common(1)[0]
    return verdict if count > verdicts.total() / 2 else 0.0


def merged(pairs: Sequence[Pair]) -> list[Pair]:
    """Each of `pairs` once, as they first come: equal ones have everybody's annotations, and the verdict that more than
    half of them have, a tie where none has."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.id, []).append(pair)
    if len(groups) < len(pairs):
        log.warning(
            "pairs: %d of %d repeat others: each pair counts once, with the verdict of most, or as a tie if there is "
            "none", len(pairs) - len(groups), len(pairs),
        )  # fmt: skip
    return [group[0] if len(group) == 1 else _merged(group) for group in groups.values()]


def _merged(group: Sequence[Pair]) -> Pair:
    """The pair that all of `group` are."""
    annotations = {name: said for pair in group for name, said in pair.annotations.items()}
    verdict = majority(Annotation(verdict=pair.verdict) for pair in group)
    return group[0].model_copy(update={"verdict": verdict, "annotations": annotations})


def load_pairs(source: str | Path, criteria: Sequence[str] | None = None) -> list[Pair]:
    """The pairs of `source`: a folder of pages (`refed judge annotate`) with the files that annotators sent back; a
    JSON or JSONL file, or any other source that references are read from. `criteria`: only pairs judged by these, where
    "overall quality" names those without a criterion; None: all.

    In a folder each pair has the annotators' verdicts, and follows once more for each criterion that they graded by.
    In files there are four shapes, and a file may mix them: {instruction, answer_a, answer_b, preferred: A, B or tie};
    the same with {annotations: {NAME: {verdict: A, B, tie or cannot tell, grade_a: 1 to 5, grade_b: 1 to 5}}} in place
    of `preferred` or beside it, for several annotators, of whom each gave a verdict, two grades or both; LLMBar's
    {input, output_1, output_2, label}; PandaLM's {instruction, input, response1, response2, annotator1 to 3}. The first
    two may have a criterion with its description, and system_a and system_b. Where there is no `preferred` or `label`,
    the majority of annotators decides; without one it is a tie, and a pair of which nobody could tell is left out.

    Raises:
        ReferencesError: it cannot be read, a row is not such a pair, there are no rows, or nobody judged by one of the
            criteria; one line names file, row and remedy.
    """
    rows = list(_rows(source))
    if not rows:
        raise ReferencesError(f"{source}: no rows; write one pair per row, with {_columns('refed')}")
    pairs = [pair for where, row in rows if (pair := _pair(row, where)) is not None]
    if not pairs:
        raise ReferencesError(f"{source}: no pair with a verdict: nobody could tell; add rows that somebody decided")
    judged = {name_of(pair.criterion): None for pair in pairs}
    wanted = judged if criteria is None else dict.fromkeys(map(name_of, criteria))
    asked = [name_of(str(row.get("criterion") or "")) for _, row in rows] if criteria is None else wanted
    if nobody := next((name for name in asked if name not in judged), None):
        there = one_line(", ".join(judged), 200)
        choose = "choose with " + setting("criteria") + f" among: {there}"
        raise ReferencesError(f"{source}: nobody judged by {one_line(nobody, 60)}; " + choose)
    return [pair for pair in pairs if name_of(pair.criterion) in wanted]


def name_of(criterion: str) -> str:
    """What a criterion is called: as in a judge's prompt."""
    return criterion.strip().replace("_", " ") or OVERALL


def _rows(source: str | Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it is from, row) of each row."""
    if is_folder_of_pages(source):
        return verdict_rows(Path(source))
    return ((f"{source} row {number}", row) for number, row in read_rows(source))


def sample_pairs(pairs: Sequence[Pair], count: int, seed: int) -> list[Pair]:
    """`count` of `pairs`, or all where there are fewer, drawn without replacement. The same seed draws the same.

    Raises:
        ConfigError: a count below 1.
    """
    if count < 1:
        raise ConfigError(f"count: {count} pairs cannot be drawn; set 1 or more")
    return random.Random(seed).sample(pairs, min(count, len(pairs)))


def _pair(row: Mapping[str, Any], where: str) -> Pair | None:
    """The pair in `row`; None where nobody could tell."""
    shape = next((name for name, columns in SHAPES.items() if all(column in row for column in columns)), None)
    if shape is None and {"set", "annotator", "pair"} <= row.keys():
        raise ReferencesError(f"{where}: is from a page of verdicts; put the file into its folder, and name the folder")
    if shape is None:
        columns = one_line(", ".join(map(str, row)), 120) or "none"
        needed = "; or ".join(_columns(name) for name in SHAPES if name != "annotated")
        raise ReferencesError(f"{where}: its columns are {columns}; a pair needs {needed}")
    texts = _texts(row, SHAPES[shape][:3], where)
    own = {
        name: _text(row, name, where, optional=True)
        for name in (("criterion", "description", "system_a", "system_b") if shape in _OWN else ())
    }
    if own.get("description") and not own["criterion"]:
        raise ReferencesError(f"{where}: a description without a criterion; add the criterion's name")
    annotations = _annotations(row, shape, where)
    several = shape in ("annotated", "PandaLM")
    verdict = majority(annotations.values()) if several else _verdict(row, shape, where)
    if verdict is None:
        return None
    return Pair(**texts, verdict=verdict, annotations=annotations, **own)


def _annotations(row: Mapping[str, Any], shape: str, where: str) -> dict[str, Annotation]:
    """Annotator → what they said; none in a shape of one verdict."""
    if shape == "PandaLM":
        return {
            name: Annotation(verdict=_looked_up(row, name, _NUMBERED, "0 (a tie), 1 or 2", where))
            for name in SHAPES[shape][3:]
        }
    if shape not in _OWN or (said := row.get("annotations")) is None:
        return {}
    if not isinstance(said, Mapping) or not said:
        raise ReferencesError(f"{where}: annotations must be an object with each annotator's: {{NAME: {{verdict: A}}}}")
    return {str(name): _annotation(each, f"{where}, {one_line(name, 40)}") for name, each in said.items()}


def _annotation(said: Any, where: str) -> Annotation:
    if not isinstance(said, Mapping) or not said.keys() & {"verdict", "grade_a", "grade_b"}:
        raise ReferencesError(f"{where}: has no verdict, grade_a or grade_b; add one or remove the annotator")
    a, b = (_graded(said, name, where) for name in ("grade_a", "grade_b"))
    if said.get("verdict") is not None:
        verdict = _looked_up(said, "verdict", _SAID, f"A, B, tie or {CANNOT_TELL}", where)
    else:
        verdict = None if a is None or b is None else float((a > b) - (a < b))
    return Annotation(verdict=verdict, grade_a=a, grade_b=b)


def _graded(said: Mapping[str, Any], name: str, where: str) -> int | None:
    """A grade; None where there is none."""
    grade = said.get(name)
    if grade is None:
        return None
    if isinstance(grade, bool) or grade not in GRADES:
        raise ReferencesError(f"{where}: {name} is {one_line(grade, 40)}; it must be a whole number from 1 to 5")
    return int(grade)


def posed_pair(row: Mapping[str, Any], where: str) -> PosedPair | None:
    """The two answers in `row`, whatever was said of them; None where it has none of the shapes. Raises ReferencesError
    for texts that are none."""
    columns = next((names[:3] for names in SHAPES.values() if all(name in row for name in names[:3])), None)
    if columns is None:
        return None
    texts = _texts(row, columns, where)
    systems = {name: _text(row, name, where, optional=True) for name in ("system_a", "system_b")}
    return PosedPair(id=texts_id(**texts), **texts, **systems)


def _texts(row: Mapping[str, Any], columns: Sequence[str], where: str) -> dict[str, str]:
    """Instruction and answers, from these columns."""
    instruction, answer_a, answer_b = (_text(row, name, where) for name in columns)
    if columns == SHAPES["PandaLM"][:3]:
        instruction = "\n\n".join(filter(None, (instruction, _text(row, "input", where, optional=True))))
    if not instruction:
        raise ReferencesError(f"{where}: the instruction is empty; add one or remove the row")
    return {"instruction": instruction, "answer_a": answer_a, "answer_b": answer_b}


def _columns(shape: str) -> str:
    return ", ".join(SHAPES[shape]) + (" or annotations" if shape == "refed" else "")


def _text(row: Mapping[str, Any], name: str, where: str, optional: bool = False) -> str:
    value = row.get(name)
    if value is None:
        if optional:
            return ""
        raise ReferencesError(f"{where}: {name} is missing; add it or remove the row")
    if isinstance(value, bool | int | float):
        # Four of PandaLM's answers are a bare `true`: the file's writer took the answer "True" for a value.
        value = str(value)
    if not isinstance(value, str):
        raise ReferencesError(f"{where}: {name} is a {type(value).__name__}; it must be text")
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate: no provider can receive it
        raise ReferencesError(f"{where}: {name} is not valid text; fix it or remove the row") from None
    return value.strip()


def _verdict(row: Mapping[str, Any], shape: str, where: str) -> float:
    if shape == "refed":
        return _looked_up(row, "preferred", _PREFERRED, "A, B or tie", where)
    return _looked_up(row, "label", {key: value for key, value in _NUMBERED.items() if value}, "1 or 2", where)


def _looked_up(row: Mapping[str, Any], name: str, verdicts: Mapping[str, T], allowed: str, where: str) -> T:
    value = str(row[name]).strip().casefold()
    if value not in verdicts:
        raise ReferencesError(f"{where}: {name} is {one_line(row[name], 40)}; it must be {allowed}")
    return verdicts[value]

"""What annotators said on the pages of `refed judge annotate`: the key of the pages, and the files that came back.

A folder of pages has `key.json`: the pairs, and on whose page the two answers of a pair are exchanged. An annotator's
file has a JSON line for each pair that they judged:

    {"set": …, "annotator": "annotator-1", "pair": ID, "verdict": "A" | "B" | "tie" | "cannot tell",
     "grades": {CRITERION: {"A": 1 to 5 or null, "B": …}}, "at": TIME, "session": …}

A and B are the sides of their page. `set` is the digest of the pages; `session` is the browser that the page was open
in, so that two people at one page are noticed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from refed_dspy.data.read import read_rows, read_text
from refed_dspy.errors import ReferencesError, one_line
from refed_dspy.records import Record, digest

KEY = "key.json"
CANNOT_TELL = "cannot tell"
_EXCHANGED = {"A": "B", "B": "A"}


class PosedPair(Record):
    """Two answers to compare, before anybody did. `id`: that of their texts, in this order."""

    id: str
    instruction: str
    answer_a: str
    answer_b: str
    system_a: str = ""
    system_b: str = ""


class NamedCriterion(Record):
    """What annotators grade by, and what it means."""

    name: str
    description: str


class PagesKey(Record):
    """What the pages of a folder hold, and which side is which. `exchanged`: annotator → the ids of the pairs of which
    their page shows answer B as A."""

    source: str
    seed: int
    pairs: tuple[PosedPair, ...]
    criteria: tuple[NamedCriterion, ...]
    exchanged: Mapping[str, tuple[str, ...]]

    @property
    def set(self) -> str:
        """Sixteen hex digits that tell these pages from others."""
        return digest([self.seed, [pair.id for pair in self.pairs], [each.name for each in self.criteria]])


class _Sides(Record):
    a: Literal[1, 2, 3, 4, 5] | None = Field(alias="A")
    b: Literal[1, 2, 3, 4, 5] | None = Field(alias="B")


class _Line(Record):
    """A line of an annotator's file."""

    set: str
    annotator: str
    pair: str
    verdict: Literal["A", "B", "tie", "cannot tell"]
    grades: Mapping[str, _Sides]
    at: str
    session: str

    def by(self, criterion: str) -> dict[str, Any]:
        """The grades by a criterion, as an annotation has them."""
        sides = self.grades.get(criterion)
        return {"verdict": CANNOT_TELL} if sides is None else {"grade_a": sides.a, "grade_b": sides.b}


@dataclass(frozen=True)
class Turnout:
    """How many of the `pairs` an annotator judged, and of how many of those they could not tell which was better."""

    annotator: str
    judged: int
    cannot_tell: int
    pairs: int


def is_folder_of_pages(source: str | Path) -> bool:
    """Whether `source` is a folder that `refed judge annotate` made."""
    try:
        return (Path(source) / KEY).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def verdict_rows(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where it is from, row) for each pair that somebody judged, and then once more for each criterion of the pages:
    rows as `load_pairs` reads them.

    Raises ReferencesError: no files of verdicts, one that is damaged or of another set of pairs, or two people's of one
    page.
    """
    pages = _Pages(folder)
    said = pages.said()
    for pair in pages.key.pairs:
        if not (lines := said.get(pair.id)):
            continue
        texts, where = pair.model_dump(exclude={"id"}), f"{folder} pair {pair.id}"
        yield where, {**texts, "annotations": {name: {"verdict": line.verdict} for name, line in lines.items()}}
        for criterion in pages.key.criteria:
            named = {"criterion": criterion.name, "description": criterion.description}
            yield (
                where,
                {**texts, **named, "annotations": {name: line.by(criterion.name) for name, line in lines.items()}},
            )


def turnout(folder: Path) -> list[Turnout]:
    """How far each annotator of the pages in `folder` has come. Raises ReferencesError as `verdict_rows`."""
    pages = _Pages(folder)
    judged, untold = Counter[str](), Counter[str]()
    for lines in pages.said().values():
        judged.update(lines.keys())
        untold.update(name for name, line in lines.items() if line.verdict == CANNOT_TELL)
    return [Turnout(name, judged[name], untold[name], len(pages.key.pairs)) for name in pages.key.exchanged]


class _Pages:
    """A folder of pages, and what was said on them."""

    def __init__(self, folder: Path) -> None:
        try:
            self.key = PagesKey.model_validate_json(read_text(folder / KEY))
        except ValidationError:
            raise ReferencesError(f"{folder / KEY}: is damaged; make the pages again in another folder") from None
        self.folder, self.set = folder, self.key.set
        self.exchanged = {name: frozenset(ids) for name, ids in self.key.exchanged.items()}
        self.known: Mapping[str, Container[str]] = {
            "annotator": self.exchanged.keys(),
            "pair": {pair.id for pair in self.key.pairs},
            "criterion": {each.name for each in self.key.criteria},
        }

    def said(self) -> dict[str, dict[str, _Line]]:
        """Pair's id → annotator, in the pages' order → what they said last, by the pair's own sides."""
        said: dict[str, dict[str, _Line]] = {}
        last = self._last()
        for name, exchanged in self.exchanged.items():
            for line in (line for (annotator, _), (line, _) in last.items() if annotator == name):
                said.setdefault(line.pair, {})[name] = _turned(line) if line.pair in exchanged else line
        return said

    def _last(self) -> dict[tuple[str, str], tuple[_Line, Path]]:
        """(annotator, pair's id) → what they said last, and the file that has it."""
        files = sorted(self.folder.glob("*.jsonl"))
        if not files:
            raise ReferencesError(
                f"{self.folder}: no verdicts yet; put the files that annotators downloaded (*.jsonl) into it"
            )
        last: dict[tuple[str, str], tuple[_Line, Path]] = {}
        for file in files:
            for number, row in read_rows(file):
                line = self._line(row, f"{file} line {number}")
                before, other = last.get((line.annotator, line.pair), (line, file))
                if before.session != line.session:
                    raise ReferencesError(
                        f"{file}: {line.annotator} has other verdicts in {other.name}, from another browser; keep one "
                        "of the two files, and give each person a page of their own"
                    )
                if line.at >= before.at:
                    last[line.annotator, line.pair] = (line, file)
        return last

    def _line(self, row: Mapping[str, Any], where: str) -> _Line:
        """Raises ReferencesError for what no page of this set wrote."""
        try:
            line = _Line.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            reason = f"{one_line('.'.join(map(str, first['loc'])), 60)}: {one_line(first['msg'], 80)}"
            raise ReferencesError(f"{where}: is no verdict ({reason}); download the file again from its page") from None
        if line.set != self.set:
            raise ReferencesError(
                f"{where}: is of another set of pairs ({one_line(line.set, 20)}, not {self.set}); put the file into "
                "the folder of its own pages"
            )
        named = [("annotator", line.annotator), ("pair", line.pair), *(("criterion", name) for name in line.grades)]
        if unknown := [f"{noun} {one_line(name, 40)}" for noun, name in named if name not in self.known[noun]]:
            raise ReferencesError(f"{where}: its pages have no {unknown[0]}; download the file again from its page")
        return line


def _turned(line: _Line) -> _Line:
    """The same with the sides exchanged."""
    grades = {name: _Sides(A=each.b, B=each.a) for name, each in line.grades.items()}
    return line.model_copy(update={"verdict": _EXCHANGED.get(line.verdict, line.verdict), "grades": grades})

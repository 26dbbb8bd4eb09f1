"""Selection by IFD and r-IFD, and the order of the two passes around it."""

from __future__ import annotations

import json
import math
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from dspy.lm15 import Request

from refed_dspy.data.dataset import load_dataset
from refed_dspy.errors import NO_REASON, Reason, RunDirError
from refed_dspy.jobs.job import Job, job
from refed_dspy.jobs.work import CapSettings, Work
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.states import state_in
from refed_dspy.plugins.metrics.figures import CachedScorer
from refed_dspy.plugins.metrics.perplexity import GUESS, ScoredText
from refed_dspy.plugins.recycle.passes import UNIMPROVED, UNSCORED, Selected, Selection, row_by_row, selectively
from refed_dspy.plugins.recycle.program import (
    IMPROVED,
    ORIGINAL,
    REFLECTED,
    Improved,
    Recycled,
    Reflected,
    ReflectionTuning,
)
from refed_dspy.records import DataRow
from refed_dspy.teachers import open_teacher
from tests.plugins.recycle.helpers import first_pass
from tests.programs.test_reflection import Reflecting, reflected, shown
from tests.support.said import Said
from tests.support.scripted_engine import Writer, fake_lm, references


class ScriptedScorer:
    """Scripted ratios: "instruction|response", or the other way round → the second one's perplexity after the first, by
    the template `none`, over its perplexity without a context, which is 10."""

    def __init__(self, ratios: Mapping[str, float]) -> None:
        self.ratios = ratios
        self.asked: list[str] = []

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        befores = [context.removeprefix(GUESS.partition("{response}")[0]).partition("\n")[0] for context in contexts]
        keys = [f"{before}|{text}" for before, text in zip(befores, texts, strict=True)]
        self.asked += keys
        return [self.scored(key) for key in keys]

    def scored(self, key: str) -> ScoredText | None:
        if key.startswith("|"):
            return ScoredText(math.log(10), 1)
        return ScoredText(math.log(10 * self.ratios[key]), 1) if key in self.ratios else None


NEW: Reflected = (("new", "first"), NO_REASON)
BETTER: Improved = ("better", NO_REASON)


def chosen(
    reflected: Reflected, improved: Improved, ratios: Mapping[str, float], unimproved: Literal["keep", "drop"] = "keep"
) -> tuple[Recycled, Selected]:
    """What becomes of the pair (old, said)."""
    selection = Selection(CachedScorer(ScriptedScorer(ratios)), "none", unimproved)
    made, selected = selection.select(selection.choose([DataRow(1, "old", "said")], {1: reflected}), {1: improved})
    return made[1], selected[1]


@pytest.mark.parametrize(
    ("ifds", "r_ifds", "pair", "sources", "dropped"),
    [
        # IFD of old and new; r-IFD of old, of new with its first response, of the kept pair with the better response
        ((0.5, 0.6), (0.9, 0.8, 0.7), ("new", "better"), (REFLECTED, IMPROVED), ""),
        ((0.5, 0.6), (0.7, 0.8, 0.75), ("new", "better"), (REFLECTED, IMPROVED), ""),
        ((0.5, 0.6), (0.9, 0.8, 0.8), ("new", "first"), (REFLECTED, REFLECTED), ""),
        ((0.5, 0.6), (0.9, 0.8, 0.9), ("new", "first"), (REFLECTED, REFLECTED), ""),
        ((0.5, 0.5), (0.9, 0.7, 0.8), ("old", "better"), (ORIGINAL, IMPROVED), ""),
        ((0.6, 0.5), (0.9, 0.8, 0.9), ("old", "said"), (ORIGINAL, ORIGINAL), ""),
        ((1.0, 0.5), (0.9, 0.8, 0.9), ("old", "said"), (ORIGINAL, ORIGINAL), "IFD not below 1"),
        ((0.5, 1.2), (0.9, 1.5, 1.6), ("new", "first"), (REFLECTED, REFLECTED), "IFD not below 1"),
        ((0.5, 0.6), (0.9, 1.0, 1.2), ("new", "first"), (REFLECTED, REFLECTED), "r-IFD not below 1"),
        ((0.5, 0.6), (0.9, 1.2, 1.1), ("new", "better"), (REFLECTED, IMPROVED), "r-IFD not below 1"),
        ((0.7, 0.6), (1.2, 0.8, 0.9), ("old", "better"), (ORIGINAL, IMPROVED), ""),
        # None: what was there before stays, and the pair is kept
        ((None, 0.6), (0.9, 0.8, 0.7), ("old", "better"), (ORIGINAL, IMPROVED), ""),
        ((0.5, None), (0.9, 0.8, 0.95), ("old", "said"), (ORIGINAL, ORIGINAL), ""),
        ((0.5, 0.6), (0.9, None, 0.7), ("new", "first"), (REFLECTED, REFLECTED), ""),
        ((0.5, 0.6), (0.9, 0.8, None), ("new", "first"), (REFLECTED, REFLECTED), ""),
    ],
)
def test_selection(ifds: Any, r_ifds: Any, pair: Any, sources: Any, dropped: str) -> None:
    kept = pair[0]
    names = ["old|said", "new|first", "said|old", "first|new", f"better|{kept}"]
    scripted = {name: value for name, value in zip(names, [*ifds, *r_ifds], strict=True) if value is not None}
    ratios = {"new|better": 0.9, "old|better": 0.4, **scripted}
    made, selected = chosen(NEW, BETTER, ratios)
    assert (made.instruction, made.response) == pair
    assert (made.instruction_from, made.response_from) == sources
    assert made.reflected_response == ("first" if kept == "new" else "said")
    assert (selected.kept, selected.selection_reason) == (not dropped, dropped)
    assert selected.original_ifd == pytest.approx(ifds[0]) and selected.original_r_ifd == pytest.approx(r_ifds[0])
    assert selected.ifd == pytest.approx(ratios.get("|".join(pair)))
    assert selected.r_ifd == pytest.approx(ratios.get("|".join(reversed(pair))))
    same, other = chosen(NEW, BETTER, ratios, "drop")
    assert same == made
    assert other.selection_reason == (dropped or ("" if sources[1] == IMPROVED else UNIMPROVED))


def test_a_better_response_is_dropped_by_the_figures_of_its_pair(said: Said) -> None:
    ratios = {"old|said": 0.5, "said|old": 0.9, "old|better": 1.0, "better|old": 0.8}
    made, selected = chosen((None, Reason("cut", "cut")), BETTER, ratios)
    said((made.response, made.instruction_reason, selected.selection_reason))
    assert selected.original_ifd == pytest.approx(0.5)


def test_the_reason_says_why_a_new_text_is_not_taken(said: Said) -> None:
    ratios = {"old|said": 0.6, "new|first": 0.5, "said|old": 0.9, "old|better": 0.9, "better|old": 0.95}
    made, _ = chosen(NEW, BETTER, ratios)
    said(made.instruction_reason)
    said(made.response_reason)
    made, selected = chosen(NEW, BETTER, {})
    assert made.instruction_reason == made.response_reason == UNSCORED and selected.kept
    made, _ = chosen((None, Reason("the same instruction again")), (None, Reason("no answer", "late")), ratios)
    said((made.instruction_reason, made.response_reason))
    assert made.unanswered


def test_what_was_not_written_is_not_scored() -> None:
    selection = Selection(scorer := ScriptedScorer({}), "none")
    rows = [DataRow(1, "old", "said"), DataRow(2, "blue", "sky")]
    pairs = selection.choose(rows, {1: NEW, 2: (None, NO_REASON)})
    assert len(scorer.asked) == 12 and {pairs[1].pair, pairs[2].pair} == {("old", "said"), ("blue", "sky")}
    scorer.asked.clear()
    selection.select(pairs, {1: (None, NO_REASON), 2: BETTER})
    assert sorted(scorer.asked) == ["better|blue", "blue|better", "|better", "|blue"]


class TopicScorer:
    """Scores new pairs of odd topics as harder than before, new pairs of even topics as easier, and every better
    response as better."""

    def __init__(self) -> None:
        self.before: Callable[[], None] = lambda: None
        """Called when it is asked for the first time."""

    def nll(self, contexts: Sequence[str], texts: Sequence[str]) -> list[ScoredText | None]:
        self.before()
        self.before = lambda: None
        return [self.scored(context, text) for context, text in zip(contexts, texts, strict=True)]

    def scored(self, context: str, text: str) -> ScoredText:
        if not context:
            return ScoredText(1.0, 1)
        if GUESS.partition("{response}")[0] in context:
            return ScoredText(0.2 if "better" in context else 0.5, 1)
        harder = {"new odd": 0.9, "new even": 0.1}
        return ScoredText(next((nll for name, nll in harder.items() if name in context), 0.5), 1)


class TopicWriter(Reflecting):
    """A teacher whose answers name the topic that they are about."""

    def write(self, request: Request) -> str:
        topic = int(re.findall(r"topic (\d+)", shown(request, "instruction"))[0])
        if not first_pass(request):
            better = f"better than: {shown(request, 'response')}"
            return json.dumps({"weaknesses": ["short"], "better_response": better})
        return reflected(f"new {'odd' if topic % 2 else 'even'} topic {topic}", f"first of {topic}")


@contextmanager
def passes(folder: Path, writer: Writer, concurrency: int = 8, max_minutes: float | None = None) -> Iterator[Job]:
    teacher = replace(open_teacher(fake_lm(writer)), concurrency=concurrency)
    caps = CapSettings(max_cost=None, max_calls=None, max_minutes=max_minutes)
    work = Work(kind="recycling", identity={}, models={"teacher": teacher}, size=6, caps=caps)
    with job(folder, work) as at:
        yield at


ROWS = load_dataset(references(6)).rows


def test_the_second_pass_is_over_the_pair_that_was_chosen(said: Said, tmp_path: Path) -> None:
    writer = TopicWriter()
    with passes(tmp_path, writer) as asked_by:
        passed = selectively(ROWS, ReflectionTuning(), asked_by, Selection(CachedScorer(TopicScorer())))
    assert [first_pass(request) for request in writer.requests] == [True] * 6 + [False] * 6
    for at, row in enumerate(ROWS):
        made = passed.made[row.number]
        odd = at % 2 == 1
        before = (f"new odd topic {at}", f"first of {at}") if odd else (row.instruction, row.response)
        (asked,) = [request for request in writer.requests[6:] if shown(request, "instruction") == before[0]]
        assert shown(asked, "response") == before[1] == made.reflected_response
        said((made.instruction, made.response))
        assert (made.instruction_from, made.response_from) == (REFLECTED if odd else ORIGINAL, IMPROVED)
        assert made.response_reason == ""
        said(made.instruction_reason)
    assert passed.selected is not None and all(selected.kept for selected in passed.selected.values())
    assert (passed.stopped, passed.halfway) == ("", 0)


def test_without_selection_both_passes_are_over_one_row_after_the_other(said: Said, tmp_path: Path) -> None:
    writer, made = TopicWriter(), dict[int, Recycled]()
    with passes(tmp_path, writer, concurrency=1) as asked_by:
        passed = row_by_row(ROWS, ReflectionTuning(), asked_by, made)
    assert [first_pass(request) for request in writer.requests] == [True, False] * 6
    assert passed.made is made and passed.selected is None
    said(made[1].response)


def test_between_the_passes_the_work_is_running_and_its_folder_taken(said: Said, tmp_path: Path) -> None:
    scorer, states = TopicScorer(), list[str]()

    def look() -> None:
        states.append(state_in(tmp_path))
        with said.by(RunDirError):
            Ledger.create(tmp_path)

    scorer.before = look
    with passes(tmp_path, TopicWriter()) as asked_by:
        assert len(selectively(ROWS, ReflectionTuning(), asked_by, Selection(scorer)).made) == 6
    assert {*states} == {"running"} and state_in(tmp_path) == "done"


def test_minutes_that_are_used_up_between_the_passes_end_it_in_order(tmp_path: Path) -> None:
    writer = TopicWriter()

    def last(request: Request) -> None:
        if len(writer.requests) == 6:  # as if an hour had gone by
            with sqlite3.connect(tmp_path / "ledger.sqlite") as db:
                db.execute("UPDATE starts SET begun=begun-3600")

    writer.on_request = last
    with passes(tmp_path, writer, max_minutes=10) as asked_by:
        passed = selectively(ROWS, ReflectionTuning(), asked_by, Selection(TopicScorer()))
    assert (passed.stopped, passed.halfway, passed.made) == ("max_minutes", 6, {})
    assert len(writer.requests) == 6
    with passes(tmp_path, writer, max_minutes=100) as asked_by:
        passed = selectively(ROWS, ReflectionTuning(), asked_by, Selection(TopicScorer()))
    assert len(passed.made) == 6 and len(writer.requests) == 12

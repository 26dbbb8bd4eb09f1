"""A comparison's figures, counted from its rows and its ledger: a line for each program, and one for each subset that
a filter keeps of a program's rows."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean
from typing import Any

from refed_dspy.errors import one_line
from refed_dspy.ledger.history import cost_by_question, is_proposal, stage_by_answer
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import settings_of
from refed_dspy.ledger.spending import spent
from refed_dspy.measures.intervals import Interval, mean_interval
from refed_dspy.plugins.compare.replay import ComparedRow, Replayed
from refed_dspy.plugins.compare.result import Comparison, Line, Subset
from refed_dspy.plugins.compare.settings import CompareConfig
from refed_dspy.plugins.metrics.figures import open_embedder, semantic_diversity
from refed_dspy.plugins.metrics.win_rates import length_controlled, win_rate
from refed_dspy.plugins.metrics.wording import distinct_n, words
from refed_dspy.programs.judges import Graded, Judgements
from refed_dspy.records import PICO
from refed_dspy.teachers import Teacher

SEED = "seed-only"
FEEDBACK = {"response_feedback", "sample_feedback"}
"""Stages that collect feedback on a response."""
FILTERS = ("random", "rouge", "judge")
_FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""The usual sizes of subsets, of a program's rows."""


class Diversity:
    """Semantic diversity, if the embedding model is installed (`open_embedder`); otherwise `lacking` says what to do to
    get it."""

    def __init__(self, wanted: bool | None) -> None:
        self.embedder, self.lacking = open_embedder(wanted, "semantic diversity")
        self.of = cache(self._of)
        """The diversity of texts; programs share instructions, so each tuple of texts is embedded once."""

    def _of(self, texts: tuple[str, ...]) -> float | None:
        return None if self.embedder is None else semantic_diversity(self.embedder.embed(texts))


def tally(
    ledger: Ledger,
    compared: Replayed,
    models: Mapping[str, Teacher],
    config: CompareConfig,
    diversity: Diversity,
    stopped: str,
) -> Comparison:
    """The comparison's figures. `config.programs` gives the lines and their order."""
    costs = _Costs(ledger, compared)
    lines = [
        _seed_line(name, compared, config, diversity)
        if source == SEED
        else _line(name, compared, config, costs, diversity)
        for name, source in config.programs.items()
    ]
    verdicts = Judgements.of(verdict for row in compared.rows for verdict in row.answered.verdicts.values())
    grades = Judgements.of(graded for row in compared.rows for graded in row.answered.grades.values())
    if verdicts.asked and not verdicts.decided:
        stopped += ("; " if stopped else "") + "the judge decided no pairs; choose another judge"
    return Comparison(
        out=ledger.path.parent,
        against=config.against,
        judge=models["judge"].model,
        teacher=models["teacher"].model,
        instructions=len(compared.rows),
        references=len(compared.references),
        size=config.size,
        programs=lines,
        subsets=subsets(compared, config),
        used=spent(ledger),
        stopped=stopped,
        lacking=[*diversity.lacking, *_ungraded(grades), *_reused_costs(ledger)],
        doubt=verdicts.warning() or grades.warning(),
    )


def _ungraded(grades: Judgements) -> list[str]:
    """A line if the judge graded nothing."""
    if grades.decided or not grades.asked:
        return []
    return [
        f"grades: the judge graded none of {grades.asked} responses: {grades}, first because: {one_line(grades.why)}"
    ]


def _reused_costs(ledger: Ledger) -> list[str]:
    """A line if answers were reused from another run, whose ledger has what they cost."""
    source = settings_of(ledger).values.get("reuse")
    if source is None:
        return []
    return [f"the cost of answers reused from {source}: calls and dollars are only those paid here"]


class _Costs:
    """Calls and money by question key, and which keys belong to the instructions, which all programs share."""

    def __init__(self, ledger: Ledger, compared: Replayed) -> None:
        self._by_key = cost_by_question(ledger)
        self.shared = compared.shared | {key for key, asked in self._by_key.items() if is_proposal(asked.item)}
        self.feedback = {key for key, stage in stage_by_answer(ledger).items() if stage in FEEDBACK}
        """Keys of the answered questions for feedback on responses."""

    def total(self, keys: set[str]) -> tuple[int, int | None]:
        """(calls, picodollars) of these questions; None if any price is unknown."""
        called = [self._by_key[key] for key in keys & self._by_key.keys()]
        cost = None if any(question.unpriced for question in called) else sum(question.cost for question in called)
        return sum(question.calls for question in called), cost


def _line(name: str, compared: Replayed, config: CompareConfig, costs: _Costs, diversity: Diversity) -> Line:
    rows = [row for row in compared.rows if name in row.answered.samples]
    texts = [row.answered.samples[name].improved_response for row in rows]
    asked = compared.asked[name]
    calls, cost = costs.total(costs.shared | asked)
    return Line(
        program=name,
        rows=len(rows),
        failed=dict(Counter(row.answered.failed[name] for row in compared.rows if name in row.answered.failed)),
        **_wins(name, compared, config),
        grade=_grade(name, compared.rows, config.seed),
        feedback=len(costs.feedback & asked),
        calls=calls,
        cost=None if cost is None else cost / PICO,
        **_text_figures([row.instruction for row in rows], texts, diversity, config.seed),
    )


def _seed_line(name: str, compared: Replayed, config: CompareConfig, diversity: Diversity) -> Line:
    """The references themselves: nothing was written, so nothing is compared or paid for, except the grade."""
    references = compared.references
    instructions = [ref.instruction for ref in references]
    return Line(
        program=name,
        rows=len(references),
        failed={},
        win_rate=None,
        length_controlled=None,
        judgements=Judgements(0, 0, 0),
        consistent=None,
        grade=_mean_grade([(compared.seed_grades.get(ref.id), ref.id) for ref in references], config.seed),
        feedback=0,
        calls=0,
        cost=0,
        **_text_figures(instructions, [ref.response for ref in references], diversity, config.seed),
    )


def _wins(name: str, compared: Replayed, config: CompareConfig) -> dict[str, Any]:
    """The figures of the judge's verdicts on a program."""
    judged = [(row, row.answered.verdicts[name]) for row in compared.rows if name in row.answered.verdicts]
    decided = [(row, verdict) for row, verdict in judged if verdict.win is not None]
    figures: dict[str, Any] = {"judgements": Judgements.of(verdict for _, verdict in judged)}
    if not decided:
        return {**figures, "win_rate": None, "length_controlled": None, "consistent": None}
    wins = [float(verdict.win or 0) for _, verdict in decided]
    clusters = [row.reference for row, _ in decided]
    differences = [float(_length(row, name) - _length(row, config.against)) for row, _ in decided]
    return {
        **figures,
        "win_rate": win_rate(wins, clusters, seed=config.seed),
        "length_controlled": length_controlled(wins, differences, clusters, seed=config.seed),
        "consistent": fmean(verdict.consistent is True for _, verdict in decided),
    }


def _length(row: ComparedRow, program: str) -> int:
    """Characters of the program's response."""
    return len(row.answered.samples[program].improved_response)


def _grade(name: str, rows: Sequence[ComparedRow], seed: int) -> Interval | None:
    """The mean grade of a program's responses in `rows`."""
    return _mean_grade([(row.answered.grades.get(name), row.reference) for row in rows], seed)


def _mean_grade(graded: Sequence[tuple[Graded | None, str]], seed: int) -> Interval | None:
    """The mean of (grade, reference), clustered by reference: the grades of one reference's rows are alike."""
    known = [(float(each.grade), reference) for each, reference in graded if each and each.grade is not None]
    if not known:
        return None
    mean = mean_interval([grade for grade, _ in known], [reference for _, reference in known], seed=seed)
    return replace(mean, low=max(1.0, mean.low), high=min(5.0, mean.high))


def _text_figures(
    instructions: Sequence[str], responses: Sequence[str], diversity: Diversity, seed: int
) -> dict[str, Any]:
    """The figures that depend on the texts alone."""
    _, bigrams, _ = distinct_n(responses, seed)
    return {
        "words": fmean(len(words(text)) for text in responses) if responses else 0.0,
        "distinct": bigrams.ratio,
        "diversity": diversity.of(tuple(instructions)),
    }


def subsets(compared: Replayed, config: CompareConfig) -> list[Subset]:
    """A line for each program that improves responses, filter and size.

    Rows are taken in an order drawn by the seed: `random` takes the first ones, `rouge` the first whose instruction is
    unlike those taken (ROUGE-L F below 0.7), `judge` the first that beat the response they are compared with. A size
    above the number of rows means all of them. A filter that keeps fewer rows than a size has no line for that size.
    """
    from refed_dspy.filters.rouge import select

    lines = []
    unlike: dict[tuple[str, ...], list[bool]] = {}  # programs share instructions, and ROUGE takes time
    for name, source in config.programs.items():
        rows = [row for row in compared.rows if name in row.answered.verdicts]
        if source == SEED or name == config.against or not rows:
            continue
        order = random.Random(config.seed).sample(rows, len(rows))
        usual = [size for fraction in _FRACTIONS if (size := round(fraction * len(rows))) >= 2]
        sizes = sorted({min(size, len(rows)) for size in config.subsets or usual})
        texts = tuple(row.instruction for row in order)
        if texts not in unlike:
            unlike[texts] = [match.kept for match in select(texts)]
        kept = _kept(name, order, unlike[texts])
        made: dict[tuple[int, ...], Subset] = {}  # a filter that drops nothing keeps what `random` keeps
        for filter_name in FILTERS:
            for size in sizes:
                if size > len(kept[filter_name]):
                    continue
                taken = kept[filter_name][:size]
                key = tuple(row.number for row in taken)
                if key not in made:
                    grade, rate = _grade(name, taken, config.seed), _win_rate(name, taken, config.seed)
                    made[key] = Subset(name, filter_name, size, grade, rate)
                lines.append(replace(made[key], filter=filter_name))
    return lines


def _kept(name: str, order: Sequence[ComparedRow], unlike: Sequence[bool]) -> Mapping[str, Sequence[ComparedRow]]:
    return {
        "random": order,
        "rouge": [row for row, kept in zip(order, unlike, strict=True) if kept],
        "judge": [row for row in order if (row.answered.verdicts[name].preference or 0) > 0],
    }


def _win_rate(name: str, rows: Sequence[ComparedRow], seed: int) -> Interval | None:
    """How often a program won in `rows`, of the pairs that the judge decided."""
    decided = [(win, row.reference) for row in rows if (win := row.answered.verdicts[name].win) is not None]
    if not decided:
        return None
    return win_rate([win for win, _ in decided], [reference for _, reference in decided], seed=seed)

"""A comparison's figures, from its rows and its books."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Self, TypeAlias

from refed_dspy.config.jobs import CompareConfig
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.metrics.embedder import Embedder
from refed_dspy.metrics.intervals import Interval
from refed_dspy.metrics.win_rates import LengthControlled, length_controlled, win_rate
from refed_dspy.metrics.wording import wording, words
from refed_dspy.runs.compare.replay import Compared, ComparedRow
from refed_dspy.runs.compare.result import Comparison, Line, Subset, mean_grade
from refed_dspy.teachers import Teacher

SEED = "seed-only"
FEEDBACK = {"response_feedback", "sample_feedback"}
_SHARED = ("instruction_feedback", "instruction_synthesis")


@dataclass(frozen=True)
class Diversity:
    """Semantic diversity, where the embedding model is there; `lacking` says what would bring it."""

    embedder: Embedder | None = None
    lacking: tuple[str, ...] = ()
    _known: dict[tuple[str, ...], float | None] = field(default_factory=dict)

    @classmethod
    def open(cls, wanted: bool | None) -> Self:
        """True: needed; None: if the model's weights are there. Raises ConfigError where it is needed and not there."""
        if wanted is False:
            return cls()
        try:
            return cls(Embedder.open())
        except ConfigError as error:
            if wanted:
                raise
            return cls(None, (f"semantic diversity: {error}",))

    def of(self, texts: Sequence[str]) -> float | None:
        """Programs share instructions: each list of texts is embedded once."""
        if self.embedder is None:
            return None
        if (key := tuple(texts)) not in self._known:
            from refed_dspy.metrics.diversity import semantic_diversity

            self._known[key] = semantic_diversity(self.embedder.embed(texts))
        return self._known[key]


def tally(
    ledger: Ledger,
    compared: Compared,
    models: Mapping[str, Teacher],
    config: CompareConfig,
    diversity: Diversity,
    stopped: str,
) -> Comparison:
    """The comparison's figures. `config.programs` gives the lines and their order."""
    costs = _Costs(ledger)
    lines = [
        _seed_line(name, compared, config, diversity)
        if given == SEED
        else _line(name, compared, config, costs, diversity)
        for name, given in config.programs.items()
    ]
    nothing_said = _nothing_said(compared, lines)
    return Comparison(
        out=ledger.path.parent,
        against=config.against,
        judge=models["judge"].model,
        teacher=models["teacher"].model,
        instructions=len(compared.rows),
        references=len(compared.references),
        lines=lines,
        subsets=subsets(compared, config),
        used=spent(ledger),
        stopped="; ".join(part for part in (stopped, nothing_said) if part),
        lacking=[*diversity.lacking, *_ungraded(compared), *_taken_over(ledger)],
    )


def _nothing_said(compared: Compared, lines: Sequence[Line]) -> str:
    """What to do where the judge decided on no pair at all; empty where it did on one."""
    said = [verdict for row in compared.rows for verdict in row.answered.verdicts.values()]
    if not said or any(line.win_rate is not None for line in lines):
        return ""
    return f"the judge decided none of {len(said)} pairs, first because: {said[0].abstained} — name another judge"


def _ungraded(compared: Compared) -> list[str]:
    """A line where the judge graded nothing."""
    told = [grade for row in compared.rows for grade in row.answered.grades.values()]
    if not told or any(one.grade is not None for one in told):
        return []
    return [f"grades: the judge gave none to {len(told)} responses, first because: {one_line(told[0].reason)}"]


def _taken_over(ledger: Ledger) -> list[str]:
    lent = ledger.meta("reuse")
    if lent is None:
        return []
    return [f"what the answers cost that were taken over from {lent}: calls and dollars are those that were paid here"]


class _Costs:
    """What calls cost: by the question's key, and of the stages that all programs share."""

    def __init__(self, ledger: Ledger) -> None:
        rows = ledger.db.execute(
            "SELECT key, stage, count(*), total(cost), sum(cost IS NULL) FROM calls GROUP BY key"
        ).fetchall()
        self._of = {key: (int(calls), int(cost), int(unknown)) for key, _, calls, cost, unknown in rows}
        self.shared = [key for key, stage, *_ in rows if stage in _SHARED]
        answered = ledger.db.execute("SELECT key, stage FROM answers")
        self.feedback = {key for key, stage in answered if stage in FEEDBACK}
        """Keys of feedback on responses that was had."""

    def total(self, keys: Sequence[str]) -> tuple[int, int | None]:
        """(calls, picodollars) of these questions; None where a price is unknown."""
        known = [self._of[key] for key in dict.fromkeys(keys) if key in self._of]
        calls, cost, unknown = (sum(column) for column in zip(*known, strict=True)) if known else (0, 0, 0)
        return calls, None if unknown else cost


def _line(name: str, compared: Compared, config: CompareConfig, costs: _Costs, diversity: Diversity) -> Line:
    rows = [row for row in compared.rows if name in row.answered.samples]
    texts = [row.answered.samples[name].improved_response for row in rows]
    asked = compared.asked[name]
    calls, cost = costs.total([*costs.shared, *asked])
    rate, controlled, abstained, consistent = _wins(name, compared, config)
    return Line(
        program=name,
        rows=len(rows),
        failed=dict(compared.missing(name)),
        win_rate=rate,
        length_controlled=controlled,
        abstained=abstained,
        consistent=consistent,
        grade=_grade(name, compared, config.seed),
        feedback=len(costs.feedback & asked.keys()),
        calls=calls,
        cost=cost,
        **_texts([row.instruction for row in rows], texts, diversity, config.seed),
    )


def _seed_line(name: str, compared: Compared, config: CompareConfig, diversity: Diversity) -> Line:
    """The references themselves: nothing was written, so nothing is compared or paid, but for the grade."""
    references = compared.references
    graded = [
        (float(compared.seed_grades[ref.id].grade or 0), ref.id)
        for ref in references
        if ref.id in compared.seed_grades and compared.seed_grades[ref.id].grade is not None
    ]
    return Line(
        *(name, len(references), {}, None, None, 0, None),
        grade=mean_grade(graded, config.seed),
        feedback=0,
        calls=0,
        cost=0,
        **_texts([ref.instruction for ref in references], [ref.response for ref in references], diversity, config.seed),
    )


def _wins(
    name: str, compared: Compared, config: CompareConfig
) -> tuple[Interval | None, LengthControlled | None, int, float | None]:
    """Win rate, the same with length controlled, abstentions, and the share of consistent verdicts."""
    judged = [(row, row.answered.verdicts[name]) for row in compared.rows if name in row.answered.verdicts]
    decided = [(row, said) for row, said in judged if said.win is not None]
    abstained = len(judged) - len(decided)
    if not decided:
        return None, None, abstained, None
    wins = [float(said.win or 0) for _, said in decided]
    clusters = [row.reference for row, _ in decided]
    differences = [
        float(
            len(row.answered.samples[name].improved_response)
            - len(row.answered.samples[config.against].improved_response)
        )
        for row, _ in decided
    ]
    consistent = fmean(said.consistent is True for _, said in decided)
    controlled = length_controlled(wins, differences, clusters, seed=config.seed)
    return win_rate(wins, clusters, seed=config.seed), controlled, abstained, consistent


def _grade(name: str, compared: Compared, seed: int) -> Interval | None:
    graded = [(row.answered.grades[name].grade, row.reference) for row in compared.rows if name in row.answered.grades]
    return mean_grade([(float(grade), reference) for grade, reference in graded if grade is not None], seed)


def _texts(instructions: Sequence[str], responses: Sequence[str], diversity: Diversity, seed: int) -> dict[str, Any]:
    """The figures that depend on the texts alone."""
    pairs = next((told for told in wording(responses, seed=seed).distinct if told.n == 2), None)
    return {
        "words": fmean(len(words(text)) for text in responses) if responses else 0.0,
        "distinct": pairs.ratio if pairs else None,
        "diversity": diversity.of(instructions),
    }


FILTERS = ("random", "rouge", "judge")
_Worth: TypeAlias = tuple[Interval | None, Interval | None]
_SHARES = (0.125, 0.25, 0.5, 1.0)


def subsets(compared: Compared, config: CompareConfig) -> list[Subset]:
    """A line for each program that improves responses, filter and size.

    Rows are taken in one order drawn by the seed: `random` takes the first ones, `rouge` the first whose instruction
    is unlike those taken (ROUGE-L F below 0.7), `judge` the first that beat the response they are compared with. A
    size above the rows there are stands for all of them. A filter that keeps fewer rows than a size has no line there.
    """
    from refed_dspy.filters.rouge import select

    lines = []
    unlike: dict[tuple[str, ...], list[bool]] = {}  # programs share instructions, and it takes time
    for name, given in config.programs.items():
        rows = [row for row in compared.rows if name in row.answered.verdicts]
        if given == SEED or name == config.against or not rows:
            continue
        order = random.Random(config.seed).sample(rows, len(rows))
        sizes = sorted({min(size, len(rows)) for size in config.subsets or _sizes(len(rows))})
        texts = tuple(row.instruction for row in order)
        if texts not in unlike:
            unlike[texts] = [match.kept for match in select(texts)]
        kept = _kept(name, order, unlike[texts])
        told: dict[tuple[int, ...], _Worth] = {}  # a filter that drops nothing keeps what `random` does
        for which in FILTERS:
            for size in sizes:
                if size <= len(kept[which]):
                    taken = kept[which][:size]
                    key = tuple(row.number for row in taken)
                    told[key] = told.get(key) or _worth(name, taken, config)
                    lines.append(Subset(name, which, size, *told[key]))
    return lines


def _sizes(rows: int) -> list[int]:
    return [size for share in _SHARES if (size := round(share * rows)) >= 2]


def _kept(name: str, order: Sequence[ComparedRow], unlike: Sequence[bool]) -> Mapping[str, Sequence[ComparedRow]]:
    wins = [row for row in order if (row.answered.verdicts[name].preference or 0) > 0]
    return {
        "random": order,
        "rouge": [row for row, kept in zip(order, unlike, strict=True) if kept],
        "judge": wins,
    }


def _worth(name: str, rows: Sequence[ComparedRow], config: CompareConfig) -> _Worth:
    """Mean grade, and win rate over the plain responses."""
    graded = [
        (float(grade.grade), row.reference)
        for row in rows
        if (grade := row.answered.grades.get(name)) is not None and grade.grade is not None
    ]
    won = [(win, row.reference) for row in rows if (win := row.answered.verdicts[name].win) is not None]
    rate = win_rate(*map(list, zip(*won, strict=True)), seed=config.seed) if won else None
    return mean_grade(graded, config.seed), rate

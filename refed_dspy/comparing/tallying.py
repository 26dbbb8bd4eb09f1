"""A comparison's figures, from its rows and its books."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from refed_dspy.comparing.comparison import Comparison, Line, mean_grade
from refed_dspy.comparing.reading import Compared
from refed_dspy.comparing.subsets import subsets
from refed_dspy.engine.accounts import spent
from refed_dspy.engine.ledger import Ledger
from refed_dspy.job_settings import CompareConfig
from refed_dspy.measures.figures import Tools
from refed_dspy.measures.texts import wording, words
from refed_dspy.measures.win_rates import LengthControlled, length_controlled, win_rate
from refed_dspy.statistics import Interval
from refed_dspy.teachers import Teacher

SEED = "seed-only"
FEEDBACK = {"response_feedback", "sample_feedback"}
_SHARED = ("instruction_feedback", "instruction_synthesis")


def tally(
    ledger: Ledger,
    compared: Compared,
    models: Mapping[str, Teacher],
    config: CompareConfig,
    tools: Tools,
    stopped: str,
) -> Comparison:
    """The comparison's figures. `config.programs` gives the lines and their order."""
    costs = _Costs(ledger)
    lines = [
        _seed_line(name, compared, config, tools) if given == SEED else _line(name, compared, config, costs, tools)
        for name, given in config.programs.items()
    ]
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
        stopped=stopped,
        lacking=tools.lacking,
    )


class _Costs:
    """What calls cost: by the question's key, and of the stages that all programs share."""

    def __init__(self, ledger: Ledger) -> None:
        rows = ledger.db.execute(
            "SELECT key, stage, count(*), total(cost), sum(cost IS NULL) FROM calls GROUP BY key"
        ).fetchall()
        self._of = {key: (int(calls), int(cost), int(unknown)) for key, _, calls, cost, unknown in rows}
        self.shared = [key for key, stage, *_ in rows if stage in _SHARED]

    def total(self, keys: Sequence[str]) -> tuple[int, int | None]:
        """(calls, picodollars) of these questions; None where a price is unknown."""
        known = [self._of[key] for key in dict.fromkeys(keys) if key in self._of]
        calls, cost, unknown = (sum(column) for column in zip(*known, strict=True)) if known else (0, 0, 0)
        return calls, None if unknown else cost


def _line(name: str, compared: Compared, config: CompareConfig, costs: _Costs, tools: Tools) -> Line:
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
        feedback=sum(stage in FEEDBACK for stage in asked.values()),
        calls=calls,
        cost=cost,
        **_texts([row.instruction for row in rows], texts, tools, config.seed),
    )


def _seed_line(name: str, compared: Compared, config: CompareConfig, tools: Tools) -> Line:
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
        **_texts([ref.instruction for ref in references], [ref.response for ref in references], tools, config.seed),
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


def _texts(instructions: Sequence[str], responses: Sequence[str], tools: Tools, seed: int) -> dict[str, Any]:
    """The figures that depend on the texts alone."""
    from refed_dspy.measures.embeddings import semantic_diversity

    pairs = next((told for told in wording(responses, seed=seed).distinct if told.n == 2), None)
    vectors = tools.embedder.embed(instructions) if tools.embedder is not None else None
    return {
        "words": fmean(len(words(text)) for text in responses) if responses else 0.0,
        "distinct": pairs.ratio if pairs else None,
        "diversity": None if vectors is None else semantic_diversity(vectors),
    }

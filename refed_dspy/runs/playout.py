"""A run simulated to its end: its plan without a teacher, from what the ledger recorded so far."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.statements import SENT, UNUSED
from refed_dspy.programs.reference_level import TAKEN_SHOWN
from refed_dspy.records import Rates, Reference
from refed_dspy.runs.plan import Plan, PlanSettings, Propose, Respond, Study
from refed_dspy.runs.stage_weights import StageWeights

PRIOR_WEIGHT, PRIOR_SHARE = 20.0, 0.02
"""The prior for a stage's failures: as if twenty questions had been asked and two in a hundred had failed."""
_IMPROVED = "response_improvement"
_STUDY = {"features": "instruction_feedback", "response": "response_feedback"}


class Usage(NamedTuple):
    """What questions took, summed or on average."""

    calls: float = 0.0
    prompt: float = 0.0
    """Tokens, as the next two."""
    cached: float = 0.0
    completion: float = 0.0
    seconds: float = 0.0
    unseen: float = 0.0
    """Picodollars charged for calls whose tokens are unknown."""


NO_USAGE = Usage()


class Kind(NamedTuple):
    """What questions must share for the usage of one to say something about another."""

    stage: str
    answerer: str


@dataclass(frozen=True)
class StageQuestion:
    """One question of a stage, asked or still to be asked: about which reference, how many characters of its text are
    in the prompt, and what it took."""

    stage: str
    reference: int
    characters: float
    usage: Usage = NO_USAGE
    answerer: str = ""
    """Who answers it (`StageWeights`)."""

    @property
    def kind(self) -> Kind:
        return Kind(self.stage, self.answerer)


def plan_settings(ledger: Ledger, references: int, size: int | None, per_reference: int | None) -> PlanSettings:
    """The plan's settings as the run's folder remembers them."""
    identity = ledger.meta("identity")
    return PlanSettings(
        size=size or ledger.meta("size"),
        references=references,
        features=tuple(identity["features"]),
        instructions_per_feature=identity["instructions_per_feature"],
        per_reference=per_reference or ledger.meta("per_reference"),
        seed=ledger.meta("seed"),
    )


_MADE = """
SELECT c.stage, c.item, max(coalesce(a.repetition, 0)), count(*), total(prompt_tokens), total(cached_tokens),
       total(completion_tokens), total(seconds),
       total(CASE WHEN prompt_tokens IS NULL AND outcome NOT IN ('lost', 'cancelled') THEN cost END),
       max(model), c.endpoint
FROM calls c LEFT JOIN answers a ON a.key = c.key
WHERE outcome NOT IN ('sent', 'unused', 'lost') GROUP BY c.key HAVING sum(prompt_tokens IS NOT NULL)
"""


_SETTLED = """
SELECT CAST(i.id AS TEXT) AS item FROM instructions i WHERE used IS NOT NULL AND EXISTS
  (SELECT 1 FROM answers WHERE item = CAST(i.id AS TEXT) AND stage = 'response_generation')
"""
_ASKED = """
SELECT stage, count(*) FROM (
  SELECT stage, item FROM answers UNION ALL SELECT stage, item FROM failures
) WHERE item IN ({}) GROUP BY stage
"""


@dataclass(frozen=True)
class RunHistory:
    """What a run's ledger holds that a forecast needs."""

    ledger: Ledger
    references: Sequence[Reference]
    made: Sequence[StageQuestion]
    answered: frozenset[tuple[str, str]]
    """(stage, item) of each question that was answered."""
    done: Mapping[str, int]
    """Stage → questions answered."""
    failed: Mapping[str, int]
    """Stage → questions that failed for good or for now."""
    yields: Sequence[int]
    """New instructions of each synthesis call."""
    instruction_characters: float
    weights: StageWeights
    charged: int
    """Picodollars, including calls that wait in a batch, or whose answers do."""
    waiting: Mapping[str, tuple[int, float]]
    """Stage → how many calls those are, and what they are charged. A simulation asks their questions, too."""
    stages: frozenset[str]
    """Those of the run's program."""
    final: str
    """The stage whose answer is what is trained on."""
    dropped: int
    """Samples that a filter dropped."""
    extra_per_sample: Mapping[str, float]
    """Stage → questions a sample made beyond one answer and one improvement: those of a judge, of sample-level
    feedback, of a further program in a comparison."""
    extra_per_reference: Mapping[str, float]
    """Stage → questions about an opened reference beside its studies: the grade of its own response."""

    @classmethod
    def read(
        cls,
        ledger: Ledger,
        rates: Rates | None = None,
        by_stage: Mapping[str, Any] | None = None,
        judge: Rates | None = None,
    ) -> RunHistory:
        """Priced at `rates` (of the only teacher) or those in `by_stage` (of several), and the judge's. Where these are
        None, at the rates that the folder remembers."""
        db, references, weights = ledger.db, ledger.references(), StageWeights.read(ledger, rates, by_stage, judge)
        (length,) = db.execute("SELECT avg(length(text)) FROM instructions").fetchone()
        earlier = _EarlierRounds((ref, round_, new) for ref, _, round_, new in ledger.proposals())
        return cls(
            ledger=ledger,
            references=references,
            made=list(_made(ledger, references, earlier, length or 0.0, weights)),
            answered=frozenset(db.execute("SELECT stage, item FROM answers")),
            done=dict(db.execute("SELECT stage, count(*) FROM answers GROUP BY stage")),
            failed=dict(db.execute("SELECT stage, count(*) FROM failures GROUP BY stage")),
            yields=[new for *_, new in ledger.proposals()],
            instruction_characters=length or 0.0,
            weights=weights,
            charged=spent(ledger).cost + _unpriced(ledger, weights),
            waiting=_waiting(ledger, weights),
            stages=weights.stages,
            final=str(ledger.meta("final_stage") or _IMPROVED),
            dropped=_dropped(ledger),
            extra_per_sample=_extra_per_sample(ledger),
            extra_per_reference=_extra_per_reference(ledger, references),
        )

    def settled(self, coming: Mapping[str, float]) -> int:
        """Picodollars charged, without calls in batches whose questions are among those `coming` (stage → how many):
        the forecast of what is still to come covers these."""
        covered = 0.0
        for stage, (count, cost) in self.waiting.items():
            covered += min(1.0, coming.get(stage, 0.0) / count) * cost
        return self.charged - round(covered)

    @property
    def references_with_samples(self) -> int:
        return len({question.reference for question in self.made if question.stage == self.final})

    def draw_drop_share(self, rng: random.Random) -> float:
        """A plausible share of the samples that a filter drops."""
        return rng.betavariate(self.dropped, self.ledger.kept() + 1) if self.dropped else 0.0

    def draw_failure_share(self, stage: str, rng: random.Random) -> float:
        """A plausible share of a stage's questions that fail: drawn from its posterior."""
        bad, good = self.failed.get(stage, 0), self.done.get(stage, 0)
        return rng.betavariate(bad + PRIOR_WEIGHT * PRIOR_SHARE, good + PRIOR_WEIGHT * (1 - PRIOR_SHARE))

    def simulate(self, settings: PlanSettings, rng: random.Random) -> list[StageQuestion]:
        """The plan run to its end: every question still to ask. What fails, and how much a synthesis call gives,
        is drawn from what happened so far."""
        stages = (*_STUDY.values(), "instruction_synthesis", "response_generation", _IMPROVED)
        failing = {stage: self.draw_failure_share(stage, rng) for stage in stages}
        dropping = self.draw_drop_share(rng)
        yields = rng.choices(self.yields, k=len(self.yields)) or [settings.instructions_per_feature]
        numbers, coming = itertools.count(-1, -1), list[StageQuestion]()
        earlier = _EarlierRounds((ref, round_, new) for ref, _, round_, new in self.ledger.proposals())
        plan, ledger = Plan(settings), self.ledger
        plan.restore(ledger.kept(), ledger.proposals(), ledger.used(), ledger.open_instructions())

        def ask(stage: str, index: int, item: str, shown: float = 0.0) -> bool:
            """Ask, if the program has that stage. Returns whether it was answered."""
            if self.stages and stage not in self.stages:
                return True
            if (stage, item) in self.answered:
                return True
            characters, answerer = _characters(stage, self.references[index]) + shown, self.weights.draw(stage, rng)
            coming.append(StageQuestion(stage, index, characters, answerer=answerer))
            return rng.random() >= failing[stage]

        while (unit := plan.next_unit()) is not None:
            index = unit.reference
            match unit:
                case Study():
                    coming += self._draw_extra(self.extra_per_reference, index, rng) if unit.kind == "response" else []
                    plan.studied(unit, failed=not ask(_STUDY[unit.kind], index, self.references[index].id))
                case Propose():
                    shown = self.instruction_characters * earlier.shown(index, unit.round)
                    new = rng.choice(yields) if ask("instruction_synthesis", index, "", shown) else 0
                    earlier.add(index, unit.round, new)
                    plan.proposed(unit, [(next(numbers), "") for _ in range(new)])
                case Respond():
                    item = str(unit.instruction_id)
                    kept = ask("response_generation", index, item) and ask(_IMPROVED, index, item)
                    coming += self._draw_extra(self.extra_per_sample, index, rng) if kept else []
                    plan.responded(unit, kept and rng.random() >= dropping)
        return coming

    def _draw_extra(self, averages: Mapping[str, float], reference: int, rng: random.Random) -> list[StageQuestion]:
        """Questions about a reference, so many of each stage on average."""
        questions: list[StageQuestion] = []
        for stage, average in averages.items():
            count = int(average) + (rng.random() < average % 1)
            questions += [
                StageQuestion(stage, reference, 0.0, answerer=self.weights.draw(stage, rng)) for _ in range(count)
            ]
        return questions


class _EarlierRounds:
    """How many instructions a reference gave in earlier rounds: the newest of them are shown as taken."""

    def __init__(self, proposals: Iterable[tuple[int, int, int]]) -> None:
        """`proposals`: (reference, round, new instructions) of each."""
        self._new: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for reference, round_, new in proposals:
            self.add(reference, round_, new)

    def add(self, reference: int, round_: int, new: int) -> None:
        self._new[reference][round_] += new

    def shown(self, reference: int, round_: int) -> int:
        return min(TAKEN_SHOWN, sum(new for r, new in self._new[reference].items() if r < round_))


def _made(
    ledger: Ledger,
    references: Sequence[Reference],
    earlier: _EarlierRounds,
    instruction_characters: float,
    weights: StageWeights,
) -> Iterator[StageQuestion]:
    """Every question that was answered, whatever the answer was worth, with all its calls."""
    position = {reference.id: index for index, reference in enumerate(references)}
    origin = dict(ledger.db.execute("SELECT CAST(id AS TEXT), reference FROM instructions"))
    for stage, item, round_, *usage, model, endpoint in ledger.db.execute(_MADE):
        about = item.partition("/")[0]
        index = origin.get(about, position.get(about))
        if index is not None:
            shown = earlier.shown(index, round_) if stage == "instruction_synthesis" else 0
            characters = _characters(stage, references[index]) + instruction_characters * shown
            answerer = weights.answerer_of(stage, model, endpoint)
            yield StageQuestion(stage, index, characters, Usage(*usage), answerer)


def _unpriced(ledger: Ledger, weights: StageWeights) -> int:
    """What calls made while the price was unknown cost, picodollars, as far as the price is known now."""
    return round(sum(cost for *_, cost in _charged(ledger, weights, "cost IS NULL")))


def _waiting(ledger: Ledger, weights: StageWeights) -> dict[str, tuple[int, float]]:
    """Stage → calls that wait in a batch, or whose answers were not used so far, and what they are charged."""
    waiting: dict[str, tuple[int, float]] = {}
    in_batches = f"outcome IN ('{SENT}', '{UNUSED}') AND id IN (SELECT call FROM batched)"
    for stage, count, cost in _charged(ledger, weights, in_batches):
        calls, charged = waiting.get(stage, (0, 0.0))
        waiting[stage] = calls + count, charged + cost
    return waiting


def _charged(ledger: Ledger, weights: StageWeights, which: str) -> Iterator[tuple[str, int, float]]:
    """(stage, calls, picodollars) of the calls `which` selects. Calls without a cost are priced at the rates known now,
    if there are any."""
    of_unpriced = "CASE WHEN cost IS NULL THEN"
    for stage, model, endpoint, count, cost, prompt, cached, completion in ledger.db.execute(
        f"SELECT stage, model, endpoint, count(*), total(cost), total({of_unpriced} prompt_tokens END),"
        f" total({of_unpriced} cached_tokens END), total({of_unpriced} completion_tokens END)"
        f" FROM calls WHERE {which} GROUP BY stage, model, endpoint"
    ):
        rates = weights.rates_for(weights.answerer_of(stage, model, endpoint)) if prompt or completion else None
        yield stage, count, cost + (rates.cost(prompt, cached, 0, completion) if rates is not None else 0)


def _dropped(ledger: Ledger) -> int:
    """Samples that were made and dropped; instructions dropped before that cost no response."""
    return int(
        ledger.db.execute(
            "SELECT count(DISTINCT instruction) FROM decisions WHERE NOT kept AND CAST(instruction AS TEXT) IN"
            " (SELECT item FROM answers WHERE stage='response_generation')"
        ).fetchone()[0]
    )


def _extra_per_sample(ledger: Ledger) -> dict[str, float]:
    """Counted over the samples that are made and decided on: those in progress have not asked all their questions yet.
    Before there is such a sample, over those in progress."""
    items = _SETTLED
    (settled,) = ledger.db.execute(f"SELECT count(*) FROM ({items})").fetchone()
    if not settled:
        items = "SELECT DISTINCT item FROM answers WHERE stage = 'response_generation'"
        (settled,) = ledger.db.execute(f"SELECT count(*) FROM ({items})").fetchone()
    asked = Counter(dict(ledger.db.execute(_ASKED.format(items))))
    for stage in ("response_generation", _IMPROVED):  # the simulation asks one of each anyway
        asked[stage] -= settled
    return {stage: count / settled for stage, count in asked.items() if count > 0}


def _extra_per_reference(ledger: Ledger, references: Sequence[Reference]) -> dict[str, float]:
    ids = {reference.id for reference in references}
    rows = ledger.db.execute("SELECT DISTINCT stage, item FROM answers UNION SELECT stage, item FROM failures")
    asked = [(stage, item) for stage, item in rows if item in ids]
    opened = len({item for _, item in asked})
    planned = {*_STUDY.values(), "instruction_synthesis"}
    return {stage: n / opened for stage, n in Counter(stage for stage, _ in asked if stage not in planned).items()}


def _characters(stage: str, reference: Reference) -> int:
    """How much of the reference is in a stage's prompt (signatures/)."""
    if stage not in {*_STUDY.values(), "instruction_synthesis", "response_generation"}:
        return 0
    return len(reference.instruction) + (0 if stage == "instruction_synthesis" else len(reference.response))

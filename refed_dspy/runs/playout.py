"""A run's future, played: its plan run to the end without a teacher, by what the ledger says happened so far."""

from __future__ import annotations

import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.provenance import model_of
from refed_dspy.ledger.spending import spent
from refed_dspy.ledger.statements import SENT, UNUSED
from refed_dspy.programs.reference_level import TAKEN_SHOWN
from refed_dspy.records import Rates, Reference
from refed_dspy.runs.plan import Plan, PlanSettings, Propose, Respond, Study

RARE = (20.0, 0.02)
"""What is held of a stage before it failed: as if two in a hundred had, seen twenty times."""
_IMPROVED = "response_improvement"
_STUDY = {"features": "instruction_feedback", "response": "response_feedback"}
Numbers: TypeAlias = tuple[float, ...]
Kind: TypeAlias = tuple[str, str]
"""A stage, and who answers."""


@dataclass(frozen=True)
class Unit:
    """One question of a stage, asked or still to be: about which reference, whose text in the prompt has how many
    characters, and what it took (calls, prompt, cached and completion tokens, seconds, picodollars charged unseen)."""

    stage: str
    reference: int
    characters: float
    took: Numbers = ()
    writer: str = ""
    """Who answers it (`Shares`)."""

    @property
    def kind(self) -> Kind:
        """What units must share for one to tell of another."""
        return self.stage, self.writer


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
    """What a run's ledger says that bears on its future."""

    ledger: Ledger
    references: Sequence[Reference]
    made: Sequence[Unit]
    answered: frozenset[tuple[str, str]]
    done: Mapping[str, int]
    """Stage → questions answered."""
    failed: Mapping[str, int]
    """Stage → questions that failed for good or for now."""
    gave: Sequence[int]
    """New instructions of each synthesis call."""
    instruction_characters: float
    shares: StageShares
    charged: int
    """Picodollars, calls that wait in a batch, or whose answers do, included."""
    waiting: Mapping[str, tuple[int, float]]
    """Stage → how many those are, and what they are charged. A play asks their questions, too."""
    stages: frozenset[str]
    """Those that the run's program has."""
    final: str
    """The one whose answer is what is trained on."""
    dropped: int
    """Samples that a filter dropped."""
    further: Mapping[str, float]
    """Stage → questions a sample made beyond one answer and one improvement: those of a judge, of sample-level
    feedback, of a further program in a comparison."""
    of_references: Mapping[str, float]
    """Stage → questions about an opened reference beside its studies: the grade of its own response."""

    @classmethod
    def read(
        cls,
        ledger: Ledger,
        rates: Rates | None = None,
        by_stage: Mapping[str, Any] | None = None,
        judge: Rates | None = None,
    ) -> RunHistory:
        """Priced at `rates` (of one teacher) or those in `staff`, and the judge's, or at those that the folder
        remembers."""
        db, references, shares = ledger.db, ledger.references(), StageShares.read(ledger, rates, by_stage, judge)
        (length,) = db.execute("SELECT avg(length(text)) FROM instructions").fetchone()
        earlier = _Earlier((ref, round_, new) for ref, _, round_, new in ledger.proposals())
        return cls(
            ledger=ledger,
            references=references,
            made=list(_made(ledger, references, earlier, length or 0.0, shares)),
            answered=frozenset(db.execute("SELECT stage, item FROM answers")),
            done=dict(db.execute("SELECT stage, count(*) FROM answers GROUP BY stage")),
            failed=dict(db.execute("SELECT stage, count(*) FROM failures GROUP BY stage")),
            gave=[new for *_, new in ledger.proposals()],
            instruction_characters=length or 0.0,
            shares=shares,
            charged=spent(ledger).cost + _unpriced(ledger, shares),
            waiting=_waiting(ledger, shares),
            stages=shares.stages,
            final=str(ledger.meta("final_stage") or _IMPROVED),
            dropped=_dropped(ledger),
            further=_further(ledger),
            of_references=_of_references(ledger, references),
        )

    def settled(self, coming: Mapping[str, float]) -> int:
        """What is charged, but for calls in batches whose questions are among those `coming` (stage → how many): what
        these cost is foreseen with the rest."""
        shares = ((min(1.0, coming.get(stage, 0.0) / count), cost) for stage, (count, cost) in self.waiting.items())
        return self.charged - round(sum(share * cost for share, cost in shares))

    @property
    def seen(self) -> int:
        """References that gave samples."""
        return len({unit.reference for unit in self.made if unit.stage == self.final})

    def drops(self, rng: random.Random) -> float:
        """A plausible share of the samples that a filter drops."""
        return rng.betavariate(self.dropped, self.ledger.kept() + 1) if self.dropped else 0.0

    def fails(self, stage: str, rng: random.Random) -> float:
        """A plausible share of a stage's questions that fail: drawn from its posterior, the prior being `RARE`."""
        weight, share = RARE
        bad, good = self.failed.get(stage, 0), self.done.get(stage, 0)
        return rng.betavariate(bad + weight * share, good + weight * (1 - share))

    def simulate(self, settings: PlanSettings, rng: random.Random) -> list[Unit]:
        """The plan played to its end: every question still to ask. What fails, and how much a synthesis call gives,
        is drawn from what happened so far."""
        stages = (*_STUDY.values(), "instruction_synthesis", "response_generation", _IMPROVED)
        failing = {stage: self.fails(stage, rng) for stage in stages}
        dropping = self.drops(rng)
        gave = rng.choices(self.gave, k=len(self.gave)) or [settings.instructions_per_feature]
        numbers, coming = itertools.count(-1, -1), list[Unit]()
        earlier = _Earlier((ref, round_, new) for ref, _, round_, new in self.ledger.proposals())
        plan, ledger = Plan(settings), self.ledger
        plan.restore(ledger.kept(), ledger.proposals(), ledger.used(), ledger.open_instructions())

        def asked(stage: str, index: int, item: str, shown: float = 0.0) -> bool:
            """Ask, if the program does; whether it was answered."""
            if self.stages and stage not in self.stages:
                return True
            if (stage, item) in self.answered:
                return True
            characters, writer = _characters(stage, self.references[index]) + shown, self.shares.drawn(stage, rng)
            coming.append(Unit(stage, index, characters, writer=writer))
            return rng.random() >= failing[stage]

        while (unit := plan.next_unit()) is not None:
            index = unit.reference
            match unit:
                case Study():
                    coming += self._drawn(self.of_references, index, rng) if unit.part == "response" else []
                    plan.studied(unit, failed=not asked(_STUDY[unit.part], index, self.references[index].id))
                case Propose():
                    shown = self.instruction_characters * earlier.shown(index, unit.round)
                    new = rng.choice(gave) if asked("instruction_synthesis", index, "", shown) else 0
                    earlier.add(index, unit.round, new)
                    plan.proposed(unit, [(next(numbers), "") for _ in range(new)])
                case Respond():
                    item = str(unit.instruction)
                    kept = asked("response_generation", index, item) and asked(_IMPROVED, index, item)
                    coming += self._drawn(self.further, index, rng) if kept else []
                    plan.responded(unit, kept and rng.random() >= dropping)
        return coming

    def _drawn(self, questions: Mapping[str, float], reference: int, rng: random.Random) -> list[Unit]:
        """Questions about a reference, so many of each stage on average."""
        stages = (stage for stage, often in questions.items() for _ in range(int(often) + (rng.random() < often % 1)))
        return [Unit(stage, reference, 0.0, writer=self.shares.drawn(stage, rng)) for stage in stages]


class _Earlier:
    """How many instructions a reference gave in the rounds before one: the newest of them are shown as taken."""

    def __init__(self, given: Iterable[tuple[int, int, int]]) -> None:
        self._given: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for reference, round_, new in given:
            self.add(reference, round_, new)

    def add(self, reference: int, round_: int, new: int) -> None:
        self._given[reference][round_] += new

    def shown(self, reference: int, round_: int) -> int:
        return min(TAKEN_SHOWN, sum(new for r, new in self._given[reference].items() if r < round_))


def _made(
    ledger: Ledger,
    references: Sequence[Reference],
    earlier: _Earlier,
    instruction_characters: float,
    shares: StageShares,
) -> Iterator[Unit]:
    """Every question that was answered, whatever the answer was worth, with all its calls."""
    position = {reference.id: index for index, reference in enumerate(references)}
    origin = dict(ledger.db.execute("SELECT CAST(id AS TEXT), reference FROM instructions"))
    for stage, item, round_, *took, model, endpoint in ledger.db.execute(_MADE):
        about = item.partition("/")[0]
        index = origin.get(about, position.get(about))
        if index is not None:
            shown = earlier.shown(index, round_) if stage == "instruction_synthesis" else 0
            characters = _characters(stage, references[index]) + instruction_characters * shown
            yield Unit(stage, index, characters, tuple(took), shares.wrote(stage, model, endpoint))


def _unpriced(ledger: Ledger, shares: StageShares) -> int:
    """What calls made while the price was unknown come to, picodollars, as far as it is known now."""
    return round(sum(cost for *_, cost in _charged(ledger, shares, "cost IS NULL")))


def _waiting(ledger: Ledger, shares: StageShares) -> dict[str, tuple[int, float]]:
    """Stage → calls that wait in a batch, or whose answers nobody asked for so far, and what they are charged."""
    waiting: dict[str, tuple[int, float]] = {}
    in_batches = f"outcome IN ('{SENT}', '{UNUSED}') AND id IN (SELECT call FROM batched)"
    for stage, count, cost in _charged(ledger, shares, in_batches):
        calls, charged = waiting.get(stage, (0, 0.0))
        waiting[stage] = calls + count, charged + cost
    return waiting


def _charged(ledger: Ledger, shares: StageShares, which: str) -> Iterator[tuple[str, int, float]]:
    """(stage, calls, picodollars) of some calls, at the price that is known now where it was unknown."""
    of = "CASE WHEN cost IS NULL THEN"
    for stage, model, endpoint, count, cost, *tokens in ledger.db.execute(
        f"SELECT stage, model, endpoint, count(*), total(cost), total({of} prompt_tokens END),"
        f" total({of} cached_tokens END), 0, total({of} completion_tokens END)"
        f" FROM calls WHERE {which} GROUP BY stage, model, endpoint"
    ):
        rates = shares.of_rates(shares.wrote(stage, model, endpoint)) if any(tokens) else None
        yield stage, count, cost + (rates.cost(*tokens) if rates is not None else 0)


def _dropped(ledger: Ledger) -> int:
    """Samples that were made and dropped; instructions dropped before cost no response."""
    return int(
        ledger.db.execute(
            "SELECT count(DISTINCT instruction) FROM decisions WHERE NOT kept AND CAST(instruction AS TEXT) IN"
            " (SELECT item FROM answers WHERE stage='response_generation')"
        ).fetchone()[0]
    )


def _further(ledger: Ledger) -> dict[str, float]:
    """Of the samples that are made and decided on: those in work have not been asked all yet. Before there is one, of
    those in work."""
    responses = _SETTLED
    (settled,) = ledger.db.execute(f"SELECT count(*) FROM ({responses})").fetchone()
    if not settled:
        responses = "SELECT DISTINCT item FROM answers WHERE stage = 'response_generation'"
        (settled,) = ledger.db.execute(f"SELECT count(*) FROM ({responses})").fetchone()
    asked = Counter(dict(ledger.db.execute(_ASKED.format(responses))))
    for stage in ("response_generation", _IMPROVED):  # one of each is played as such
        asked[stage] -= settled
    return {stage: count / settled for stage, count in asked.items() if count > 0}


def _of_references(ledger: Ledger, references: Sequence[Reference]) -> dict[str, float]:
    ids = {reference.id for reference in references}
    rows = ledger.db.execute("SELECT DISTINCT stage, item FROM answers UNION SELECT stage, item FROM failures")
    asked = [(stage, item) for stage, item in rows if item in ids]
    opened = len({item for _, item in asked})
    known = {*_STUDY.values(), "instruction_synthesis"}
    return {stage: n / opened for stage, n in Counter(stage for stage, _ in asked if stage not in known).items()}


def _characters(stage: str, reference: Reference) -> int:
    """How much of the reference stands in a stage's prompt (signatures/)."""
    if stage not in {*_STUDY.values(), "instruction_synthesis", "response_generation"}:
        return 0
    return len(reference.instruction) + (0 if stage == "instruction_synthesis" else len(reference.response))


JUDGE = "judge"


@dataclass(frozen=True)
class StageShares:
    """Who answers which stage, with what weight, and what each charges. One teacher has no name; a judge answers the
    stages that the program has not."""

    pools: Mapping[str, Sequence[tuple[str, float]]]
    """Stage → (writer, weight); the empty name: all others."""
    rates: Mapping[str, Rates | None]
    stages: frozenset[str]

    @classmethod
    def read(
        cls, ledger: Ledger, rates: Rates | None, by_stage: Mapping[str, Any] | None, judge: Rates | None
    ) -> StageShares:
        """As the folder remembers them, but for what is given: the one teacher's rates, or the staff's facts, and the
        judge's rates."""
        stages = frozenset(name.rpartition(".")[2] for name in (ledger.meta("identity") or {}).get("program", ()))
        by_stage = by_stage or (ledger.meta("pools") if rates is None else None)
        known = rates or _rates(ledger.meta("rates"))
        had = ledger.meta("judge") or {}
        remembered = _rates(had["rates"]) if "rates" in had else known
        charge: dict[str, Rates | None] = {"": known, JUDGE: judge or remembered}
        if not by_stage:
            return cls({"": (("", 1.0),)}, charge, stages)
        pools = {stage: [(_writer(one), float(one["weight"])) for one in pool] for stage, pool in by_stage.items()}
        charge |= {_writer(one): _rates(one["rates"]) for pool in by_stage.values() for one in pool}
        return cls(pools, charge, stages)

    @property
    def priced(self) -> bool:
        """Whether the price of everyone who will be asked is known."""
        teachers = (writer for pool in self.pools.values() for writer, _ in pool)
        return all(self.rates[writer] is not None for writer in (*teachers, JUDGE))

    def of_rates(self, writer: str) -> Rates | None:
        """None: unknown."""
        return self.rates.get(writer)

    def wrote(self, stage: str, model: str, endpoint: str) -> str:
        """Whose a call was."""
        if self.stages and stage not in self.stages:
            return JUDGE
        alone = "" in (writer for writer, _ in self.pools[""])
        return "" if alone else f"{model_of(model, endpoint)} at {endpoint}"

    def drawn(self, stage: str, rng: random.Random) -> str:
        """Who will answer a question."""
        if self.stages and stage not in self.stages:
            return JUDGE
        pool = self.pools.get(stage, self.pools[""])
        if len(pool) == 1:
            return pool[0][0]
        return rng.choices([writer for writer, _ in pool], [weight for _, weight in pool])[0]


def _writer(member: Mapping[str, Any]) -> str:
    return f"{member['model']} at {member['endpoint']}"


def _rates(stored: Sequence[int] | None) -> Rates | None:
    return Rates(*stored) if stored else None

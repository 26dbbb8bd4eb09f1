"""A run so far, as a forecast needs it: what was asked and what it took, what failed and what was dropped."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from refed_dspy.ledger.history import (
    AskedQuestion,
    ChargedCalls,
    Usage,
    answered_items,
    asked_questions,
    calls_in_batches,
    dropped_items,
    failed_items,
    instructions,
    unpriced_calls,
)
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.records import TAKEN_SHOWN, Reference
from refed_dspy.runs.stage_weights import StageWeights

STUDY = {"features": "instruction_feedback", "response": "response_feedback"}
"""The stage of each kind of study."""
SYNTHESIS, RESPONSE, IMPROVEMENT = "instruction_synthesis", "response_generation", "response_improvement"
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


class EarlierRounds:
    """What a reference gave in earlier rounds: the newest instructions of it are shown as taken."""

    def __init__(self, proposals: Iterable[tuple[int, str, int, int]], characters: float) -> None:
        """`proposals`: as `Ledger.proposals` returns them; `characters` of an instruction, on average."""
        self._characters = characters
        self._new: defaultdict[int, Counter[int]] = defaultdict(Counter)
        for reference, _, round_, new in proposals:
            self.add(reference, round_, new)

    def add(self, reference: int, round_: int, new: int) -> None:
        self._new[reference][round_] += new

    def shown(self, reference: int, round_: int) -> float:
        """Characters of these instructions in the prompt of a round."""
        return self._characters * min(TAKEN_SHOWN, sum(new for r, new in self._new[reference].items() if r < round_))


@dataclass(frozen=True)
class RunHistory:
    """A run so far."""

    references: Sequence[Reference]
    kept: int
    proposals: Sequence[tuple[int, str, int, int]]
    used: Sequence[tuple[int, int, int]]
    open_instructions: Sequence[tuple[int, int, str]]
    """As `Ledger` returns these four."""
    made: Sequence[StageQuestion]
    answered: frozenset[tuple[str, str]]
    """(stage, item) of each question that was answered."""
    done: Mapping[str, int]
    """Stage → questions answered."""
    failed: Mapping[str, int]
    """Stage → questions that failed for good or for now."""
    instruction_characters: float
    """On average."""
    weights: StageWeights
    charged: int
    """Picodollars, including calls that wait in a batch, or whose answers do."""
    waiting: Mapping[str, tuple[int, float]]
    """Stage → how many calls those are, and what they are charged. A simulation asks their questions, too."""
    final: str
    """The stage whose answer is what is trained on."""
    dropped: int
    """Samples that a filter dropped; instructions dropped before that cost no response."""
    extra_per_sample: Mapping[str, float]
    """Stage → questions a sample made beyond one answer and one improvement: those of a judge, of sample-level
    feedback, of a further program in a comparison."""
    extra_per_reference: Mapping[str, float]
    """Stage → questions about an opened reference beside its studies: the grade of its own response."""

    @classmethod
    def read(cls, ledger: Ledger, weights: StageWeights) -> RunHistory:
        """The history of the run in `ledger`, priced at the rates in `weights`."""
        references, proposals, all_instructions = ledger.references(), ledger.proposals(), instructions(ledger)
        answered, failed = answered_items(ledger), failed_items(ledger)
        responses = {item for stage, item in answered if stage == RESPONSE}
        settled = responses.intersection(instruction.item for instruction in all_instructions if not instruction.open)
        mean = fmean(instruction.characters for instruction in all_instructions) if all_instructions else 0.0
        reference_of = {reference.id: index for index, reference in enumerate(references)}
        reference_of |= {instruction.item: instruction.reference for instruction in all_instructions}
        earlier = EarlierRounds(proposals, mean)
        return cls(
            references=references,
            kept=ledger.kept(),
            proposals=proposals,
            used=ledger.used(),
            open_instructions=ledger.open_instructions(),
            made=list(_made(asked_questions(ledger), reference_of, references, earlier, weights)),
            answered=frozenset(answered),
            done=Counter(stage for stage, _ in answered),
            failed=Counter(stage for stage, _ in failed),
            instruction_characters=mean,
            weights=weights,
            charged=charged(ledger, weights),
            waiting=waiting_calls(ledger, weights),
            final=str(ledger.meta("final_stage") or IMPROVEMENT),
            dropped=len(responses & dropped_items(ledger)),
            extra_per_sample=_extra_per_sample(answered + failed, settled or responses),
            extra_per_reference=_extra_per_reference({*answered, *failed}, references),
        )

    def settled(self, coming: Mapping[str, float]) -> int:
        """`settled_charges` of this run."""
        return settled_charges(self.charged, self.waiting, coming)

    @property
    def references_with_samples(self) -> int:
        return len({question.reference for question in self.made if question.stage == self.final})


def reference_characters(stage: str, reference: Reference) -> int:
    """How much of the reference is in a stage's prompt (signatures/)."""
    if stage not in {*STUDY.values(), SYNTHESIS, RESPONSE}:
        return 0
    return len(reference.instruction) + (0 if stage == SYNTHESIS else len(reference.response))


def _made(
    asked: Iterable[AskedQuestion],
    reference_of: Mapping[str, int],
    references: Sequence[Reference],
    earlier: EarlierRounds,
    weights: StageWeights,
) -> Iterator[StageQuestion]:
    """Every question that was answered, whatever the answer was worth, with all its calls."""
    for stage, item, round_, model, endpoint, usage in asked:
        index = reference_of.get(item.partition("/")[0])
        if index is not None:
            shown = earlier.shown(index, round_) if stage == SYNTHESIS else 0
            characters = reference_characters(stage, references[index]) + shown
            yield StageQuestion(stage, index, characters, usage, weights.answerer_of(stage, model, endpoint))


def charged(ledger: Ledger, weights: StageWeights) -> int:
    """Picodollars charged so far, including calls that wait in a batch."""
    return spent(ledger).picodollars + round(sum(_cost(calls, weights) for calls in unpriced_calls(ledger)))


def waiting_calls(ledger: Ledger, weights: StageWeights) -> dict[str, tuple[int, float]]:
    """Stage → calls that wait in a batch, or whose answers do, and what they are charged."""
    waiting: dict[str, tuple[int, float]] = {}
    for calls in calls_in_batches(ledger):
        count, cost = waiting.get(calls.stage, (0, 0.0))
        waiting[calls.stage] = count + calls.calls, cost + _cost(calls, weights)
    return waiting


def settled_charges(charged: int, waiting: Mapping[str, tuple[int, float]], coming: Mapping[str, float]) -> int:
    """Picodollars `charged`, without calls in batches whose questions are among those `coming` (stage → how many):
    the forecast of what is still to come covers these."""
    covered = 0.0
    for stage, (count, cost) in waiting.items():
        covered += min(1.0, coming.get(stage, 0.0) / count) * cost
    return charged - round(covered)


def _cost(calls: ChargedCalls, weights: StageWeights) -> float:
    """What the calls cost. Those made at an unknown price are priced at the rates known now, if there are any."""
    rates = weights.rates_for(weights.answerer_of(calls.stage, calls.model, calls.endpoint))
    return calls.cost + (rates.cost(calls.prompt, calls.cached, 0, calls.completion) if rates is not None else 0)


def _extra_per_sample(asked: Iterable[tuple[str, str]], samples: Collection[str]) -> dict[str, float]:
    """Counted over `samples`, items that are made and decided on: those in progress have not asked all their questions
    yet. Before there is such a sample, over those in progress."""
    counts = Counter(stage for stage, item in asked if item in samples)
    for stage in (RESPONSE, IMPROVEMENT):  # a simulation asks one of each anyway
        counts[stage] -= len(samples)
    return {stage: count / len(samples) for stage, count in sorted(counts.items()) if count > 0}


def _extra_per_reference(asked: Iterable[tuple[str, str]], references: Sequence[Reference]) -> dict[str, float]:
    ids = {reference.id for reference in references}
    of_references = [(stage, item) for stage, item in asked if item in ids]
    opened = len({item for _, item in of_references})
    counts = Counter(stage for stage, _ in of_references if stage not in {*STUDY.values(), SYNTHESIS})
    return {stage: count / opened for stage, count in sorted(counts.items())}

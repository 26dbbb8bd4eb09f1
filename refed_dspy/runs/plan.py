"""The plan of a run: which unit of work comes next. Deepest stage first, and nothing that the target does not need.

A unit of work is studying a reference (its two kinds of feedback), proposing instructions for one of its
features, or responding to one instruction. The plan hands out the deepest unit that can run: samples finish early,
memory stays flat, and one reference's calls follow one another. It opens a further reference only when what
the open ones can still give would not fill the target; each may give its share of a round, by default an even one, so
that all are used. Where a cached prefix saves money or time (`lead`), one unit of
a reference goes first, and the units whose prompts begin alike follow when it has ended: only then has the provider
cached the prefix. Pure bookkeeping: no clock, no network, no disk.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

FEEDBACK_KINDS = ("features", "response")
"""What studying a reference gives: feedback on its instruction (one text a feature), and on its response."""
CRITERIA = "criteria"
"""And, where a program asks for them, its criteria."""
ENOUGH_RESPONSES, ENOUGH_PROPOSALS = 50, 10
"""After so many responses the share that is kept is estimated from them; after so many synthesis calls, how many
instructions a call gives."""
FEW_MISSING = 20
"""When fewer samples than this are missing, drops are no longer anticipated: what is missing is asked for exactly."""
DEVIATIONS, LEAST_SHARE = 2.33, 0.1
"""Standard deviations: about one round in a hundred keeps a row more than was asked for. And the smallest share kept
that is assumed: no round is more than ten times what is missing, whatever the filters did so far."""
PATIENCE = 3
"""Rounds in a row without a new instruction after which a reference retires."""


@dataclass(frozen=True)
class Study:
    """Collect feedback on reference number `reference`: on its instruction (`features`) or its `response`; or its
    `criteria`."""

    reference: int
    kind: str


@dataclass(frozen=True)
class Propose:
    """Ask for instructions of `feature`; `round` counts how often all references were gone through before."""

    reference: int
    feature: str
    round: int


@dataclass(frozen=True)
class Respond:
    """Answer one instruction and improve the answer."""

    reference: int
    round: int
    instruction_id: int
    text: str


Unit = Study | Propose | Respond


@dataclass(frozen=True)
class ToCome:
    """What a run will still take: `samples`; the references that it will have `used` in all, the `new` ones of them;
    and synthesis calls."""

    samples: int
    used: int
    new: int
    synthesis: int


@dataclass(frozen=True)
class PlanSettings:
    """Shape of a plan: how many samples, from how many references, how many instructions a synthesis call gives."""

    size: int
    references: int
    features: tuple[str, ...]
    instructions_per_feature: int
    per_reference: int | None
    """Samples that a reference gives in a round. None: an even share (`share`)."""
    seed: int
    lead: bool = False
    """Whether a reference's first unit of a kind goes alone, so that the others find their prompts' prefix cached. It
    costs the time of one unit a reference, which other references use; a run of few references takes longer."""
    ahead: bool = False
    """Whether what filters will drop is made up for beforehand, at the share that was kept so far. Else it is made up
    for once it has been dropped: exactly `size` are kept, but where a round of calls takes hours, there is one round
    for half of them, then one for a quarter, and so on."""

    studies: tuple[str, ...] = FEEDBACK_KINDS
    """What is collected on a reference before it gives samples."""

    @property
    def most(self) -> int:
        """Samples that a reference can give in a round: one for each instruction that it is asked for."""
        return len(self.features) * self.instructions_per_feature

    def order(self, round_: int, references: int) -> list[int]:
        """In which order so many references are opened in a round: drawn at random without replacement."""
        return random.Random(f"{self.seed}/{round_}").sample(range(references), references)

    def share(self, turn: int, references: int, samples: int) -> int:
        """How many of a round's `samples` the reference may give whose `turn` it is among so many.

        They are spread evenly. Where one synthesis call for each reference would not do, the calls are: a further one
        is made for all that it gives, so that no way of using every reference takes fewer calls.
        """
        if self.per_reference is not None:
            return self.per_reference
        a_call = self.instructions_per_feature
        step = 1 if samples <= references * a_call else a_call  # what shares differ by
        steps_of_each, steps_left = divmod(-(-samples // step), references)
        return min(self.most, step * max(1, steps_of_each + (turn < steps_left)))

    def to_come(self, kept: int = 0, begun: int = 0, asked: int = 0, ready: int = 0) -> ToCome:
        """What is left where so many samples are kept, so many references are begun and were asked for instructions so
        many times, and so many instructions are not answered. What fails or is dropped comes on top."""
        missing, each = max(0, self.size - kept), min(self.per_reference or 1, self.most)
        used = max(begun, min(self.references, -(-self.size // each)))
        at_least = self.calls_for(missing - ready)
        return ToCome(missing, used, used - begun, max(0, at_least, self._synthesis_calls() - asked))

    def calls_for(self, instructions: int) -> int:
        """Synthesis calls that give so many."""
        return -(-instructions // self.instructions_per_feature)

    def _synthesis_calls(self) -> int:
        """In all, where each gives as many instructions as it is asked for."""
        if (each := self.per_reference) is None:
            full, rest = divmod(self.size, self.references * self.most)
            return full * self.references * len(self.features) + max(min(rest, self.references), self.calls_for(rest))
        each = min(each, self.most)
        full, rest = divmod(min(self.size, self.references * each), each)
        return max(full * self.calls_for(each) + self.calls_for(rest), self.calls_for(self.size))


class Plan:
    """Hands out units (`next_unit`); `studied`, `proposed` and `responded` report how each ended."""

    def __init__(self, settings: PlanSettings) -> None:
        self.settings = settings
        self.kept = 0
        self.responding = 0
        self._ended = self._kept = 0
        """Responses that ended in this start, and those of them that were kept."""
        self._proposals = self._new = 0
        """Synthesis calls of this start, and the new instructions that they gave."""
        self._round = 0
        self._horizon = settings.size
        missing = frozenset(settings.studies)
        self._sources = [PlannedReference(i, missing_feedback=missing) for i in range(settings.references)]
        self._open = OpenReferences(settings.instructions_per_feature, settings.lead)
        self._waiting = self._draw(0, made=0)
        self._begun = self._asked = 0
        """References that were asked for instructions in earlier starts, and how often."""

    @property
    def complete(self) -> bool:
        return self.kept >= self.settings.size

    @property
    def missing(self) -> int:
        """Samples to plan for: those that neither exist nor are being written."""
        return self._horizon - self.kept - self._expected(self.responding)

    # --- what is asked next

    def next_unit(self) -> Unit | None:
        """The deepest unit that can run now, or None: nothing can, or nothing more is needed."""
        if self.missing <= 0:
            return None
        while True:
            # All studies of an open reference come before its proposals: its responses wait for them.
            unit = self._respond() or self._study() or self._propose()
            if unit is not None:
                return unit
            if self._expected(self._open.planned) >= self.missing or not self._open_next():
                return None

    def _respond(self) -> Respond | None:
        if (source := self._open.to_respond.get()) is None:
            return None
        instruction, text = source.ready.pop(0)
        source.responding += 1
        self.responding += 1
        self._open.changed(source)
        return Respond(source.index, source.round, instruction, text)

    def _study(self) -> Study | None:
        if (source := self._open.to_study.get()) is None:
            return None
        source.studying += 1
        return Study(source.index, source.to_study.pop(0))

    def _propose(self) -> Propose | None:
        source = self._open.to_propose.get()
        # A reference is opened for all its features; the last one's second call may turn out not to be needed.
        if source is None or self._expected(self._open.asked) >= self.missing:
            return None
        source.proposing += 1
        feature = source.to_propose.pop(0)
        self._open.changed(source)
        return Propose(source.index, feature, source.round)

    # --- opening references

    def _open_next(self) -> bool:
        """Open one more reference; when all have been, begin the next round. False where none is free."""
        if not self._waiting:
            self._round += 1
            made = self.kept + self._expected(self.responding + self._open.planned)
            self._waiting = self._draw(self._round, made)
        if (source := self._waiting.take()) is None:
            return False
        source.round = self._round
        self._admit(source, asked=())
        return True

    def _draw(self, round_: int, made: int, opened: Collection[int] = ()) -> Round:
        """The references that still give, in the order of a round that begins with `made` samples; none of those that
        it has `opened`."""
        living = [source for source in self._sources if not source.retired]
        order = [living[place] for place in self.settings.order(round_, len(living))]
        turns = [(turn, source) for turn, source in enumerate(order) if source.index not in opened]
        samples = self.settings.size - made
        return Round(turns, lambda turn: self.settings.share(turn, len(order), samples))

    def _admit(self, source: PlannedReference, asked: Collection[str]) -> None:
        """Open `source`: it is studied unless it was, and asked for features that fill its share, but those that it was
        `asked` for in this round."""
        source.to_study.extend(kind for kind in self.settings.studies if kind in source.missing_feedback)
        # A round that was interrupted asks for the rest of its share; a new one uses first what is ready.
        wanted = source.share if asked else self._open.room(source) - len(source.ready)
        features = self.settings.features
        calls = min(len(features), self.settings.calls_for(wanted))
        first = source.index + source.round  # references, and their rounds, do not all begin with the same feature
        turns = [features[(first + turn) % len(features)] for turn in range(calls)]
        source.to_propose.extend(feature for feature in turns if feature not in asked)
        self._open.add(source)

    # --- how a unit ended

    def studied(self, unit: Study, failed: bool = False) -> None:
        """Without its feedback a reference can give nothing: where `failed`, it leaves the run."""
        source = self._sources[unit.reference]
        source.studying -= 1
        if failed:
            source.failed = True
            source.to_study.clear()
            source.to_propose.clear()
        else:
            source.missing_feedback -= {unit.kind}
        self._settle(source)

    def proposed(self, unit: Propose, new: Sequence[tuple[int, str]]) -> None:
        """`new`: id and text of each instruction that was not there before; empty where the call failed."""
        source = self._sources[unit.reference]
        source.proposing -= 1
        self._proposals += 1
        self._new += len(new)
        source.new += len(new)
        source.ready.extend(new)
        self._open.expect(self._each())
        self._settle(source)

    def responded(self, unit: Respond, kept: bool) -> None:
        source = self._sources[unit.reference]
        source.responding -= 1
        self.responding -= 1
        source.warm = True
        source.kept_this_round += kept
        self.kept += kept
        self._ended += 1
        self._kept += kept
        self._settle(source)

    def _settle(self, source: PlannedReference) -> None:
        """Close `source` for this round once nothing of it runs and nothing of it is left to hand out."""
        if source.busy or self._open.usable(source):
            self._open.changed(source)
            return
        self._open.remove(source)
        source.empty_rounds = 0 if source.new or source.kept_this_round else source.empty_rounds + 1
        source.retired = source.failed or source.empty_rounds >= PATIENCE
        self._waiting.closed(source)  # the next round may have been drawn before this one ended
        source.kept_this_round = source.new = 0
        source.warm = False  # its next round is far: no cache lasts until then

    # --- what may be expected

    def look_ahead(self, more: int | None) -> None:
        """Plan for at most `more` samples beyond those that exist or are being written. None: for all of them.

        Where money is short, opening a reference for samples that the cap does not allow wastes its feedback calls.
        """
        size = self.settings.size
        self._horizon = size if more is None else min(size, self.kept + self._expected(self.responding) + more)

    def _expected(self, responses: int) -> int:
        """How many of so many responses will be kept: all, or with `PlanSettings.ahead` an estimate from those that
        ended."""
        if not self.settings.ahead or self._ended < ENOUGH_RESPONSES or self.settings.size - self.kept < FEW_MISSING:
            return responses
        share = max(LEAST_SHARE, (self._kept + 1) / (self._ended + 2))
        # Rather too high: what is still missing comes with the next round, what is too much is paid for. The spread is
        # that of so many draws, and of the share itself.
        spread = math.sqrt(share * (1 - share) * responses * (1 + responses / self._ended))
        return min(responses, math.ceil(responses * share + DEVIATIONS * spread))

    def _each(self) -> int:
        """Instructions that a synthesis call gives: as many as it is asked for, or with `PlanSettings.ahead` the mean
        of the calls so far."""
        if not self.settings.ahead or self._proposals < ENOUGH_PROPOSALS:
            return self.settings.instructions_per_feature
        return max(1, math.ceil(self._new / self._proposals))

    def to_come(self) -> ToCome:
        """What is left, before anything of this start is handed out."""
        ready = sum(len(source.ready) for source in self._sources)
        return self.settings.to_come(self.kept, self._begun, self._asked, ready)

    # --- continuing from a ledger

    def restore(
        self,
        kept: int,
        proposals: Sequence[tuple[int, str, int, int]],
        used: Sequence[tuple[int, int, int]],
        ready: Sequence[tuple[int, int, str]],
    ) -> None:
        """Take over a run's state; the arguments are what `Ledger` returns under these names."""
        self.kept = kept
        gave: defaultdict[int, Counter[int]] = defaultdict(Counter)  # reference → round → instructions and samples
        asked: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
        for reference, feature, round_, new in proposals:
            gave[reference][round_] += new
            asked[reference, round_].append(feature)
        for reference, round_, count in used:
            gave[reference][round_] += count
        for reference, instruction, text in ready:
            self._sources[reference].ready.append((instruction, text))
        self._begun, self._asked = len(gave), len(proposals)
        last_rounds = {reference: max(rounds) for reference, rounds in gave.items()}
        self._round = max(last_rounds.values(), default=0)
        made = {
            each: sum(count for _, earlier, count in used if earlier < each)
            for each in {self._round, *last_rounds.values()}
        }
        rounds = {each: self._draw(each, made[each]) for each in made}
        samples = {(reference, round_): count for reference, round_, count in used}
        # Half-paid instructions come first in `ready`: their references are opened first.
        begun = dict.fromkeys([reference for reference, *_ in ready] + sorted(last_rounds))
        for index in begun:
            source = self._sources[index]
            source.round = last_rounds.get(index, self._round)
            source.share = rounds[source.round].share_of(source)
            source.kept_this_round = samples.get((index, source.round), 0)
            source.new = gave[index][source.round]
            source.empty_rounds = _empty_at_the_end(gave[index], source.round)
            self._admit(source, asked[index, source.round])
            if not source.to_propose and not self._open.usable(source):  # its round had ended
                source.to_study.clear()
                self._settle(source)
        opened = {index for index in begun if self._sources[index].round == self._round}
        self._waiting = self._draw(self._round, made[self._round], opened)


def _empty_at_the_end(gave: Mapping[int, int], before: int) -> int:
    """How many of the last rounds `before` this one gave nothing."""
    earlier = sorted((round_ for round_ in gave if round_ < before), reverse=True)
    return next((count for count, round_ in enumerate(earlier) if gave[round_]), len(earlier))


# --- references: in their round, and open


class Round:
    """The references that are still to be opened in a round, by their turns. Those open from the last round are passed
    over until they are closed: a round does not wait for them."""

    def __init__(self, turns: Iterable[tuple[int, PlannedReference]], share: Callable[[int], int]) -> None:
        """`share`: turn → the samples that the reference may give in this round."""
        self._heap, self._share = list(turns), share
        self._turns = {source.index: turn for turn, source in self._heap}

    def __bool__(self) -> bool:
        return bool(self._turns)

    def take(self) -> PlannedReference | None:
        """The next one, with its share, or None where all of them are open."""
        while self._heap:
            turn, source = heappop(self._heap)
            if not source.is_open and self._turns.pop(source.index, None) is not None:
                source.share = self._share(turn)
                return source
        return None

    def share_of(self, source: PlannedReference) -> int:
        return self._share(self._turns[source.index])

    def closed(self, source: PlannedReference) -> None:
        """A reference was closed: where it was passed over, it has its turn now, unless it has retired."""
        if source.retired:
            self._turns.pop(source.index, None)
        elif (turn := self._turns.get(source.index)) is not None:
            heappush(self._heap, (turn, source))


class OpenReferences:
    """The open references. `each`: instructions that a synthesis call gives; `lead`: see `PlanSettings.lead`."""

    def __init__(self, each: int, lead: bool) -> None:
        self._each, self._lead = each, lead
        self._open: dict[int, PlannedReference] = {}
        self._places = itertools.count()
        self.asked = self.planned = 0
        """Samples to expect of what is ready and what was asked for; and with what is still to be asked for."""
        self.to_respond = _First(self._can_respond)
        self.to_study = _First(lambda source: bool(source.to_study))
        self.to_propose = _First(self._can_propose)

    def room(self, source: PlannedReference) -> int:
        """Samples this reference may still give in its round."""
        return max(0, source.share - source.kept_this_round - source.responding)

    def usable(self, source: PlannedReference) -> bool:
        """Whether it has an instruction left for its round."""
        return bool(source.ready) and self.room(source) > 0 and not source.failed

    def add(self, source: PlannedReference) -> None:
        source.place = next(self._places)
        self._open[source.index] = source
        self.changed(source)

    def remove(self, source: PlannedReference) -> None:
        del self._open[source.index]
        source.place = -1
        self._count(source, 0, 0)

    def changed(self, source: PlannedReference) -> None:
        """To be called after each change of an open reference."""
        room, ready = self.room(source), len(source.ready)
        asked = ready + source.proposing * self._each
        self._count(source, min(room, asked), min(room, asked + len(source.to_propose) * self._each))
        for queue in (self.to_respond, self.to_study, self.to_propose):
            queue.offer(source)

    def expect(self, each: int) -> None:
        """From now on a synthesis call is expected to give `each` instructions."""
        if each != self._each:
            self._each = each
            for source in self._open.values():
                self.changed(source)

    def _count(self, source: PlannedReference, asked: int, planned: int) -> None:
        self.asked += asked - source.counted[0]
        self.planned += planned - source.counted[1]
        source.counted = asked, planned

    def _can_respond(self, source: PlannedReference) -> bool:
        waits = self._lead and source.responding and not source.warm
        return self.usable(source) and not source.missing_feedback and not waits

    def _can_propose(self, source: PlannedReference) -> bool:
        waits = self._lead and source.proposing
        return bool(source.to_propose) and "features" not in source.missing_feedback and not waits


class _First:
    """The first open reference that `can` do something. Those that no longer can are dropped when they are met."""

    def __init__(self, can: Callable[[PlannedReference], bool]) -> None:
        self._can = can
        self._heap: list[tuple[int, PlannedReference]] = []
        self._places: set[int] = set()

    def offer(self, source: PlannedReference) -> None:
        """Take up an open reference that can do it now."""
        if source.place not in self._places and self._can(source):
            self._places.add(source.place)
            heappush(self._heap, (source.place, source))

    def get(self) -> PlannedReference | None:
        while self._heap:
            place, source = self._heap[0]
            if source.place == place and self._can(source):
                return source
            heappop(self._heap)
            self._places.discard(place)
        return None


@dataclass(eq=False, slots=True)
class PlannedReference:
    """A reference, as the plan sees it. `ready` outlives a round: what one round did not need, the next uses first.

    Its lists are short, and small where they are empty: there may be a hundred thousand references.
    """

    index: int
    round: int = 0
    share: int = 0
    """Samples that it may give in its round."""
    missing_feedback: frozenset[str] = frozenset(FEEDBACK_KINDS)
    to_study: list[str] = field(default_factory=list)
    studying: int = 0
    to_propose: list[str] = field(default_factory=list)
    proposing: int = 0
    ready: list[tuple[int, str]] = field(default_factory=list)
    responding: int = 0
    kept_this_round: int = 0
    new: int = 0
    empty_rounds: int = 0
    warm: bool = False
    """Whether a response of this round has ended, so that its prompts' prefixes are cached."""
    failed: bool = False
    retired: bool = False
    place: int = -1
    """Its place among all that were ever opened; -1: it is not open."""
    counted: tuple[int, int] = (0, 0)
    """Its part of `OpenReferences.asked` and `.planned`."""

    @property
    def busy(self) -> bool:
        return bool(self.studying or self.proposing or self.responding or self.to_study or self.to_propose)

    @property
    def is_open(self) -> bool:
        return self.place >= 0

"""What a compile may use: of its caps before the proof, in each turn of an optimizer; and what is told at a cap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from refed_dspy.jobs.gateway import Gateway
from refed_dspy.ledger.budget import Caps
from refed_dspy.optimizers.estimate import Amount, a_count, with_room
from refed_dspy.records import dollars

log = logging.getLogger("refed_dspy.optimizers")
FOR_PROOF = 1.15
"""So many times what a proof is expected to take is kept for it, where there is room."""
MOST_FOR_PROOF = 0.5
"""At most this share of what is left of a cap is set aside for the proof."""
A_CANDIDATE = 4
"""So many evaluations of the uncompiled program are worth going on for: about what GEPA's next candidate takes."""


def taken_by_proofs(gateway: Gateway) -> Amount:
    """What the proofs of earlier starts took, which is no part of the tuning. To be asked where a start begins."""
    noted = gateway.read(lambda ledger: ledger.meta("proofs"))
    if noted is None:
        return Amount(0, 0)
    taken = Amount(*noted["taken"])
    if noted["begun_at"] is not None:
        taken += spent_so_far(gateway) - Amount(*noted["begun_at"])
        gateway.read(lambda ledger: ledger.set_meta(proofs={"taken": [taken.cost, taken.calls], "begun_at": None}))
    return taken


def note_proof(gateway: Gateway, taken: Amount) -> None:
    """Note that what is paid from now on is a proof's, whatever ends it. `taken`: as `taken_by_proofs`."""
    now = spent_so_far(gateway)
    facts = {"taken": [taken.cost, taken.calls], "begun_at": [now.cost, now.calls]}
    gateway.read(lambda ledger: ledger.set_meta(proofs=facts))


def spent_so_far(gateway: Gateway) -> Amount:
    return Amount(gateway.recorder.budget.spent, gateway.recorder.budget.calls)


@dataclass(frozen=True)
class CapBeside:
    """A cap in dollars or calls beside the estimate: of the whole, of the proof, and what was used when it was made."""

    name: str
    limit: float | None
    whole: float | None
    proof: float
    then: float
    said: Callable[[float], str]

    @property
    def kept(self) -> int:
        """What is kept of it for the proof."""
        room = MOST_FOR_PROOF * max(0, self.limit - self.then) if self.limit is not None else 0
        return int(min(FOR_PROOF * self.proof, room))


def _beside(caps: Caps, estimate: Mapping[str, Any]) -> Iterator[CapBeside]:
    """Both caps beside the result of `estimate_compile`."""
    of_cost, of_calls = (estimate[f"{name}_then"] for name in ("spent", "calls"))
    yield CapBeside("max_cost", caps.max_cost, estimate["cost"], estimate["proof_cost"], of_cost, dollars)
    yield CapBeside("max_calls", caps.max_calls, estimate["calls"], estimate["proof_calls"], of_calls, a_count)


def warn_of_small_caps(caps: Caps, estimate: Mapping[str, Any]) -> None:
    """Say beforehand that a cap will end the optimizer early, and what leaves room for all its evaluations."""
    for cap in _beside(caps, estimate):
        if cap.limit is not None and cap.whole is not None and cap.limit < cap.whole:
            log.warning(
                "%s: %s will end the optimizer before its %s evaluations: with the proof they take about %s; %s leaves "
                "room", cap.name, cap.said(cap.limit), estimate["evaluations"], cap.said(cap.whole),
                cap.said(with_room(cap.whole)),
            )  # fmt: skip


def caps_before_proof(caps: Caps, seconds: float | None, estimate: Mapping[str, Any]) -> tuple[Caps, float | None]:
    """The caps less what the proof will need, by the result of `estimate_compile`."""
    cost, calls = _beside(caps, estimate)
    left = Caps(
        None if caps.max_cost is None else caps.max_cost - cost.kept,
        None if caps.max_calls is None else caps.max_calls - calls.kept,
    )
    return left, 0.75 * seconds if estimate["proof_calls"] > 0 and seconds is not None else seconds


@dataclass(frozen=True)
class Limits:
    """What one turn of an optimizer may use: absolute caps, noted in the ledger, so that each later start gives the
    turn the same ones and finds the same candidates. Other caps of the compile make other limits."""

    turn: str
    share: float
    """Of what is left of the caps before the proof."""
    caps: Caps
    seconds: float | None

    def of(self, gateway: Gateway, estimate: Mapping[str, Any]) -> tuple[Caps, float | None]:
        """The limits, as `Gateway.allow` takes them."""
        noted, now = self._noted(gateway), spent_so_far(gateway)
        whole, seconds = caps_before_proof(self.caps, self.seconds, estimate)
        if self.turn not in noted["limits"]:
            noted["limits"][self.turn] = self._part(whole.max_cost, now.cost), self._part(whole.max_calls, now.calls)
            seconds = self._part(seconds, gateway.elapsed)
        noted["open"] = [self.turn, now.cost, now.calls]
        gateway.read(lambda ledger: ledger.set_meta(turns=noted))
        return Caps(*noted["limits"][self.turn]), seconds

    def _part(self, whole: Any, now: float) -> Any:
        if whole is None or self.share == 1:
            return whole
        return int(now + self.share * max(0.0, whole - now))

    def spent_by(self, gateway: Gateway) -> Amount:
        """What the turn, which has ended, paid over all starts."""
        settle_turn(gateway)
        return Amount(*self._noted(gateway)["paid"][self.turn])

    def _noted(self, gateway: Gateway) -> dict[str, Any]:
        caps = [self.caps.max_cost, self.caps.max_calls]
        noted: dict[str, Any] = gateway.read(lambda ledger: ledger.meta("turns")) or {"paid": {}}
        return noted if noted.get("caps") == caps else {"caps": caps, "limits": {}, "paid": noted["paid"]}


def settle_turn(gateway: Gateway) -> None:
    """Note what the open turn paid, if there is one: it has ended, or an earlier start was killed in it."""
    noted = gateway.read(lambda ledger: ledger.meta("turns"))
    if not noted or not noted.get("open"):
        return
    turn, *begun_at = noted.pop("open")
    paid = Amount(*noted["paid"].get(turn, (0, 0))) + spent_so_far(gateway) - Amount(*begun_at)
    noted["paid"][turn] = [paid.cost, paid.calls]
    gateway.read(lambda ledger: ledger.set_meta(turns=noted))


def leaves_room(gateway: Gateway, caps: Caps, estimate: Mapping[str, Any]) -> bool:
    """Whether the proof, as it is foreseen now, leaves so much of the cap that was reached that another candidate can
    be tried: A_CANDIDATE times an evaluation of the uncompiled program."""
    first = gateway.read(lambda ledger: ledger.meta("first"))
    if first is None or gateway.cap_reached not in {"max_cost", "max_calls"}:
        return False
    limits, now = caps_before_proof(caps, None, estimate)[0], spent_so_far(gateway)
    of_cost, of_calls = (limits.max_cost, now.cost, first["cost"]), (limits.max_calls, now.calls, first["calls"])
    limit, used, each = of_cost if gateway.cap_reached == "max_cost" else of_calls
    return limit is not None and limit - used >= A_CANDIDATE * each


# --- at a cap


@dataclass(frozen=True)
class Tuned:
    """How many of about `expected` evaluations `optimizer` did, and what was spent by then, proofs left out."""

    optimizer: str
    evaluations: int
    expected: int
    spent: Amount


def at_cap(name: str, gateway: Gateway, caps: Caps, estimate: Mapping[str, Any], tuned: Tuned | None) -> str:
    """What is told of a compile that the cap `name` ended: the optimizer's evaluations, what was kept for the proof,
    what is used, and what would leave room for the rest. `tuned`: None where the cap came before the optimizer."""
    done = "before the optimizer began"
    if tuned is not None:
        done = f"after {tuned.evaluations} of about {tuned.expected} evaluations of {tuned.optimizer}"
    cap = next((each for each in _beside(caps, estimate) if each.name == name), None)
    if cap is None:
        return f"{name} is reached {done}"
    key, unit = ("cost", "") if name == "max_cost" else ("calls", " calls")
    used, searched = getattr(spent_so_far(gateway), key), getattr(tuned.spent, key) if tuned else 0
    foreseen, kept, more = cap.whole, cap.said(cap.kept) + unit, ""
    if tuned is not None and 0 < tuned.evaluations < tuned.expected:
        measured = cap.then + (searched - cap.then) * tuned.expected / tuned.evaluations + FOR_PROOF * cap.proof
        foreseen = None if foreseen is None else max(foreseen, measured)  # never less than the estimate's whole
        more = f", about {a_count(tuned.expected - tuned.evaluations)} evaluations more"
    parts = [f"{cap.said(used)}{unit} used"]
    if tuned is not None and cap.kept:
        parts = [f"{cap.said(searched)}{unit} for the search", f"{cap.said(used - searched)}{unit} for the proof"]
    held_back = f" ({kept} had been kept for the proof)" if cap.kept else ""
    left = f", {cap.said(max(0, (cap.limit or 0) - used))}{unit} left"
    enough = f"; {cap.said(with_room(foreseen))}{unit} would leave room for the rest{more}" if foreseen else ""
    return f"{name} {cap.said(cap.limit or 0)} is reached {done}: {', '.join(parts)}{held_back}{left}{enough}"

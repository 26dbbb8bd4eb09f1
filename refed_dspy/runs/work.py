"""A run as paid work: whether a folder holds the same run, which teachers it has asked, and how a start ended."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from refed_dspy.errors import SAME_CALL, Wording, as_options, setting_text
from refed_dspy.jobs.job import Job
from refed_dspy.jobs.session import Session
from refed_dspy.jobs.work import Work
from refed_dspy.ledger.batches import left_batches
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import ANY, WorkSettings, settings_of
from refed_dspy.ledger.spending import set_aside
from refed_dspy.ledger.states import CAPPED, DONE, ESTIMATED, SHORT, STOPPED, End, differences, has_begun
from refed_dspy.ledger.summary import decisions_by_filter
from refed_dspy.runs.plan import Plan
from refed_dspy.runs.remembered import is_resumable
from refed_dspy.runs.result import drop_samples, end_at_cap, why_short
from refed_dspy.teachers.by_stage import TeachersByStage
from refed_dspy.teachers.pool import PoolSetup
from refed_dspy.text import counted

log = logging.getLogger("refed_dspy")
teachers_log = logging.getLogger("refed_dspy.teachers")


@dataclass(frozen=True, kw_only=True)
class RunWork(Work):
    """A run's work. Its teachers may be others than before, as long as one of them is still there: what the others
    answered counts."""

    by_stage: TeachersByStage
    cluster: str = ""
    """Where it is worked on, as the caller named it; unset: in this process."""

    def changes(self, ledger: Ledger) -> list[str]:
        """As any work's, but where teachers share a run, one of them that is still there is enough."""
        stored, current = dict(ledger.meta("identity") or {}), self.stored_identity
        before, now = _asked_teachers(ledger), _listed(current["teacher"])
        if len(before) <= 1 and not isinstance(current["teacher"], list):
            return differences(stored, current)
        del stored["teacher"], current["teacher"]
        another = not any(teacher in before for teacher in now)
        teachers = [f"teacher was {_models_text(before)}, is {_models_text(now)}"] if another else []
        return sorted([*differences(stored, current), *teachers])

    def facts_at(self, ledger: Ledger) -> dict[str, Any]:
        before = _asked_teachers(ledger) if has_begun(ledger) else []
        if before:
            self._warn_of_other_teachers(ledger)
        now = _listed(self.stored_identity["teacher"])
        return {**self.facts, "asked_teachers": [*before, *(teacher for teacher in now if teacher not in before)]}

    def pool_setup(self, ledger: Ledger) -> PoolSetup | None:
        """The teachers of each stage, and the former ones; None where it is one teacher, and always was."""
        now = _listed(self.stored_identity["teacher"])
        former = [teacher for teacher in _asked_teachers(ledger) if teacher not in now]
        return PoolSetup(self.by_stage, former) if self.by_stage.several or former else None

    def go_on(self, ledger: Ledger, change: str = "") -> Wording:
        if self.kind != "run" or not is_resumable(ledger):
            return super().go_on(ledger, change)
        folder, cluster = str(ledger.path.parent), setting_text("cluster", self.cluster) if self.cluster else ""
        changes = [*filter(None, [change, cluster])]
        command = " ".join(["refed resume", shlex.quote(folder), *map(as_options, changes)])
        return Wording(f"refed_dspy.resume({', '.join([repr(folder), *changes])})", command)

    def kept_line(self, ledger: Ledger) -> str:
        if self.kind != "run":
            return super().kept_line(ledger)
        kept = f"{ledger.kept():,} of {ledger.meta('size'):,} samples are kept in {ledger.path.parent}"
        other = resume if (resume := self.go_on(ledger)) != super().go_on(ledger) else ""
        if self.then:
            whole = other and "; " + other + " would make the whole run"
            return f"{kept}; " + SAME_CALL + " completes the estimate" + whole
        return f"{kept}; continue with " + SAME_CALL + (other and " or " + other)

    def resume_hint(self, ledger: Ledger) -> str:
        kept = f"{counted(ledger.kept(), 'sample is', 'samples are')} kept"
        return "; ".join(filter(None, [kept, set_aside(ledger), "continue with: "])) + self.go_on(ledger)

    def repair_hint(self, ledger: Ledger) -> str:
        reuse = setting_text("reuse", str(ledger.path.parent))
        return "repair it and start in a new folder with " + reuse + ", which takes over what was paid for"

    def _warn_of_other_teachers(self, ledger: Ledger) -> None:
        """Warn where a stage asks other teachers than at the last start: what comes next has another price."""
        before, now = settings_of(ledger).pools, WorkSettings(self.facts["settings"]).pools
        for stage in sorted({*before, *now}):
            was, is_ = (_pool_text(pools.get(stage, pools[ANY])) for pools in (before, now))
            if was != is_:
                teachers_log.warning("%s: was %s, is now %s; existing answers are kept", stage or "teacher", was, is_)


def note_end(at: Job, session: Session, plan: Plan) -> None:
    """Write down and say how the start ended: at a cap, short of its size, with calls left in batches."""
    folder, end = session.ledger.path.parent, _end(session, plan)
    if end.state != CAPPED:
        drop_samples(folder)
    at.ends(end)
    if end.reason not in {"", ESTIMATED}:
        log.warning("%s", end.reason)
    if left := sum(batch["calls"] for batch in left_batches(session.ledger)):
        log.warning(
            "%d calls still wait in batches, charged at their worst case; a later start fetches the answers it needs; "
            "see: refed status %s",
            left,
            shlex.quote(str(folder)),
        )


def _end(session: Session, plan: Plan) -> End:
    ledger = session.ledger
    if session.cap_reached is not None:
        go_on = partial(session.start.work.go_on, ledger)
        return end_at_cap(ledger.path.parent, session.cap_reached, go_on)
    if not plan.complete:
        dropped = sum(counts["dropped"] for counts in decisions_by_filter(ledger))
        why = why_short(ledger.failures(), dropped)
        return End(SHORT, f"the references gave {plan.kept} of {plan.settings.size} {session.start.work.unit}: {why}")
    if plan.settings.size < session.start.size:
        return End(STOPPED, ESTIMATED)
    return End(DONE)


def _asked_teachers(ledger: Ledger) -> list[Any]:
    """The identities of all teachers that were asked in any start."""
    return list(ledger.meta("asked_teachers") or ())


def _listed(identity: Any) -> list[Any]:
    """A teacher's identity, or those of several, as a list without repeats: a model may be in two pools."""
    identities = identity if isinstance(identity, list) else [identity]
    return [teacher for place, teacher in enumerate(identities) if teacher not in identities[:place]]


def _pool_text(members: Sequence[Mapping[str, Any]]) -> str:
    """A pool for a message. Endpoints are named where members have the same model."""
    if len(members) == 1:
        return str(members[0].get("model"))
    same_model = len({member["model"] for member in members}) < len(members)
    names = [f"{member['model']} at {member['endpoint']}" if same_model else member["model"] for member in members]
    return ", ".join(f"{name} (weight {member['weight']:g})" for name, member in zip(names, members, strict=True))


def _models_text(identities: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(identity["model"]) for identity in identities)

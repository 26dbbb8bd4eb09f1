"""The one beginning of all paid work: a folder's ledger, opened for one kind of work, under its caps."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from refed_dspy.errors import RunDirError, RunStopped
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.recorder import RunRecorder
from refed_dspy.ledger.spending import begin_start
from refed_dspy.ledger.states import (
    DONE,
    KILLED,
    UNGATHERED,
    End,
    differences,
    has_begun,
    last_end,
    named_work,
    write_end,
)
from refed_dspy.records import Reference
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.caps import CapSettings, CapsLeft, budget_caps, check_caps, lasting_caps
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.pool import PoolSetup

log = logging.getLogger("refed_dspy.teachers")


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a folder's paid work is, how its models are asked, and under which caps."""

    kind: str
    """What the folder is for, as the ledger says it: "run", "comparison", "filtering", …"""
    identity: Mapping[str, Any]
    """What may not change between starts. Its names appear in the message that refuses a change."""
    models: Mapping[str, Teacher]
    """Role → model. The first one answers, unless a stage asks for another role."""
    size: int
    """How many samples or rows there shall be."""
    caps: CapSettings
    """Over all starts. What is None stays as it was at the last start."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the ledger records besides: what may change between starts, so that the latest values are there."""
    references: Sequence[Reference] = ()
    """Recorded once, when the work is new."""
    reuse: Path | None = None
    """The folder of a run whose answers count here too."""
    policy: CallPolicy = field(default_factory=CallPolicy)
    calls_each: float = 2.0
    """About how many calls a sample or a row takes."""
    then: str = ""
    """What is left of the whole work once this is done."""
    unit: str = "rows"
    """What is counted, for people."""
    other: str = ""
    """What a folder with another identity holds, for the message; unset: another of this kind."""
    way_out: str = "choose another folder"
    most_changes: int | None = None
    """How many changes a refusal names; None: all."""
    epoch: int | None = None
    """The number of the lease of a shard under which it is done; None: without one."""

    @property
    def stored_identity(self) -> dict[str, Any]:
        """The identity as it is stored: keys are text, tuples are lists."""
        return dict(json.loads(json.dumps(dict(self.identity))))

    def changes(self, ledger: Ledger) -> list[str]:
        """How the identity differs from the one in the ledger, as one text for each difference."""
        return differences(ledger.meta("identity") or {}, self.stored_identity)

    def facts_at(self, ledger: Ledger) -> Mapping[str, Any]:  # noqa: ARG002
        """The facts to record at a start, which may build on what the ledger has."""
        return self.facts

    def pool_setup(self, ledger: Ledger) -> PoolSetup | None:  # noqa: ARG002
        """Who answers each stage; None: the first of the models alone."""
        return None

    def go_on(self, ledger: Ledger, setting: str = "") -> str:  # noqa: ARG002
        """The call that continues the work, perhaps with a `setting` that changes, for people who call it from
        Python."""
        return f"the same call with {setting}" if setting else "the same call"

    def kept_line(self, ledger: Ledger) -> str:
        """What is kept of work that was interrupted and how to go on, for the same."""
        return f"what was paid for is kept in {ledger.path.parent}; continue with {self.go_on(ledger)}"

    def resume_hint(self, ledger: Ledger) -> str:
        """What is kept and how to go on, for messages."""
        return resume_hint(ledger.path.parent)

    def repair_hint(self, ledger: Ledger) -> str:
        """The same where the caller's own code must be repaired first."""
        return self.resume_hint(ledger)

    def refuse_another(self, ledger: Ledger) -> None:
        """Raises RunDirError where the folder holds other work, or the same kind with another identity and answers."""
        folder, existing = ledger.path.parent, ledger.holds()
        if existing not in {"", self.kind}:
            raise RunDirError(
                f"{folder}: contains {named_work(existing)}, not {named_work(self.kind)}; choose another folder"
            )
        if has_begun(ledger) and (changes := self.changes(ledger)):
            named = changes[: self.most_changes]
            more = [f"and {len(changes) - len(named)} more"] if len(changes) > len(named) else []
            raise RunDirError(
                f"{folder}: contains {self.other or f'another {self.kind}'}: {'; '.join([*named, *more])}; restore "
                f"these settings or {self.way_out}"
            )

    def record(self, ledger: Ledger, caps: CapSettings) -> int:
        """Write the work into the ledger. Returns the size to reach: at least what is kept already."""
        identity, kept = self.stored_identity, ledger.kept()
        size = max(self.size, kept)
        if self.size < kept:
            log.warning("size is %d %s, but %d are already kept; none are removed", self.size, self.unit, kept)
        facts = {**self.facts_at(ledger), **caps, "work": self.kind, "size": size}
        if has_begun(ledger) or ledger.meta("identity") == identity:
            ledger.set_meta(**facts)
        else:  # new, or another that ended before its first answer
            ledger.begin(self.references, identity=identity, **facts)
        return size


@dataclass(frozen=True)
class Start:
    """One start of the work in a folder: one process, from `begin` to its end."""

    ledger: Ledger
    work: Work
    size: int
    """How many samples or rows there shall be; at least what is kept already."""
    caps_left: CapsLeft
    recorder: RunRecorder
    reused_from: Ledger | None = None
    """The ledger of a run whose answers count here too."""


def _to_reuse(folder: Path) -> Ledger:
    """The ledger of the run in `folder`. Raises RunDirError where there is none, or where it lacks what a cluster's
    workers made."""
    ledger = Ledger.read(folder)
    if ledger.meta(UNGATHERED):
        ledger.close()
        raise RunDirError(f"reuse: {folder}: its shards are not gathered yet; run its own command again first")
    return ledger


@contextmanager
def begin(folder: Path, work: Work) -> Iterator[Start]:
    """The folder's ledger, open for one more start of `work`, which is new there or the same as before.

    How the start ended is written as it ends: by an error, as the block wrote it (`write_end`), else done. Where this
    raises, nothing was written.

    Raises:
        RunDirError: the folder holds other work, is in use, or cannot be written; or there is no run to reuse.
        ConfigError: a cap that cannot be kept, or calls that wait in the batch of another model.
        RunStopped: a later lease of the shard writes it.
        KeyboardInterrupt, CancelledError: where the block raises one: what is kept, and how to go on.
    """
    if not (folder / FILE).is_file():  # a mistake leaves no folder behind
        budget_caps(work.models, work.caps)
    with ExitStack() as stack:
        reused_from = None if work.reuse is None else stack.enter_context(_to_reuse(work.reuse))
        ledger = stack.enter_context(Ledger.create(folder, work.epoch))
        work.refuse_another(ledger)  # first: the caps and costs of other work mean nothing here
        caps = lasting_caps(ledger, work.caps)
        caps_left = check_caps(ledger, work.models, caps)
        size = work.record(ledger, caps)
        begin_start(ledger)
        recorder = RunRecorder(ledger, caps_left.caps, caps_left.before, work.calls_each)
        try:
            yield Start(ledger, work, size, caps_left, recorder, reused_from)
        except BaseException as error:
            with suppress(RunStopped):  # the block's error is raised; a failed write has the same cause
                write_end(ledger, End.by(error))
            if isinstance(error, KeyboardInterrupt | asyncio.CancelledError):
                raise type(error)(work.kept_line(ledger)) from None
            raise
        if last_end(ledger).state == KILLED:
            write_end(ledger, End(DONE))


def resume_hint(folder: Path) -> str:
    """What is kept and how to go on with work in `folder`, for messages."""
    return f"paid answers are kept in {shlex.quote(str(folder))}; run the same command to continue"

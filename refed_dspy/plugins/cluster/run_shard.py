"""A shard of a run: an ordinary run in the shard's folder."""

from __future__ import annotations

from dataclasses import replace

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.cluster.leases import Lease
from refed_dspy.plugins.cluster.shard_work import Done, ShardWork, caps_of, shared
from refed_dspy.runs.prepare import prepare
from refed_dspy.runs.remembered import remembered
from refed_dspy.runs.spec import Claim, RunSpec
from refed_dspy.runs.synthesize import carry_out, restored
from refed_dspy.teachers.session import Session


class RunShard(ShardWork):
    """The work on one lease, with its share of what a teacher away from the nodes allows a minute."""

    def __init__(self, ledger: Ledger, lease: Lease, claim: Claim) -> None:
        program, references, settings = remembered(ledger)
        # As the driver recorded them: with all of what a teacher allows a minute.
        facts = {"settings": ledger.meta("settings")}
        for role in ("teacher", "judge"):
            settings[role] = shared(settings[role], lease.workers)
        settings["teachers"] = {stage: shared(pool, lease.workers) for stage, pool in settings["teachers"].items()}
        settings |= {**caps_of(lease), "size": max(1, lease.size), "track": False, "run_dir": ledger.path.parent}
        self.spec: RunSpec = replace(prepare(program, references, **settings), claim=claim)
        self.lease, work = lease, self.spec.work()
        super().__init__(ledger, lease, replace(work, facts={**work.facts, **facts}), ledger.kept())

    async def run(self) -> Done:
        return Done(self.before) if self.lease.size <= self.before.kept else await super().run()

    async def carry_out(self, session: Session) -> None:
        plan = restored(session.ledger, self.spec.plan_settings(session.start.size))
        await carry_out(self.spec, session, plan)

    def kept(self, session: Session) -> int:
        return session.ledger.kept()

    def is_dry(self, session: Session) -> bool:
        return self.kept(session) < session.start.size

"""A run on a cluster as paid work: it goes on where it was begun, on a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from refed_dspy.ledger.ledger import Ledger
from refed_dspy.runs.work import RunWork


@dataclass(frozen=True, kw_only=True)
class ClusterWork(RunWork):
    """`cluster`: as the caller named it."""

    cluster: str

    @classmethod
    def of(cls, work: RunWork, identity: Mapping[str, Any], cluster: str) -> ClusterWork:
        """The same `work` on a cluster, with another identity."""
        same = {each.name: getattr(work, each.name) for each in fields(work)}
        return cls(**{**same, "identity": identity}, cluster=cluster)

    def go_on(self, ledger: Ledger, setting: str = "") -> str:
        return super().go_on(ledger, ", ".join(filter(None, [setting, f"cluster={self.cluster!r}"])))

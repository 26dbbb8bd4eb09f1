"""A Ray cluster on this machine: a head that takes no workers, and nodes that come and are killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

STORE = 80 * 2**20
"""Bytes of a node's object store: nothing large travels."""
QUICK = {
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
    "health_check_initial_delay_ms": 0,
}
"""A silent node is dead after two seconds. By default it takes a minute."""
ENVIRONMENT = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "REFED_TRACK": "false"}


class Nodes:
    """The cluster, from construction until `stop` or the end of the `with` block, with so many nodes for one worker
    each."""

    def __init__(self, nodes: int) -> None:
        os.environ.update(ENVIRONMENT)  # before Ray is imported
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False, "_system_config": QUICK}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._made = 1
        self.there: list[Any] = [self._new() for _ in range(nodes)]

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def logs(self) -> Path:
        """The folder with the logs of all of Ray's processes."""
        return Path(self._cluster.head_node.get_logs_dir_path())

    def add(self) -> Any:
        """One node more."""
        self.there.append(self._new())
        return self.there[-1]

    def kill(self, node: Any) -> None:
        """Kill all processes of `node`, which is gone."""
        self.there.remove(node)
        self._cluster.remove_node(node, allow_graceful=False)

    def have(self, nodes: int) -> None:
        """Add nodes or kill some, so that there are so many."""
        while len(self.there) > nodes:
            self.kill(self.there[-1])
        while len(self.there) < nodes:
            self.add()

    def stop(self) -> None:
        self._cluster.shutdown()

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _new(self) -> Any:
        self._made += 1  # addresses of their own: a driver belongs to the node that has its own, the head
        return self._cluster.add_node(
            num_cpus=1,
            resources={"refed_worker": 1},
            object_store_memory=STORE,
            node_ip_address=f"127.0.0.{self._made}",
        )


def processes(title: str) -> list[psutil.Process]:
    """The processes of Ray, of clusters that this process has started, whose task or actor begins so: `worker-`,
    `Coordinator`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(f"ray::{title}"):
                found.append(process)
        except psutil.Error:
            continue
    return sorted(found, key=lambda process: process.create_time())


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Raises TimeoutError where `condition` does not become true in so many seconds."""
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"not within {seconds:g} s")
        time.sleep(0.02)

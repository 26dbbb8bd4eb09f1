"""Ray, as a run uses it: a cluster on this machine, or one that is there."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.text import install_command

log = logging.getLogger("refed_dspy.cluster")
SLOT = "refed_worker"
"""The resource that a node may have: how many workers it takes. Without it, one where the node has a CPU to give."""
KNOCK = 10.0
"""Seconds in which a cluster's head must answer."""
MOMENT = 0.01
"""Seconds for which a handler of Ray's own may be there."""
_SETTINGS = b"\x04"
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + _SETTINGS + bytes(5)
"""The beginning of a connection: the preface, and settings of which none are changed."""
_STORE = 80 * 2**20
"""Bytes of the object store: nothing large travels."""
_LOCAL = re.compile(r"local:([1-9][0-9]{0,3})")
_HOST = re.compile(r"([^\s:/]+|\[[0-9a-fA-F:]+\]):[0-9]{1,5}")


@contextmanager
def connected(cluster: str) -> Iterator[Any]:
    """`ray`, connected to the cluster that a run names: `local:N`, `auto` or an address. One that this process was
    connected to before is used, and left as it is.

    Raises ConfigError: Ray is not there, the address does not answer, or its nodes have other versions.
    """
    ray, settings = _ray(), _settings(cluster)
    if ray.is_initialized():
        yield ray
        return
    log.info("%s Ray …", "starting" if settings["address"] == "local" else "connecting to")
    with ThreadPoolExecutor(1) as thread:  # Linux ends the processes of a local cluster with the thread that began them
        try:
            _connect(ray, settings, thread)
        except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
            raise ConfigError(f"cluster {one_line(cluster, 100)}: {one_line(error, 300)}") from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _connect(ray: Any, settings: dict[str, Any], thread: ThreadPoolExecutor) -> None:
    """`ray.init`, through which SIGTERM keeps doing what it does.

    In the main thread Ray would have SIGTERM end the process with code 15. From any thread it has SIGTERM print a
    stack, which Python's own handler, set anew, ends.
    """
    handler, in_main = signal.getsignal(signal.SIGTERM), threading.current_thread() is threading.main_thread()
    connecting = thread.submit(
        ray.init, **settings, namespace="refed-dspy", log_to_driver=False, logging_level=logging.ERROR
    )
    while in_main and not connecting.done():
        signal.signal(signal.SIGTERM, handler)
        wait([connecting], MOMENT)
    if in_main:
        signal.signal(signal.SIGTERM, handler)
    connecting.result()


def slots(node: dict[str, Any]) -> int:
    """How many workers a node, as Ray lists it, takes."""
    resources = node["Resources"] if node["Alive"] else {}
    return int(resources.get(SLOT, min(1, resources.get("CPU", 0))))


def on_node(node: dict[str, Any]) -> dict[str, Any]:
    """The options of a task or an actor that takes one of this node's slots."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    slot = {"num_cpus": 0, "resources": {SLOT: 1}} if SLOT in node["Resources"] else {"num_cpus": 1}
    return {**slot, "scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=node["NodeID"], soft=False)}


def beside_driver(ray: Any) -> dict[str, Any]:
    """The option of an actor that is on this process's node, where it may be."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    return {"scheduling_strategy": NodeAffinitySchedulingStrategy(node_id=here, soft=True)}


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import: Ray would report its use
    try:
        import ray
    except ImportError:
        raise ConfigError(f"cluster: needs Ray; install it with: {install_command('cluster')}") from None
    return ray


def _settings(cluster: str) -> dict[str, Any]:
    """What `ray.init` is told."""
    if local := _LOCAL.fullmatch(cluster):
        workers = int(local[1])
        return {"address": "local", "num_cpus": workers, "resources": {SLOT: workers},
                "include_dashboard": False, "object_store_memory": _STORE}  # fmt: skip
    if cluster == "auto":
        return {"address": _of_this_node()}
    if cluster.startswith("ray://"):
        raise ConfigError(f"cluster {cluster}: start the command on a machine of the cluster, and use auto")
    if _HOST.fullmatch(cluster) is None:
        raise ConfigError(f"cluster: {one_line(cluster, 100)!r} is not auto, local:N or HOST:PORT")
    _knock(cluster)
    return {"address": cluster}


def _of_this_node() -> str:
    """The address that `auto` means to Ray: what is in RAY_ADDRESS, or the cluster that was last started here, which
    may be gone. Raises ConfigError."""
    from ray._private.services import canonicalize_bootstrap_address  # nothing public tells it before connecting

    try:
        address = str(canonicalize_bootstrap_address("auto") or "")
    except (ConnectionError, ValueError, OSError):
        address = ""
    if _HOST.fullmatch(address) is None:
        raise ConfigError("cluster auto: no Ray cluster runs here; start one with `ray start`, or give its HOST:PORT")
    _knock(address)
    return address


def _knock(cluster: str) -> None:
    """Raises ConfigError where nobody is at that address, or somebody else than Ray: Ray itself would wait for
    minutes, or for ever. Its head speaks HTTP/2, whose servers send their settings first."""
    host, _, port = cluster.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK) as door:
            door.sendall(_HTTP2)
            answer = door.recv(9)
    except OSError as error:
        raise ConfigError(
            f"cluster {cluster}: does not answer ({one_line(error.strerror or error, 100)}); start it, or correct the "
            "address"
        ) from None
    if answer[3:4] != _SETTINGS and not os.environ.get("RAY_USE_TLS"):
        raise ConfigError(f"cluster {cluster}: is no Ray cluster; name its head's address, as `ray status` has it")

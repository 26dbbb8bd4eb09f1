"""A GGUF model served inside this process: llama.cpp behind an OpenAI-compatible door on loopback.

The engine is the package `xllamacpp`, an extra of this one. It is imported only when a server starts, so
that everything else works without it. Nothing here downloads anything; `weights.fetch` does that.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from refed_dspy.errors import ConfigError, one_line

HOST = "127.0.0.1"
CACHE_RAM_MIB = 1024
"""Memory for prompt prefixes that lost their slot. llama.cpp's own default is 8192."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_HEADER = struct.Struct("<4sIqq")  # magic, version, number of tensors, number of settings
_OTHER_ENGINE = "or set `api_base:` to any OpenAI-compatible endpoint, such as Ollama's"


class LlamaServer:
    """One model, loaded once, answering at `url` until `stop`.

    `slots` requests are worked on at once; more wait their turn. `window` is the most tokens one request
    may use, prompt and answer together; memory grows with slots x window. `threads` defaults to the cores
    this process may use. No API key is needed; only this machine can reach the address.

    Also a context manager: `with LlamaServer(path) as server: ... server.url ...`.
    """

    def __init__(self, gguf: Path, *, slots: int = 2, window: int = 8192, threads: int | None = None) -> None:
        for name, value in (("slots", slots), ("window", window), ("threads", threads)):
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, not {value}")
        self.gguf = Path(gguf)
        self.slots, self.window = slots, window
        self.threads = available_cores() if threads is None else threads
        self._lock = threading.Lock()
        self._url: str | None = None
        # The engine stops when its only reference goes. A finalizer also runs at exit, before the
        # interpreter tears modules down, so a server nobody stopped still ends in good order.
        self._engine: list[Any] = []
        weakref.finalize(self, self._engine.clear)

    @property
    def url(self) -> str:
        """The base URL, ending in /v1. Raises ConfigError where the server is not running."""
        if self._url is None:
            raise ConfigError("the embedded model is not running: call start() first")
        return self._url

    def start(self) -> str:
        """Load the model (seconds) and return the base URL, ending in /v1. A second call only returns it.

        Raises ConfigError where the engine is not installed or the file is not a model it can load.
        """
        with self._lock:
            if self._url is None:
                check_gguf(self.gguf)
                engine = self._load()
                self._engine.append(engine)
                self._url = f"{engine.listening_address}/v1"
            return self._url

    def stop(self) -> None:
        """End the server and free its memory. Requests still running are cut off. May be called twice."""
        with self._lock:
            self._url = None
            self._engine.clear()

    def __enter__(self) -> LlamaServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _load(self) -> Any:
        xllamacpp = _engine_module()
        try:
            engine = xllamacpp.Server(self._settings(xllamacpp))
        except RuntimeError as error:
            # llama.cpp reports the reason only to its log, which is off.
            raise ConfigError(
                f"cannot load {one_line(self.gguf)}: it is damaged, of a kind this llama.cpp does not know, or too "
                f"big for the memory here ({self.slots} slots x {self.window} tokens); fetch it again, set "
                f"`gguf:` to another file, {_OTHER_ENGINE}"
            ) from error
        # The constructor returns before the engine's loop runs, and an engine stopped before its loop runs
        # never ends. One token's answer proves that it runs.
        engine.handle_completions({"prompt": "a", "max_tokens": 1, "cache_prompt": False})
        return engine

    def _settings(self, xllamacpp: Any) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path = str(self.gguf)
        params.model_alias = {self.gguf.stem}  # else every answer names the file's full path
        params.n_parallel = self.slots
        params.n_ctx = self.slots * self.window
        params.cpuparams.n_threads = self.threads
        params.cpuparams_batch.n_threads = self.threads
        params.cache_ram_mib = CACHE_RAM_MIB
        params.hostnames = [HOST]
        params.port = 0  # any free one
        params.cors_origins = ""  # no page in a browser may read the answers
        params.ui = False
        params.verbosity = 0  # nothing on stderr
        return params


def check_gguf(path: Path) -> None:
    """Raise ConfigError unless `path` is a file that begins as a GGUF model does."""
    shown = one_line(path)
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
    except OSError as error:
        reason = one_line(error.strerror or error)
        raise ConfigError(f"cannot read the model {shown}: {reason}; check `gguf:`, {_OTHER_ENGINE}") from error
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise ConfigError(f"{shown} is not a GGUF model; set `gguf:` to one, {_OTHER_ENGINE}")
    _, version, tensors, settings = _HEADER.unpack(head)
    if version not in _VERSIONS or tensors < 1 or settings < 1:
        raise ConfigError(f"{shown} is damaged, or of a GGUF version not known here; get it again, {_OTHER_ENGINE}")


def available_cores() -> int:
    """How many cores this process may keep busy: its affinity, or less where a container's quota says so."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass  # no quota ("max"), or another system
    return max(1, cores)


def _engine_module() -> Any:
    try:
        import xllamacpp
    except (ImportError, OSError) as error:
        known = isinstance(error, ModuleNotFoundError)
        reason = "it is not installed" if known else one_line(error, 120)
        raise ConfigError(
            f"the embedded model needs llama.cpp ({reason}): pip install 'refed-dspy[local]' (glibc Linux, macOS, "
            f"64-bit Windows), {_OTHER_ENGINE}"
        ) from error
    return xllamacpp

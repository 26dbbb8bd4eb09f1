"""A GGUF model served on this machine: llama.cpp behind an OpenAI-compatible endpoint on loopback.

The engine is the package `xllamacpp`, an optional extra, looked for only when a server starts. It runs in a process
of its own. In this process, stopping it while a request runs would wait for ever with the interpreter locked, and a
crash in it would end the run; a separate process can be ended at any time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
import subprocess
import tempfile
import threading
import weakref
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from refed_dspy import children
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.text import install_command

HOST = "127.0.0.1"
CACHE_RAM_MIB = 1024
"""Memory for prompt prefixes that lost their slot. llama.cpp's own default is 8192."""

# OpenMP threads that wait spinning, the default, make everything ten times slower as soon as another process wants
# one of their cores (docs/log.md). Spinning for a short while only costs nothing when idle. A value set by the user
# stays.
_ENVIRONMENT = {"GOMP_SPINCOUNT": "3000"}
_CHILD = Path(__file__).with_name("llama_child.py")
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_HEADER = struct.Struct("<4sIqq")  # magic, version, number of tensors, number of settings
_OTHER_ENGINE = "or set `api_base:` to any OpenAI-compatible endpoint, such as Ollama's"


class LlamaServer:
    """One model, loaded once, answering at `url` until `stop`, or until this process ends, however it ends.

    `slots` requests are worked on at once; more wait for a slot. `window` is the most tokens one request may
    use, prompt and answer together; memory grows with slots x window. `cache_mib` of memory keep prefixes that
    lost their slot. No API key is needed; only this machine can reach the address.

    Also a context manager: `with LlamaServer(path) as server: ... server.url ...`.
    """

    def __init__(self, gguf: Path, *, slots: int = 2, window: int = 8192, cache_mib: int = CACHE_RAM_MIB) -> None:
        self.gguf = Path(gguf)
        self.slots, self.window, self.cache_mib = slots, window, cache_mib
        self._lock = threading.Lock()
        self._url: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[..., LlamaServer] | None = None

    @property
    def url(self) -> str:
        """The base URL, ending in /v1. Raises ConfigError where the server was not started."""
        if self._url is None:
            raise ConfigError("the embedded model is not running; call start() first")
        return self._url

    def start(self) -> str:
        """Load the model (seconds) and return the base URL, ending in /v1. Where it runs already, only that.

        Raises ConfigError where the engine is not installed or the file is not a model it can load.
        """
        with self._lock:
            if self._url is None or self._process is None or self._process.poll() is not None:
                self._stop()
                _check_gguf(self.gguf)
                self._url = f"{self._launch(_engine_folder())}/v1"
            return self._url

    def stop(self) -> None:
        """End the server at once and free its memory; requests still running are cut off. Harmless twice."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _stop(self) -> None:
        self._url = self._process = None
        if self._end is not None:
            self._end()
            self._end = None

    def _launch(self, site: Path) -> str:
        settings = {
            "gguf": str(self.gguf.resolve()),
            "name": self.gguf.stem,
            "slots": self.slots,
            "window": self.window,
            "threads": available_cores(),
            "cache_ram_mib": self.cache_mib,
            "host": HOST,
            "site": str(site),
        }
        with tempfile.TemporaryFile() as log:
            self._process = subprocess.Popen(  # noqa: S603  our own program, and JSON
                children.python(str(_CHILD), json.dumps(settings)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**_ENVIRONMENT, **children.environment(*children.COMPUTING)},
                start_new_session=True,  # a Ctrl-C in the terminal reaches only this process
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
            # Runs on stop, when the server is forgotten, and at exit.
            self._end = weakref.finalize(self, _kill, self._process, os.getpid())
            try:
                return self._await_reply(self._process, log)
            except BaseException:
                self._stop()
                raise

    def _await_reply(self, process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        reply: dict[str, str] = json.loads(line) if line else {}
        if url := reply.get("url"):
            return url
        if "missing" in reply:
            raise _no_engine(one_line(reply["missing"], 120))
        log.seek(0)
        reason = _reason(log.read(100_000).decode("utf-8", "replace")) or (
            "llama.cpp gave no reason" if line else f"llama.cpp ended with status {process.wait()}"
        )
        raise ConfigError(
            f"cannot load {one_line(self.gguf, 120)}: {one_line(reason, 160)}; set `gguf:` to another file, "
            f"use less memory (now {self.slots} slots of {self.window} tokens), {_OTHER_ENGINE}"
        )


def _check_gguf(path: Path) -> None:
    """Raise ConfigError unless `path` is a file that begins as a GGUF model does."""
    shown = one_line(path, 120)
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
        raise ConfigError(f"{shown} is damaged or of an unknown GGUF version; download it again, {_OTHER_ENGINE}")


def available_cores() -> int:
    """How many cores this process may use: its affinity, or fewer where a container has a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no quota (the word "max"), or another system
    return max(1, cores)


def _engine_folder() -> Path:
    """The folder that `xllamacpp` is imported from. It is not imported here: the child does that."""
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        raise _no_engine("xllamacpp is not installed")
    return Path(spec.origin).parent.parent


def _no_engine(reason: str) -> ConfigError:
    return ConfigError(
        f"the embedded model needs llama.cpp ({reason}): {install_command('local')} on glibc Linux, "
        f"macOS or 64-bit Windows, {_OTHER_ENGINE}"
    )


def _reason(log: str) -> str:
    """What llama.cpp's log says was wrong: about the file, about the model, else the last error, or ''."""
    errors = re.findall(r"^[\d.]+ E +(.+)", log, re.MULTILINE)
    told = re.findall(r"gguf_init\w*: (.+)", log) or re.findall(r"error loading model: (.+)", log) or errors[-1:]
    return str(told[0]) if told else ""


def _kill(process: subprocess.Popen[Any], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the process that started it: only that one may end it
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()

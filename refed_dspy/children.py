"""Programs that this package starts: a Python that imports nothing from the working folder, and none of the user's keys
in their environment."""

from __future__ import annotations

import sys
from pathlib import Path

from refed_dspy.concurrency import current_environ

KEPT = ("PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
"""Variables of the user's that every program gets: none of them is a key, a proxy, or an address to ask."""
INSTALLING = (
    "HOME", "USERPROFILE", "APPDATA", "LOCALAPPDATA", "XDG_", "PIP_", "UV_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY",
    "NO_PROXY", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC",
)  # fmt: skip
"""What pip and uv need besides, by how their names begin: where their settings are, and the way to the index."""
COMPUTING = ("LD_", "DYLD_", "CUDA_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "GGML_", "LLAMA_", "OMP_", "GOMP_", "KMP_")
"""The same of what computes on this machine's processors."""


def python(*arguments: str, interpreter: Path | str = sys.executable) -> list[str]:
    """The command of a Python with `arguments`. Neither the working folder nor PYTHONPATH or the user's packages hide a
    module from it: `-m pip` in a folder with a pip.py would run that."""
    return [str(interpreter), "-I", *arguments]


def environment(*more: str) -> dict[str, str]:
    """The variables that a program needs: a few that any does, and those whose names begin with one of `more`."""
    return {name: value for name, value in current_environ().items() if name in KEPT or name.upper().startswith(more)}

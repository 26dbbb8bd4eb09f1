"""The Hub, through the real library, against a server on this machine that answers as the Hub does."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from tests.support.said import Said

SCRIPT = """if True:
    import sys
    from refed_dspy import errors, load_references
    try:
        load_references(sys.argv[1])
    except errors.ReferencesError as error:
        sys.exit(str(error))
"""


class FakeHub(http.server.BaseHTTPRequestHandler):
    """Answers for a gated data set, for one that does not exist, and for another after two failures."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        gated = "gated" in self.path
        self.asked.append(self.path)
        if "unsteady" in self.path and self.asked.count(self.path) <= 2:
            self.send_error(503)
            return
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("X-Error-Message", "Access is restricted." if gated else "Repository not found")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_POST = do_GET  # noqa: N815 — the base class's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def refusal(name: str, home: Path, **environ: str) -> str:
    """The error of loading `name`, in a separate process: the library reads the Hub's address when it is imported."""
    settings = {**os.environ, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", **environ}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name], env=settings, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GAIR/gated", "GAIR/none:test"])
def test_a_gated_data_set_and_a_missing_one(said: Said, hub: str, tmp_path: Path, name: str) -> None:
    said(refusal(name, tmp_path, HF_ENDPOINT=hub))


@pytest.mark.slow
def test_a_command_says_that_it_asks_and_nothing_of_retries(said: Said, hub: str, tmp_path: Path) -> None:
    """A mistyped path may look like a Hub data set's name, and the Hub's library tries for half a minute."""
    done = subprocess.run(
        [sys.executable, "-m", "refed_dspy.cli", "stats", "my/unsteady"],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": hub, "HF_HUB_DISABLE_TELEMETRY": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    said(done.stderr)


@pytest.mark.slow
def test_no_network(said: Said, tmp_path: Path) -> None:
    said(refusal("GAIR/lima", tmp_path, HF_HUB_OFFLINE="1"))

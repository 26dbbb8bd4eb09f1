"""Services that cannot be reached, through the real libraries over real sockets: one line and the exit code, never a
traceback. And services behind a certificate that a root of one's own signed, once that root is named."""

from __future__ import annotations

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.support import ROOT, mlflow_stores
from tests.support.hub_server import WRITER, FakeHub
from tests.support.mlflow_stores import Server
from tests.support.tls_front import tls_front

mlflow_template = mlflow_stores.mlflow_template
pytestmark = pytest.mark.slow
PUSH = "push shared me/set --go"
PROMOTE = "compile promote some"
PROGRAM = "synth --references rows.jsonl --teacher simulated --program models:/some@champion --run-dir made"
AZURE = "synth --references rows.jsonl --config azure.json --size 4 --run-dir made"
CASES = {
    "hub refuses": (PUSH, {"HF_ENDPOINT": "http://{closed}"}, 1),
    "hub has no such name": (PUSH, {"HF_ENDPOINT": "https://no-such-host.invalid"}, 1),
    "hub with an unknown root": (PUSH, {"HF_ENDPOINT": "{tls}"}, 1),
    "hub hangs up": (PUSH, {"HF_ENDPOINT": "http://{hangs_up}"}, 1),
    "hub behind a gateway's page": (PUSH, {"HF_ENDPOINT": "http://{page}"}, 1),
    "hub through a dead proxy": (PUSH, {"HF_ENDPOINT": "https://hub.invalid", "HTTPS_PROXY": "http://{closed}"}, 1),
    "references on a hub that refuses": ("synth --references some/set --teacher simulated --size 4 --run-dir made",
                                         {"HF_ENDPOINT": "http://{closed}"}, 2),
    "azure has no such name": (AZURE, {"HOST": "https://no-such-host.invalid"}, 2),
    "azure in batches with an unknown root": (AZURE, {"HOST": "{tls}", "MODE": "batch"}, 2),
    "mlflow refuses": (PROMOTE, {"MLFLOW_TRACKING_URI": "http://{closed}"}, 2),
    "mlflow is a web page": (PROMOTE, {"MLFLOW_TRACKING_URI": "http://{page}"}, 2),
    "mlflow through a dead proxy": (
        PROGRAM, {"MLFLOW_TRACKING_URI": "https://mlflow.invalid", "HTTPS_PROXY": "http://{closed}"}, 2),
}  # fmt: skip
"""Name → the command, its variables, its exit code."""


class Page(http.server.BaseHTTPRequestHandler):
    """Answers everything as a gateway does whose server is away."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        page = b"<html><body><h1>502 Bad Gateway</h1></body></html>"
        self.send_response(502)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815 — the base class's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


def refed(home: Path, words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in `home`, told of no proxy and no tracking but what `variables` says."""
    plain = {name: of for name, of in os.environ.items() if not name.upper().endswith(("_PROXY", "CERT_FILE"))}
    settings = {"HF_HOME": str(home / "hf"), "HF_TOKEN": WRITER, "HF_HUB_DISABLE_XET": "1", "AZURE_API_KEY": "k-1234"}
    quiet = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "REFED_TRACK": "false", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "refed_dspy.cli", *words.split()],
        cwd=home, env=plain | settings | quiet | variables, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with references, and with a shared run."""
    home = tmp_path_factory.mktemp("home")
    rows = [{"instruction": f"Explain tide {n}.", "response": f"Moon {n} pulls."} for n in range(4)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in ("synth --references rows.jsonl --teacher simulated --size 2 --run-dir run", "share run --out shared"):
        done = refed(home, words)
        assert done.returncode == 0, done.stderr
    return home


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Where nobody answers as hoped, by name: host and port; of `tls`, the address."""
    with (
        socket.socket() as taken,
        socket.create_server(("127.0.0.1", 0)) as hangs_up,
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as page,
        tls_front(page.server_port, tmp_path_factory.mktemp("tls")) as front,
    ):
        taken.bind(("127.0.0.1", 0))

        def hang_up() -> None:
            while True:
                try:
                    hangs_up.accept()[0].close()
                except OSError:
                    return

        for serve in (hang_up, page.serve_forever):
            threading.Thread(target=serve, daemon=True).start()
        ports = {"closed": taken, "hangs_up": hangs_up, "page": page.socket}
        yield {name: f"127.0.0.1:{each.getsockname()[1]}" for name, each in ports.items()} | {"tls": front.url}
        page.shutdown()


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_reached_is_one_line(case: str, home: Path, places: dict[str, str]) -> None:
    words, variables, code = CASES[case]
    given = {name: value.format(**places) for name, value in variables.items()}
    if "HOST" in given:
        teacher = {
            "model": "azure/some",
            "api_base": given["HOST"],
            "timeout": 5,
            "price": {"prompt": 1, "completion": 4},
        }
        mode = {"mode": given.get("MODE", "interactive"), "batch": {"quiet": 0.05}}
        (home / "azure.json").write_text(json.dumps({"teacher": teacher | mode, "max_cost": 5}))
    done = refed(home, words, **given)
    told = done.stderr.splitlines()
    assert "Traceback" not in done.stdout + done.stderr, done.stderr
    assert done.returncode == code, (done.returncode, told)
    assert told[-1].startswith("refed: ") and told[-1].isprintable(), told
    assert WRITER not in done.stdout + done.stderr


# --- a root of one's own


@pytest.mark.parametrize("mode", ["interactive", "batch"])
def test_a_teacher_behind_a_root_of_ones_own(mode: str, home: Path, tmp_path: Path) -> None:
    with SimulatedTeacher(latency=0.001) as server, tls_front(server.port, tmp_path) as front:
        teacher = {"model": "sim/sim-model", "api_base": f"{front.url}/v1", "mode": mode, "timeout": 10, "retries": 0}
        teacher |= {"batch": {"quiet": 0.05, "poll": 0.1}} if mode == "batch" else {}
        (home / "tls.json").write_text(json.dumps({"teacher": teacher}))
        words = f"synth --references rows.jsonl --config tls.json --size 2 --run-dir {tmp_path / 'run'}"
        assert "CERTIFICATE_VERIFY_FAILED" in last(refed(home, words), 2)
        last(refed(home, words, SSL_CERT_FILE=str(front.root)), 0)


def test_a_hub_behind_a_root_of_ones_own(home: Path, tmp_path: Path) -> None:
    with FakeHub() as hub, tls_front(hub.server_port, tmp_path) as front:
        last(refed(home, PUSH, HF_ENDPOINT=front.url, SSL_CERT_FILE=str(front.root)), 0)
        assert list(hub.repos) == ["me/set"]


def test_an_mlflow_server_behind_a_root_of_ones_own(home: Path, mlflow_template: Path, tmp_path: Path) -> None:
    """MLflow asks through requests, which has a variable of its own."""
    server = Server(tmp_path / "mlflow", mlflow_template)
    server.start()
    try:
        with tls_front(server.port, tmp_path) as front:
            at = {"MLFLOW_TRACKING_URI": front.url}
            assert "CERTIFICATE_VERIFY_FAILED" in last(refed(home, PROMOTE, **at, SSL_CERT_FILE=str(front.root)), 2)
            assert "has none" in last(refed(home, PROMOTE, **at, REQUESTS_CA_BUNDLE=str(front.root)), 2)
    finally:
        server.kill()


def last(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The last line that a command with this exit code told."""
    assert done.returncode == code, done.stdout + done.stderr
    return [*done.stderr.splitlines(), ""][-1 if not done.stderr else -2]

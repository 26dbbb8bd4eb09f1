"""An endpoint that sends its callers to another host: nothing is sent there, and the run says what to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dspy
import pytest

import refed_dspy
from refed_dspy import TeacherConfig
from refed_dspy.errors import RefedError, TeacherRefused
from tests.conftest import KEY, KEY_VARIABLE
from tests.support.recording_endpoint import openai_answer
from tests.support.scripted_engine import references

STATUSES = (301, 302, 303, 307, 308)
WIRES: dict[str, dict[str, Any]] = {
    "openai": {"model": "sim/m", "api_base": "{}/v1"},
    "azure": {"model": "azure/m", "api_base": "{}", "api_version": "2024-10-21"},
    "azure-v1": {"model": "azure/m", "api_base": "{}"},
    "anthropic": {"model": "anthropic/m", "api_base": "{}/v1"},
}
BODIES = {
    "page": ("text/html", b"<html>moved</html>"),
    "answer": ("application/json", json.dumps(openai_answer("moved")).encode()),
}


class Host(ThreadingHTTPServer):
    """It counts its requests, and answers each with `status`, a `body` and the address of `other`."""

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), _Handler)
        self.url = f"http://{address}:{self.server_address[1]}"
        self.status, self.body, self.other, self.asked = 200, "answer", "", 0


class _Handler(BaseHTTPRequestHandler):
    server: Host

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked += 1
        kind, body = BODIES[self.server.body]
        self.send_response(self.server.status)
        for name, value in {"Location": self.server.other + self.path, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST  # noqa: N815 — the library's name

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """One that redirects to the other, which has another name."""
    with Host("127.0.0.1") as endpoint, Host("127.0.0.2") as other:
        endpoint.other = other.url
        threads = [threading.Thread(target=host.serve_forever, args=(0.02,)) for host in (endpoint, other)]
        for thread in threads:
            thread.start()
        yield endpoint, other
        for host, thread in zip((endpoint, other), threads, strict=True):
            host.shutdown()
            thread.join()


CASES: list[Any] = [(wire, "interactive", "answer") for wire in WIRES] + [("openai", "batch", "answer")]
CASES += [pytest.param(wire, "interactive", "page", marks=pytest.mark.slow) for wire in WIRES]
CASES += [pytest.param(wire, "batch", "answer", marks=pytest.mark.slow) for wire in ("azure", "azure-v1")]


@pytest.mark.parametrize(("wire", "mode", "body"), CASES)
def test_nothing_is_sent_to_the_other_host(
    hosts: tuple[Host, Host], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wire: str, mode: str, body: str
) -> None:
    endpoint, other = hosts
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    settings = {**WIRES[wire], "api_base": WIRES[wire]["api_base"].format(endpoint.url), "api_key_env": KEY_VARIABLE}
    teacher = TeacherConfig.model_validate({**settings, "mode": mode, "batch": {"quiet": 0.01}})
    for status in STATUSES if wire == "openai" else STATUSES[::3]:
        endpoint.status, endpoint.body, endpoint.asked = status, body, 0
        with pytest.raises(TeacherRefused) as error:
            refed_dspy.synthesize(None, references(1), size=1, teacher=teacher, run_dir=tmp_path / str(status))
        assert f"(HTTP {status})" in str(error.value) and "api_base" in str(error.value), "what to change"
        assert error.value.exit_code == 2
        assert 0 < endpoint.asked <= 2 and not other.asked, "it is not asked again and again, either"
        assert not refed_dspy.read_run(tmp_path / str(status)).samples


def test_neither_does_a_callers_own_lm(hosts: tuple[Host, Host], tmp_path: Path) -> None:
    endpoint, other = hosts
    lm = dspy.LM("openai/gpt-4o-mini", api_base=f"{endpoint.url}/v1", api_key=KEY, num_retries=0, cache=False)
    for status in STATUSES:
        endpoint.status, endpoint.body = status, "answer"
        try:
            refed_dspy.synthesize(None, references(1), size=1, teacher=lm, run_dir=tmp_path / str(status))
        except RefedError as error:
            assert KEY not in str(error)
        assert not other.asked

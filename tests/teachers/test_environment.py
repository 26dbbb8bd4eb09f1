"""What leaves this machine: the key that the settings name, and nothing else of the environment, by any client."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import refed_dspy
from refed_dspy.errors import RefedError
from refed_dspy.plugins.metrics.endpoint_scorer import EndpointScorer
from tests.teachers.test_redirects import WIRES

CANARY = "canary-of-the-environment"
VARIABLES = (
    "OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_ORGANIZATION", "OPENAI_PROJECT_ID",
    "OPENAI_WEBHOOK_SECRET", "AZURE_OPENAI_AD_TOKEN", "AZURE_OPENAI_API_KEY", "AZURE_API_KEY", "AZURE_AD_TOKEN",
    "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY",
)  # fmt: skip
"""What the libraries in use are known to read."""
ERROR = b'HTTP/1.1 400 X\r\nContent-Type: application/json\r\nContent-Length: 28\r\n\r\n{"error": {"message": "no"}}'


class Recorder(threading.Thread):
    """A server that keeps every byte it is sent, and answers each request with an error."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__(daemon=True)
        self.listener, self.heard = listener, b""
        self.root = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def run(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    connection.settimeout(0.3)
                    with suppress(OSError):
                        while piece := connection.recv(1 << 16):
                            self.heard += piece
                            if b"\r\n\r\n" in piece:
                                connection.sendall(ERROR)


@pytest.fixture
def recorder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    for name in VARIABLES:
        monkeypatch.setenv(name, CANARY)
    for name in ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, f"X-Secret: {CANARY}")
    netrc = tmp_path / ".netrc"
    netrc.write_text(f"default login me password {CANARY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        (thread := Recorder(listener)).start()
        yield thread


@pytest.mark.parametrize("key", ["named", "none"])
@pytest.mark.parametrize("mode", ["interactive", "batch"])
@pytest.mark.parametrize("wire", sorted(WIRES))
def test_a_teacher_is_sent_its_own_key_and_nothing_else(
    wire: str, mode: str, key: str, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode == "batch" and wire == "anthropic":
        pytest.skip("no batches there")
    monkeypatch.setenv("OWN_KEY", "own-key-of-the-settings")
    teacher: dict[str, Any] = WIRES[wire] | {
        "api_base": WIRES[wire]["api_base"].format(recorder.root), "mode": mode, "retries": 0, "timeout": 5,
        "batch": {"quiet": 0.05}, "api_key_env": "OWN_KEY" if key == "named" else None,
    }  # fmt: skip
    with pytest.raises(RefedError, match=r"400|unfit"):
        refed_dspy.answer_prompts([{"instruction": "Hello?"}], teacher=teacher, out=tmp_path / "out", progress=False)
    assert b"HTTP/1.1" in recorder.heard and CANARY.encode() not in recorder.heard
    assert (b"own-key-of-the-settings" in recorder.heard) == (key == "named")


@pytest.mark.parametrize("key", ["named", "none"])
def test_a_scorer_is_sent_its_own_key_and_nothing_else(
    key: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWN_KEY", "own-key-of-the-settings")
    for name in ("HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    scorer = EndpointScorer("m", f"{recorder.root}/v1", "OWN_KEY" if key == "named" else None)
    with pytest.raises(RefedError, match="HTTP 400"):
        scorer.nll([""], ["text"])
    assert b"HTTP/1.1" in recorder.heard and CANARY.encode() not in recorder.heard
    assert (b"own-key-of-the-settings" in recorder.heard) == (key == "named")

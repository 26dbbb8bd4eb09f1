"""llama.cpp with the smoke model, for real, and what happens without a model or without llama.cpp."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from refed_dspy.errors import ConfigError
from refed_dspy.teachers.local.llama import LlamaServer, available_cores
from refed_dspy.weights import SMOKE, fetch

ROOT = Path(__file__).parents[2]
SCHEMA = {
    "type": "object",
    "properties": {
        "verdict": {"type": "string", "maxLength": 40},
        "points": {"type": "array", "items": {"type": "string", "maxLength": 20}, "maxItems": 3},
    },
    "required": ["verdict", "points"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model() -> Path:
    return fetch(SMOKE, print)


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[LlamaServer]:
    with LlamaServer(model, slots=2, window=1024) as server:
        yield server


def post(url: str, path: str = "/chat/completions", **body: Any) -> tuple[int, dict[str, Any]]:
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
    try:
        connection.request("POST", address.path + path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def chat(url: str, content: str, **more: Any) -> tuple[int, dict[str, Any]]:
    return post(url, model="any", messages=[{"role": "user", "content": content}], seed=1, **more)


@pytest.mark.live
def test_an_answer_fits_its_schema(running: LlamaServer) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": SCHEMA}}
    status, answer = chat(running.url, "Is rain wet?", response_format=form, max_tokens=300)
    assert status == 200
    assert answer["choices"][0]["finish_reason"] == "stop"
    made = json.loads(answer["choices"][0]["message"]["content"])
    assert len(made["verdict"]) <= 40
    assert len(made["points"]) <= 3
    assert answer["model"] == running.gguf.stem  # not its path


@pytest.mark.live
def test_a_cut_answer_and_a_prompt_too_long_are_told_apart(running: LlamaServer) -> None:
    status, answer = chat(running.url, "Tell a story.", max_tokens=5, ignore_eos=True)
    assert (status, answer["choices"][0]["finish_reason"]) == (200, "length")
    status, answer = chat(running.url, "word " * 1100, max_tokens=5)
    assert (status, answer["error"]["type"]) == (400, "exceed_context_size_error")


@pytest.mark.live
def test_a_seed_repeats_an_answer(running: LlamaServer) -> None:
    texts = [chat(running.url, "Name a river.", max_tokens=20, temperature=1.0)[1]["choices"] for _ in range(2)]
    assert texts[0] == texts[1]


@pytest.mark.live
def test_it_starts_once_and_stops_with_a_request_running(model: Path) -> None:
    server = LlamaServer(model, slots=1, window=2048)
    url = server.start()
    assert server.start() == url
    assert url.startswith("http://127.0.0.1:")
    ends: list[str] = []

    def ask() -> None:
        try:
            chat(url, "Tell a long story.", max_tokens=1800, ignore_eos=True)
            ends.append("answered")
        except (OSError, http.client.HTTPException):
            ends.append("cut off")

    client = threading.Thread(target=ask)
    client.start()
    time.sleep(0.5)
    server.stop()
    server.stop()
    client.join(5)
    assert ends == ["cut off"]
    with pytest.raises(ConfigError, match=r"start\(\)"):
        _ = server.url
    with pytest.raises(OSError, match="refused"):
        chat(url, "Still there?")
    assert server.start() != ""  # it can be used again
    server.stop()


PARENT = """
import sys, threading, time
from pathlib import Path
from refed_dspy.teachers.local.llama import LlamaServer
from tests.live.test_llama_server import chat
server = LlamaServer(Path(sys.argv[1]), slots=1, window=2048)
url = server.start()
threading.Thread(target=chat, args=(url, "Tell a story."), kwargs={"max_tokens": 1800, "ignore_eos": True}, daemon=True).start()
time.sleep(0.3)
print(url, flush=True)
time.sleep(60)
"""  # noqa: E501


@pytest.mark.live
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_it_ends_with_its_parent_however_that_ends(model: Path, by: signal.Signals) -> None:
    command = [sys.executable, "-c", PARENT, str(model)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        url = parent.stdout.readline().strip()
        parent.send_signal(by)
        _, errors = parent.communicate(timeout=10)
    assert parent.returncode == -by
    assert "llama" not in errors.replace("LlamaServer", "").replace("llama.py", "").replace("llama_server", "")
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            chat(url, "Still there?", max_tokens=1)
        except (OSError, http.client.HTTPException):
            return
        time.sleep(0.1)
    pytest.fail("the server outlived its parent")


@pytest.mark.live
def test_a_server_that_died_is_started_again(model: Path) -> None:
    with LlamaServer(model, slots=1, window=512) as server:
        assert server._process is not None
        server._process.kill()
        server._process.wait()
        assert chat(server.start(), "Hello", max_tokens=2)[0] == 200


@pytest.mark.live
def test_a_damaged_model_is_one_line_with_the_reason(model: Path, tmp_path: Path, capfd: Any) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:3_000_000])
    with pytest.raises(ConfigError, match=r"cut\.gguf: .*corrupted or incomplete.*api_base:") as caught:
        LlamaServer(cut).start()
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file"),
        (b"", "not a GGUF model"),
        (b"<html>not found</html>" * 99, "not a GGUF model"),
        (b"GGUF" + b"\xff" * 500, "damaged"),
        (b"GGUF\x03\x00\x00\x00" + bytes(500), "damaged"),
    ],
)
def test_what_is_no_model_is_told_before_llama_cpp_sees_it(content: bytes | None, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"model.gguf.*{reason}.*api_base:"):
        LlamaServer(path).start()


def test_without_llama_cpp_the_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes([3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'xllamacpp>=[\d.]+'.*api_base:"):
        LlamaServer(path).start()


def test_a_llama_cpp_that_cannot_be_imported_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes([3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]))
    (tmp_path / "xllamacpp").mkdir()
    (tmp_path / "xllamacpp" / "__init__.py").write_text("raise ImportError('needs a newer glibc')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs a newer glibc.*xllamacpp>="):
        LlamaServer(path).start()


def test_the_cores_of_this_process() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)

"""An endpoint in this process that keeps the headers and bodies it is sent, and answers as a test says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias

Answering: TypeAlias = Callable[[dict[str, str]], tuple[int, dict[str, Any] | str]]
"""From the headers of a request to the status and the body of what is answered: JSON, or plain text."""


def openai_answer(text: str) -> dict[str, Any]:
    """The body of an answer with this text."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def anthropic_answer(text: str) -> dict[str, Any]:
    whose = {"id": "1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn"}
    return {**whose, "content": [{"type": "text", "text": text}], "usage": {"input_tokens": 9, "output_tokens": 3}}


class Listener:
    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.root}/v1"
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []


@contextmanager
def listening(answering: Answering) -> Iterator[Listener]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers = dict(self.headers.items())
            listener.headers.append(headers)
            listener.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            status, answer = answering(headers)
            plain = isinstance(answer, str)
            body = str(answer).encode() if plain else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if plain else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = True
        listener = Listener(http.server_address[1])
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield listener
        finally:
            http.shutdown()
            thread.join()

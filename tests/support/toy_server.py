"""A toy language model with exact figures behind vLLM's two endpoints, in a thread of the test's process."""

from __future__ import annotations

import itertools
import json
import math
import socket
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from refed_dspy.plugins.metrics.perplexity import SEPARATOR

KEY = "sk-toy-0123456789"
BOS, KINDS = 1, 97


def tokens(text: str) -> list[int]:
    """Two characters a token: so a text after one of odd length has other tokens than it has alone."""
    return [2 + zlib.crc32(text[at : at + 2].encode()) % KINDS for at in range(0, len(text), 2)]


@cache
def logprob(before: int, token: int) -> float:
    weights = [1 + (before * 31 + kind * 17) % 13 for kind in range(KINDS + 2)]
    return math.log(weights[token] / sum(weights))


def nll(ids: Sequence[int], first: int) -> float:
    return -math.fsum(logprob(ids[at - 1], ids[at]) for at in range(first, len(ids)))


class ToyServer(ThreadingHTTPServer):
    """The toy model behind vLLM's two endpoints. `fault` makes it misbehave; `bos`: whether its tokenizer adds one;
    `separator`: whether it has SEPARATOR as a token."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ToyHandler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.reset()

    def handle_error(self, *_: Any) -> None:
        """Does nothing: faults are intended."""

    def reset(self) -> None:
        self.fault, self.bos, self.window, self.key = "", True, 4096, ""
        self.separator = False
        self.prompts: list[list[int]] = []
        self.busy = self.most_busy = 0


@contextmanager
def toy_served() -> Iterator[ToyServer]:
    """A toy server at work in a thread."""
    with ToyServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class ToyHandler(BaseHTTPRequestHandler):
    server: ToyServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.server.key and self.headers["authorization"] != f"Bearer {self.server.key}":
            return self.send(401, json.dumps({"error": f"wrong key {self.headers['authorization']}"}))
        if self.path == "/tokenize":
            return self.tokenize(body)
        self.server.prompts.append(body["prompt"])
        self.server.busy += 1
        self.server.most_busy = max(self.server.most_busy, self.server.busy)
        time.sleep(0.01)
        self.server.busy -= 1
        return self.complete(body)

    def tokenize(self, body: dict[str, Any]) -> None:
        if self.server.fault == "no tokenize":
            return self.send(404, '{"detail": "Not Found"}')
        ids = [BOS] if self.server.separator and body["prompt"] == SEPARATOR else tokens(body["prompt"])
        if body["add_special_tokens"] and self.server.bos:
            ids = [BOS, *ids]
        if self.server.fault == "llama.cpp":
            ids = []
        return self.send(200, json.dumps({"count": len(ids), "max_model_len": self.server.window, "tokens": ids}))

    def complete(self, body: dict[str, Any]) -> None:
        ids, fault = body["prompt"], self.server.fault
        assert isinstance(ids, list) and len(ids) < self.server.window
        if fault == "400 for long" and len(ids) > 100:
            return self.send(400, "{}")
        if fault.isdigit():
            return self.send(int(fault), '{"error": "sorry"}')
        if fault == "html":
            return self.send(200, "<html>Sign in</html>", "text/html")
        if fault == "half json":
            return self.send(200, '{"choices": [')
        if fault == "slow":
            time.sleep(3)
        if fault == "hang up":
            return self.close_connection_now()
        return self.send(200, json.dumps(self.answer(ids, fault)))

    def answer(self, ids: list[int], fault: str) -> dict[str, Any]:
        places: list[Any] = [None]
        for before, token in itertools.pairwise(ids):
            place = {str(token): {"logprob": logprob(before, token), "rank": 2, "decoded_token": "x"}}
            if fault == "crowded":  # likelier tokens first
                other = 2 + token % KINDS
                place = {str(other): {"logprob": -1e-9, "rank": 1, "decoded_token": "y"}, **place}
            places.append(place)
        changed = {"one short": places[:-1], "others": [None] + [{"999": {"logprob": -1.0}}] * (len(ids) - 1)}
        changed["above 0"] = [None] + [{str(token): {"logprob": 0.5}} for token in ids[1:]]
        choice = {"text": "a", "prompt_logprobs": changed.get(fault, places)}
        if fault == "no logprobs":
            del choice["prompt_logprobs"]
        usage = {} if fault == "no usage" else {"usage": {"prompt_tokens": len(ids)}}
        return {"choices": [] if fault == "no choice" else [choice], **usage}

    def close_connection_now(self) -> None:
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, content: str, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content.encode())))
        self.end_headers()
        self.wfile.write(content.encode())

    def log_message(self, *_: Any) -> None: ...

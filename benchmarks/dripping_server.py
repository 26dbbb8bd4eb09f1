"""A service that never says no and never comes to an end: one byte at a time, or bytes without end. Run as a program it
prints its port, and a line when the first such request has come; as `Dripping` it runs in a process of its own.

It is taken for MLflow's server or the Hub. With `--after N` its first N requests are answered as MLflow's artifact
store would, and it drips from then on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

WAYS = ("drip", "endless", "silent")
_BYTES = 5_000_000
"""The length that a dripping answer claims to have."""


class _Handler(BaseHTTPRequestHandler):
    way, interval, left, asked = "drip", 1.0, 0, False

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if _Handler.left > 0:
            _Handler.left -= 1
            self._whole(b'{"files": []}')
            return
        if not _Handler.asked:
            _Handler.asked = True
            print("asked", flush=True)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if self.way != "endless":
            self.send_header("Content-Length", str(_BYTES))
        self.end_headers()
        try:
            while True:
                self.wfile.write(b" " * (10_000 if self.way == "endless" else self.way == "drip"))
                self.wfile.flush()
                time.sleep(self.interval if self.way != "endless" else 0.01)
        except OSError:
            self.close_connection = True

    def _whole(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_HEAD = _answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing is printed of a request."""


class Dripping:
    """Such a server in its own process, at `url`."""

    def __init__(self, way: str = "drip", interval: float = 1.0, after: int = 0) -> None:
        self._options = ["--way", way, "--interval", str(interval), "--after", str(after)]

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "benchmarks.dripping_server", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self._process.stdout.readline())}"
        return self

    def asked(self) -> None:
        """Returns when the first request has come that it drips at."""
        assert self._process.stdout is not None
        self._process.stdout.readline()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS, default="drip")
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between two bytes")
    parser.add_argument("--after", type=int, default=0, help="so many requests are answered first")
    options = parser.parse_args()
    _Handler.way, _Handler.interval, _Handler.left = options.way, options.interval, options.after
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

"""The page of work that goes on, served to this machine alone.

Whoever asks needs the address with its random token, and a browser that was sent to this machine under another name is
refused (DNS rebinding), so no other page in the browser can read it.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from refed_dspy.errors import ConfigError, RefedError, one_line
from refed_dspy.files import path_of
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report import glance
from refed_dspy.plugins.share.report.page import Page, render
from refed_dspy.plugins.share.report.report import no_map, read_page

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class ReportServer(ThreadingHTTPServer):
    """A server of the page of the work in a folder, at `address` until it is closed. Use it as a context.

    Raises RunDirError where there is no work, ConfigError where the port is taken.
    """

    daemon_threads = True

    def __init__(self, run_dir: str | Path, port: int = 0) -> None:
        self.folder = path_of(run_dir, "run_dir")
        self.token = secrets.token_urlsafe(24)
        self._made: tuple[str, bytes] | None = None
        self._making = Lock()
        with Ledger.read(self.folder):
            pass
        try:
            super().__init__(("127.0.0.1", port), _Answers)
        except OSError as error:
            raise ConfigError(f"port {port}: {one_line(error.strerror or error)}; choose another") from None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def page(self) -> bytes:
        """The page as it is now; it is made once for each state of the ledger."""
        with self._making:
            mark = self.mark()
            if self._made is None or self._made[0] != mark:
                self._made = mark, render(self._page(), version("refed-dspy"), live=True)
            return self._made[1]

    def now(self) -> bytes:
        """The figures that change with each call, and a mark that changes with the page."""
        with Ledger.read(self.folder) as ledger:
            status = status_of(ledger)
            facts = (glance.facts if ledger.holds() in {"", "run"} else glance.paid)(ledger, status)
            facts.append(glance.pace(ledger))
        return json.dumps({"mark": self.mark(), "facts": [asdict(fact) for fact in facts]}).encode()

    def mark(self) -> str:
        """Changes whenever something was written."""
        stats = [path.stat() for path in sorted(self.folder.glob(f"{FILE}*")) if not path.name.endswith("-shm")]
        return "-".join(f"{stat.st_mtime_ns}.{stat.st_size}" for stat in stats)

    def _page(self) -> Page:
        with Ledger.read(self.folder) as ledger:
            pace, waiting = glance.pace(ledger), not ledger.has_answers()
        if waiting:
            return Page(self.folder.absolute().name, "No answers yet.", "", "", [pace], [], [], [], [])
        page = read_page(self.folder, no_map)
        return replace(page, facts=[*page.facts, pace])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closed the connection is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Answers(BaseHTTPRequestHandler):
    server: ReportServer
    server_version, sys_version = "refed", ""
    timeout = 10

    def do_GET(self) -> None:
        """The page, or its figures, to this machine and whoever knows the token."""
        hosts = [[f"{name}:{self.server.server_port}"] for name in ("127.0.0.1", "localhost")]
        if self.headers.get_all("Host") not in hosts:
            return self._refuse(HTTPStatus.FORBIDDEN)
        made = {"": (self.server.page, "text/html"), "now": (self.server.now, "application/json")}
        for name, answer in made.items():
            if compare_digest(self.path.encode(), f"/{self.server.token}/{name}".encode()):
                return self._answer(*answer)
        return self._refuse(HTTPStatus.NOT_FOUND)

    def _answer(self, make: Callable[[], bytes], kind: str) -> None:
        try:
            self._send(HTTPStatus.OK, f"{kind}; charset=utf-8", make())
        except RefedError as error:
            self._send(HTTPStatus.SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", one_line(error, 600).encode())

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode())

    def _send(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 — the base class's name
        """No line for each request: the token would be in it."""

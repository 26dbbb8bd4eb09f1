"""The page of work that goes on: who may see it, and that it follows."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from refed_dspy.errors import ConfigError, RunDirError
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.share.report.watch import ReportServer
from tests.plugins.share.conftest import SHOWN_SIZE, copy_run
from tests.support.said import Said

OWN_SERVER, PACE = "connect-src &#39;self&#39;", "Calls per second"


@pytest.fixture
def folder(shown: Path, tmp_path: Path) -> Path:
    return copy_run(shown, tmp_path)


@pytest.fixture
def server(folder: Path) -> Iterator[ReportServer]:
    with ReportServer(folder) as opened:
        thread = Thread(target=opened.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield opened
        opened.shutdown()
        thread.join()


def get(server: ReportServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def now(server: ReportServer) -> dict[str, Any]:
    status, content, _ = get(server, f"/{server.token}/now")
    assert status == 200
    return dict(json.loads(content))


def test_only_loopback_the_token_and_this_hosts_names_are_answered(server: ReportServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    port = server.server_port
    assert server.address == f"http://127.0.0.1:{port}/{server.token}/" and len(server.token) >= 32
    assert get(server, f"/{server.token}/", Host=f"localhost:{port}")[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port + 1}", ""):
        status, content, _ = get(server, f"/{server.token}/", Host=host)
        assert (status, content) == (403, b"Forbidden\n"), host
    for path in ("/", "/now", f"/{server.token}", f"/{server.token}x/", f"/{server.token}/../", f"/{server.token}/x"):
        assert get(server, path)[:2] == (404, b"Not Found\n"), path
    assert get(server, f"/{server.token}/", "POST")[0] == 501
    with ReportServer(server.folder) as other:
        assert other.token != server.token


def test_two_hosts_are_none(server: ReportServer) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
        host = f"Host: 127.0.0.1:{server.server_port}\r\n"
        connection.sendall(f"GET /{server.token}/ HTTP/1.1\r\n{host}Host: evil.example\r\n\r\n".encode())
        assert b" 403 " in connection.recv(100)


def test_the_page_may_ask_this_server_alone_and_stays_nowhere(server: ReportServer) -> None:
    status, content, headers = get(server, f"/{server.token}/")
    page = content.decode()
    assert status == 200 and OWN_SERVER in page and PACE in page
    assert headers["Cache-Control"] == "no-store" and headers["Referrer-Policy"] == "no-referrer"
    assert "Python" not in headers["Server"] and server.token not in page


def test_figures_and_page_follow_the_ledger(server: ReportServer, folder: Path) -> None:
    before = now(server)
    figures = {fact["name"]: fact for fact in before["facts"]}
    assert figures["Samples"]["value"] == str(SHOWN_SIZE) and PACE in figures
    first = get(server, f"/{server.token}/")[1]
    assert get(server, f"/{server.token}/")[1] == first and now(server)["mark"] == before["mark"]
    with Ledger.create(folder) as ledger:
        ledger.set_meta(size=500)
        after = now(server)
        assert after["mark"] != before["mark"]
        note = {fact["name"]: fact for fact in after["facts"]}["Samples"]["note"]
        assert "500" in note and note.encode() in get(server, f"/{server.token}/")[1]


def test_before_the_first_answer_it_waits(said: Said, tmp_path: Path) -> None:
    with Ledger.create(tmp_path) as ledger:
        ledger.begin([], identity={})
    with ReportServer(tmp_path) as server:
        lead = re.search('<p class="lead">(.*?)</p>', server.page().decode(), re.DOTALL)
        assert lead
        said(lead[1])
    with said.by(RunDirError):
        ReportServer(tmp_path / "nowhere")


def test_a_port_that_is_taken_is_one_line(said: Said, server: ReportServer, folder: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        ReportServer(folder, server.server_port)
    said(str(raised.value).replace(str(server.server_port), "PORT"))


def test_a_ledger_that_went_away_is_an_answer_and_no_end(server: ReportServer, folder: Path) -> None:
    (folder / FILE).rename(folder / "elsewhere")
    status, content, _ = get(server, f"/{server.token}/now")
    assert status == 503 and b"no run here" in content and b"Traceback" not in content


@pytest.mark.slow
def test_ctrl_c_ends_the_watching(said: Said, folder: Path) -> None:
    command = [sys.executable, "-m", "refed_dspy.cli", "report", "--watch", str(folder)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=30)
    first, *more = errors.splitlines()
    assert (process.returncode, rest) == (0, "")
    said(first)
    assert len(more) <= 1, "that it is stopping is told after a moment"

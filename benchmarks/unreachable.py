"""Endpoints that cannot be reached: what does the ledger charge for them, over three starts?

`python -m benchmarks.unreachable`: a host that does not resolve, a refused port, a failed TLS handshake, a proxy that
is not there; each for a run of 8 and of 1,000 samples, a compile, a filtering, a comparison and a run in batches, by
the command line. Nothing can have been billed: 0 calls, $0 and exit code 2 each time.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.runs import REFERENCES
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent

PRICE = {"prompt": 1.0, "completion": 4.0}
STARTS = 3


@contextmanager
def not_tls() -> Iterator[int]:
    """The port of a server that answers a TLS handshake with plain text."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(100)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def jobs(folder: Path, teacher: dict[str, object]) -> dict[str, list[str]]:
    """Name → the command of a job that asks `teacher`."""
    references, rows = folder / "references.jsonl", folder / "rows.jsonl"
    references.write_text("".join(json.dumps(row) + "\n" for row in REFERENCES))
    rows.write_text("".join(json.dumps(row | {"improved_response": "Better."}) + "\n" for row in REFERENCES))

    def config(name: str, **settings: object) -> str:
        (file := folder / f"{name}.json").write_text(json.dumps(settings))
        return str(file)

    run = {"references": str(references), "teacher": teacher, "max_cost": 5.0}
    batch = run | {"teacher": teacher | {"mode": "batch", "batch": {"quiet": 0.1, "poll": 0.1}}}
    return {
        "synth 8": ["synth", "--config", config("small", **run, size=8)],
        "synth 1,000": ["synth", "--config", config("large", **run, size=1_000)],
        "batch": ["synth", "--config", config("batch", **batch, size=1_000)],
        "compare": ["compare", "--config", config("compare", **run, size=8, judge=teacher)],
        "compile": [
            "compile", "--config",
            config("compile", references=str(references), teacher=teacher, judge=teacher, max_cost=50.0),
        ],
        "filter": [
            "filter", str(rows), "--config",
            config("filter", filters=[{"judge": {"keep": 10}}], judge=teacher, max_cost=5.0),
        ],
    }  # fmt: skip


def charged(folder: Path) -> tuple[int, int]:
    """(Calls, picodollars) in all ledgers below `folder`."""
    calls = cost = 0
    for file in folder.rglob("ledger.sqlite"):
        with Ledger.read(file.parent) as ledger:
            used = spent(ledger)
        calls, cost = calls + used.calls, cost + used.picodollars
    return calls, cost


def main() -> None:
    wrong = 0
    with not_tls() as plain, tempfile.TemporaryDirectory() as home:
        ways: dict[str, tuple[str, dict[str, str]]] = {
            "no such host": ("https://no-such-host.invalid/v1", {}),
            "refused": (f"http://127.0.0.1:{closed_port()}/v1", {}),
            "TLS": (f"https://127.0.0.1:{plain}/v1", {}),
            "dead proxy": ("https://example.invalid/v1", {"HTTPS_PROXY": f"http://127.0.0.1:{closed_port()}"}),
        }
        for way, (address, variables) in ways.items():
            where = Path(home) / way.replace(" ", "-")
            where.mkdir()
            teacher = {"model": "openai/some", "api_base": address, "price": PRICE, "timeout": 5, "concurrency": 64}
            for name, command in jobs(where, teacher).items():
                out = where / name.replace(" ", "-").replace(",", "")
                flag = "--run-dir" if command[0] in {"synth"} else "--out"
                for start in range(STARTS):
                    done = subprocess.run(
                        [sys.executable, "-m", "refed_dspy.cli", *command, flag, str(out)],
                        env=os.environ | variables, capture_output=True, text=True, timeout=120,
                    )  # fmt: skip
                    calls, cost = charged(out)
                    good = done.returncode == 2 and not calls and not cost
                    wrong += not good
                    said = done.stderr.strip().splitlines()[-1][:150] if done.stderr.strip() else ""
                    if start == 0 or not good:
                        print(
                            f"{way}, {name}: exit {done.returncode}, {calls} calls, ${cost / 1e12:g}: {said}",
                            flush=True,
                        )
    print(f"{wrong} starts that were charged, or did not end with 2 (must be 0)")


if __name__ == "__main__":
    main()

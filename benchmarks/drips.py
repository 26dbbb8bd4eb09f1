"""How long a command waits for a MLflow or a Hub that drips one byte a second, sends without end, or says nothing; and
how long Ctrl-C takes then; both from the first request that gets no end.

    python -m benchmarks.drips [--timeout 2]

MLflow's own time-out is set to `--timeout` for every command; the Hub's library has its own. A command may wait three
times the time-out (the Hub: `read.HUB_PATIENCE`), and Ctrl-C 2.5 seconds.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.dripping_server import WAYS, Dripping

REFED = [sys.executable, "-m", "refed_dspy.cli"]
SYNTH = ["synth", "--references", "builtin", "--teacher", "simulated", "--size", "4"]
COMMANDS = {
    "--program models:/…": ([*SYNTH, "--program", "models:/refed@champion", "--run-dir", "new"], 0),
    "--program mlflow-artifacts:/…": ([*SYNTH, "--program", "mlflow-artifacts:/a/program.json", "--run-dir", "new"], 1),
    "synth --track": ([*SYNTH, "--track", "--run-dir", "tracked"], 0),
    "track": (["track", "run"], 0),
    "promote": (["compile", "promote", "refed"], 0),
    "references of the Hub": (["synth", "--references", "owner/name", "--teacher", "simulated", "--run-dir", "new"], 0),
    "push": (["push", "shared", "owner/name", "--go"], 0),
}
"""What is run → its words, and how many requests are answered before the service drips."""
MOST = 400.0
"""Seconds after which a command is killed."""


def started(words: list[str], url: str, timeout: float) -> subprocess.Popen[str]:
    told = {"MLFLOW_TRACKING_URI": url, "MLFLOW_HTTP_REQUEST_TIMEOUT": f"{timeout:g}", "HF_ENDPOINT": url}
    told |= {"HF_TOKEN": "hf_nothing", "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "HF_HOME": "hub"}
    environment = {**os.environ, **told, "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    return subprocess.Popen(
        [*REFED, *words], cwd=HOME, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def ended(process: subprocess.Popen[str], most: float) -> tuple[float, str]:
    """Seconds until it ended, and its last line on stderr."""
    began = time.monotonic()
    try:
        _, said = process.communicate(timeout=most)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        said += "\n(killed)"
    return time.monotonic() - began, f"{process.returncode}: {(said.strip().splitlines() or ['–'])[-1][:110]}"


def measured(what: str, way: str, timeout: float) -> None:
    words, after = COMMANDS[what]
    with Dripping(way, after=after) as server:
        process = started(words, server.url, timeout)
        server.asked()
        waited, said = ended(process, MOST)
    with Dripping(way, after=after) as server:
        process = started(words, server.url, timeout)
        server.asked()
        time.sleep(HEAD_START)
        process.send_signal(signal.SIGINT)
        stopped, _ = ended(process, 60)
    print(f"{what:30} {way:8} {waited:7.1f} s {stopped:6.1f} s  {said}", flush=True)


HEAD_START = 1.0
"""Seconds after the first request at which Ctrl-C comes."""
HOME = Path(tempfile.mkdtemp(prefix="refed-drips-"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timeout", type=float, default=2.0, help="MLFLOW_HTTP_REQUEST_TIMEOUT")
    parser.add_argument("--only", default="", help="a part of a row's name")
    parser.add_argument("--ways", nargs="*", default=list(WAYS))
    options = parser.parse_args()
    environment = {**os.environ, "REFED_TRACK": "false", "PYTHONPATH": os.getcwd()}  # noqa: PTH109
    for words in ([*SYNTH, "--run-dir", "run"], ["share", "run", "--out", "shared", "--license", "mit"]):
        subprocess.run([*REFED, *words], cwd=HOME, env=environment, check=True, capture_output=True)
    print(f"{'':30} {'':8} {'waits':>9} {'Ctrl-C':>8}  exit code: last line", flush=True)
    for what in COMMANDS:
        for way in options.ways:
            if options.only in what:
                measured(what, way, options.timeout)


if __name__ == "__main__":
    main()

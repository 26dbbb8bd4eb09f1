"""The command killed or stopped with Ctrl-C between its two passes."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from benchmarks.simulated import SimulatedTeacher
from tests.plugins.recycle.helpers import COMMAND, stopped
from tests.support.compiling import requests
from tests.support.scripted_engine import references
from tests.support.toy_server import ToyServer


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_stopped_between_the_passes_it_goes_on_with_the_second(
    server: SimulatedTeacher, scoring: ToyServer, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in references(24)))
    (tmp_path / "teacher.yaml").write_text(f"model: sim/sim-model\napi_base: {server.base_url}\nconcurrency: 8\n")
    (tmp_path / "job.yaml").write_text(f"scorer: {{model: toy, api_base: {scoring.url}}}\n")
    command = [*COMMAND, "--selective", "--config", "job.yaml"]
    assert stopped(tmp_path, number, lambda: len(scoring.prompts) > 20, command)[0] == code
    assert requests(server) == 24 and not (tmp_path / "out" / "recycled.jsonl").exists()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert requests(server) == 48 and server.stats()["repeated"] == 0

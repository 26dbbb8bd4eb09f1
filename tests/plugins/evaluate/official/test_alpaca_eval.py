"""AlpacaEval's official code through our proxy: the same figures as without it, under our caps, paid for once."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.simulated import SimulatedTeacher
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.plugins.evaluate.alpaca_eval.evaluate import alpaca_eval, judge_settings
from refed_dspy.plugins.evaluate.alpaca_eval.result import AlpacaEvaluation
from refed_dspy.plugins.evaluate.program import Installed
from tests.plugins.evaluate.alpaca_eval.conftest import in_hubs_cache, outputs
from tests.plugins.recycle.helpers import REFED, answers, stopped
from tests.support.compiling import requests
from tests.support.proxies import bill, calls, judge

pytestmark = pytest.mark.evaluate
SIZE = 60
CAPS = 20
AT_ONCE = 8


@pytest.fixture
def home(server: SimulatedTeacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    server.control(verdicts=["m", "M"])
    for name, words in (("mine", 9), ("theirs", 4)):
        Path(f"{name}.json").write_text(json.dumps(outputs(name, SIZE, words)), "utf-8")
    return tmp_path


def evaluated(server: SimulatedTeacher, installed: Installed, out: str = "out", **settings: Any) -> AlpacaEvaluation:
    values = {"outputs": "mine.json", "baseline": "theirs.json", "judge": judge(server), "out": out}
    return alpaca_eval(**{**values, "environment": installed.python, **settings})


def direct(server: SimulatedTeacher, installed: Installed, folder: Path) -> Path:
    """The package's own command against the server itself. Returns its leaderboard."""
    folder.mkdir()
    config = judge_settings(installed)
    (folder / "judge").mkdir()
    (folder / "judge" / "configs.yaml").write_text(yaml.safe_dump({"judge": config}), "utf-8")
    client = {"base_url": server.base_url, "api_key": "none"}
    (folder / "clients.yaml").write_text(yaml.safe_dump({"default": [client]}), "utf-8")
    files = ["--model_outputs", "mine.json", "--reference_outputs", "theirs.json", "--output_path", str(folder / "out")]
    figure = ["--fn_metric", "get_winrate", "--sort_by", "win_rate", "--precomputed_leaderboard", "None"]
    own = ["--annotators_config", str(folder / "judge"), *figure]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1", "LOGNAME": "refed"}
    environment |= {"OPENAI_CLIENT_CONFIG_PATH": str(folder / "clients.yaml")}
    command = [str(installed.python), "-I", "-m", "alpaca_eval.main", "evaluate", *files, *own]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return folder / "out" / "leaderboard.csv"


def test_sixty_prompts_are_sixty_requests_and_the_figures_of_a_direct_run(
    home: Path, server: SimulatedTeacher, installed: Installed
) -> None:
    made = evaluated(server, installed)
    assert requests(server) == SIZE and made.judged is not None and made.judged.n == SIZE
    assert made.used.picodollars == bill(server)
    again = evaluated(server, installed)
    assert requests(server) == SIZE and again == made
    leaderboard = direct(server, installed, home / "direct")
    assert Path("out/leaderboard.csv").read_bytes() == leaderboard.read_bytes()
    (row,) = csv.DictReader(leaderboard.read_text().splitlines())
    assert made.judged.win_rate == float(row["win_rate"])
    assert made.judged.standard_error == float(row["standard_error"])


def test_twenty_random_caps_are_not_passed_by_a_dollar(
    home: Path, server: SimulatedTeacher, installed: Installed
) -> None:
    """By the ledger, and by the server's bill, which also counts what was never answered."""
    server.control(faults={"500": 0.03, "drop": 0.03, "nousage": 0.03})
    rng, ended = random.Random(5), 0
    for number in range(CAPS):
        server.reset()
        cap = rng.uniform(0.004, 0.03)
        made = evaluated(server, installed, f"cap-{number}", judge=judge(server, max_tokens=16), max_cost=cap)
        spent = sum(cost for _, cost in calls(home / f"cap-{number}"))
        assert spent <= cap * 1e12 and 0 < bill(server) <= cap * 1e12
        ended += made.stopped == "max_cost"
    assert ended >= CAPS // 2, "most of these caps end it"


def test_killed_it_goes_on_and_pays_for_nothing_twice_but_what_was_in_flight(
    home: Path, server: SimulatedTeacher, installed: Installed
) -> None:
    Path("judge.yaml").write_text(json.dumps(judge(server, concurrency=AT_ONCE).model_dump(mode="json")), "utf-8")
    files = ["--outputs", "mine.json", "--baseline", "theirs.json", "--judge", "judge.yaml", "--out", "out"]
    command = [*REFED, "evaluate", "alpaca-eval", *files, "--environment", str(installed.python)]
    server.control(latency=0.2, sigma=0.3)
    assert stopped(home, signal.SIGKILL, answers(server, 25), command)[0] == -signal.SIGKILL
    with Ledger.read(home / "out") as ledger:
        (kept,) = ledger.db.execute("SELECT count(*) FROM answers").fetchone()
    lost = requests(server) - kept
    assert kept >= 25 - AT_ONCE and lost <= AT_ONCE
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert requests(server) == SIZE + lost
    assert Path("out/leaderboard.csv").read_bytes() == direct(server, installed, home / "direct").read_bytes()


def test_prompts_that_a_filter_refuses_are_left_out(home: Path, server: SimulatedTeacher, installed: Installed) -> None:
    server.control(faults={"filtered": 0.2})
    made = evaluated(server, installed)
    assert made.judged is not None and 30 < made.judged.n < SIZE and "have no preference" in made.problem
    assert requests(server) == SIZE, "a refusal is not asked again"


def test_the_official_length_controlled_figure_needs_its_file(
    home: Path, server: SimulatedTeacher, installed: Installed
) -> None:
    """A file of the published one's form. The package itself stays as it is."""
    rng = random.Random(1)
    gamed = in_hubs_cache(home, "")
    with gamed.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["model", "preference", "index", "std_delta_len", "instruction_difficulty", "not_gamed_baseline"]
        )
        difficulty = [rng.gauss(0, 1) for _ in range(SIZE)]
        for model in ("concise", "verbose"):
            for n in range(SIZE):
                writer.writerow([model, rng.random(), n, rng.gauss(0, 1), difficulty[n], False])
    before = sorted(path.stat().st_mtime_ns for path in installed.folder.rglob("*.csv"))
    made = evaluated(server, installed, gamed=gamed)
    assert made.judged is not None
    equal = made.judged.length_controlled
    assert equal.official and equal.interval is not None and 0 < equal.interval.low < equal.interval.high < 100
    assert "AlpacaEval's fit" in made.lines()[1] and "length_controlled" in made.facts()["figures"]
    assert sorted(path.stat().st_mtime_ns for path in installed.folder.rglob("*.csv")) == before
    plain = evaluated(server, installed)
    assert plain.judged is not None and not plain.judged.length_controlled.official and requests(server) == SIZE

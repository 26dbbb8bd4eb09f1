"""How many references a compile must hold out, by how gains varied in one before it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from refed_dspy.cli.main import app
from refed_dspy.errors import ConfigError, RunDirError
from refed_dspy.ledger.candidates import candidate_seen, evaluation_scored
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.metrics.gains import clusters_for
from refed_dspy.optimizers.planning import plan_compile
from refed_dspy.records import Compared

BETWEEN, WITHIN, SAMPLES, WEIGHT = 0.05, 0.2, 4, 0.5


def pilot(folder: Path, references: int, candidates: int = 1, seed: int = 0) -> Path:
    """A compile whose candidates gain 0.1, by samples whose wins vary."""
    rng = np.random.default_rng(seed)
    with Ledger.create(folder) as ledger:
        ledger.begin([], work="compile", about={"sets": {"train": ["", 8], "validation": ["", 8], "test": ["", 12]}})
        ledger.commit(candidate_seen("first", 0, {}))
        for number in range(references):
            ledger.commit(evaluation_scored("first", f"e{number}", "validation", 0.5, {}, 0))
        for index in range(candidates):
            ledger.commit(candidate_seen(f"c{index}", index + 1, {}))
            for number in range(references):
                wins = 0.6 + rng.normal(0, BETWEEN / WEIGHT) + rng.normal(0, WITHIN, SAMPLES)
                score = 0.5 + WEIGHT * (float(wins.mean()) - 0.5)
                compared = Compared(WEIGHT, [(float(win), 0.0) for win in wins])
                ledger.commit(evaluation_scored(f"c{index}", f"e{number}", "validation", score, {}, 0, compared))
    return folder


def test_spread_and_noise_are_those_of_the_pilot(tmp_path: Path) -> None:
    plan = plan_compile(pilot(tmp_path, 200, candidates=3))
    noise = WEIGHT * WITHIN / SAMPLES**0.5
    assert plan.noise == pytest.approx(noise, rel=0.05)
    assert plan.spread == pytest.approx((BETWEEN**2 + noise**2) ** 0.5, rel=0.05)
    assert (plan.candidates, plan.references, plan.samples, plan.held_out) == (3, 200, 4, 12)
    assert plan.spread_with(1e9) == pytest.approx(BETWEEN, rel=0.1), "what more samples cannot take away"


def test_what_is_needed_is_what_the_rule_needs(tmp_path: Path) -> None:
    plan = plan_compile(pilot(tmp_path, 40), gains=[0.02, 0.1])
    assert plan.needed(0.1) == clusters_for(0.1, plan.spread)
    few, many = plan.needed(0.02, times=4), plan.needed(0.02)
    assert few is not None and many is not None and few < many
    assert plan.needed(0.0001) is None


def test_the_command(tmp_path: Path) -> None:
    told = CliRunner().invoke(app, ["plan-compile", str(pilot(tmp_path, 12)), "--gain", "0.1", "--gain", "0.001"])
    assert told.exit_code == 0, told.output
    first, _, heads, *rows, last = told.output.splitlines()
    assert first.startswith(f"{tmp_path}: gains of 1 candidate on 12 references vary by 0.0")
    assert (
        heads.split() == ["gain", *["4", "samples", "8", "samples", "16", "samples", "found", "with", "12"]]
        and len(rows) == 2
    )
    assert rows[0].startswith("0.10") and rows[1].count("over 1,000") >= 1
    assert last == "if references are independent; with fewer than 5 nothing is proved"


@pytest.mark.parametrize("references", [0, 4])
def test_a_pilot_that_says_nothing_is_refused(tmp_path: Path, references: int) -> None:
    with pytest.raises(RunDirError, match="no program but the first was scored on 5 examples or more"):
        plan_compile(pilot(tmp_path, references))


def test_what_is_no_compile_or_no_gain(tmp_path: Path) -> None:
    with Ledger.create(tmp_path / "run") as ledger:
        ledger.begin([], work="run")
    with pytest.raises(RunDirError, match="no compile; name the folder of one"):
        plan_compile(tmp_path / "run")
    with pytest.raises(ConfigError, match="gain: must be above 0"):
        plan_compile(tmp_path / "run", gains=[0.1, 0.0])

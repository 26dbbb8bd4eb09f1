"""AlpacaEval 2's figures for two models of its leaderboard, computed from 805 preferences, and the published ones.

`python -m benchmarks.alpaca`: win rate and standard error must agree to 6 digits; exits with 1 where one differs.
Length-controlled (LC) win rates need the leaderboard's instruction difficulties, which are not in the file: ours,
fitted on one model alone, is printed with its difference.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refed_dspy.metrics.win_rates import LC_NOTE, length_controlled

DATA = Path(__file__).parents[2] / "shared/data/alpacaeval2_preferences.json"
DIGITS = 6


def alpaca_eval(preferences: Sequence[float]) -> tuple[float, float]:
    """AlpacaEval 2's win rate and standard error in percent: 100 * mean(p - 1), and that of the sd with n - 1 below it.

    A preference is from 1 (the baseline's answer is better) to 2 (the model's); 0 is a tie. One preference has no
    standard error (nan). Raises ValueError without one, and for any other number.
    """
    p = np.asarray(preferences, dtype=np.float64)
    wins = np.where(p == 0, 1.5, p) - 1
    if p.ndim != 1 or p.size == 0 or not ((wins >= 0) & (wins <= 1)).all():
        raise ValueError(
            "preferences must be numbers from 1 to 2, or 0 for a tie, at least one; leave out the unjudged"
        )
    error = float(wins.std(ddof=1)) / math.sqrt(wins.size) if wins.size > 1 else math.nan
    return 100 * math.fsum(wins) / wins.size, 100 * error


def same(ours: float, published: float) -> bool:
    """To DIGITS significant digits."""
    return f"{ours:.{DIGITS}g}" == f"{published:.{DIGITS}g}"


def figures_agree(model: dict[str, Any]) -> bool:
    """Print one model's figures. True if those that must agree do."""
    preferences = [row["preference"] for row in model["rows"]]
    differences = [row["len_model"] - row["len_baseline"] for row in model["rows"]]
    win_rate, standard_error = alpaca_eval(preferences)
    controlled = length_controlled([0.5 if p == 0 else p - 1 for p in preferences], differences)
    assert controlled.interval is not None and controlled.beta is not None
    lc = controlled.interval
    figures = {
        "win rate": (win_rate, model["win_rate"]),
        "standard error": (standard_error, model["standard_error"]),
        "LC win rate": (lc.mean, model["length_controlled_winrate"]),
    }
    print(f"  {'':16}{'ours':>12}{'published':>12}{'difference':>13}")
    for name, (ours, published) in figures.items():
        print(f"  {name:16}{ours:12.6f}{published:12.6f}{ours - published:13.2g}")
    mean = sum(differences) / len(differences)
    print(f"  LC interval {lc.low:.2f} to {lc.high:.2f}, beta {controlled.beta:.3f}, mean length difference {mean:.0f}")
    return all(same(*figures[name]) for name in ("win rate", "standard error"))


def main() -> None:
    right = True
    for name, model in json.loads(DATA.read_text(encoding="utf-8")).items():
        print(f"{name}, {len(model['rows'])} preferences")
        right &= figures_agree(model)
    print(LC_NOTE)
    print(f"win rates and standard errors are {'' if right else 'NOT '}equal to {DIGITS} digits")
    sys.exit(not right)


if __name__ == "__main__":
    main()

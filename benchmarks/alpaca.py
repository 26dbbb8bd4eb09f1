"""AlpacaEval 2's figures for two models of its leaderboard, computed from 805 preferences, and the published ones.

`python -m benchmarks.alpaca`: win rate and standard error must agree to 6 digits; exits with 1 where one differs.
Length-controlled (LC) win rates need the leaderboard's instruction difficulties, which are not in the file: ours,
fitted on one model alone, is printed with its difference.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from refed_dspy.plugins.metrics.win_rates import LC_NOTE, length_controlled, preferences

DATA = Path(__file__).parents[2] / "shared/data/alpacaeval2_preferences.json"
DIGITS = 6


def same(ours: float, published: float) -> bool:
    """To DIGITS significant digits."""
    return f"{ours:.{DIGITS}g}" == f"{published:.{DIGITS}g}"


def figures_agree(model: dict[str, Any]) -> bool:
    """Print one model's figures. True if those that must agree do."""
    given = [row["preference"] for row in model["rows"]]
    differences = [row["len_model"] - row["len_baseline"] for row in model["rows"]]
    found = preferences(given)
    controlled = length_controlled([0.5 if p == 0 else p - 1 for p in given], differences)
    assert controlled.interval is not None and controlled.beta is not None
    lc = controlled.interval
    figures = {
        "win rate": (found.win_rate, model["win_rate"]),
        "standard error": (found.standard_error, model["standard_error"]),
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

"""Reading AlpacaEval's annotations: preferences, lengths, and what is left out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.alpaca import DATA
from refed_dspy.plugins.evaluate.alpaca_eval.files import annotation_lines, official_figures, read_annotations
from refed_dspy.plugins.metrics.win_rates import length_controlled, win_rate
from tests.support.said import Said


def written(folder: Path, rows: Any) -> Path:
    file = folder / "annotations.json"
    file.write_text(json.dumps(rows), "utf-8")
    return file


def row(preference: Any, mine: str = "four", theirs: str = "sevenly") -> dict[str, Any]:
    names = {"generator_1": "theirs", "generator_2": "mine"}
    return {"instruction": "Hm?", "output_1": theirs, "output_2": mine, "preference": preference, **names}


def test_preferences_and_lengths_are_the_models_over_the_baselines(tmp_path: Path) -> None:
    given = [1, 2, 0, 1.25, None, -1, math.nan]
    (found,) = read_annotations(written(tmp_path, [row(each, "x" * n) for n, each in enumerate(given)]))
    assert (found.model, found.baseline, found.unjudged) == ("mine", "theirs", 3)
    assert found.wins == [0, 1, 0.5, 0.25] and found.longer == [-7, -6, -5, -4]
    assert found.figures.win_rate == 43.75 and found.interval == win_rate(found.wins)
    assert found.controlled == length_controlled(found.wins, found.longer)


def test_without_lengths_nothing_is_said_of_them(tmp_path: Path) -> None:
    (found,) = read_annotations(written(tmp_path, [{"preference": 1.5}, row(2)]))
    assert found.longer is None and found.controlled is None
    assert annotation_lines([found])[1].split()[-1] == "–"


@pytest.mark.skipif(not DATA.is_file(), reason="the published preferences are not here")
def test_published_figures_are_equal_to_six_digits() -> None:
    published = json.loads(DATA.read_text("utf-8"))
    read = read_annotations(DATA)
    assert [each.model for each in read] == [*published] and all(each.figures.n == 805 for each in read)
    for each, model in zip(read, published.values(), strict=True):
        assert f"{each.figures.win_rate:.6g}" == f"{model['win_rate']:.6g}"
        assert f"{each.figures.standard_error:.6g}" == f"{model['standard_error']:.6g}"


def test_the_codes_own_figures(said: Said, tmp_path: Path) -> None:
    file = tmp_path / "leaderboard.csv"
    file.write_text(",win_rate,standard_error,mode,n_total\nmine,53.805511675692685,3.5,community,60\n", "utf-8")
    assert official_figures(file) == {"win_rate": 53.805511675692685, "standard_error": 3.5, "n_total": 60}
    file.write_text(",win_rate,standard_error,n_total\nmine,99.5,,1\n", "utf-8")
    alone = official_figures(file)
    assert math.isnan(alone.pop("standard_error")) and alone == {"win_rate": 99.5, "n_total": 1}
    file.write_text(",win_rate,standard_error,n_total\nmine,,,0\n", "utf-8")
    with said.by(ValueError):
        official_figures(file)
    file.write_text(",win_rate\nmine,53\n", "utf-8")
    with pytest.raises(KeyError):
        official_figures(file)

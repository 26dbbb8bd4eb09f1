"""The files of an evaluation by AlpacaEval: figures, table, picture, and what its code wrote itself."""

from __future__ import annotations

from pathlib import Path

from refed_dspy.data.stored import EVALUATION, PICTURE, TABLE
from refed_dspy.files import as_export_error, write_json, write_text
from refed_dspy.plugins.evaluate.alpaca_eval.result import RETIRED, Evaluation
from refed_dspy.plugins.metrics.drawing import Bar, save, win_rate_picture

ANNOTATIONS, LEADERBOARD = "annotations.json", "leaderboard.csv"
"""What AlpacaEval's code writes: the preferences with both answers, and its own figures."""


def write_evaluation(made: Evaluation, results: Path) -> None:
    """Write the files into the evaluation's folder, each whole or not at all; the code's own are moved there from
    `results`. Without figures only those that say so. Raises ExportError."""
    write_json(made.out / EVALUATION, made.facts())
    write_text(made.out / TABLE, made.lines())
    if made.judged is None:
        return
    for name in (ANNOTATIONS, LEADERBOARD):
        with as_export_error(made.out / name):
            (results / name).replace(made.out / name)
    equal = made.judged.length_controlled
    bar = Bar(made.model, made.judged.interval, equal.interval)
    by = "AlpacaEval's fit" if equal.official else "our own fit"
    caption = (
        f"{made.benchmark}, {made.judged.n} instructions, against {made.baseline}, judged by {made.judge} until "
        f"{made.date}; length-controlled by {by}. {RETIRED}"
    )
    save(win_rate_picture([bar], caption=caption), made.out / PICTURE)

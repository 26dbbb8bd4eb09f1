"""The files of an evaluation by Arena-Hard: scores, table, picture, and the judgments that its code wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refed_dspy.data.stored import EVALUATION, PICTURE, TABLE
from refed_dspy.files import as_export_error, write_json, write_lines, write_text
from refed_dspy.metrics.intervals import Interval
from refed_dspy.plugins.evaluate.arena_hard.leaderboard import Score
from refed_dspy.plugins.evaluate.arena_hard.result import SAME_JUDGE, Judged, Leaderboard
from refed_dspy.plugins.metrics.drawing import Bar, save, win_rate_picture

JUDGMENTS = "judgments"
"""The folder with a file for each arm, as the code keeps them in `model_judgment/JUDGE/`."""


def write_leaderboard(made: Leaderboard, judgments: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write the files into the evaluation's folder, each whole or not at all. Without scores only those that say so.
    Raises ExportError."""
    write_json(made.out / EVALUATION, made.facts())
    write_text(made.out / TABLE, made.lines())
    if made.stopped:
        return
    folder = made.out / JUDGMENTS
    with as_export_error(folder):
        folder.mkdir(exist_ok=True)
    for arm, rows in judgments.items():
        write_lines(folder / f"{arm}.jsonl", ({**row, "judge": made.judge} for row in rows))
    caption = (
        f"{made.benchmark}, {made.questions} questions of {made.category}, over {made.baseline}, judged by "
        f"{made.judge} until {made.date}. {SAME_JUDGE}"
    )
    bars = [bar for judged in made.arms if (bar := _bar(judged)) is not None]
    save(win_rate_picture(bars, caption=caption, level=90, controlled="at equal style"), made.out / PICTURE)


def _bar(judged: Judged) -> Bar | None:
    interval = _interval(judged, judged.score)
    return None if interval is None else Bar(judged.arm, interval, _interval(judged, judged.at_equal_style))


def _interval(judged: Judged, score: Score | None) -> Interval | None:
    return None if score is None else Interval(score.value, score.low, score.high, 2 * judged.decided, judged.decided)

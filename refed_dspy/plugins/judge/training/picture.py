"""The reliability curve: how often people agree with a judge, by how sure the judge is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from refed_dspy.plugins.judge.calibration import Calibration
from refed_dspy.plugins.judge.training.report import TrainingReport
from refed_dspy.plugins.metrics.drawing import legend, look, new_figure, style
from refed_dspy.text import format_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Held-out pairs. A well calibrated judge is on the dashed line; above it, it is too modest, below it, too sure. "
    "Before training it names no confidence: a verdict is taken for 1, a tie for 0.5. A tie of people's is half an "
    "agreement. 95% intervals, by instruction."
)


def reliability_picture(report: TrainingReport) -> Figure:
    """A marker for each bin of confidence, with its interval, before and after training."""
    curves = {"before": report.calibration_before, "after": report.calibration_after}
    with style():
        figure, axes = new_figure(5.2, CAPTION)
        axes.plot([0.5, 1], [0.5, 1], color="0.45", linewidth=1, linestyle="--", zorder=1)
        for number, curve in enumerate(curves.values()):
            color = look(number)["color"]
            points = [(each.confidence, each.agreed) for each in curve.bins]
            axes.plot([x for x, _ in points], [agreed.mean for _, agreed in points], color=color, alpha=0.5)
            for x, agreed in points:
                if agreed.bounded:
                    axes.vlines(x, agreed.low, agreed.high, color=color, alpha=0.75)
                axes.plot(x, agreed.mean, clip_on=False, **look(number, agreed))
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("how sure the judge is of its verdict")
        axes.set_ylabel("share in which people agree")
        axes.grid(axis="y", color="0.9")
        legend(figure, [_named(name, curve) for name, curve in curves.items()])
    return figure


def _named(name: str, curve: Calibration) -> str:
    return f"{name}: Brier {format_number(curve.brier.mean, 3)}, calibration error {format_number(curve.error, 3)}"

"""The map of instructions as a chart: a point a row, coloured by reference or by feature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refed_dspy.errors import one_line
from refed_dspy.reporting.charts import PALETTE, Chart, Figure, plain
from refed_dspy.reporting.mapping import Map, Points
from refed_dspy.reporting.reading import Rows

_MOST_NAMED = len(PALETTE)
"""References that get a name in the legend. With more of them colours repeat, and only their neighbourhood tells."""
_MANY = 1_000
"""Points from which on they are small."""
_NAME = 40
"""Characters of a reference's instruction that stand for it in the legend."""
_BLANK = {"showticklabels": False, "zeroline": False, "showgrid": False}


def instruction_map(rows: Rows, found: Map) -> Chart | None:
    """Sets of traces over the same points, `layout.meta.colourings` says which is which; None without points.

    A point's `customdata` is its row.
    """
    if found.points is None:
        return None
    sets = {"reference": _by_reference(rows, found.points)}
    sets["feature"] = _groups(found.points, rows.columns["feature"], rows.names["features"])
    if 0 in rows.columns["kept"]:
        sets["kept or dropped"] = _groups(found.points, rows.columns["kept"], ("dropped", "kept"))
    traces: list[Figure] = []
    colourings = []
    for label, own in sets.items():
        colourings.append({"label": label, "traces": list(range(len(traces), len(traces) + len(own)))})
        traces += own if label == "reference" else [{**trace, "visible": False} for trace in own]
    layout = {
        "xaxis": _BLANK, "yaxis": _BLANK, "hovermode": "closest", "height": 560, "meta": {"colourings": colourings},
    }  # fmt: skip
    opened = len(set(rows.columns["reference"]))
    told = [["references", f"{opened:,}"]]
    counts = [rows.columns["feature"].count(number) for number in range(len(rows.names["features"]))]
    told += [[f"feature {name}", f"{n:,} instructions"] for name, n in zip(rows.names["features"], counts, strict=True)]
    text = (
        f"{len(rows):,} instructions from {opened:,} references; those that ask for like things lie near each other, "
        f"{found.by}."
    )
    figure = {"data": traces, "layout": layout}
    return Chart("map", "Map of instructions", text, figure, ("what", "how many"), told, wide=True)


def _by_reference(rows: Rows, points: Points) -> list[Figure]:
    references = rows.columns["reference"]
    if len(set(references)) > _MOST_NAMED:
        colors = [PALETTE[one % len(PALETTE)] for one in references]
        return [_points(points, range(len(references)), "references", colors)]
    return _groups(points, references, [one_line(one["instruction"], _NAME) for one in rows.names["references"]])


def _groups(points: Points, groups: Sequence[int], names: Sequence[str]) -> list[Figure]:
    members: dict[int, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return [
        _points(points, members[group], names[group], PALETTE[number % len(PALETTE)])
        for number, group in enumerate(sorted(members))
    ]


def _points(points: Points, which: Sequence[int], name: str, color: Any) -> Figure:
    places = points[list(which)].round(2)
    size = 5 if len(points) > _MANY else 8
    return {
        "type": "scatter", "mode": "markers", "name": plain(name), "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(), "customdata": list(which), "hoverinfo": "none",
        "marker": {"color": color, "size": size, "opacity": 0.75},
    }  # fmt: skip

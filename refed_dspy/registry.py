"""What packages add to this one, this one's own plug-ins among them: entry points, imported when they are used.

The core imports no plug-in. It asks here for what one may have registered, under a group's name and a name of its own:

    [project.entry-points."refed_dspy.commands"]
    hello = "my_package.commands:app"
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from refed_dspy.errors import PluginMissing, one_line

COMMANDS = "refed_dspy.commands"
"""A command's name → the Typer app that has it."""
SETTINGS = "refed_dspy.settings"
"""A kind of work → the class of its settings, whose keys variables of the environment may set."""
RUNNERS = "refed_dspy.runners"
"""Where a run is worked on if not in this process (`cluster`) → an async function of the run's spec and its watch."""
JUDGES = "refed_dspy.judges"
"""A key of a saved judge's file → a function of what stands there, which makes the judge."""
TRACKED = "refed_dspy.tracked"
"""A kind of folder → what copies it to MLflow."""


@cache
def registered(group: str) -> dict[str, EntryPoint]:
    """Name → entry point. Where two packages register one name, the first by its package's name has it."""
    return {point.name: point for point in sorted(entry_points(group=group), key=_package, reverse=True)}


def plugged_in(group: str, name: str) -> Any:
    """What is registered under `name`, imported now. Raises PluginMissing."""
    point = registered(group).get(name)
    if point is None:
        raise PluginMissing(f"{one_line(name, 60)}: no plug-in has it ({group})")
    try:
        return point.load()
    except ModuleNotFoundError as error:
        raise missing(name, point.module, error) from None


def missing(name: str, module: str, error: ModuleNotFoundError) -> Exception:
    """PluginMissing where `module`, which has `name`, is not there; else the `error`: what the plug-in needs is not."""
    if not f"{module}.".startswith(f"{error.name}."):
        return error
    return PluginMissing(f"{one_line(name, 60)}: its plug-in {error.name} is not installed")


def _package(point: EntryPoint) -> str:
    return "" if point.dist is None else point.dist.name

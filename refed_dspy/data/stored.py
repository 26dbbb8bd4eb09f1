"""What other work left in its folder beside the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refed_dspy.errors import RunDirError, one_line


def read_json(path: Path) -> Any:
    """The content of a JSON file; an empty mapping where there is none. Raises RunDirError: damaged."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; none where there is no file. Raises RunDirError: damaged."""
    if not path.is_file():
        return
    try:
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> RunDirError:
    return RunDirError(
        f"{one_line(path, 200)}: cannot be read ({one_line(error, 100)}); run the command again to write it"
    )

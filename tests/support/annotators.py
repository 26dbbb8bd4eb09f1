"""Annotators: they read a page as a browser does, and write the file that it would download."""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Decide = Callable[[Mapping[str, str]], str]
"""What is said of a pair as the page shows it: its instruction, A and B."""


def page_data(page: Path) -> dict[str, Any]:
    """What the page's script unpacks."""
    packed = re.search(r'id="rows">\s*([A-Za-z0-9+/=]+)\s*</script>', page.read_text(encoding="utf-8"))
    assert packed
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed[1])))
    return data


def lines_of(
    page: Path, decide: Decide, grade: Callable[[str], int | None] | None = None, session: str = "one"
) -> list[dict[str, Any]]:
    """The lines of a file in which every pair is judged. `grade`: a text's, by every criterion."""
    data = page_data(page)
    names = [each["name"] for each in data["criteria"]]
    return [
        {
            "set": data["set"],
            "annotator": data["annotator"],
            "pair": pair["id"],
            "verdict": decide(pair),
            "grades": {name: {side: grade(pair[side]) for side in "AB"} for name in names} if grade else {},
            "at": f"2026-01-01T00:00:{place % 60:02d}.000Z",
            "session": f"{session} {data['annotator']}",
        }
        for place, pair in enumerate(data["pairs"])
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def annotated(
    page: Path, decide: Decide, grade: Callable[[str], int | None] | None = None, session: str = "one"
) -> Path:
    """The annotator's file, put into the folder of the page."""
    return write(page.with_name(f"verdicts-{page.stem}.jsonl"), lines_of(page, decide, grade, session))


def prefers(word: str) -> Decide:
    """Prefers the answer with the word; a tie where both have it, or neither has."""

    def decide(pair: Mapping[str, str]) -> str:
        a, b = (word in pair[side] for side in "AB")
        return "tie" if a == b else "A" if a else "B"

    return decide

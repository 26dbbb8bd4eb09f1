"""Texts that filters find, and texts that only look so, by their kind."""

from __future__ import annotations

from pathlib import Path


def texts_of(kind: str) -> list[tuple[str, str]]:
    """The (instruction, response) pairs of a kind in guard_texts.tsv and refusal_texts.tsv: "refusal", "answer" in
    English, "refusal de", "answer de", … A line break is written as \\n."""
    here = Path(__file__).parent
    lines = [line for file in sorted(here.glob("*_texts.tsv")) for line in file.read_text("utf-8").splitlines()]
    found = [(asked, text) for name, asked, text in (line.split("\t") for line in lines) if name == kind]
    return [(asked.replace("\\n", "\n"), text.replace("\\n", "\n")) for asked, text in found]

"""The page of one annotator. It has the pairs as they are shown: nothing in it says which side was whose."""

from __future__ import annotations

import random

from refed_dspy.data.verdicts import PagesKey
from refed_dspy.plugins.share.report.page import Document

_DOCUMENT = Document(
    "refed_dspy.plugins.judge.annotate", "annotate.html.j2", ("report.css", "annotate.css"), ("page.js", "annotate.js")
)


def annotator_page(key: PagesKey, annotator: str, version: str) -> bytes:
    """The page as a file's content: the pairs of `key` in an order of the annotator's own."""
    exchanged = frozenset(key.exchanged[annotator])
    shown = [
        {
            "id": pair.id,
            "instruction": pair.instruction,
            "A": pair.answer_b if pair.id in exchanged else pair.answer_a,
            "B": pair.answer_a if pair.id in exchanged else pair.answer_b,
        }
        for pair in key.pairs
    ]
    random.Random(f"order {key.seed} {annotator}").shuffle(shown)
    criteria = [each.model_dump() for each in key.criteria]
    data = {"set": key.set, "annotator": annotator, "criteria": criteria, "pairs": shown}
    return _DOCUMENT.render(version, data=data, annotator=annotator, pairs=len(shown), graded=bool(criteria))

"""A filter of texts that are too short or too long."""

from __future__ import annotations

from typing import Literal

from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.records import DataRow
from refed_dspy.text import counted


class Length(TextFilter):
    """Drops a row whose text has fewer or more words or characters than asked for. Bounds are inclusive.

    Words are separated by white space. A character is a code point; white space at both ends does not count. Texts in
    Chinese, Japanese, Thai and other scripts without spaces have few such words: bound their characters instead.
    """

    name = "length"

    def __init__(
        self,
        min_words: int | None = None,
        max_words: int | None = None,
        min_characters: int | None = None,
        max_characters: int | None = None,
        of: Literal["response", "instruction"] = "response",
    ) -> None:
        self.of_instruction = of == "instruction"
        self._words, self._characters = (min_words, max_words), (min_characters, max_characters)

    def check(self, row: DataRow) -> Decision:
        """Dropped as "too short" or "too long". `score`: the count that decided, and of a kept row the count of words
        where they are bounded, else of characters. `detail`: what was measured, that count, the bound."""
        text = (row.instruction if self.of_instruction else row.response).strip()
        improved = row.plain is not None and row.plain != row.response
        what = "instruction" if self.of_instruction else "improved response" if improved else "response"
        counts: list[int] = []
        for unit, (least, most) in (("words", self._words), ("characters", self._characters)):
            if least is most is None:
                continue
            count = len(text.split()) if unit == "words" else len(text)
            measured = f"{what}: {counted(count, unit.removesuffix('s'))}"
            if least is not None and count < least:
                return Decision(False, "too short", count, f"{measured}, at least {least} required")
            if most is not None and count > most:
                return Decision(False, "too long", count, f"{measured}, at most {most} allowed")
            counts.append(count)
        return Decision(True, score=counts[0])

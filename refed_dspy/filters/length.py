"""Filters without a model: of texts that are too short or too long, and, as the control that others must beat, one that
keeps rows at random."""

from __future__ import annotations

from hashlib import blake2b
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


class ByChance(TextFilter):
    """Keeps about `share` of all rows, drawn by `seed` and the row's text: the same rows whatever their order."""

    name = "random"
    of_instruction = True

    def __init__(self, share: float = 1.0, seed: int = 0) -> None:
        self.share, self.seed = share, seed

    def check(self, row: DataRow) -> Decision:
        """Dropped as "not drawn". The score is the number drawn, from 0 to 1."""
        text = f"{self.seed}\0{row.instruction}".encode("utf-8", "surrogatepass")
        drawn = int.from_bytes(blake2b(text, digest_size=8).digest()) / 2**64
        return Decision(drawn < self.share, "" if drawn < self.share else "not drawn", drawn)

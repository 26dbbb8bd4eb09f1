"""A filter of texts that are too short or too long."""

from __future__ import annotations

from typing import Literal

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.filters.base import Decision
from refed_dspy.records import DataRow


class Length:
    """Drops a row whose text has fewer or more words or characters than asked for. Bounds are inclusive.

    Words are separated by white space. A character is a code point; white space at both ends does not count. Texts in
    Chinese, Japanese, Thai and other scripts without spaces have few such words: bound their characters instead.

    Raises:
        ConfigError: no bound at all, a bound below 0, a lower bound above its upper one, an unknown `of`.
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
        if of not in ("response", "instruction"):
            raise ConfigError(f"length: of is {one_line(of, 40)!r}; give response or instruction")
        self.of_instruction = of == "instruction"
        self._words, self._characters = (min_words, max_words), (min_characters, max_characters)
        for unit, bounds in (("words", self._words), ("characters", self._characters)):
            _check_bounds(unit, *bounds)
        if self._words == self._characters == (None, None):
            raise ConfigError("length: no bound is given; set min_words, max_words, min_characters or max_characters")

    def check(self, row: DataRow) -> Decision:
        """Dropped as "too short" or "too long". `score`: the count that decided, and of a kept row the count of words
        where they are bounded, else of characters. `detail`: that count with its unit and the bound."""
        text = (row.instruction if self.of_instruction else row.response).strip()
        counts: list[int] = []
        for unit, (least, most) in (("words", self._words), ("characters", self._characters)):
            if least is most is None:
                continue
            count = len(text.split()) if unit == "words" else len(text)
            if least is not None and count < least:
                return Decision(False, "too short", count, f"{count} {unit}, at least {least} asked for")
            if most is not None and count > most:
                return Decision(False, "too long", count, f"{count} {unit}, at most {most} asked for")
            counts.append(count)
        return Decision(True, score=counts[0])

    def remember(self, row: DataRow) -> None:
        """Does nothing: rows are not compared."""


def _check_bounds(unit: str, least: int | None, most: int | None) -> None:
    for name, bound in ((f"min_{unit}", least), (f"max_{unit}", most)):
        if bound is not None and bound < 0:
            raise ConfigError(f"length: {name} is {bound}; give a number of {unit}, 0 or more")
    if least is not None and most is not None and least > most:
        raise ConfigError(f"length: min_{unit} is {least} and max_{unit} is {most}: nothing would be kept; swap them")

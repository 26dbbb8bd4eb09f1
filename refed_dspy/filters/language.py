"""A filter of texts in other languages than asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from refed_dspy.config.filters import Of
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.records import DataRow

_CODES = (
    "ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo fr "
    "fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn ko "
    "ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro ru "
    "rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo yue "
    "zh zu "
)
CODES = tuple(_CODES.split())
"""The languages that are recognised, by ISO 639 code."""

_fences = re.compile(r"^[ \t]*(`{3,}|~{3,}).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_inline = re.compile(r"`[^`\n]+`|https?://\S+")
_quoted = re.compile(
    r"[\"“”„«»][^\"“”„«»\n]+[\"“”„«»]|「[^「」\n]+」|『[^『』\n]+』"
    r"|(?<!\w)['‘‚](?:[^'‘’‚\n]|(?<=\w)['’](?=\w))+['’](?!\w)"
)
_material = re.compile(r"(?::\s|：|\n).*", re.DOTALL)
"""What an instruction works on: all that follows its first colon or line."""
_LONGEST = 2000
LEAST_BYTES = 20
SURELY_NOT, HARDLY = 0.001, 0.05
FEW_LANGUAGES, LEAST_OF_FEW = 3, 0.75
NO_LANGUAGE = "zxx"
Ranked: TypeAlias = list[tuple[str, float]]


class Language(TextFilter):
    """Drops a row with a text that is hardly in one of the `allowed` languages (ISO 639 codes, as "en").

    Languages come from py3langid, a naive Bayes model over byte sequences that comes with its weights: 0.2 ms a text,
    loaded at the first row. What counts is the probability of the allowed languages (and of "no language") together,
    however uncertain it is which other language it is: Bulgarian or Macedonian. Below `SURELY_NOT` the text is dropped;
    below `HARDLY` only if the `FEW_LANGUAGES` likeliest others have at least `LEAST_OF_FEW` of the probability, for
    lists of names are a little like many languages.

    Passed over are code between fences or backticks, web addresses, and quotations, unless there is nothing else; of an
    instruction, also what follows its first colon or line break, if enough stands before. Of the rest, the first 2,000
    characters are read. A text is kept if its letters take fewer than `LEAST_BYTES` bytes in UTF-8: 20 Latin letters,
    10 Cyrillic ones, 7 Chinese characters.

    Raises:
        ConfigError: an unknown code.
    """

    name = "language"

    def __init__(self, allowed: Sequence[str] = ("en",), of: Of = "both") -> None:
        self.of_instruction = of == "instruction"
        self._of = of
        self._allowed = _checked_codes(allowed)
        self._model: Any = None

    def check(self, row: DataRow) -> Decision:
        """Dropped as "language". `score`: the probability of the allowed languages, None where every text is too short;
        `detail`: the likeliest language. Both are those of the text where the score is lowest."""
        texts = [_task(row.instruction)] if self._of != "response" else []
        if self._of != "instruction":
            texts.append(_plain(row.response))
        decisions = [self._decide(ranked) for ranked in map(self._ranked, texts) if ranked]
        dropped = [decision for decision in decisions if not decision.kept]
        return min(dropped or decisions, key=lambda decision: decision.score or 0.0, default=Decision(True))

    def likeliest(self, text: str) -> tuple[str, float] | None:
        """(code, probability) of the language of `text`, or None where there are too few letters, or no language."""
        ranked = self._ranked(_plain(text))
        return ranked[0] if ranked and ranked[0][0] != NO_LANGUAGE else None

    def _decide(self, ranked: Ranked) -> Decision:
        others = [probability for code, probability in ranked if code not in self._allowed and code != NO_LANGUAGE]
        allowed = max(0.0, 1 - sum(others))
        likely = HARDLY if sum(others[:FEW_LANGUAGES]) >= LEAST_OF_FEW else SURELY_NOT
        kept = allowed >= likely
        return Decision(kept, "" if kept else "language", allowed, ranked[0][0])

    def _ranked(self, plain: str) -> Ranked:
        """All languages with their probabilities, the likeliest first; none where `plain` has too few letters."""
        if not _has_letters(plain):
            return []
        if self._model is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            self._model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        ranked: Ranked = self._model.rank(plain[:_LONGEST])
        return ranked


def _plain(text: str) -> str:
    """`text` without code, addresses and quotations; a text that is all quotation, without its code."""
    plain = _inline.sub(" ", _fences.sub(" ", text))
    outside = _quoted.sub(" ", plain)
    return outside if any(map(str.isalpha, outside)) else plain


def _task(instruction: str) -> str:
    """What `instruction` asks, without the text that it asks it of."""
    plain = _plain(instruction).strip()
    asked = _material.sub("", plain)
    return asked if _has_letters(asked) else plain


def _has_letters(plain: str) -> bool:
    """Whether there are enough of them to tell a language."""
    return len("".join(filter(str.isalpha, plain[:_LONGEST])).encode("utf-8", "surrogatepass")) >= LEAST_BYTES


def _checked_codes(allowed: Sequence[str]) -> frozenset[str]:
    from rapidfuzz.process import extractOne

    for code in allowed:
        if code not in CODES:
            nearest = extractOne(str(code).lower()[:20], CODES)[0]
            raise ConfigError(f"language: unknown code {one_line(code, 40)!r}; use ISO 639 codes, such as {nearest}")
    return frozenset(allowed)

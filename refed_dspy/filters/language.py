"""A filter of texts in other languages than asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

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
_dense = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_LONGEST = 2000
LEAST_CHARACTERS = 20
LEAST_PROBABILITY = 0.8
_NO_LANGUAGE = "zxx"


class Language(TextFilter):
    """Drops a row with a text that is clearly in a language other than those `allowed` (ISO 639 codes, as "en").

    The language is detected by py3langid, a naive Bayes model over byte sequences that comes with its weights: 0.2 ms a
    text, loaded at the first row. Code between fences or backticks and web addresses are removed first; of the rest,
    the first 2,000 characters are classified.

    Kept, because its language is uncertain: a text of fewer than `LEAST_CHARACTERS` letters (a Chinese, Japanese or
    Korean one counts as three), or one whose likeliest language has a probability below `LEAST_PROBABILITY`. The model
    takes the square root of the length as the temperature of its probabilities, so a few words, lists of names and code
    stay below that.

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
        """Dropped as "language". `score`: the probability of the detected language, None where every text is too short;
        `detail`: its code. For a kept row, both are those of its least certain text."""
        texts = [row.instruction, row.response] if self._of == "both" else [getattr(row, self._of)]
        detected = [language for language in map(self._detect, texts) if language is not None]
        for code, probability in detected:
            if code not in self._allowed and probability >= LEAST_PROBABILITY:
                return Decision(False, "language", probability, code)
        if not detected:
            return Decision(True)
        code, probability = min(detected, key=lambda language: language[1])
        return Decision(True, score=probability, detail=code)

    def _detect(self, text: str) -> tuple[str, float] | None:
        """(code, probability), or None where there are too few letters, or no language."""
        plain = _inline.sub(" ", _fences.sub(" ", text))[:_LONGEST]
        letters = sum(map(str.isalpha, plain)) + 2 * len(_dense.findall(plain))
        if letters < LEAST_CHARACTERS:
            return None
        if self._model is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            self._model = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        code, probability = self._model.classify(plain)
        return None if code == _NO_LANGUAGE else (code, float(probability))


def _checked_codes(allowed: Sequence[str]) -> frozenset[str]:
    from rapidfuzz.process import extractOne

    for code in allowed:
        if code not in CODES:
            nearest = extractOne(str(code).lower()[:20], CODES)[0]
            raise ConfigError(f"language: unknown code {one_line(code, 40)!r}; give ISO 639 codes, as {nearest}")
    return frozenset(allowed)

"""A filter of responses that refuse, and of placeholders that were never filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.filters.refusal_phrases import (
    AS_MODEL,
    ASKS_FOR_SUCH_WORDS,
    ASKS_FOR_VOICE,
    FIRST_PERSON,
    OF_REQUEST,
    OTHER_AS_MODEL,
    OTHER_FIRST_PERSON,
    OTHERS_ASK_FOR_IT,
)
from refed_dspy.records import DataRow
from refed_dspy.text import TEMPLATE_SLOT, UNFILLED_SLOT, find_placeholder, found, normalized, without_marks

_OPENING = 300
"""Characters at the beginning of a response in which refusals are looked for."""
_mention = re.compile(r"\A[\"“„«'‘][^\"“”„«»\n]{1,200}[\"”“»](?=[^\n]*\w)")
"""A quotation that the response begins with and goes on after: words spoken of, not said."""

_about_slots = re.compile(
    r"template|placeholder|bracket|variable|\btags?\b|html|token|regex|format|slot|blank|latex|syntax"
)


class Refusals(TextFilter):
    """Drops a row whose response refuses ("refusal"), or whose instruction or response was never filled in
    ("placeholder"); `detail` is the words that matched.

    Refusals are looked for in the first 300 characters; whether one counts depends on how certain it is. "As an AI
    language model, I cannot ..." always counts. "I can't help with that request" counts unless the instruction is about
    declining, apologising or rewording a text. "I'm sorry, but I cannot provide ..." counts unless the instruction is
    about that, or asks for a text in somebody's voice: a letter, a story, a sentence. A quotation at the beginning does
    not count. English and the `LANGUAGES` of refusal_phrases.py are recognised; `extra` adds phrases, looked for in the
    same 300 characters whatever their case.

    Raises:
        ConfigError: an extra phrase without a letter in it.
    """

    name = "refusals"
    of_instruction = False

    def __init__(self, extra: Sequence[str] = ()) -> None:
        self._extra = [normalized(phrase) for phrase in extra]
        if not all(any(map(str.isalpha, phrase)) for phrase in self._extra):
            raise ConfigError("refusals: an extra phrase has no letters; give the words of a refusal or remove it")

    def check(self, row: DataRow) -> Decision:
        instruction = normalized(row.instruction)
        speaks_of_slots = found(_about_slots, instruction) is not None
        unfilled = find_placeholder(row.instruction)
        if not unfilled and not speaks_of_slots and (match := found(UNFILLED_SLOT, instruction)):
            unfilled = one_line(match.group(), 80)
        if not unfilled:
            unfilled = find_placeholder(row.response)
            if speaks_of_slots and TEMPLATE_SLOT.match(without_marks(normalized(row.response))):
                unfilled = ""  # {name} is the answer to a question about templates
        if unfilled:
            return Decision(False, "placeholder", detail=unfilled)
        refusal = self._refusal(instruction, without_marks(_mention.sub("", normalized(row.response))))
        return Decision(False, "refusal", detail=refusal) if refusal else Decision(True)

    def _refusal(self, instruction: str, response: str) -> str:
        """The words with which `response` refuses; empty where it does not."""
        opening = response[:_OPENING]
        patterns = [AS_MODEL.search, OTHER_AS_MODEL.match]
        if not found(ASKS_FOR_SUCH_WORDS, instruction):
            patterns.append(OF_REQUEST.search)
            if not found(ASKS_FOR_VOICE, instruction):
                patterns.append(FIRST_PERSON.search)
                if not found(OTHERS_ASK_FOR_IT, instruction):
                    patterns.append(OTHER_FIRST_PERSON.match)
        for find in patterns:
            if match := find(opening):
                return one_line(match.group(), 120)
        return next((phrase for phrase in self._extra if phrase in opening), "")

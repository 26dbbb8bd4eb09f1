"""A filter of responses that refuse, and of placeholders that were never filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.records import DataRow
from refed_dspy.text import TEMPLATE_SLOT, UNFILLED_SLOT, any_of, find_placeholder, normalized, without_marks

_OPENING = 300
"""Characters at the beginning of a response in which refusals are looked for."""


_BE = "(?:i am|i'm|we are|we're)"
_AI = any_of(
    r"an? (?:ai|artificial intelligence)(?: language)?(?: (?:model|assistant|chatbot|system|program|agent))*",
    r"an? (?:large |text-based |virtual )*(?:language model|assistant|chatbot)(?: ai)?",
)
_CANNOT = any_of(
    r"(?:i|we) (?:\w+ly |just |still )?(?:can not|cannot|can't|cant|could not|couldn't|will not|won't)",
    "(?:i|we) (?:am unable to|(?:must|have to) decline to|refuse to)",
    rf"{_BE} (?:\w+ly |just |still )?(?:unable to|not (?:able|allowed|permitted|programmed|going to be able) to)",
    rf"{_BE} (?:incapable of|not (?:capable of|comfortable))",
)
_LACK = r"(?:i|we) (?:\w+ly )?(?:don't|do not|cannot|can't) (?:actually |currently |really )?have"
_LACKED = any_of(
    "access",
    "the (?:ability|capability|capacity|information|necessary)",
    "(?:enough|any|sufficient) (?:information|context|data|detail)",
)
_DO = r"(?:\w+ly )?" + any_of(
    "help(?! but)|assist|provid|answer|fulfil|comply|complet|generat|creat|writ|produc|access|brows|engag|support",
    "respond|shar|giv|offer|process|perform|discuss|participat|promot|recommend|open|continue|determine|view",
    "do (?:that|this|so)",
    "see (?:the |any |your )?(?:image|picture|photo|attach|file|link|video)",
)
_ASKED = "(?:request|question|task|prompt|query|instruction|topic)"
_SORRY = any_of(
    rf"(?:{_BE} (?:\w+ )?)?sorry",
    r"(?:i|we) (?:\w+ )?apologi[sz]e",
    r"(?:my |our )?(?:\w+ )?apologies",
    "unfortunately|regrettably|i regret",
)

_as_model = re.compile(
    rf"(?<![\"“'])\b(?:as|{_BE}(?: just| only| merely)?) {_AI}"
    r"(?=[ ]?[,.;:(–—-]| i\b| and\b| (?:develop|creat|train)ed\b)[^\n]{0,80}?"
    + any_of(
        _CANNOT, _LACK, r"\bi (?:don't|do not|am not|lack|have no)\b", r"\bi'm not\b", "incapable|unable|without the"
    )
)
_of_request = re.compile(
    any_of(
        rf"{_CANNOT} {_DO}\w*[^.!?\n]{{0,60}}?\b(?:this|that|your|the|such|these|those)(?: \w+)? {_ASKED}",
        rf"{_CANNOT} {_DO}\w*[^.!?\n]{{0,60}}?\b(?:with|on|to)? ?(?:that|this)(?:[.!,]|$)",
        rf"{_CANNOT} {_DO}\w*[.!]?$",
        rf"^(?:this|that|your|the) {_ASKED} (?:can(?:no|')t|violates|goes against)",
        rf"^(?:this|that|your|the) {_ASKED} is (?:inappropriate|unethical|harmful|not appropriate)",
        r"(?:against|violat\w+) my (?:programming|guidelines|principles|polic|training)",
    )
)
_first_person = re.compile(
    "^"
    + any_of(
        rf"{_SORRY}\b[^\n]{{0,90}}?{any_of(f'{_CANNOT} {_DO}', f'{_LACK} {_LACKED}')}",
        rf"{_CANNOT} {_DO}\w* (?:you |a response )?(?:with |to )?"
        r"(?:that|this|your|any|such|information|content|instructions)\b",
        rf"{_LACK} {_LACKED}",
        rf"{_LACK} (?:personal (?:opinion|experience|feeling|belief)|feelings|real-time)",
        r"i (?:must|(?:would |will )?have to|need to|respectfully) (?:\w+ly )?(?:decline|refuse)",
        r"it (?:is|'s|would be|isn't|wouldn't be) (?:not )?(?:appropriate|inappropriate|unethical|possible) for me to",
        r"i (?:do not|don't) know(?: the answer)?(?: to (?:that|this)(?: question)?)?[.!]?$",
    )
)
_asks_for_such_words = re.compile(
    r"\b(?:declin|refus|reject|apolog|sorry|turn(?:ing|s)? (?:\w+ ){0,3}down|say(?:ing)? no\b|excuse|unable|can't|"
    r"cannot|translat|paraphras|rewrit|rephras|quote)"
)
_asks_for_voice = re.compile(
    r"\b(?:letter|e-?mail|message|reply|dialog|conversation|role-?play|story|poem|song|lyric|script|speech|"
    r"monologue|note to|diary)"
)

_about_slots = re.compile(
    r"template|placeholder|bracket|variable|\btags?\b|html|token|regex|format|slot|blank|latex|syntax"
)


class Refusals(TextFilter):
    """Drops a row whose response refuses ("refusal"), or whose instruction or response was never filled in
    ("placeholder"); `detail` is the words that matched.

    Refusals are looked for in the first 300 characters; whether one counts depends on how certain it is. "As an AI
    language model, I cannot ..." always counts. "I can't help with that request" counts unless the instruction is about
    declining, apologising or rewording a text. "I'm sorry, but I cannot provide ..." counts unless the instruction is
    about that, or asks for a text in somebody's voice: a letter, a story. Only English refusals are recognised; `extra`
    adds phrases, looked for in the same 300 characters whatever their case.

    Raises:
        ConfigError: an extra phrase without a letter in it.
    """

    name = "refusals"
    of_instruction = False

    def __init__(self, extra: Sequence[str] = ()) -> None:
        self._extra = [normalized(phrase) for phrase in extra]
        if not all(any(map(str.isalpha, phrase)) for phrase in self._extra):
            raise ConfigError("refusals: an extra phrase has no letter; give the words of a refusal, or leave it out")

    def check(self, row: DataRow) -> Decision:
        instruction = normalized(row.instruction)
        speaks_of_slots = _about_slots.search(instruction) is not None
        unfilled = find_placeholder(row.instruction)
        if not unfilled and not speaks_of_slots and (match := UNFILLED_SLOT.search(instruction)):
            unfilled = one_line(match.group(), 80)
        if not unfilled:
            unfilled = find_placeholder(row.response)
            if speaks_of_slots and TEMPLATE_SLOT.match(without_marks(normalized(row.response))):
                unfilled = ""  # {name} is the answer to a question about templates
        if unfilled:
            return Decision(False, "placeholder", detail=unfilled)
        refusal = self._refusal(instruction, without_marks(normalized(row.response)))
        return Decision(False, "refusal", detail=refusal) if refusal else Decision(True)

    def _refusal(self, instruction: str, response: str) -> str:
        """The words with which `response` refuses; empty where it does not."""
        opening = response[:_OPENING]
        patterns = [_as_model]
        if not _asks_for_such_words.search(instruction):
            patterns.append(_of_request)
            if not _asks_for_voice.search(instruction):
                patterns.append(_first_person)
        for pattern in patterns:
            if match := pattern.search(opening):
                return one_line(match.group(), 120)
        return next((phrase for phrase in self._extra if phrase in opening), "")

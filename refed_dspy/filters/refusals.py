"""Responses that decline, and texts that somebody was to fill in and did not."""

from __future__ import annotations

import re
from collections.abc import Sequence

from refed_dspy.data.table import DataRow
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.filters.decision import Decision

_OPENING = 300
"""Characters at the beginning of a response in which it may decline, and up to which it is short."""
_REST = 60
"""Characters beside a slot up to which a text is still that slot."""

_BE = r"(?:i am|i'm|we are|we're)"
_MODEL = (
    r"(?:an? )?(?:ai|artificial intelligence|(?:large |text-based )*language model|virtual assistant|chatbot|bot|machine)"
)
_CANNOT = (
    r"(?:(?:i|we) (?:\w+ly |just |still )?(?:can not|cannot|can't|cant|could not|couldn't|will not|won't|am unable to|"
    r"am not able to|must decline to|have to decline to|refuse to)|"
    rf"{_BE} (?:\w+ly |just |still )?(?:unable to|not able to|not allowed to|not permitted to|not capable of|"
    r"not programmed to|not comfortable|not going to be able to))"
)
_LACK = r"(?:(?:i|we) (?:\w+ly )?(?:don't|do not|cannot|can't) (?:actually |currently |really )?have)"
_DO = (
    r"(?:\w+ly )?(?:help(?!ing? but| but)|assist|provid|answer|fulfil|comply|complet|generat|creat|writ|produc|access|"
    r"brows|engag|support|respond|shar|giv|offer|process|perform|discuss|participat|promot|recommend|do (?:that|this|so)|"
    r"open|continue|determine|view|see (?:the |any |your )?(?:image|picture|photo|attach|file|link|video))"
)
_ASKED = r"(?:request|question|task|prompt|query|instruction|topic)"
_SORRY = (
    rf"(?:{_BE} (?:\w+ )?sorry|sorry|(?:i|we) (?:\w+ )?apologi[sz]e|(?:my |our )?(?:\w+ )?apologies|unfortunately|"
    r"regrettably|i regret)"
)

_as_model = re.compile(
    rf"(?:\bas {_MODEL}\b[^\n]{{0,80}}?|{_BE} (?:\w+ )?{_MODEL}\b[^\n]{{0,80}}?)"
    rf"(?:{_CANNOT}|{_LACK}|\bi (?:don't|do not|am not|lack|have no)\b|\bi'm not\b|(?:not |in)capable|unable|without the)"
)
_of_request = re.compile(
    rf"{_CANNOT} {_DO}\w*[^.!?\n]{{0,60}}?\b(?:(?:this|that|your|the|such|these|those)(?: \w+)? {_ASKED}|(?:with|on) (?:that|this)[.!,]|"
    rf"(?:that|this)[.!,]|this task)|{_CANNOT} {_DO}\w* (?:that|this|so)?[.!]?$|"
    rf"^(?:this|that|your|the) {_ASKED} (?:can(?:no|')t|violates|goes against|is (?:inappropriate|unethical|harmful|not appropriate))|"
    r"(?:against|violat\w+) my (?:programming|guidelines|principles|policy|policies|training)"
)
_first_person = re.compile(
    rf"^(?:{_SORRY}\b[^\n]{{0,90}}?)(?:{_CANNOT} {_DO}|{_LACK} (?:access|the (?:ability|capability|information|necessary)|"
    r"enough|any information|information|sufficient|personal|real-time))|"
    rf"^{_CANNOT} {_DO}\w* (?:you |a response )?(?:with |to )?(?:that|this|your|any|such|information|content|instructions)\b|"
    rf"^{_LACK} (?:access to|the (?:ability|capability|necessary)|enough (?:information|context)|sufficient|personal (?:opinions|experience|"
    r"feelings|beliefs)|real-time)|"
    r"^i (?:must|have to|need to|would have to|will have to|respectfully) (?:\w+ly )?(?:decline|refuse)|"
    r"^it (?:is|'s|would be|isn't|wouldn't be) (?:not )?(?:appropriate|inappropriate|unethical|possible) for me to|"
    r"^i (?:do not|don't) know(?: the answer)?(?: to (?:that|this)(?: question)?)?[.!]?$"
)
_asks_to_decline = re.compile(
    r"\b(?:declin|refus|reject|apolog|sorry|turn(?:ing|s)? (?:\w+ ){0,3}down|say(?:ing)? no|excuse|unable|can't|cannot)"
)
_asks_for_voice = re.compile(
    r"\b(?:letter|e-?mail|message|reply|dialog|conversation|role-?play|story|poem|song|lyric|script|speech|translat|"
    r"paraphras|rewrit|rephras|quote|monologue|note to|diary)"
)

_FILL = r"(?:insert|enter|paste|fill in|type|put|add|write|provide)"
_THING = r"(?:answer|response|text|output|input|instruction|question|content|solution|code|name|paragraph|article|sentence|task|prompt)"
_SLOT_WORDS = rf"{_FILL} [^\]\[<>{{}}()\n]{{2,60}}|(?:your|the|some) [^\]\[<>{{}}()\n]{{2,60}}|(?:\w+ )?{_THING}(?: goes)? here|no ?(?:in|out)put|placeholder"
_slot = re.compile(
    rf"\[\[?(?=[a-z])(?:{_SLOT_WORDS}|[a-z][\w '’/-]{{2,60}})\]?\]|<(?:{_SLOT_WORDS})>|\{{\{{? ?(?:[a-z]\w[\w -]{{0,40}}|{_SLOT_WORDS}) ?\}}?\}}|"
    rf"\((?:{_SLOT_WORDS})\)"
)
_unfilled = re.compile(rf"[\[<{{(]{{1,2}}\s?(?:{_FILL} [^\]\[<>{{}}()\n]{{2,60}}|(?:your |the )?{_THING}(?: goes)? here)\s?[\]>}})]{{1,2}}")
_whole = re.compile(
    rf"(?:n\s?/\s?a|tbd|tba|to ?do|to be (?:determined|added|announced|completed)|x{{3,}}|[.…_*–—-]{{2,}}|…|placeholder(?: text)?|"
    rf"coming soon|no ?(?:in|out)put|(?:insert |enter |your |the )?{_THING}(?: goes)? here|"
    rf"insert (?:your |the |a )?{_THING}(?: here)?|"
    r"(?:new |the )?(?:instruction|response|answer|output|input|question|task|example)s? ?#?\d*\s*:)[\s.!]*"
)
_lorem = re.compile(r"lorem ipsum|(?-i:TODO):[^\n]*\Z")
_nothing_given = re.compile(r"\b(?:following|below|given|provided)\b[^.!?:\n]{0,80}:[\s\"'“”«»\[\]<>()…_-]*\Z")
_about_slots = re.compile(r"template|placeholder|bracket|variable|\btags?\b|html|token|regex|format|slot|blank|latex|syntax")
_around = "\"'“”‘’`*#>_ \t\r\n"


def placeholder(text: str) -> str:
    """What shows that `text` was never filled in, or "": "(empty)", or the words that gave it away, on one line.

    That is: nothing at all; "N/A", "TODO", dots or a label ("Instruction 1:") and nothing else; "lorem ipsum" first; a
    slot ("[Your answer here]", "<insert ...>", "{name}") as the whole text, or first with at most 60 characters after
    it; an announcement of a text that does not follow ("Summarize the following text:"). A slot further inside a longer
    text is what a letter's template has, so it is none.
    """
    plain = text.strip()
    if not plain:
        return "(empty)"
    low = _straight(plain)
    bare = low.strip(_around)
    if _whole.fullmatch(bare) or (not bare and len(low) > 1 and _whole.fullmatch(low)):
        return one_line(plain, 80)
    if _lorem.match(bare):
        return one_line(plain, 40)
    found = _slot.match(bare) if len(bare) < 10 * _REST else None
    if found and (not re.search(r"\w", _slot.sub("", bare)) or _is_leading(bare, found.end())):
        return one_line(found.group(), 80)
    nothing = _nothing_given.search(low[-200:])
    return one_line(nothing.group(), 80) if nothing else ""


class Refusals:
    """Drops a row whose response declines ("refusal"), or whose instruction or response was never filled in
    ("placeholder"); `detail` is the words that gave it away.

    A refusal is looked for in the first 300 characters, and counts there by how sure it is. "As an AI language model, I
    cannot ..." always does. "I can't help with that request" does unless the instruction is about declining or
    apologising. "I'm sorry, but I cannot provide ..." does unless it is about that, or asks for words in another's voice:
    a letter, a story, a translation. Only English refusals are known; `extra` adds phrases, found in the same 300
    characters whatever their case.

    Raises:
        ConfigError: an extra phrase without a letter in it.
    """

    name = "refusals"
    of_instruction = False

    def __init__(self, extra: Sequence[str] = ()) -> None:
        self._extra = [_straight(phrase) for phrase in ([extra] if isinstance(extra, str) else extra)]
        if not all(any(map(str.isalpha, phrase)) for phrase in self._extra):
            raise ConfigError("refusals: an extra phrase has no letter in it; give the words of a refusal, or leave it out")

    def check(self, row: DataRow) -> Decision:
        asked = _straight(row.instruction)
        speaks_of_slots = _about_slots.search(asked) is not None
        unfilled = placeholder(row.instruction)
        if not unfilled and not speaks_of_slots and (found := _unfilled.search(asked)):
            unfilled = one_line(found.group(), 80)
        if not unfilled:
            unfilled = placeholder(row.response)
            if speaks_of_slots and _slot.match(_straight(row.response).strip(_around)):
                unfilled = ""  # {name} is the answer to a question about templates
        if unfilled:
            return Decision(False, "placeholder", detail=unfilled)
        declined = self._declined(asked, _straight(row.response).strip(_around))
        return Decision(False, "refusal", detail=declined) if declined else Decision(True)

    def remember(self, row: DataRow) -> None:
        """Nothing: no row is compared."""

    def _declined(self, asked: str, response: str) -> str:
        opening = response[:_OPENING]
        patterns = [_as_model]
        if not _asks_to_decline.search(asked):
            patterns.append(_of_request)
            if not _asks_for_voice.search(asked):
                patterns.append(_first_person)
        found = next((match for pattern in patterns if (match := pattern.search(opening))), None)
        if found:
            return one_line(found.group(), 120)
        return next((phrase for phrase in self._extra if phrase in opening), "")


def _straight(text: str) -> str:
    """Stripped, in lower case, with straight apostrophes and single spaces within lines."""
    return re.sub(r"[ \t\xa0]+", " ", re.sub("[’‘ʼ´`](?=[a-z])", "'", text.strip().lower()))


def _is_leading(bare: str, end: int) -> bool:
    """Whether a slot that ends at `end` is what the text begins with and mostly is."""
    return _unfilled.match(bare) is not None and len(bare) - end <= _REST

"""Instructions that need a text which is not there: "Summarize the following article." and nothing after it.

Two questions: whether an instruction points to a text (an article below, this paragraph, the image attached), and
whether there is anything that may be that text. Only what is surely missing counts: a quotation, a colon with words
after it, another line, a sentence that asks for nothing, and items where items are meant are taken for the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from refed_dspy.errors import one_line
from refed_dspy.text import any_of, find_placeholder, normalized

_PROSE = any_of(
    "(?:news )?article|passage|paragraph|text|excerpt|extract|essay|stor(?:y|ies)|poem|speech|transcript|document",
    "e-?mail|letter|message|review|abstract|conversation|dialog(?:ue)?|quote|quotation|blog post|post|tweet|paper",
    "chapter|report|lyrics|statement|sentence|phrase|word|snippet|code|function|program|script|query|recipe|contract|resume|claim",
)
_LISTED = any_of(
    "list|table|data(?: ?set)?|numbers?|words?|items?|options?|questions?|equations?|expressions?|values?|ingredients?",
    "names?|points|pairs?|categories|terms|facts|headlines?|titles?|examples?|series|sequence|information|details",
)
_PICTURED = any_of(
    "image|picture|photo(?:graph)?|diagram|chart|graph|figure|map|screenshot|video|audio|recording|file|attachment"
)
_NOUN = rf"(?:(?:{_PROSE}|{_PICTURED})s?|{_LISTED})"
_THIS = "(?:the|this|these|that|those|my)"
_GIVEN = "(?:given|provided)"
_CLAUSE = (
    r"(?:\s*(?:$|[.,;:!?)])| (?:to|in|into|for|by|using|with|as|and|or|so|that|which|from|about|on|while|without|at|if"
    "|then|such|of|is|are|was|has|have|do|does|can|could|would|should|will|according|based|below|above|after|before|but"
    r"|because|when|who|what|why|how|where|\w+ing|\w+ly)\b)"
)
"""What may follow a noun and is no text."""
_NO_TEXT = "(?!day|week|month|year|morning|evening|night|season|summer|winter|decade|century|way|manner|order)"
_WORK_ON = any_of(
    "summari[sz]e|paraphrase|rewrite|rephrase|reword|proofread|edit|translate|correct|simplify|shorten|condense|classify",
    "analy[sz]e|improve|revise|polish|punctuate|fix|debug|read|review|refactor|complete|format|expand",
)
_CERTAIN = re.compile(
    any_of(  # the short text below, the attached file, the following idiom
        rf"\b{_THIS} (?:below|above|attached|enclosed|accompanying) (?:[\w-]+ ){{0,2}}?{_NOUN}\b",
        rf"\b{_THIS} (?:[\w-]+ ){{0,2}}?{_NOUN} (?:below|above|attached|provided|given|shown|that follows?|here)\b",
        rf"\bthe following {_NO_TEXT}(?:[\w-]+ ){{0,3}}?[\w-]+(?={_CLAUSE})",
        r"\bwhich of (?:the following|these)\b",
    )
)
"""Points to a text even where one is to be made."""
_CERTAIN_HAVE = (
    "following", " below", " above", "attached", "enclosed", "accompanying", " provided", " given", " shown",
    " that follow", " here", "which of these",
)  # fmt: skip
_AT_START = re.compile(
    "(?:please )?"
    + any_of(  # Edit this paragraph; Based on the passage, …
        rf"{_WORK_ON} {_THIS} (?:{_GIVEN} )?(?:[\w-]+ )?{_NOUN}\b(?! of\b)",
        rf"(?:given|based on|according to|using|considering|from|in) (?:the|this|these) (?:{_GIVEN} )?{_NOUN}"
        "(?=,| (?:what|who|why|how|which|when|where)\\b)",
    )
)
"""At the start of a sentence."""
_ELSEWHERE = re.compile(
    any_of(  # the given sentence; the main idea of the passage
        rf"\bthe {_GIVEN} (?!name|time|moment)(?:[\w-]+ ){{0,2}}?[\w-]+(?={_CLAUSE})",
        rf"\b(?:idea|point|theme|tone|topic|argument|author|title|moral|purpose) of (?:the|this) {_PROSE}(?=[?.]|$)",
    )
)
_ELSEWHERE_HAVE = ("the given ", "the provided ", " of the ", " of this ")
_MAKES = re.compile(
    "(?:please |can you |could you )?"
    "(?:write|create|design|develop|compose|draft|build|implement|imagine|invent|plan|explain how|how|why)\\b"
)
_FICTION = re.compile(r"\b(?:e-?mail|letter|message|reply|memo|note|dialog(?:ue)?|story|scene|speech)\b")
_QUOTED = re.compile(r"[\"“”«»„`<\[]|(?:^|\s)['‘]\w|https?:|=|\n")
_ITEMS = re.compile(r"\d|,.*,|\b(?:or|versus|vs)\b")
_ASKS = re.compile(
    "(?:please |and |then |also |finally |next |first |be sure to |make sure )*"
    + any_of(
        "add|aim|answer|are|at (?:least|most)|avoid|base|be|can|check|choose|cite|classify|compare|compute|calculate",
        "consider|convert|correct|could|count|create|define|describe|determine|discuss|do|does|draft|each|edit|ensure",
        "evaluate|explain|extract|find|focus|for each|format|give|highlight|how|identify|if|imagine|in your|include",
        "interpret|is|(?:it|they|this) should|justify|keep|let|limit|list|maintain|make|mention|name|no more|note|pay",
        "organi[sz]e|pick|point|present|preserve|propose|provide|rank|read|remember|remove|replace|return|revise|rewrite",
        "select|should|show|sort|state|suggest|summari[sz]e|support|tell|translate|try|use|what|when|where|which|who|why",
        "analy[sz]e|would|write|you|your",
        "the (?:answer|final|length|new|output|response|result|revised|summary|translation)",
    )
    + r"\b"
)
_SENTENCE_END = re.compile(r"[.!?]\s+")
_SENTENCES = re.compile(r"(?<=[.!?])\s+")
_LONG, _LONGEST = 25, 1_500
"""Words after a pointer in its own sentence that are taken for the text; characters of an instruction that has one."""


def missing_text(instruction: str) -> str:
    """The words that point to a text which is not there, on one line; empty where nothing is surely missing.

    What `find_placeholder` finds counts, too: an announcement at its end ("…the following text:"), a slot.
    """
    if unfilled := find_placeholder(instruction):
        return unfilled
    text = normalized(instruction)
    if len(text) > _LONGEST:
        return ""
    makes = _MAKES.match(text) is not None
    for pointer in _pointers(text, certain=makes):
        if _QUOTED.search(text) or (makes and _FICTION.search(text)):
            return ""
        before, after = text[: pointer.start()], text[pointer.end() :]
        if not (_is_there(pointer.group(), before, after) or _is_made(pointer.group(), before)):
            return one_line(pointer.group(), 80)
    return ""


def _pointers(text: str, certain: bool) -> Iterator[re.Match[str]]:
    """The words of a text that point to another one; only those that are `certain` to."""
    if any(word in text for word in _CERTAIN_HAVE):
        yield from _CERTAIN.finditer(text)
    if certain:
        return
    if any(word in text for word in _ELSEWHERE_HAVE):
        yield from _ELSEWHERE.finditer(text)
    for start in (0, *(end.end() for end in _SENTENCE_END.finditer(text))):
        if pointer := _AT_START.match(text, start):
            yield pointer


def _is_there(pointer: str, before: str, after: str) -> bool:
    """Whether the rest of an instruction may be the text that `pointer` points to."""
    if not re.match(_CLAUSE, after) or re.search(r":\s*\w", after) or re.search(r":\s*\w", before):
        return True
    if not re.search(rf"(?:{_PROSE}|{_PICTURED})(?: \w+)?$", pointer) and _ITEMS.search(after):
        return True
    own, *later = _SENTENCES.split(after)
    return len(own.split()) > _LONG or any(map(_is_content, [*_SENTENCES.split(before), *later]))


def _is_content(sentence: str) -> bool:
    """Whether a sentence asks for nothing, and so may be the text itself."""
    return len(sentence.split()) > 3 and not sentence.endswith("?") and _ASKS.match(sentence) is None


def _is_made(pointer: str, before: str) -> bool:
    """Whether the words before `pointer` bring in what it points to: "Write a paragraph, then edit the paragraph"."""
    noun = re.escape(pointer.split()[-1].rstrip("s"))
    return re.search(rf"\b(?:an?|your|each|every|some|new|any) (?:[\w-]+ ){{0,4}}{noun}", before) is not None

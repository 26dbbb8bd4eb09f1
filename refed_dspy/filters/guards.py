"""Guards: filters of what can go wrong only in a text that was made from a reference.

An instruction that repeats its reference's, or a demonstration's; a response that copies either; a text that speaks of
the prompt it was written for; an instruction that needs a text which is not there. A row is compared with its own
reference: of a run, the one that it was made from; else the one of `references` whose id the row's column `reference`
has, or all of them. Where there is none, the decision says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from refed_dspy.data.references import load_references
from refed_dspy.errors import one_line
from refed_dspy.filters.base import Decision, TextFilter, preview
from refed_dspy.filters.rouge import Alphabet, Index, rouge_l, tokens
from refed_dspy.records import DataRow, Reference
from refed_dspy.text import any_of, find_placeholder, normalized

# --- instructions that need a text which is not there: "Summarize the following article." and nothing after it
# Two questions: whether an instruction points to a text (an article below, this paragraph, the image attached), and
# whether there is anything that may be that text. Only what is surely missing counts: a quotation, a colon with words
# after it, another line, a sentence that asks for nothing, and items where items are meant are taken for the text.

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
_HANDED = "(?:given|provided)"
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
        rf"{_WORK_ON} {_THIS} (?:{_HANDED} )?(?:[\w-]+ )?{_NOUN}\b(?! of\b)",
        rf"(?:given|based on|according to|using|considering|from|in) (?:the|this|these) (?:{_HANDED} )?{_NOUN}"
        "(?=,| (?:what|who|why|how|which|when|where)\\b)",
    )
)
"""At the start of a sentence."""
_ELSEWHERE = re.compile(
    any_of(  # the given sentence; the main idea of the passage
        rf"\bthe {_HANDED} (?!name|time|moment)(?:[\w-]+ ){{0,2}}?[\w-]+(?={_CLAUSE})",
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


# --- texts that speak of the prompt they were written for: of its example, reference, feedback, criteria or tags
# Each pattern looks for a few words around one noun, and is tried only on texts that have the letters it needs: most
# texts are settled by a look for those. No pattern repeats a repetition, so its time grows with the text's length
# alone.

_ANSWER, _TASK = "(?:response|answer)", "(?:instruction|task|prompt)"
_GIVEN = "(?:(?:given|provided|original|above|previous) )?"
_SAYS = any_of("suggest", "mention", "emphasi[sz]e", "recommend", "note", "say", "highlight", "ask", "request") + "s"
_MANNER = "(?:style|structure|format|tone|approach|spirit|theme|subject|topic)"
_FROM = any_of(
    "based on|incorporating|following|addressing|(?:as )?per|according to|in (?:line with|light of|response to)",
    "taking into account|considering|applying|using|guided by|to reflect|from|with",
)
_LIKE = "(?:similar to|different from|unlike|like|as in|based on|inspired by|model+ed (?:on|after)|than)"
_END = r"(?= ?(?:[.,;:!)\n]|$))"
"""No further word: "similar to the reference", but not "similar to the reference section"."""
_PASSIVE = "(?: (?:provided|given|above|received))?"
_OF_A_PERSON = rf"(?!{_PASSIVE} (?:to|by|from|of|in|at|on|during|through|via|for|about|with)\b)"
"""Not somebody's feedback: "the feedback provided by customers"."""
_OF_AN_EVENT = r"(?! (?:to|of|from|by|for|in|at|among|against|times?|rates?|plans?|teams?|key|sheet|box|choice)\b)"
"""Not the response of an army, nor an answer sheet."""
_TAG = "(?:example|instruction|response|feedback|reference|answer|analysis|improved_\\w+)"
_BUILT_ON = (
    r"(?:(?:improve[sd]?|improving|buil[dt]\w*|expand\w*) (?:up)?on|compared (?:to|with)|unlike|than|(?:of|in) )"
)
_LACKED = any_of(
    "lack(?:s|ed)|already|did(?: not|n't)|provided|could",
    "(?:was|is) (?:already )?(?:too|correct|clear|good|accurate|brief|vague|concise|helpful)",
)


@dataclass(frozen=True)
class Talk:
    """`pattern` is looked for around each place where a text, in lower case, has the words `near`. It does not count in
    the response to an instruction in which `noun` is found."""

    near: str
    noun: re.Pattern[str]
    pattern: re.Pattern[str]

    def found(self, lower: str) -> str:
        """The words that match, or nothing."""
        at = lower.find(self.near)
        while at >= 0:
            if match := self.pattern.search(lower, max(0, at - _AROUND), at + _AROUND):
                return match.group()
            at = lower.find(self.near, at + 1)
        return ""


_AROUND = 100
"""Characters before and after a word within which a pattern is looked for."""


def _talk(near: str, noun: str, *patterns: str) -> Talk:
    return Talk(near, re.compile(noun), re.compile(any_of(*patterns), re.MULTILINE))


def _about(answer: str) -> tuple[Talk, ...]:
    """Of a response, or answer, that is called improved or compared with an original one."""
    named = f"{answer}{_OF_AN_EVENT}"
    here = "here(?:['’]s| is) (?:the|an?|my)"
    return (
        _talk(f"l {answer}", _ANSWER, rf"\b{_BUILT_ON} ?the original {named}", f"the original {answer} {_LACKED}"),
        _talk(
            f"d {answer}",
            _ANSWER,
            rf"\b(?:the|this|my|{here}) improved {named}",
            rf"\b(?:this|my|{here}) (?:revised|enhanced) {named}",
        ),
        _talk(
            f"this {answer} ",
            _ANSWER,
            f"this {answer} (?:incorporates|adheres to|is based on the (?:feedback|reference|example))",
        ),
        _talk(
            " criteria",
            "criteri",
            f"{answer} (?:meets|satisfies|fulfil\\w*|adheres to|follows) (?:all )?(?:the|these) (?:\\w+ )?criteria",
        ),
    )


_FIELDS = (
    "improved_response", "reference_response", "example_response", "response_feedback", "reference_feedback",
    "reference_instruction", "example_instruction", "implementation_strategy", "improvement_opportunities",
)  # fmt: skip
_OF_BOTH = {
    "reference": (
        _talk(
            "reference",
            "reference",
            rf"\b(?:the|this|that|your|an?|our) {_GIVEN}reference (?:{_ANSWER}|{_TASK}|question|pair|feedback)s?\b",
            rf"\b{_LIKE} the reference{_END}",
            rf"\bthe reference {_SAYS}\b",
            rf"\b{_MANNER} (?:of|as|from) the reference{_END}",
        ),
    ),
    "example": tuple(
        _talk(
            f"{given} example",
            "example",
            rf"\b(?:the|this) {_GIVEN}example (?:{_ANSWER}|{_TASK})s?\b",
            rf"\b{_MANNER} of the {_GIVEN}example(?: (?:above|provided|given))?{_END}",
        )
        for given in ("the", "this", "given", "provided", "above", "original", "previous")
    ),
    "_": tuple(
        _talk(
            name,
            "_",
            rf"\b(?:the|of|in|to|from|using|with|per) [`*\"']*{name}\b",
            rf"\b{name}[`*\"']*(?::| =)",
            rf"[`*\"']{name}[`*\"']",
        )
        for name in _FIELDS
    ),
    "[": (_talk("[[ ##", r"\[\[", r"\[\[ ## ?\w+ ?## \]\]"),),
    "write the json:": (_talk("write the json:", "json", r"\bwrite the json: \w+"),),
}
"""Letters that a text must have → what is looked for in it."""
_OF_INSTRUCTION = {
    "the ": (_talk(" feature", "", rf"\bthe (?:given|provided|specified|above) feature{_END}"),),
    "instruction": (
        _talk(
            "instruction",
            "",
            r"\bthis (?:new )?instruction (?:is|asks|requires|tests|builds|covers|focuses|draws|explores)\b",
            r"\bsimilar to the (?:given |provided |original )?instruction\b",
        ),
    ),
}
_OF_RESPONSE = {
    "feedback": (
        _talk(
            "feedback",
            "feedback",
            rf"\b{_FROM} the (?:provided|given|above|reference) feedback{_OF_A_PERSON}",
            rf"\b(?:as|where|which|what) the feedback {_SAYS}\b",
            r"\bas (?:suggested|mentioned|noted|recommended|requested|advised) (?:in|by) the (?:\w+ )?feedback"
            + _OF_A_PERSON,
            rf"\b(?:{_ANSWER}|version|revision) (?:incorporates|addresses|reflects|applies) the (?:\w+ )?feedback\b",
        ),
    ),
    "response": _about("response"),
    "answer": _about("answer"),
}
_INSTRUCTION_ITEMS = (*_OF_BOTH.items(), *_OF_INSTRUCTION.items())
_RESPONSE_ITEMS = (*_OF_BOTH.items(), *_OF_RESPONSE.items())
_CLOSING = _talk("", "tag|xml|html|markup", rf"</{_TAG}>\s*\Z")
_OPENINGS = (
    _talk("", _ANSWER, rf"\W*(?:improved|revised|enhanced) {_ANSWER}\W*(?::|\n)"),
    _talk("", "feedback", rf"\W*{_FROM} the feedback{_PASSIVE}{_OF_A_PERSON}"),
    _talk("", "tag|xml|html|markup", rf"\s*<{_TAG}>"),
)
"""Matched at the beginning of a text alone."""


def prompt_talk(lower: str, instruction: str | None = None) -> str:
    """The words with which a text, in lower case, speaks of its prompt, on one line; empty where it does not.

    `instruction`: the one that the text answers; None where it is an instruction itself.
    """
    for needed, talks in _INSTRUCTION_ITEMS if instruction is None else _RESPONSE_ITEMS:
        if needed in lower:
            for talk in talks:
                if (words := talk.found(lower)) and not _is_asked_for(talk, instruction):
                    return one_line(words, 120)
    for talk in _OPENINGS:
        if (match := talk.pattern.match(lower)) and not _is_asked_for(talk, instruction):
            return one_line(match.group(), 120)
    if lower.rstrip().endswith(">"):
        closing = _CLOSING.pattern.search(lower, max(0, len(lower) - _AROUND))
        if closing and not _is_asked_for(_CLOSING, instruction):
            return one_line(closing.group(), 120)
    return ""


def _is_asked_for(talk: Talk, instruction: str | None) -> bool:
    return instruction is not None and talk.noun.search(instruction.lower()) is not None


# --- instructions that repeat a reference's, and responses that copy a reference's

THRESHOLD = 0.7
"""The ROUGE-L F from which on an instruction repeats its reference's."""
RUN, GRAM, SHARE = 25, 8, 0.3
"""A copy has a run of `RUN` words, or more than this share of its runs of `GRAM` words, in the reference's response."""
RUN_SHOWN = 12
"""The run that makes a copy of a demonstration's response: a sentence of it has no place in another one's."""
_HINT, _SHORT, _STEP, _LONG_STEP = 6, 30, 3, 5
"""A run of 8 words holds one of `_HINT` that begins at a multiple of `_STEP`. From `_SHORT` words on, no text has more
than 30% of its runs of 8 in common without a run of 10 (k common runs take 9k - 1 words at least), which holds one that
begins at a multiple of `_LONG_STEP`."""


class Likeness(NamedTuple):
    """What is like a known text: how much of it, from 0 to 1, and the words that show it."""

    score: float
    words: str


class Known:
    """Instructions and responses, of references say, that a text is compared with. Without any it is false. `run`: how
    many words in a row of a response make a copy of it, at least 10."""

    def __init__(self, instructions: Sequence[str], responses: Sequence[str], run: int = RUN) -> None:
        self._texts = instructions
        self._runs = [Runs(response, run) for response in responses]
        self._hints = frozenset().union(*(runs.hints for runs in self._runs))
        self._instructions = [tokens(instruction) for instruction in instructions]
        self._index: tuple[Alphabet, Index] | None = None

    def __len__(self) -> int:
        return len(self._texts)

    def repeated(self, instruction: str) -> Likeness | None:
        """(ROUGE-L F, beginning of the known instruction) where one is like `instruction`."""
        if len(self) == 1:
            score, number = rouge_l(tokens(instruction), self._instructions[0]), 0
        elif (nearest := self._nearest(instruction)) is not None:
            number, score = nearest
        else:
            return None
        return Likeness(score, preview(self._texts[number])) if score >= THRESHOLD else None

    def _nearest(self, instruction: str) -> tuple[int, float] | None:
        if self._index is None:
            self._index = Alphabet(), Index(THRESHOLD)
            for text in self._texts:
                self._index[1].add(self._index[0].encode(text))
        alphabet, index = self._index
        return index.nearest(alphabet.encode(instruction))

    def copied(self, words: Sequence[str]) -> Likeness | None:
        """(share of its runs of 8 words, the first of them) where a response, as words, copies a known one."""
        if self._hints.isdisjoint(_hints(words, _STEP if len(words) < _SHORT else _LONG_STEP)):
            return None
        return next((copy for runs in self._runs if (copy := runs.copied(words)) is not None), None)


class Runs:
    """The runs of words of a text, by which copies of it are found."""

    def __init__(self, text: str, run: int) -> None:
        self._words = text.lower().split()
        self.hints = frozenset(_hints(self._words))
        self._whole_run = bytes([True] * (run - GRAM + 1))
        """As many hits as there are runs of `GRAM` words in one of `run`."""

    def copied(self, words: Sequence[str]) -> Likeness | None:
        """(share of the runs of 8 of these words that are in the text, the first of them) where they are a copy."""
        grams = frozenset(_runs(self._words, GRAM))  # hardly ever needed, and large: not kept
        hits = list(map(grams.__contains__, _runs(words, GRAM)))
        share = sum(hits) / len(hits) if hits else 0.0
        if share <= SHARE and self._whole_run not in bytes(hits):
            return None
        first = hits.index(True)
        return Likeness(share, " ".join(words[first : first + GRAM]))


def _runs(words: Sequence[str], length: int, step: int = 1) -> Iterator[tuple[str, ...]]:
    """The runs of `length` words, every `step`-th."""
    return zip(*(words[start::step] for start in range(length)), strict=False)


def _hints(words: Sequence[str], step: int = 1) -> Iterator[int]:
    """The runs of `_HINT` words, every `step`-th, as hashes: a third of the memory. Two of one hash cost a look."""
    return map(hash, _runs(words, _HINT, step))


class RowReferences:
    """The reference of each row: its own, else the one of `source` (as `load_references` takes it) whose id the column
    `reference` has, else all of `source`."""

    def __init__(self, source: Any = None) -> None:
        given = () if source is None else tuple(load_references(source))
        self._by_id = {reference.id: reference for reference in given}
        self._all = Known([each.instruction for each in given], [each.response for each in given])

    def of(self, row: DataRow) -> Known:
        if (own := row.reference or self._by_id.get(str(row.fields.get("reference")))) is not None:
            return _known(own)
        return self._all


@lru_cache(maxsize=1024)  # as many as 16,000 calls in flight are about
def _by_texts(instruction: str, response: str) -> Known:
    return Known([instruction], [response])


def _known(reference: Reference) -> Known:
    return _by_texts(reference.instruction, reference.response)


REPEATS, COPIES, TALK = "repeats its reference", "copies its reference", "speaks of its prompt"
REPEATS_SHOWN, COPIES_SHOWN = "repeats a demonstration", "copies a demonstration"
MISSING, UNCHANGED, UNCOMPARED = "needs a text that is missing", "unchanged", "no reference to compare with"


class InstructionGuard(TextFilter):
    """Drops an instruction that speaks of the prompt it was written for, that needs a text which is not there, or that
    has a ROUGE-L F of 0.7 or more with its reference's.

    `references`: what `load_references` takes, for rows that do not know theirs.
    """

    name = "instruction_guard"
    of_instruction = True

    def __init__(
        self, copies: bool = True, prompt_talk: bool = True, missing_text: bool = True, references: Any = None
    ) -> None:
        self._copies, self._talk, self._missing = copies, prompt_talk, missing_text
        self._references = RowReferences(references)
        self.demonstrations = Known((), ())
        """What the program shows its teacher: it must not come back, either."""

    def check(self, row: DataRow) -> Decision:
        """`detail`: the words that decided, or the beginning of what is repeated; `score`: its ROUGE-L F."""
        if self._talk and (words := prompt_talk(row.instruction.lower())):
            return Decision(False, TALK, detail=words)
        if self._missing and (words := missing_text(row.instruction)):
            return Decision(False, MISSING, detail=words)
        if not self._copies:
            return Decision(True)
        known = self._references.of(row)
        for texts, reason in ((known, REPEATS), (self.demonstrations, REPEATS_SHOWN)):
            if texts and (repeated := texts.repeated(row.instruction)):
                return Decision(False, reason, repeated.score, repeated.words)
        return Decision(True, remark="" if known else UNCOMPARED)


class ResponseGuard(TextFilter):
    """Drops a row of which the response, or the plain one, copies its reference's or speaks of its prompt. A response
    that is the plain one is counted as "unchanged", or with `unchanged="drop"` dropped.

    A copy has a run of 25 words, or more than 30% of its runs of 8 words, in the reference's response. Words are what
    white space separates, in lower case; a text of fewer than 8 is not compared.
    `references`: what `load_references` takes, for rows that do not know theirs.
    """

    name = "response_guard"
    of_instruction = False

    def __init__(
        self,
        copies: bool = True,
        prompt_talk: bool = True,
        unchanged: Literal["keep", "drop"] = "keep",
        references: Any = None,
    ) -> None:
        self._copies, self._talk, self._drops_unchanged = copies, prompt_talk, unchanged == "drop"
        self._references = RowReferences(references)
        self.demonstrations = Known((), ())
        """What the program shows its teacher: it must not come back, either."""

    def check(self, row: DataRow) -> Decision:
        """`detail`: the words that decided, of a copy its first 8; `score`: the share of its runs of 8 words."""
        same = row.plain is not None and row.plain.strip() == row.response.strip()
        known = self._references.of(row) if self._copies else None
        for text in [row.response] if row.plain is None or same else [row.response, row.plain]:
            lower = text.lower()
            if self._talk and (words := prompt_talk(lower, row.instruction)):
                return Decision(False, TALK, detail=words)
            split = lower.split() if self._copies else []
            if known and (copy := known.copied(split)):
                return Decision(False, COPIES, copy.score, copy.words)
            if self.demonstrations and (copy := self.demonstrations.copied(split)):
                return Decision(False, COPIES_SHOWN, copy.score, copy.words)
        if same and self._drops_unchanged:
            return Decision(False, UNCHANGED)
        remarks = [UNCHANGED] * same + [UNCOMPARED] * (known is not None and not known)
        return Decision(True, remark="; ".join(remarks))

    def plain_is_bad(self, row: DataRow) -> bool:
        """Whether the plain response of a row that was dropped is at fault, or the only one there is."""
        if row.plain is None:
            return True
        plain = DataRow(row.number, row.instruction, row.plain, fields=row.fields, reference=row.reference)
        return not self.check(plain).kept

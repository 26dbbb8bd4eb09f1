"""Texts that speak of the prompt they were written for: of its example, reference, feedback, criteria or tags.

Each pattern looks for a few words around one noun, and is tried only on texts that have the letters it needs: most
texts are settled by a look for those. No pattern repeats a repetition, so its time grows with the text's length alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from refed_dspy.errors import one_line
from refed_dspy.text import any_of

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

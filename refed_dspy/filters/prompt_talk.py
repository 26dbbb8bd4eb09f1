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
    """`pattern` is looked for in texts, in lower case, that have `needs`. It does not count in the response to an
    instruction in which `noun` is found."""

    needs: str
    noun: re.Pattern[str]
    pattern: re.Pattern[str]


def _talk(needs: str, noun: str, *patterns: str) -> Talk:
    return Talk(needs, re.compile(noun), re.compile(any_of(*patterns), re.MULTILINE))


def _rewritten(how: str, article: str) -> Talk:
    """A response that is called improved, revised or enhanced."""
    return _talk(
        f"{how} ",
        _ANSWER,
        rf"\b(?:{article}|this|my|here(?:['’]s| is) (?:the|an?|my)) {how} {_ANSWER}{_OF_AN_EVENT}",
        rf"\A\W*{how} {_ANSWER}\W*(?::|\n)",
    )


_OF_BOTH = (
    _talk(
        "reference ",
        "reference",
        rf"\b(?:the|this|that|your|an?|our) {_GIVEN}reference (?:{_ANSWER}|{_TASK}|question|pair|feedback)s?\b",
    ),
    _talk(
        "the reference",
        "reference",
        rf"\b{_LIKE} the reference{_END}",
        rf"\bthe reference {_SAYS}\b",
        rf"\b{_MANNER} (?:of|as|from) the reference{_END}",
    ),
    _talk("example ", "example", rf"\b(?:the|this|your|our) {_GIVEN}example (?:{_ANSWER}|{_TASK})s?\b"),
    _talk("of the ", "example", rf"\b{_MANNER} of the {_GIVEN}example(?: (?:above|provided|given))?{_END}"),
    _talk("[[ ##", r"\[\[", r"\[\[ ## ?\w+ ?## \]\]"),
    _talk(
        "_",
        "_",
        r"\b(?:reference_(?:instruction|response|feedback)|example_(?:instruction|response)|improved_response|"
        r"response_feedback|implementation_strategy|improvement_opportunities|original_strengths)\b",
    ),
    _talk("<", r"tag|xml|html|markup", rf"\A\s*<{_TAG}>", rf"</{_TAG}>\s*\Z"),
)
_OF_INSTRUCTION = (
    _talk("feature", "", rf"\bthe (?:given|provided|specified|above) feature{_END}"),
    _talk(
        "this ", "", r"\bthis (?:new )?instruction (?:is|asks|requires|tests|builds|covers|focuses|draws|explores)\b"
    ),
    _talk("similar", "", r"\bsimilar to the (?:given |provided |original )?instruction\b"),
)
_OF_RESPONSE = (
    _talk(
        "feedback",
        "feedback",
        rf"\b{_FROM} the (?:provided|given|above|reference) feedback{_OF_A_PERSON}",
        rf"\A\W*{_FROM} the feedback{_PASSIVE}{_OF_A_PERSON}",
        rf"\b(?:as|where|which|what) the feedback {_SAYS}\b",
        r"\bas (?:suggested|mentioned|noted|recommended|requested|highlighted|advised) (?:in|by) the (?:\w+ )?feedback"
        + _OF_A_PERSON,
        rf"\b(?:{_ANSWER}|version|revision) (?:incorporates|addresses|reflects|applies) the (?:\w+ )?feedback\b",
    ),
    _talk(
        "original ",
        _ANSWER,
        rf"\b{_BUILT_ON} ?the original {_ANSWER}{_OF_AN_EVENT}",
        rf"\bthe original {_ANSWER} {_LACKED}\b",
    ),
    _rewritten("improved", "the"),
    _rewritten("revised", "this"),
    _rewritten("enhanced", "this"),
    _talk(
        "this ",
        _ANSWER,
        rf"\bthis {_ANSWER} (?:incorporates|adheres to|is based on the (?:feedback|reference|example))\b",
    ),
    _talk(
        "criteria",
        "criteri",
        rf"\b{_ANSWER} (?:meets|satisfies|fulfil\w*|adheres to|follows) (?:all )?(?:the|these) (?:\w+ )?criteria\b",
    ),
)


def prompt_talk(text: str, instruction: str | None = None) -> str:
    """The words with which `text` speaks of its prompt, in lower case on one line; empty where it does not.

    `instruction`: the one that `text` answers; None where `text` is an instruction itself.
    """
    lower = text.lower()
    for talk in (*_OF_BOTH, *(_OF_INSTRUCTION if instruction is None else _OF_RESPONSE)):
        match = talk.pattern.search(lower) if talk.needs in lower else None
        if match is not None and (instruction is None or not talk.noun.search(instruction.lower())):
            return one_line(match.group(), 120)
    return ""

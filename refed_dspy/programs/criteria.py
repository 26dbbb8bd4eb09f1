"""Which criteria that were written about a reference can be used: those that give nothing of its content away, and ask
for more than length.

Checked by rule, not by a model. A word of a criterion that stands in the reference too is a leak, unless it is one of
the words that people describe any answer with. These are English: of criteria in another language, few are left.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

from refed_dspy.records import Criteria, Reference, WeightedCriterion

LEAST, MOST, HEAVIEST = 2, 8, 5
"""How few criteria are as good as none, how many are used, and the greatest weight."""
RUN = 4
"""So many words of the reference in a row are a leak, whatever they are."""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ENDING = re.compile(r"(?<=\w{3})(?:ations?|y?ings?|ions?|edly|i?ed|ies|ly|es|s|e|y)$")
_DOUBLED = re.compile(r"([bdfglmnprt])\1$")
_AGENT = re.compile(r"(?<=\w{3})ers?$")
_OF_PAIR = re.compile(r"\b(?:reference|plain|original) (?:instruction|response|answer|pair|example)|\bthe reference\b")
_FRAME = frozenset(
    _WORD.findall("""
    a an the this that these those it its they them their there one ones do does did is are was were be been being has
    have having can could may might must should will would answer response reader user person people someone somebody
    and or nor but if of to in on at by for from with without within into as than then so not no any all each every both
    either such same other another more most less least enough very too only just also even what which who whom whose
    when where why how whether while because about over under between among after before during through out up down off
    again once per rather instead you your we our i my me he she his her him itself against behind toward something
    anything nothing everything two goes happens stands sets suits figures piece give gives given giving use uses used
    using make makes made making keep keeps kept write written contain contains good limit limits
    minimum maximum true false
    """)
)
"""Words of no content, and those that every criterion is made of."""
_GENERAL = """
    explain explanation describe description show state say tell name list mention include cover address provide offer
    present introduce define definition compare comparison contrast distinguish illustrate demonstrate support back
    justify argue reason reasoning evidence example concrete specific precise particular detail exact accurate correct
    right wrong fact claim source assumption uncertain uncertainty limit limitation caveat exception edge
    case risk warning mistake error pitfall avoid prevent check verify test confirm step order sequence first next last
    final begin start end opening closing conclusion conclude summary summarize overview main key central important
    importance idea point part section heading paragraph sentence word phrase bullet number numbered table format
    layout structure structured organize organized logical flow follow lead clear clarity plain simple easy understand
    readable concise short brief long length detailed complete thorough comprehensive direct directly relevant focus
    scope request requested ask asked question instruction task constraint requirement need implied context purpose
    goal aim audience tone style voice friendly polite respectful formal natural consistent balanced fair neutral
    advice suggest suggestion recommend recommendation practical actionable action act apply application alternative
    option choice choose decide decision trade tradeoff advantage disadvantage benefit drawback cost effect cause
    consequence result outcome impact approach method way technique process quality better best well effective
    useful helpful meaningful appropriate suitable fitting engaging interesting memorable vivid varied term terminology
    jargon technical meaning sense content information knowledge topic subject matter issue problem solution help
    connect connection link relate relation relevance transition basis expand further deep depth beyond
    different difference similar several multiple many few some distinct separate single whole general real ready
    possible likely necessary own new time place kind type form
"""
"""Words that describe any answer, in all their forms."""
_OF_LENGTH = """
    long longer short shorter length lengthy brief concise conciseness detailed word sentence paragraph page character
    line three four five six seven eight nine ten hundred
"""


def usable(written: Iterable[WeightedCriterion], reference: Reference) -> Criteria:
    """The criteria that can be used, at most `MOST`, each once, with weights from 1 to `HEAVIEST`; none where fewer
    than `LEAST` are left."""
    made: dict[str, WeightedCriterion] = {}
    for each in written:
        text = " ".join(each.criterion.split())
        if text and not fault(text, reference):
            weight = max(1, min(HEAVIEST, each.weight))
            made.setdefault(text.lower(), WeightedCriterion(criterion=text, weight=weight))
    return tuple(made.values())[:MOST] if len(made) >= LEAST else ()


def fault(criterion: str, reference: Reference) -> str:
    """Why a criterion cannot be used, in a few words; empty where it can."""
    words, of_reference = _words(criterion), _words(f"{reference.shown}\n{reference.response}")
    content = {_stem(word) for word in words if word not in _FRAME and not word.isdecimal()}
    if content and content <= _stems(_OF_LENGTH):
        return "asks for length only"
    if _OF_PAIR.search(criterion.lower()):
        return "speaks of its reference"
    known = {_root(word) for word in of_reference}
    if told := next((word for word in words if _root(word) in known and not _is_general(word)), ""):
        return f"names its reference's {told}"
    if run := next(iter(_runs(words) & _runs(of_reference)), ()):
        return f"repeats its reference: {' '.join(run)}"
    return ""


def _words(text: str) -> list[str]:
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def _stem(word: str) -> str:
    """`word` without the ending of one of its forms, roughly."""
    return _DOUBLED.sub(r"\1", _ENDING.sub("", word.removesuffix("'s")))


def _root(word: str) -> str:
    """What `word` shares with its kin: bake, baker, baking."""
    return _stem(_AGENT.sub("", word.removesuffix("'s")))


def _is_general(word: str) -> bool:
    """Whether it tells nothing of a reference that has it, too."""
    return word.removesuffix("'s") in _FRAME or _stem(word) in _stems(_GENERAL)


@lru_cache
def _stems(words: str) -> frozenset[str]:
    return frozenset(map(_stem, words.split()))


def _runs(words: Sequence[str]) -> set[tuple[str, ...]]:
    """All runs of `RUN` words."""
    return {tuple(words[at : at + RUN]) for at in range(len(words) - RUN + 1)}

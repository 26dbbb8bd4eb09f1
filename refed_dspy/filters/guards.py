"""Guards: filters of what can go wrong only in a text that was made from a reference.

An instruction that repeats its reference's, or a demonstration's; a response that copies either; a text that speaks of
the prompt it was written for; an instruction that needs a text which is not there. A row is compared with its own
reference: of a run, the one that it was made from; else the one of `references` whose id the row's column `reference`
has, or all of them. Where there is none, the decision says so.
"""

from __future__ import annotations

from typing import Any, Literal

from refed_dspy.filters.base import Decision, TextFilter
from refed_dspy.filters.copies import Known, References
from refed_dspy.filters.missing_text import missing_text
from refed_dspy.filters.prompt_talk import prompt_talk
from refed_dspy.records import DataRow

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
        self._references = References(references)
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
        self._references = References(references)
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

"""What a compile learned, for people: whether it helped, what it changed, and an answer before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from refed_dspy.errors import RunDirError, briefly
from refed_dspy.ledger.candidates import Candidate, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.optimizers.by_people import told_by_people
from refed_dspy.optimizers.proof import UNCHANGED
from refed_dspy.optimizers.race import gains_over, race_lines
from refed_dspy.optimizers.result import PROOF, compile_status
from refed_dspy.programs.changes import PromptChange, changed_predictors, prompt_changes, prompt_diff
from refed_dspy.programs.saved import in_dspys_form
from refed_dspy.records import PICO, dollars
from refed_dspy.text import NO_VALUE, table_lines

SETS = ("train", "validation", "test")


@dataclass(frozen=True)
class Tried:
    """A candidate, for people: its mean scores on each set, None before there are any, and dollars. In those on the
    train and validation sets, as the optimizer sees them, a longer answer's win counts less. A call that two candidates
    share is the first one's."""

    number: int
    optimizer: str
    """Who tried it, where several did; else an empty text."""
    kept: bool
    train: float | None
    validation: float | None
    test: float | None
    gain: float | None
    """Over the uncompiled program on the validation set; None where too little of that was scored."""
    cost: float | None
    """None where a price is unknown."""
    changed: tuple[str, ...]
    """The stages whose prompts are others than the uncompiled program's."""
    program: Mapping[str, Any]
    """Its prompts, in the form of a program's file."""


@dataclass(frozen=True)
class Learned:
    """A compile as its folder has it, ended or not. `outcome`: empty before there is one; `best`: the candidate that
    was kept, before the end the best so far, None before any was scored."""

    folder: Path
    status: Mapping[str, Any]
    outcome: Mapping[str, Any]
    candidates: Sequence[Candidate]
    best: Candidate | None

    @classmethod
    def of(cls, folder: Path, ledger: Ledger) -> Learned:
        """That of the compile in `ledger`. Raises RunDirError where another kind of work is there."""
        if ledger.holds() != "compile":
            raise RunDirError(f"{folder}: no compile; name the folder of one")
        outcome, candidates = ledger.meta("outcome") or {}, load_candidates(ledger)
        return cls(folder, compile_status(ledger), outcome, candidates, _best(candidates, outcome.get("candidate")))

    @property
    def changes(self) -> list[PromptChange]:
        """What the best candidate's prompts have that the uncompiled program's have not, and the reverse."""
        return [] if self.best is None else prompt_changes(self.candidates[0].state, self.best.state)

    @property
    def answers(self) -> dict[str, tuple[Mapping[str, str], Mapping[str, str]]]:
        """Stage → what it was given and what it answered, before and after (`answers_by_stage`); only stages whose
        answers differ, none where the compile noted none."""
        noted = (self.outcome.get("answers") if self.changes else None) or {"before": {}, "after": {}}
        before, after = noted["before"], noted["after"]
        return {name: (old, after[name]) for name, old in before.items() if after.get(name, old) != old}

    def tried(self) -> list[Tried]:
        """Every candidate, the uncompiled program first."""
        race = self.outcome.get("race", ())
        by = {each: one["name"] for one in race if len(race) > 1 for each in one["candidates"]}
        first = self.candidates[0] if self.candidates else None
        return [
            Tried(
                each.seq,
                by.get(each.digest, ""),
                each is self.best and bool(self.outcome),
                **{name: each.mean(name) for name in SETS[:2]},
                test=fmean(scores.values()) if (scores := each.undiscounted("test")) else None,
                gain=fmean(gained.values()) if first and (gained := gains_over(each, first)) else None,
                cost=None if self.status["unpriced"] else each.cost / PICO,
                changed=tuple(changed_predictors(first.state, each.state)) if first else (),
                program=in_dspys_form(each.state),
            )
            for each in self.candidates
        ]

    def doubts(self) -> list[str]:
        """Why nothing is proved, or on whose word; empty where it simply is, and before the end."""
        if not self.outcome or self.status["optimizer"] == "variants":  # a plan's test proves nothing
            return []
        unscored = {"doubts": ["no proof: the test set was not scored, or only in part"]}
        doubts = list((self.outcome["proof"] or unscored).get("doubts", ()))  # an older compile stored none
        if self.best is self.candidates[0] and not any(UNCHANGED in each for each in doubts):
            doubts.append(UNCHANGED)
        return doubts

    def rows(self) -> list[list[str]]:
        """Each candidate's name, scores, dollars, and what changed in it; a heading first."""
        rows, best = [["candidate", *SETS, "dollars", "changed in"]], ", kept" if self.outcome else ", best so far"
        for each, told in zip(self.candidates, self.tried(), strict=True):
            means = [
                NO_VALUE if (mean := getattr(told, name)) is None else f"{mean:.3f} ({len(each.scores[name])})"
                for name in SETS
            ]
            name = f"{each.seq}{', uncompiled' * (each is self.candidates[0])}{best * (each is self.best)}"
            by = f" ({told.optimizer})" if told.optimizer else ""
            cost = NO_VALUE if told.cost is None else dollars(each.cost)
            rows.append([name + by, *means, cost, ", ".join(told.changed) or "nothing"])
        return rows

    def lines(self) -> list[str]:
        """The proof with its doubts, the candidates, what changed stage by stage, and the answers."""
        lines, proof = list[str](), self.folder / PROOF
        if self.outcome.get("proof") and proof.is_file():
            lines += proof.read_text(encoding="utf-8").rstrip("\n").split("\n")
        lines += [*filter(None, [told_by_people(self.folder)]), *self.doubts()]
        lines += [*race_lines(self.outcome.get("race", ())), "", *table_lines(self.rows())]
        if self.best is not None:
            lines += ["", "what changed, stage by stage" + (":" if self.outcome else " (the best candidate so far):")]
            lines += ["", *self.changed_lines()]
        if self.answers:
            lines += ["", "answers before and after, for one example of the test set:", ""]
            lines.append(self.outcome["answers"]["example"])
        for name, parts in self.answers.items():
            lines += ["", f"### {name}"]
            for when, part in zip(("before", "after"), parts, strict=True):
                lines += [f"{when}:", "  " + part["answer"].replace("\n", "\n  ")]
        return lines

    def changed_lines(self) -> list[str]:
        """What the best candidate's prompts have that the uncompiled program's have not, and the reverse."""
        after = (self.best or self.candidates[0]).state
        return prompt_diff(self.candidates[0].state, after).rstrip("\n").split("\n")


@briefly
def learned_in(folder: str | Path) -> Learned:
    """What the compile in `folder` learned. Raises RunDirError where none is there."""
    with Ledger.read(Path(folder)) as ledger:
        return Learned.of(Path(folder), ledger)


def _best(candidates: Sequence[Candidate], kept: str | None) -> Candidate | None:
    """The candidate that was `kept`; before the end, the one that gains most on the validation set so far."""
    gains = {}
    for each in candidates:
        if each.digest == kept:
            return each
        if gained := gains_over(each, candidates[0]):
            gains[each.seq] = fmean(gained.values())
    return max((each for each in candidates if each.seq in gains), key=lambda each: gains[each.seq], default=None)

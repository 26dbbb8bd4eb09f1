"""The page of a compile: its candidates, the proof of the gain, and what changed in the prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refed_dspy.ledger.candidates import Candidate, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.measures.intervals import Interval, gain_or_change
from refed_dspy.optimizers.result import compile_status
from refed_dspy.plugins.share.report import charts, glance
from refed_dspy.plugins.share.report.charts import Chart, readable
from refed_dspy.plugins.share.report.drawing import Intervals
from refed_dspy.plugins.share.report.glance import Fact, Table
from refed_dspy.plugins.share.report.page import Page
from refed_dspy.plugins.share.report.rows import Extract, Gallery, Text, changed, plain
from refed_dspy.programs.saved import changed_predictors
from refed_dspy.records import PICO, dollars
from refed_dspy.text import NO_VALUE, counted, format_number

_LONGEST = 50_000
"""Characters of a prompt's change that are shown: all of it, unless a program writes without end."""
_SETS = ("train", "validation", "test")


def compile_page(folder: Path, ledger: Ledger) -> Page:
    """The contents of a compile's page."""
    status, outcome, candidates = compile_status(ledger), ledger.meta("outcome") or {}, load_candidates(ledger)
    identity, proof = ledger.meta("identity") or {}, outcome.get("proof")
    best = _best(candidates, outcome)
    facts = [
        Fact("Candidates", f"{len(candidates):,}", counted(status["evaluations"], "evaluation")),
        *glance.paid(ledger, status),
    ]
    if proof:
        gain = proof["over_champion"] or proof["gain"]
        over = "against the champion" if proof["over_champion"] else "against the uncompiled program"
        what = gain_or_change(gain["mean"]).capitalize()
        nothing_new = proof.get("same") and not proof["over_champion"]
        if not nothing_new:
            facts.insert(0, Fact(what, f"{gain['mean']:+z.2f}", f"{_ends(gain)}, {over}"))
        facts.insert(
            1, Fact("Proved better", "nothing to prove" if nothing_new else "yes" if proof["proved"] else "no")
        )
    drawn = [*([_scores(outcome), _changes(proof)] if proof else []), charts.costs(status["usage"])]
    return Page(
        title=folder.absolute().name,
        lead=f"{identity.get('kind', 'A program')} compiled by {identity.get('optimizer', 'an optimizer')}",
        state=status["state"],
        reason=status["reason"],
        facts=facts,
        notes=[*_notes(outcome, candidates, best), *glance.spending_notes(status)],
        galleries=[prompts] if best and (prompts := _prompts(candidates[0], best)) else [],
        charts=drawn,
        tables=[
            *([_agreement(judge)] if (judge := outcome.get("agreement")) else []),
            _candidates(candidates, best),
            glance.models(status["models"]),
        ],
    )


def _best(candidates: Sequence[Candidate], outcome: Mapping[str, Any]) -> Candidate | None:
    """The candidate that was kept; before the end, the one with the best mean on the validation set."""
    kept = [each for each in candidates if each.digest == outcome.get("candidate")]
    scored = [each for each in candidates if each.mean("validation") is not None]
    return kept[0] if kept else max(scored, key=lambda each: each.mean("validation") or 0, default=None)


def _notes(outcome: Mapping[str, Any], candidates: Sequence[Candidate], best: Candidate | None) -> list[str]:
    """What the command says besides the figures."""
    if not outcome:
        return []
    models = {role: model["model"] for role, model in outcome["models"].items()}
    unscored = {"doubts": ["no proof: the test set was not scored, or only in part"]}
    notes = list((outcome["proof"] or unscored).get("doubts", ()))  # an older compile stored none
    kept = "no candidate was better, so the uncompiled program is kept"
    if best is candidates[0] and not any(kept in note for note in notes):
        notes.append(kept)
    if outcome["abstained"]:
        notes.append(
            f"{counted(outcome['abstained'], 'evaluation')} not judged: counted neither for nor against a candidate"
        )
    notes += [
        f"{counted(each['count'], 'call')} failed in {each['stage']}: {each['kind']}" for each in outcome["failures"]
    ]
    return notes + glance.self_judged(models.get("teacher"), models.get("judge"))


def _scores(outcome: Mapping[str, Any]) -> Chart:
    proof = outcome["proof"]
    programs = ("uncompiled", "compiled")
    stored = [proof[name]["score"] for name in ("baseline", "compiled")]
    scores = [_interval(score) for score in stored]
    ends = [f"{score['mean']:.2f} ({_ends(score)})" for score in stored]
    parts = [proof[name]["parts"] for name in ("baseline", "compiled")]
    names = sorted({*parts[0], *parts[1]})
    in_dollars = outcome["format"] > 1
    rows = [
        [program, end, *(format_number(part.get(name)) for name in names), _dollars(proof[key]["each"], in_dollars)]
        for program, end, part, key in zip(programs, ends, parts, ("baseline", "compiled"), strict=True)
    ]
    text = f"Mean scores on {proof['gain']['n']:,} unseen {proof['unit']}, with 95% intervals."
    figure = Intervals(programs, {"score": scores}, ends, 0, 1)
    columns = ("program", "score", *map(readable, names), "dollars per sample")
    return Chart("scores", "Scores on the test set", text, figure, columns, rows)


def _changes(proof: Mapping[str, Any]) -> Chart:
    names = {
        "gain": "from the uncompiled", "equal_length": "at equal length", "over_champion": "from the champion",
        "over_champion_equal_length": "from the champion, at equal length",
    }  # fmt: skip
    drawn = {label: _interval(proof[key]) for key, label in names.items() if proof.get(key)}
    changes = {label: change for label, change in drawn.items() if change is not None}
    widest = max([0.1, *(abs(end) for change in changes.values() for end in (change.mean, change.low, change.high))])
    ends = [change.shown(sign="+") for change in changes.values()]
    figure = Intervals(list(changes), {"change": list(changes.values())}, ends, -widest, widest, 0)
    text = "The compiled program's score less the other's. It is better where the interval is right of the line."
    rows = [[name, end] for name, end in zip(changes, ends, strict=True)]
    return Chart("changes", "Change in score", text, figure, ("change", "with its interval"), rows)


def _agreement(judge: Mapping[str, Any]) -> Table:
    """Of a compiled judge: how often its verdicts are those of people."""
    rows = [
        [
            row["criterion"], program, f"{row['pairs']:,}", f"{row['abstained']:,}", f"{row['failed']:,}",
            *(_percent(row[name] and row[name]["mean"]) for name in ("accuracy", "same_verdict")),
            _percent(row["consistency"]),
        ]
        for program, part in (("uncompiled", "before"), ("compiled", "after"))
        for row in judge[part]
    ]  # fmt: skip
    columns = ("criterion", "judge", "pairs", "undecided", "failed", "accuracy", "same verdict", "both orders agree")
    return Table("agreement", "Agreement with people", "On the test pairs.", columns, rows)


def _candidates(candidates: Sequence[Candidate], best: Candidate | None) -> Table:
    rows = []
    for each in candidates:
        scored = [
            f"{each.mean(name):.3f} ({len(each.scores[name])})" if each.scores.get(name) else NO_VALUE for name in _SETS
        ]
        what = ", ".join(map(readable, changed_predictors(candidates[0].state, each.state))) or "nothing"
        name = f"{each.seq}, uncompiled" if each is candidates[0] else str(each.seq)
        rows.append([f"{name}, kept" if each is best else name, *scored, dollars(each.cost), what])
    text = "Mean scores on each set, and on how many examples. A call that two candidates share is the first one's."
    return Table("candidates", "Candidates", text, ("candidate", *_SETS, "dollars", "changed in"), rows)


def _prompts(before: Candidate, after: Candidate) -> Gallery | None:
    """What the best candidate's prompts have that the uncompiled program's have not, and the reverse; None where they
    are the same."""
    names = changed_predictors(before.state, after.state)
    if not names:
        return None
    shown = [Extract(readable(name), _differences(before.state[name], after.state[name])) for name in names]
    text = "Struck through: only in the uncompiled program. Underlined: only in the best candidate."
    return Gallery("prompts", "Prompts", text, shown, wide=True, early=True)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Text]:
    texts = []
    before, after = (str(state["signature"].get("instructions", "")) for state in (old, new))
    if before != after:
        texts.append(changed("Instructions", before, after, _LONGEST))
    for at, demo in enumerate(new.get("demos", []), 1):
        if demo not in old.get("demos", []):
            texts.append(plain(f"Demonstration {at}, new", json.dumps(demo, ensure_ascii=False, indent=1)))
    if gone := sum(demo not in new.get("demos", []) for demo in old.get("demos", [])):
        texts.append(plain("Demonstrations taken out", str(gone)))
    return texts


def _interval(stored: Mapping[str, Any]) -> Interval | None:
    """None for one without ends, as of a single topic."""
    interval = Interval.of_stored(stored)
    return interval if interval.bounded else None


def _ends(stored: Mapping[str, Any]) -> str:
    return Interval.of_stored(stored).ends


def _percent(share: float | None) -> str:
    return NO_VALUE if share is None else f"{share:.0%}"


def _dollars(amount: float | None, in_dollars: bool) -> str:
    """An amount in dollars or, as an earlier version stored it, in picodollars."""
    return NO_VALUE if amount is None else dollars(amount * PICO if in_dollars else amount)

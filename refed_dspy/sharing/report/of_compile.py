"""The page of a compile: its candidates, the proof of the gain, and what changed in the prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refed_dspy.ledger.candidates import Candidate, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.summary import usage_by_model, work_status
from refed_dspy.metrics.intervals import gain_or_loss
from refed_dspy.programs.prompt_diff import changed_predictors
from refed_dspy.records import dollars
from refed_dspy.sharing.report import charts, glance
from refed_dspy.sharing.report.charts import Chart, readable
from refed_dspy.sharing.report.drawing import Interval, Intervals
from refed_dspy.sharing.report.extracts import Extract, Gallery, Text, changed, plain
from refed_dspy.sharing.report.glance import Fact, Table
from refed_dspy.sharing.report.page import Page
from refed_dspy.text import NO_VALUE, format_number

_SETS = ("train", "validation", "test")


def compile_page(folder: Path, ledger: Ledger) -> Page:
    """The contents of a compile's page."""
    status, outcome, candidates = work_status(ledger), ledger.meta("outcome") or {}, load_candidates(ledger)
    identity, proof = ledger.meta("identity") or {}, outcome.get("proof")
    best = _best(candidates, outcome)
    evaluations = sum(len(scores) for each in candidates for scores in each.scores.values())
    facts = [
        Fact("Candidates", f"{len(candidates):,}", f"{evaluations:,} evaluations"),
        *glance.paid(ledger, status),
    ]
    if proof:
        gain = proof["over_champion"] or proof["gain"]
        over = "against the champion" if proof["over_champion"] else "against the uncompiled program"
        what = gain_or_loss(gain["mean"]).capitalize()
        facts.insert(0, Fact(what, f"{gain['mean']:+z.2f}", f"{gain['low']:z.2f} to {gain['high']:z.2f}, {over}"))
        facts.insert(1, Fact("Proved", "yes" if proof["proved"] else "no"))
    drawn = [*([_scores(proof), _gains(proof)] if proof else []), charts.costs(status["usage"])]
    return Page(
        title=folder.absolute().name,
        lead=f"{identity.get('kind', 'A program')} compiled by {identity.get('optimizer', 'an optimizer')}",
        state=status["state"],
        reason=status["reason"],
        facts=facts,
        notes=[*_notes(outcome, candidates, best), *glance.spending_notes(status)],
        galleries=[prompts] if best and (prompts := _prompts(candidates[0], best)) else [],
        charts=drawn,
        tables=[_candidates(candidates, best), glance.models(usage_by_model(ledger))],
    )


def _best(candidates: Sequence[Candidate], outcome: Mapping[str, Any]) -> Candidate | None:
    """The candidate that was kept; before the end, the one with the best mean on the validation set."""
    kept = [each for each in candidates if each.digest == outcome.get("candidate")]
    scored = [each for each in candidates if each.mean("validation") is not None]
    return kept[0] if kept else max(scored, key=lambda each: each.mean("validation") or 0, default=None)


def _notes(outcome: Mapping[str, Any], candidates: Sequence[Candidate], best: Candidate | None) -> list[str]:
    if not outcome:
        return []
    if not outcome["proof"]:
        return ["No proof: the compile ended before the test set was scored."]
    proof, notes = outcome["proof"], []
    if best is candidates[0]:
        notes.append("No candidate was better, so the uncompiled program was kept.")
    elif not proof["proved"]:
        why = "rests on the length of the answers" if proof["rests_on_length"] else "may be chance"
        word = gain_or_loss((proof["over_champion"] or proof["gain"])["mean"])
        notes.append(f"The gain is not proved: it {why}." if word == "gain" else "No gain was found: it scored lower.")
    if not proof["whole"]:
        notes.append("Only part of the test set was scored.")
    return notes


def _scores(proof: Mapping[str, Any]) -> Chart:
    programs = ("uncompiled", "compiled")
    scores = [_interval(proof[name]["score"]) for name in ("baseline", "compiled")]
    ends = [f"{mean:.2f} ({low:.2f} to {high:.2f})" for mean, low, high in scores]
    parts = [proof[name]["parts"] for name in ("baseline", "compiled")]
    names = sorted({*parts[0], *parts[1]})
    rows = [
        [program, end, *(format_number(part.get(name)) for name in names), _dollars(proof[key]["each"])]
        for program, end, part, key in zip(programs, ends, parts, ("baseline", "compiled"), strict=True)
    ]
    text = f"Mean scores on {proof['gain']['n']:,} unseen {proof['unit']}, with 95% intervals."
    figure = Intervals(programs, {"score": scores}, ends, 0, 1)
    columns = ("program", "score", *map(readable, names), "dollars per sample")
    return Chart("scores", "Scores on the test set", text, figure, columns, rows)


def _gains(proof: Mapping[str, Any]) -> Chart:
    names = {
        "gain": "over the uncompiled", "equal_length": "at equal length", "over_champion": "over the champion",
        "over_champion_equal_length": "over the champion, at equal length",
    }  # fmt: skip
    gains = {
        label: _interval(proof[key]) for key, label in names.items() if proof.get(key) and proof[key]["low"] is not None
    }
    widest = max([0.1, *(abs(end) for gain in gains.values() for end in gain)])
    ends = [f"{mean:+z.2f} ({low:+z.2f} to {high:+z.2f})" for mean, low, high in gains.values()]
    figure = Intervals(list(gains), {"gain": list(gains.values())}, ends, -widest, widest, 0)
    text = "How much better the compiled program scores. A gain is proved where its interval is right of the line."
    rows = [[name, end] for name, end in zip(gains, ends, strict=True)]
    return Chart("gains", "Gain", text, figure, ("gain", "with its interval"), rows)


def _candidates(candidates: Sequence[Candidate], best: Candidate | None) -> Table:
    rows = []
    for each in candidates:
        scored = [
            f"{each.mean(name):.3f} ({len(each.scores[name])})" if each.scores.get(name) else NO_VALUE for name in _SETS
        ]
        what = ", ".join(map(readable, changed_predictors(candidates[0].state, each.state))) or "nothing"
        name = f"{each.seq}, uncompiled" if each is candidates[0] else str(each.seq)
        rows.append([f"{name}, kept" if each is best else name, what, *scored, dollars(each.cost)])
    text = "Mean scores on each set, and on how many examples. A call that two candidates share is the first one's."
    return Table("candidates", "Candidates", text, ("candidate", "changed in", *_SETS, "dollars"), rows)


def _prompts(before: Candidate, after: Candidate) -> Gallery | None:
    """What the best candidate's prompts have that the uncompiled program's have not, and the reverse; None where they
    are the same."""
    names = changed_predictors(before.state, after.state)
    if not names:
        return None
    shown = [Extract(readable(name), _differences(before.state[name], after.state[name])) for name in names]
    text = "Struck through: only in the uncompiled program. Underlined: only in the best candidate."
    return Gallery("prompts", "Prompts", text, shown, wide=True)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Text]:
    texts = []
    before, after = (str(state["signature"].get("instructions", "")) for state in (old, new))
    if before != after:
        texts.append(changed("Instructions", before, after))
    for at, demo in enumerate(new.get("demos", []), 1):
        if demo not in old.get("demos", []):
            texts.append(plain(f"Demonstration {at}, new", json.dumps(demo, ensure_ascii=False, indent=1)))
    if gone := sum(demo not in new.get("demos", []) for demo in old.get("demos", [])):
        texts.append(plain("Demonstrations taken out", str(gone)))
    return texts


def _interval(stored: Mapping[str, Any]) -> Interval:
    return stored["mean"], stored["low"], stored["high"]


def _dollars(amount: float | None) -> str:
    return NO_VALUE if amount is None else dollars(amount)

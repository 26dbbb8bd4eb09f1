"""The page of a compile: whether it helped, what changed stage by stage, and its candidates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from refed_dspy.data.differences import BOTH, segments
from refed_dspy.errors import RunDirError
from refed_dspy.ledger.candidates import Candidate
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.measures.intervals import Interval, gain_or_change, mean_interval
from refed_dspy.optimizers.by_people import told_by_people
from refed_dspy.optimizers.learned import Learned
from refed_dspy.optimizers.planning import plan_compile
from refed_dspy.optimizers.proof import UNJUDGED
from refed_dspy.optimizers.race import RACE_HEADS, gains_over, race_cells
from refed_dspy.plugins.share.report import charts, glance
from refed_dspy.plugins.share.report.charts import Chart, readable
from refed_dspy.plugins.share.report.drawing import Intervals
from refed_dspy.plugins.share.report.glance import Fact, Table
from refed_dspy.plugins.share.report.page import Page
from refed_dspy.plugins.share.report.rows import Extract, Gallery, Text, rewritten
from refed_dspy.programs.changes import PromptChange, as_text
from refed_dspy.records import PICO, dollars
from refed_dspy.text import NO_VALUE, counted, format_number

_LONGEST = 50_000
"""Characters of a text that are shown: all of it, unless a model writes without end."""
_WORDS = {
    "held-out": "examples that the optimizer never saw: the test set",
    "validation": "the examples by which the best candidate was chosen",
    "candidate": "a version of the program, with prompts of its own",
    "evaluation": "one candidate scored on one example",
    "topics": "groups of examples that are alike; each group counts as one witness",
    "champion": "the registered program that was proved best before",
    "at equal length": "with the judge's preference for longer answers taken out",
    "demonstration": "an example with its answer, shown to the model in the prompt",
    "wins": "how often the judge prefers an answer to the uncompiled program's; a tie is a half",
    "grades": "how good the judge finds the instructions that were written, from 0 to 1",
    "diversity": "how different the instructions of a reference are from each other, from 0 to 1",
    "coverage": "the share of the samples asked for that were made",
    "length ratio": "how many times as long as the uncompiled program's the answers are",
    "ran to its end": "an optimizer that used its evaluations, or had nothing more to try",
    "fell behind": "an optimizer that got no second round, since another one was ahead",
    "converged": "an optimizer that found nothing better for long",
    "abstained": "the share of its questions that the judge could not decide",
    "judge failed": "the share of its questions that the judge gave no usable answer to",
    "undecided": "pairs on which the judge gave no verdict",
}
"""What the page's words mean, of those that are not everyday ones."""


def compile_page(folder: Path, ledger: Ledger) -> Page:
    """The contents of a compile's page."""
    learned = Learned.of(folder, ledger)
    status, outcome = learned.status, learned.outcome
    identity, proof = ledger.meta("identity") or {}, outcome.get("proof")
    facts = [
        Fact("Candidates", f"{len(learned.candidates):,}", counted(status["evaluations"], "evaluation")),
        *glance.paid(ledger, status),
    ]
    drawn = [charts.costs(status["usage"])]
    if proof:
        gain = proof["over_champion"] or proof["gain"]
        over = "against the champion" if proof["over_champion"] else "against the uncompiled program"
        changed = proof["over_champion"] or not proof.get("same")
        helped = [Fact("Proved better", ("yes" if proof["proved"] else "no") if changed else "nothing to prove")]
        if changed:
            what = gain_or_change(gain["mean"]).capitalize()
            helped.insert(0, Fact(what, f"{gain['mean']:+z.2f}", f"{_ends(gain)}, {over}"))
        if second := proof.get("second"):
            word = "confirms it" if second["proved"] else "does not confirm it"
            helped.append(Fact("Second judge", word, f"{second['judge']}: {_ends(second['gain'])}"))
        facts = [*helped, *facts]
        drawn = [_scores(outcome), *([_changes(proof)] if changed else []), *drawn]
    candidates = learned.rows()
    text = (
        "Mean scores on each set, and on how many examples; on train and validation, by which candidates are chosen, a "
        "longer answer's win counts less. A call that two candidates share is the first one's."
    )
    tests = _plan(folder) if status["optimizer"] == "variants" else []
    race = outcome.get("race", ())
    if len(race) > 1:
        drawn.insert(-1, _race(race, learned.candidates))
    tables = [
        *tests,
        *([_apart(second)] if proof and (second := proof.get("second")) and second["disagree"] else []),
        *([_agreement(judge)] if (judge := outcome.get("agreement")) else []),
        Table("candidates", "Candidates", text, candidates[0], candidates[1:]),
        glance.models(status["models"]),
    ]
    notes = [*_notes(learned), *glance.spending_notes(status)]
    page = Page(
        title=folder.absolute().name,
        lead=f"{identity.get('kind', 'A program')} compiled by {identity.get('optimizer', 'an optimizer')}",
        state=status["state"],
        reason=status["reason"],
        facts=facts,
        notes=notes,
        galleries=[_stages(learned)] if learned.changes or learned.answers else [],
        charts=drawn,
        tables=tables,
    )
    return replace(page, tables=[*tables, _glossary(page)])


def _plan(folder: Path) -> list[Table]:
    """What a test for headroom told; nothing before it can tell anything."""
    try:
        found = plan_compile(folder).headroom
    except RunDirError:
        return []
    if found is None:
        return []
    rows = [[each.label, f"{each.gain:+z.2f}", f"{each.at_least:+z.2f}"] for each in found.variants]
    return [Table("plan", "Is there anything to gain?", found.said, ("program", "gain", "at least (95%)"), rows)]


def _race(race: Sequence[Mapping[str, Any]], candidates: Sequence[Candidate]) -> Chart:
    """What each optimizer's best candidate gains on the validation set."""
    named = {each.digest: each for each in candidates}
    found = {each["name"]: gains_over(named[each["best"]], candidates[0]) for each in race if each["best"] in named}
    gains = {name: mean_interval([*of.values()]) for name, of in found.items() if of}
    rows = [
        [name, gains[name].shown(sign="+") if name in gains else NO_VALUE, *others]
        for name, _, *others in map(race_cells, race)
    ]
    text = "The best candidate of each optimizer, by the examples that candidates were chosen by: no proof."
    drawn = {name: gain for name, gain in gains.items() if gain.bounded}
    ends = [gain.shown(sign="+") for gain in drawn.values()]
    widest = _widest(drawn.values())
    figure = Intervals([*drawn], {"gain": [*drawn.values()]}, ends, -widest, widest, 0)
    return Chart("optimizers", "Optimizers", text, figure, RACE_HEADS, rows)


def _widest(changes: Iterable[Interval]) -> float:
    """Where an axis around 0 ends: at a round figure."""
    widest = max([0.1, *(abs(end) for change in changes for end in (change.mean, change.low, change.high))])
    return math.ceil(20 * widest) / 20


def _apart(second: Mapping[str, Any]) -> Table:
    """Where the second judge sees a loss and the first a gain, or the reverse."""
    rows = [[text, f"{first:+.2f}", f"{other:+.2f}"] for text, first, other in second["disagree"]]
    found = "confirms the gain" if second["proved"] else "does not confirm the gain"
    text = f"{second['judge']} {found}: {_ends(second['gain'])}. Held-out instructions on which the judges are opposed."
    return Table("judges", "The second judge", text, ("instruction", "gain by the judge", "by the second judge"), rows)


def _notes(learned: Learned) -> list[str]:
    """What the command says besides the figures."""
    outcome = learned.outcome
    if not outcome:
        return []
    models = {role: model["model"] for role, model in outcome["models"].items()}
    notes = [*filter(None, [told_by_people(learned.folder)]), *learned.doubts()]
    if outcome["abstained"]:
        notes.append(
            f"{counted(outcome['abstained'], 'evaluation')} not judged: counted neither for nor against a candidate"
        )
    notes += [
        f"{counted(each['count'], 'call')} failed in {each['stage']}: {each['kind']}" for each in outcome["failures"]
    ]
    return notes + glance.self_judged(models.get("teacher"), models.get("judge"))


def _glossary(page: Page) -> Table:
    """The words of `_WORDS` that are on the page."""
    titles = [(each.text, [text.title for part in each.extracts for text in part.texts]) for each in page.galleries]
    said = repr([page.notes, page.facts, page.tables, page.charts, titles]).lower()
    rows = [[word, meaning] for word, meaning in _WORDS.items() if word in said]
    return Table("words", "Words on this page", "", ("word", "what it means"), rows)


def _scores(outcome: Mapping[str, Any]) -> Chart:
    proof = outcome["proof"]
    programs = ("uncompiled", "compiled")
    stored = [proof[name]["score"] for name in ("baseline", "compiled")]
    scores = [_interval(score) for score in stored]
    ends = [f"{score['mean']:.2f} ({_ends(score)})" for score in stored]
    parts = [proof[name]["parts"] for name in ("baseline", "compiled")]
    empty = {name for name in UNJUDGED if not any(part.get(name) for part in parts)}
    names = sorted({*parts[0], *parts[1]} - empty)
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
    widest = _widest(changes.values())
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


def _stages(learned: Learned) -> Gallery:
    """What changed in each stage of the best candidate: its instructions, demonstrations, and an answer."""
    changes, answers = {change.name: change for change in learned.changes}, learned.answers
    shown = [
        Extract(readable(name), [*_changed(changes.get(name)), *_answered(answers.get(name))])
        for name in dict.fromkeys([*changes, *answers])
    ]
    text = "Struck through: only in the uncompiled program. Underlined: only in the best candidate."
    if answers:
        text += " The answers are those for one example of the test set."
        shown.append(Extract("That example", [_whole("Its inputs", learned.outcome["answers"]["example"], "folded")]))
    return Gallery("prompts", "What changed, stage by stage", text, shown)


def _changed(change: PromptChange | None) -> Iterator[Text]:
    if change is None:
        yield Text("Prompt", [(BOTH, "the same")])
        return
    if change.before != change.after:
        pieces = list(segments(change.before, change.after))
        if rewritten(pieces):
            yield _whole("Instructions before", change.before, "folded")
            yield _whole("Instructions, rewritten", change.after)
        else:
            yield Text("Instructions", pieces)
    for what, demos in (("added", change.added), ("taken out", change.removed)):
        for at, demo in enumerate(demos, 1):
            name = f"Demonstration {at} of {len(demos)}, {what}"
            if demo.given:
                yield _whole(f"{name}: what is given", as_text(demo.given), "folded")
            yield _whole(f"{name}: the answer" if demo.given else name, as_text(demo.answer))


def _answered(parts: tuple[Mapping[str, str], Mapping[str, str]] | None) -> Iterator[Text]:
    if parts is None:
        return
    before, after = parts
    same = before["given"] == after["given"]
    for when, part in (("before and after", before),) if same else (("before", before), ("after", after)):
        yield _whole(f"Given {when}", part["given"], "folded")
    yield _whole("Answer before", before["answer"], "half")
    yield _whole("Answer after", after["answer"], "half")


def _whole(title: str, text: str, look: Literal["", "folded", "half"] = "") -> Text:
    return Text(title, [(BOTH, text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")], look=look)


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

"""A training's outcome: for people, and as files in its folder."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refed_dspy.files import write_json, write_lines, write_text
from refed_dspy.measures.intervals import gain_or_change
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.optimizers.result import why_stopped
from refed_dspy.plugins.judge.trained_judge import TrainedJudge
from refed_dspy.plugins.judge.training.report import HeldOutPair, TrainingReport, reliability_picture
from refed_dspy.plugins.judge.training.spec import HeldOut
from refed_dspy.plugins.metrics.drawing import save
from refed_dspy.programs.judges import Judgements
from refed_dspy.programs.saved import MANIFEST, in_dspys_form, program_state
from refed_dspy.records import PICO, digest, dollars
from refed_dspy.text import Shown, counted

JUDGE, TABLE, FIGURES, ROWS, RELIABILITY = (
    "judge.json", "training.txt", "training.json", "held-out.jsonl", "reliability.png",
)  # fmt: skip
OUTPUTS = (JUDGE, TABLE, FIGURES, ROWS, RELIABILITY)


@dataclass(frozen=True, repr=False)
class JudgeTraining(Shown):
    """A trained judge, and what it is worth. `judge` and `report` are None where a cap ended it (`stopped`)."""

    folder: Path
    judge: TrainedJudge | None
    report: TrainingReport | None
    held_out: HeldOut
    judgements: Judgements
    train: int
    """How many pairs were for training."""
    pairs: int
    notes: Sequence[str]
    cost: float
    """Dollars."""
    calls: int
    stopped: str = ""

    @property
    def path(self) -> Path:
        """The trained judge's file, which `judge_program` takes."""
        return self.folder / JUDGE

    def with_judge(self, judge: TrainedJudge, report: TrainingReport, notes: Sequence[str]) -> JudgeTraining:
        """The same once there is a judge. `notes`: what is to be told of it besides."""
        return replace(self, judge=judge, report=report, notes=[*self.notes, *notes])

    def _describe(self) -> str:
        worth = "nothing trained yet" if self.report is None else "proved" if self.report.proved else "not proved"
        return f"{worth}, {self.judgements.decided} of {self.pairs} pairs judged, {dollars(self.cost * PICO)}"

    def lines(self) -> list[str]:
        """The outcome for a terminal."""
        judged = self.judgements
        lines = [f"{self.train} training pairs", *self.held_out.lines(), *self.notes]
        if warning := judged.warning():
            lines.insert(0, warning)
        if self.report is not None:
            lines = [*filter(None, [self.report.ruler, self.report.idle]), *lines]
        if self.report is not None:
            lines += ["", *self.report.lines(), _verdict_on(self.report)]
        lines.append(
            f"{judged.decided} of {self.pairs} pairs judged, {judged}, {dollars(self.cost * PICO)}, "
            f"{counted(self.calls, 'call')}"
        )
        if self.stopped:
            return [*lines, f"stopped: {why_stopped(self.stopped, '; raise it')}; nothing is trained yet"]
        return [*lines, f"judge: {self.path}"]


def _verdict_on(report: TrainingReport) -> str:
    gain = report.gain
    if gain is None:
        return "not proved: people decided none of the held-out pairs"
    what = f"{gain_or_change(gain.mean)} in accuracy on all held-out pairs: {gain}, {gain.clusters} instructions"
    if report.length is not None:
        what += f"; over length alone: {report.length.gain}"
    if not report.proved and report.ruler:
        return f"not proved: it is not shown to know more than length; {what}"
    return f"proved: {what}" if report.proved else f"not proved: {what}"


def write_training(made: JudgeTraining, judged: Sequence[HeldOutPair], facts: Mapping[str, Any]) -> None:
    """Write the files of a training that ended, each whole or not at all. `facts`: what the judge's file says of how it
    was made, besides its worth. Raises ExportError."""
    assert made.judge is not None and made.report is not None
    gain = made.report.gain
    proof = {"proved": made.report.proved, "gain": gain and gain.mean, "low": gain and gain.low}
    packages = {name: version(name) for name in ("refed-dspy", "dspy", "scikit-learn")}
    state = program_state(made.judge)
    state[MANIFEST] |= {
        "kind": "TrainedJudge",
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": packages | {"python": platform.python_version()},
        **facts,
        "proof": {**proof, "ruler": made.report.ruler, "idle": made.report.idle},
    }
    write_lines(made.folder / ROWS, _rows(judged, made.held_out))
    write_json(made.folder / FIGURES, _in_json(made))
    save(reliability_picture(made.report), made.folder / RELIABILITY)
    write_text(made.folder / TABLE, made.lines())
    write_json(made.folder / JUDGE, json.loads(json.dumps(in_dspys_form(state)), parse_constant=lambda _: None))


def _rows(judged: Sequence[HeldOutPair], held_out: HeldOut) -> Iterator[dict[str, Any]]:
    """A row for each held-out pair. `chance`: of people's preferring A, by the trained judge; a tie is half."""
    for each in judged:
        pair, orders = each.pair, each.before.in_orders
        yield {
            "instruction": pair.instruction,
            "answer_a": pair.answer_a,
            "answer_b": pair.answer_b,
            "criterion": criterion_of(pair).name,
            "sets": list(held_out.of_pair(pair)),
            "people": pair.verdict,
            "before": each.before.preference,
            "before_in_orders": orders and list(orders),
            "after": each.after.preference,
            "chance": each.chance,
        }


def _in_json(made: JudgeTraining) -> dict[str, Any]:
    """The figures in JSON types; an infinite bound is None."""
    assert made.report is not None
    facts = {
        "pairs": made.pairs,
        "train": made.train,
        "held_out": {
            "instructions": sorted(digest(text) for text in made.held_out.instructions),
            "criteria": list(made.held_out.criteria),
            "systems": list(made.held_out.systems),
        },
        "notes": list(made.notes),
        "report": made.report.facts(),
        "cost": made.cost,
        "calls": made.calls,
    }
    return dict(json.loads(json.dumps(facts), parse_constant=lambda _: None))

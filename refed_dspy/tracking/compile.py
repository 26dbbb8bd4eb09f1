"""A compile in MLflow: a run, a child run for each candidate, and a version of the registered model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from refed_dspy.ledger.candidates import Trial, enough, trials
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import spent
from refed_dspy.programs.prompt_diff import changed_predictors, prompt_diff
from refed_dspy.records import PICO
from refed_dspy.tracking.registry import register
from refed_dspy.tracking.store import Store

FILES = ("program.json", "prompts.diff", "proof.txt")
SUBSETS = ("train", "validation", "test")


def copy_compile(store: Store, last: bool) -> None:
    """Tell MLflow what the compile in the store's folder has done so far. Raises NotTracked."""
    with Ledger.read(store.folder) as ledger:
        identity, outcome = ledger.meta("compile"), ledger.meta("outcome")
        if not identity or not ledger.has_answers():
            return
        known, used = trials(ledger), spent(ledger)
        about = ledger.meta("about") or {}
    run_id = store.run("compile", store.folder.absolute().name, _parameters(identity, about))
    _copy_data(store, run_id, about)
    told = dict(store.noted("candidates") or {})
    for trial in known:
        count = sum(len(scores) for scores in trial.scores.values())
        if told.get(trial.digest) != count and (last or trial is not known[-1]):
            _copy_candidate(store, trial, known[0])
            told[trial.digest] = count
            store.remember(candidates=told)
    points = best_so_far(known)
    fresh = points[int(store.noted("points") or 0) :]
    store.metrics(
        run_id,
        [("best_validation", score, at, step) for step, (_, score, at) in enumerate(fresh, len(points) - len(fresh))],
    )
    store.remember(points=len(points))
    if last:
        store.metrics(run_id, [("dollars", used.cost / PICO, 0, 0), ("calls", used.calls, 0, 0)])
        _finish(store, run_id, known, outcome, about)


def best_so_far(known: Sequence[Trial]) -> list[tuple[float, float, float]]:
    """(dollars spent, best validation score, time) whenever a candidate beat all before it on the validation set."""
    reference = known[0].scores.get("validation", {}) if known else {}
    best, points = -1.0, []
    for trial in sorted(known, key=lambda each: each.spent):
        mean = trial.mean("validation")
        whole = enough(len(trial.scores.get("validation", {})), len(reference))
        if mean is not None and whole and mean > best:
            best = mean
            points.append((trial.spent / PICO, mean, trial.created))
    return points


def picture(known: Sequence[Trial]) -> Any:
    """A figure: the best validation score against the dollars spent."""
    from matplotlib.figure import Figure  # without pyplot: no window system, and nothing to close

    points = best_so_far(known)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([p[0] for p in points], [p[1] for p in points], drawstyle="steps-post", marker="o")
    axes.set(xlabel="dollars spent", ylabel="best score on the validation set", ylim=(0, 1))
    axes.grid(alpha=0.3)
    return figure


def evaluation_table(known: Sequence[Trial]) -> str:
    """Every score of every candidate as JSON lines."""
    rows = [
        {"candidate": trial.seq, "set": subset, "example": example, "score": score, **trial.parts[subset][example]}
        for trial in known
        for subset, scores in trial.scores.items()
        for example, score in scores.items()
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _parameters(identity: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    flat = {name: value for name, value in identity.items() if not isinstance(value, dict)}
    models = {f"{role}": model["model"] for role, model in about.get("models", {}).items()}
    metric = identity.get("metric")
    weights = {f"metric.{k}": v for k, v in metric.items() if v is not None} if isinstance(metric, dict) else {}
    options = {f"options.{k}": v for k, v in about.get("options", {}).items()}
    return {**flat, **models, **weights, **options, **{k: about.get(k) for k in ("max_cost", "max_calls")}}


def _copy_data(store: Store, run_id: str, about: Mapping[str, Any]) -> None:
    if store.noted("data") or "sets" not in about:
        return
    for subset, (digest, rows) in about["sets"].items():
        store.data_set(
            run_id, f"{about.get('examples', 'examples')}:{subset}", digest, about.get("source", ""), rows, subset
        )
    store.remember(data=True)


def _copy_candidate(store: Store, trial: Trial, first: Trial) -> None:
    changed = changed_predictors(first.state, trial.state)
    child = store.run(
        "candidate",
        f"candidate {trial.seq}",
        {"candidate": trial.seq, "digest": trial.digest, "changed": ", ".join(changed) or "nothing"},
        trial.digest,
    )
    # MLflow shows the point of the highest step, and of several the highest value: each word gets a step of its own.
    step = sum(len(scores) for scores in trial.scores.values())
    now = time.time()
    points = [("dollars", trial.cost / PICO, now, step)]
    for subset in SUBSETS:
        if (mean := trial.mean(subset)) is not None:
            points += [(f"{subset}_score", mean, now, step), (f"{subset}_size", len(trial.scores[subset]), now, step)]
            points += [(f"{subset}_{name}", value, now, step) for name, value in trial.part_means(subset).items()]
    store.metrics(child, points)
    if not store.noted(f"files of {trial.digest}"):
        store.text(child, "program.json", json.dumps(trial.state, ensure_ascii=False, indent=1))
        store.text(child, "prompts.diff", prompt_diff(first.state, trial.state))
        store.remember(**{f"files of {trial.digest}": True})
    store.ended(child, at=None)


def _finish(
    store: Store, run_id: str, known: Sequence[Trial], outcome: Mapping[str, Any] | None, about: Mapping[str, Any]
) -> None:
    store.text(run_id, "evaluations.jsonl", evaluation_table(known))
    store.figure(run_id, picture(known), "best_score_against_dollars.png")
    if outcome is None:
        store.ended(run_id, "KILLED")
        return
    for name in FILES:
        if (path := Path(store.folder) / name).is_file():
            store.file(run_id, path)
    proof = outcome.get("proof") or {}
    gain = proof.get("over_champion") or proof.get("gain")
    if proof and gain:
        points = {"gain": gain["mean"], "gain_low": gain["low"], "gain_high": gain["high"]}
        points |= {
            "uncompiled_test": proof["baseline"]["score"]["mean"],
            "compiled_test": proof["compiled"]["score"]["mean"],
        }
        # Of points at one step MLflow shows the highest: a compile that went on has a proof of its own each time.
        step = int(outcome["calls"])
        if store.noted("proof") != step:
            now = time.time()
            store.metrics(run_id, [(name, value, now, step) for name, value in points.items() if value is not None])
            store.remember(proof=step)
    store.stopped(run_id, outcome.get("stopped"))
    register(store, run_id, about["name"], outcome)
    store.ended(run_id)

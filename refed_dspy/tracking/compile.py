"""A compile in MLflow: a run, a child run for each candidate, and a version of the registered model."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from refed_dspy.ledger.candidates import Candidate, enough, examples_of, load_candidates
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.settings import WorkSettings, settings_of
from refed_dspy.ledger.spending import spent
from refed_dspy.programs.changes import changed_predictors, prompt_diff
from refed_dspy.programs.saved import in_dspys_form
from refed_dspy.records import PICO, digest
from refed_dspy.tracking.registry import register
from refed_dspy.tracking.store import Store

FILES = ("program.json", "prompts.diff", "proof.txt")
SUBSETS = ("train", "validation", "test")


def copy_compile(store: Store, last: bool) -> None:
    """Copy to MLflow what the compile in the store's folder has done so far. Raises NotTracked."""
    with Ledger.read(store.folder) as ledger:
        identity, outcome = ledger.meta("identity"), ledger.meta("outcome")
        if not identity or not ledger.has_answers():
            return
        candidates, spending = load_candidates(ledger), spent(ledger)
        settings, examples = settings_of(ledger), examples_of(ledger)
        begun = ledger.db.execute("SELECT min(begun) FROM starts").fetchone()[0]
        caps = {name: ledger.meta(name) for name in ("max_cost", "max_calls")}
        race = ledger.meta("race") or ()
    name = run_name(store.folder.absolute().name, identity, begun)
    run_id = store.run("compile", name, {**compile_parameters(identity, settings), **caps})
    done = outcome is not None and not outcome.get("stopped")
    if last:  # what must be true comes first: after Ctrl-C there may be no time for the rest
        store.ended(run_id, "FINISHED" if done else "KILLED")
    _copy_data(store, run_id, settings, examples)
    copied = dict(store.noted("candidates") or {})
    for candidate in candidates:
        count = sum(len(scores) for scores in candidate.scores.values())
        if copied.get(candidate.digest) != count and (last or candidate is not candidates[-1]):
            _copy_candidate(store, candidate, candidates[0])
            copied[candidate.digest] = count
            store.remember(candidates=copied)
    points = best_so_far(candidates if last else candidates[:-1])  # the latest may be scored in part
    new_points = points[int(store.noted("points") or 0) :]
    steps = enumerate(new_points, len(points) - len(new_points))
    store.metrics(run_id, [("best_validation", score, at, step) for step, (_, score, at) in steps])
    store.remember(points=len(points))
    if last:
        store.metrics(run_id, [("dollars", spending.cost, 0, 0), ("calls", spending.calls, 0, 0)])
        _finish(store, run_id, candidates, outcome, str(settings.values["name"]))
        runs = store.noted("runs") or {}
        for name, of in by_optimizer(candidates, race).items():
            for candidate in of:
                store.tags(runs[candidate.digest], {"optimizer": name})


def by_optimizer(candidates: Sequence[Candidate], race: Sequence[Mapping[str, Any]]) -> dict[str, list[Candidate]]:
    """Optimizer → the candidates that it tried, in their order; none for a compile by a single one."""
    tried = {each["name"]: {*each["candidates"]} for each in race} if len(race) > 1 else {}
    return {name: [each for each in candidates if each.digest in of] for name, of in tried.items()}


def best_so_far(candidates: Sequence[Candidate]) -> list[tuple[float, float, float]]:
    """(dollars spent, best validation score, time) whenever a candidate beat all before it on the validation set."""
    baseline_scores = candidates[0].scores.get("validation", {}) if candidates else {}
    best, points = -1.0, []
    for candidate in sorted(candidates, key=lambda each: each.spent):
        mean = candidate.mean("validation")
        complete = enough(len(candidate.scores.get("validation", {})), len(baseline_scores))
        if mean is not None and complete and mean > best:
            best = mean
            points.append((candidate.spent / PICO, mean, candidate.created))
    return points


def score_figure(candidates: Sequence[Candidate], race: Sequence[Mapping[str, Any]] = ()) -> Any:
    """A figure: the best validation score against the dollars spent; of several optimizers a line for each."""
    from matplotlib.figure import Figure  # without pyplot: no window system, and nothing to close

    lines = {name: best_so_far([*candidates[:1], *of]) for name, of in by_optimizer(candidates, race).items()}
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in (lines or {"": best_so_far(candidates)}).items():
        axes.plot([p[0] for p in points], [p[1] for p in points], drawstyle="steps-post", marker="o", label=name)
    if lines:
        axes.legend()
    axes.set(xlabel="dollars spent", ylabel="best score on the validation set", ylim=(0, 1))
    axes.grid(alpha=0.3)
    return figure


def evaluation_table(candidates: Sequence[Candidate]) -> str:
    """Every score of every candidate as JSON lines."""
    rows = [
        {
            "candidate": candidate.seq,
            "set": subset,
            "example": example,
            "score": score,
            **candidate.components[subset][example],
        }
        for candidate in candidates
        for subset, scores in candidate.scores.items()
        for example, score in scores.items()
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def run_name(folder: str, identity: Mapping[str, Any], begun: float | None) -> str:
    """The run's name: the folder's; for a folder that the compile named itself, by a digest, optimizer and date."""
    if begun is None or folder != digest(identity):
        return folder
    return f"{identity['optimizer']} {datetime.fromtimestamp(begun):%Y-%m-%d %H:%M}"


def compile_parameters(identity: Mapping[str, Any], settings: WorkSettings) -> dict[str, Any]:
    """What the compile was called with. The identity's `options` are a digest; `settings` has them."""
    flat = {name: value for name, value in identity.items() if not isinstance(value, dict) and name != "options"}
    metric = identity.get("metric")
    by_role = {"teacher": settings.teacher, "judge": settings.judge, "reflection": settings.reflection}
    models = {role: model.get("model") for role, model in by_role.items()}
    weights = {f"metric.{k}": v for k, v in metric.items() if v is not None} if isinstance(metric, dict) else {}
    options = {f"options.{k}": v for k, v in settings.values.get("options", {}).items()}
    return {**flat, **models, **weights, **options}


def _copy_data(store: Store, run_id: str, settings: WorkSettings, examples: Mapping[str, Any]) -> None:
    if store.noted("data") or "sets" not in examples:
        return
    source = settings.values.get("pairs") or settings.values.get("references") or ""
    for subset, (sha, rows) in examples["sets"].items():
        store.data_set(run_id, f"{examples['unit']}:{subset}", sha, source, rows, subset)
    store.remember(data=True)


def _copy_candidate(store: Store, candidate: Candidate, first: Candidate) -> None:
    changed = changed_predictors(first.state, candidate.state)
    child = store.run(
        "candidate",
        f"candidate {candidate.seq}",
        {"candidate": candidate.seq, "digest": candidate.digest, "changed": ", ".join(changed) or "nothing"},
        candidate.digest,
    )
    store.ended(child)
    # MLflow shows the point of the highest step, and of several the highest value: so each update has its own step.
    step = sum(len(scores) for scores in candidate.scores.values())
    now = time.time()
    figures: dict[str, float] = {"dollars": candidate.cost / PICO}
    for subset in SUBSETS:
        if (mean := candidate.mean(subset)) is not None:
            means = {"score": mean, "size": len(candidate.scores[subset]), **candidate.component_means(subset)}
            figures |= {f"{subset}_{name}": value for name, value in means.items()}
    store.metrics(child, [(name, value, now, step) for name, value in figures.items()])
    if not store.noted(f"files of {candidate.digest}"):
        text = json.dumps(in_dspys_form(candidate.state), ensure_ascii=False, indent=1)
        store.call(store.client.log_text, child, text, "program.json")
        store.call(store.client.log_text, child, prompt_diff(first.state, candidate.state), "prompts.diff")
        store.remember(**{f"files of {candidate.digest}": True})


def _finish(
    store: Store,
    run_id: str,
    candidates: Sequence[Candidate],
    outcome: Mapping[str, Any] | None,
    name: str,
) -> None:
    store.call(store.client.log_text, run_id, evaluation_table(candidates), "evaluations.jsonl")
    if outcome is None:
        return
    store.call(
        store.client.log_figure,
        run_id,
        score_figure(candidates, outcome.get("race", ())),
        "best_score_against_dollars.png",
    )
    for file in FILES:
        if (path := Path(store.folder) / file).is_file():
            store.file(run_id, path)
    proof = outcome.get("proof") or {}
    gain = proof.get("over_champion") or proof.get("gain")
    if proof and gain:
        points = {"gain": gain["mean"], "gain_low": gain["low"], "gain_high": gain["high"]}
        points |= {
            "uncompiled_test": proof["baseline"]["score"]["mean"],
            "compiled_test": proof["compiled"]["score"]["mean"],
        }
        level = proof.get("over_champion_equal_length" if proof.get("over_champion") else "equal_length") or {}
        if level.get("low") is not None:
            points |= {"equal_length_gain": level["mean"]}
            points |= {f"equal_length_gain_{end}": level[end] for end in ("low", "high")}
        points |= {name: proof["compiled"]["parts"].get(name) for name in ("wins", "length_ratio")}
        if second := proof.get("second"):
            points |= {f"second_judge_{end}": second["gain"][end] for end in ("mean", "low", "high")}
        # Of points at one step MLflow shows the highest: a continued compile has another proof each time.
        step = int(outcome["calls"])
        if store.noted("proof") != step:
            now = time.time()
            store.metrics(run_id, [(name, value, now, step) for name, value in points.items() if value is not None])
            store.remember(proof=step)
    store.stopped(run_id, outcome.get("stopped"))
    register(store, run_id, name, outcome)

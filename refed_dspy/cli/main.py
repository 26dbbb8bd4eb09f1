"""The command line: parse, call, print. Exit codes: 2 bad input, 1 a run that failed or ended short, 130 Ctrl-C."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from refed_dspy.cli import batches as cli_batches
from refed_dspy.cli import compile as cli_compile
from refed_dspy.cli import data as cli_data
from refed_dspy.cli import report as cli_report
from refed_dspy.cli import sharing as cli_share
from refed_dspy.cli.options import (
    ConfigOption,
    JudgeOption,
    MaxCalls,
    MaxCost,
    MaxMinutes,
    ProgramOption,
    ReferencesOption,
    RunDir,
    TeacherOption,
    money,
    reporting,
    tokens_lines,
    usage_line,
)
from refed_dspy.errors import InputError, one_line

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
teacher_app = typer.Typer(no_args_is_help=True, help="The embedded teacher: a model that runs on this machine.")
app.add_typer(teacher_app, name="teacher")
cli_compile.add_to(app)
cli_data.add_to(app)
cli_batches.add_to(app)
cli_share.add_to(app)
cli_report.add_to(app)

_CAPS = ("REFED_MAX_COST", "REFED_MAX_CALLS", "REFED_MAX_MINUTES")
_OF_SAMPLES = ("", "run", "comparison")
"""What a folder may hold for its samples to be counted (`Ledger.holds`)."""


@app.command()
@reporting
def synth(
    references: ReferencesOption = None,
    size: Annotated[int | None, typer.Option(help="Samples to make.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Folder that holds the run.", metavar="DIR")] = None,
    teacher: TeacherOption = None,
    config: ConfigOption = None,
    program: ProgramOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the run.")] = None,
    per_reference: Annotated[int | None, typer.Option(help="Most samples of one reference in a round.")] = None,
    method: Annotated[
        str | None, typer.Option(help="reference-level, sample-level or instruction-only.", metavar="NAME")
    ] = None,
    judge: JudgeOption = None,
    reuse: Annotated[Path | None, typer.Option(help="Take over a run's answers where they fit.", metavar="DIR")] = None,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Make a few samples only, and say what all would take.")
    ] = False,
) -> None:
    """Make samples from references. The same command again goes on where it stood."""
    given = {name: value for name, value in locals().items() if name not in {"config", "estimate"}}
    from refed_dspy.cli.display import Display
    from refed_dspy.config.loading import load_config
    from refed_dspy.runs.synthesize import synthesize

    settings = load_config(config, **given)
    if settings.run_dir is None:
        raise InputError("run_dir: name the folder that shall hold the run: --run-dir DIR")
    _needs_teacher(settings.teacher)
    keywords: Any = {name: getattr(settings, name) for name in _KEYWORDS}
    parts = _program(settings), settings.references or "builtin"
    if estimate:
        _estimate(*parts, keywords)
        return
    with Display().showing() as display:
        made = synthesize(*parts, **keywords, on_progress=display.watch)
    _finish(made)


_KEYWORDS = (
    *("size", "teacher", "teachers", "run_dir", "seed", "per_reference", "max_failure_share", "columns", "reuse"),
    *("max_cost", "max_calls", "max_minutes", "track", "filters", "judge", "judge_program"),
)


@app.command()
@reporting
def resume(
    run_dir: RunDir,
    size: Annotated[int | None, typer.Option(help="Another target than before.")] = None,
    teacher: TeacherOption = None,
    judge: JudgeOption = None,
    max_failure_share: Annotated[float | None, typer.Option(help="Another share than before.")] = None,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
) -> None:
    """Go on with a run that was stopped, or make it larger."""
    from refed_dspy.cli.display import Display
    from refed_dspy.config.loading import load_config
    from refed_dspy.runs.resume import resume as go_on

    others = load_config(environ={}, teacher=teacher, judge=judge)
    given = {"max_cost": max_cost, "max_calls": max_calls, "max_minutes": max_minutes}
    environment = {name: value for name in _CAPS if (value := os.environ.get(name)) is not None}
    settings = load_config(None, environment, **given)
    caps: Any = {name: getattr(settings, name) for name in given}
    with Display().showing() as display:
        made = go_on(
            run_dir,
            size=size,
            teacher=others.teacher,
            judge=others.judge,
            max_failure_share=max_failure_share,
            **caps,
            on_progress=display.watch,
        )
    _finish(made)


@app.command()
@reporting
def status(run_dir: RunDir, as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False) -> None:
    """What a run, a compile or other work has made and used so far; works while it runs."""
    from refed_dspy.ledger.batches import left_batches
    from refed_dspy.ledger.ledger import Ledger
    from refed_dspy.ledger.summary import work_status
    from refed_dspy.optimizers.result import compile_status
    from refed_dspy.optimizers.result import status_lines as compile_lines
    from refed_dspy.runs.result import full_status

    with Ledger.read(run_dir) as ledger:
        holds = ledger.holds()
        if holds == "compile":
            facts, lines = compile_status(ledger), compile_lines
        elif holds in _OF_SAMPLES:
            facts, lines = full_status(ledger), _status_lines
        else:
            facts, lines = work_status(ledger), cli_data.work_lines
        facts["batches"] = left_batches(ledger)
    if as_json:
        typer.echo(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    typer.echo("\n".join([*lines(facts), *(f"waits for {cli_batches.told(batch)}" for batch in facts["batches"])]))


@app.command()
@reporting
def export(
    run_dir: RunDir,
    format: Annotated[str, typer.Option(help="jsonl, parquet, messages, sharegpt or alpaca.")] = "jsonl",  # noqa: A002
    out: Annotated[
        Path | None, typer.Option(help="File to write; unset, samples.jsonl or dropped.jsonl.", metavar="FILE")
    ] = None,
    dropped: Annotated[
        bool, typer.Option("--dropped", help="The rows that filters dropped instead, with reason and score (jsonl).")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write the samples made so far to a file, or the rows that the run's filters dropped."""
    from refed_dspy.data.export import export as write
    from refed_dspy.data.export import export_dropped
    from refed_dspy.runs.result import read_run

    if read_run(run_dir).status["work"] == "comparison":
        raise InputError(f"{run_dir}: holds a comparison, whose rows are in {run_dir / 'rows.jsonl'} already")
    if dropped:
        if format != "jsonl":
            raise InputError(f"format {one_line(format, 40)}: dropped rows are written as jsonl only")
        out = out or Path("dropped.jsonl")
        typer.echo(f"{export_dropped(run_dir, out, force=force)} dropped rows in {out}")
        return
    out = out or Path("samples.jsonl")
    typer.echo(f"{write(run_dir, format, out, force=force)} samples in {out}")


@app.command()
@reporting
def preview(
    references: ReferencesOption = None,
    teacher: TeacherOption = None,
    config: ConfigOption = None,
    program: ProgramOption = None,
    sample: Annotated[bool, typer.Option("--sample", help="Also make one: a paid call a stage, not kept.")] = False,
) -> None:
    """Show each stage's prompt for the first reference, and one sample as a dry run."""
    from refed_dspy.cli.preview import one_sample, rendered_prompts
    from refed_dspy.concurrency import run_blocking
    from refed_dspy.config.loading import load_config
    from refed_dspy.data.references import load_references
    from refed_dspy.teachers.by_stage import open_teachers, stages_of

    settings = load_config(config, references=references, teacher=teacher, program=program)
    loaded = load_references(settings.references or "builtin", settings.columns or None)
    module = _program(settings)
    for stage, messages in rendered_prompts(module, loaded[0]).items():
        for message in messages:
            typer.echo(f"───── {stage}: {message['role']}\n{message['content']}\n")
    if sample:
        _needs_teacher(settings.teacher)
        by_stage = open_teachers(settings.teacher, settings.teachers, stages_of(module))
        made = run_blocking(one_sample(module, loaded[0], by_stage))
        typer.echo(f"───── one sample\n{made.model_dump_json(indent=2)}")


@teacher_app.command()
@reporting
def fetch(
    name: Annotated[str, typer.Argument(help="embedded, embedded-smoke (tiny, for tests), or embedder.")] = "embedded",
) -> None:
    """Download weights and check them: the embedded teacher's, or the small embedding model that statistics use.

    1.1 GB; 93 MB for embedded-smoke, 84 MB for embedder.
    """
    from refed_dspy.weights import WEIGHTS
    from refed_dspy.weights import fetch as download

    if name not in WEIGHTS:
        raise InputError(f"{one_line(name, 60)}: no such weights; use {' or '.join(WEIGHTS)}")
    path = download(WEIGHTS[name], lambda line: typer.echo(line, err=True))
    typer.echo(path)


def _program(settings: Any) -> Any:
    from refed_dspy.programs.baselines import METHODS
    from refed_dspy.programs.load import open_program
    from refed_dspy.signatures import DEFAULT_FEATURES

    if settings.program is not None:
        many = settings.instructions_per_feature if "instructions_per_feature" in settings.model_fields_set else None
        program = open_program(settings.program, settings.features, many)
        if "method" in settings.model_fields_set and type(program) is not METHODS[settings.method]:
            raise InputError(f"method: {settings.program} is a {type(program).__name__}; leave method out")
    else:
        program = METHODS[settings.method](settings.features or DEFAULT_FEATURES, settings.instructions_per_feature)
    program.add_guidance(settings.guidance)
    return program


def _needs_teacher(teacher: Any) -> None:
    if teacher is None:
        raise InputError("no teacher: name one with --teacher (a file, PROVIDER/NAME, or embedded)")


def _finish(made: Any) -> None:
    """Say what came of a run. Raises typer.Exit(1) where it ended short."""
    for line in _status_lines({**made.status, "stopped": None}):  # that is told below, to stderr
        typer.echo(line)
    if made.stopped:
        typer.echo(f"refed: {made.stopped}", err=True)
        raise typer.Exit(1)
    if not made.complete:
        dropped = sum(one["dropped"] for one in made.status["filters"])
        why = f", and filters dropped {dropped} more rows" if dropped else ""
        remedy = "add references, loosen a filter in a new run, or ask" if dropped else "add references, or ask"
        typer.echo(
            f"ended short: the references gave {len(made.samples)} of {made.size} samples{why}; {remedy} for fewer",
            err=True,
        )
        raise typer.Exit(1)


def _estimate(program: Any, references: str, keywords: dict[str, Any]) -> None:
    """Say what a run would take. A few samples are made for that."""
    from refed_dspy.cli.display import Display
    from refed_dspy.runs.estimate import estimate

    with Display().showing() as display:
        found = estimate(program, references, **cast(Any, keywords), on_progress=display.watch)
    typer.echo("\n".join([*found.lines(), "go on with the same command without --estimate"]))


def _status_lines(facts: dict[str, Any]) -> list[str]:
    instructions = facts["instructions"]
    made = "instructions compared" if facts["work"] == "comparison" else "samples"
    lines = [
        f"{facts['kept']} of {facts['size']} {made}, {facts['opened']} of {facts['references']} references opened",
        f"instructions: {instructions['new']} new, {instructions['duplicates']} duplicate, "
        f"{instructions['surplus']} beyond the number asked for",
    ]
    if facts["left_out"]:
        lines.append("references left out: " + ", ".join(f"{n} {why}" for why, n in facts["left_out"].items()))
    for one in facts["filters"]:
        why = ", ".join(f"{count} {one_line(reason, 80)}" for reason, count in one["reasons"].items())
        lines.append(f"filter {one['filter']}: {one['kept']} kept, {one['dropped']} dropped{why and f' ({why})'}")
    lines += [usage_line(stage, use) for stage, use in facts["usage"].items()]
    if len(facts["models"]) > 1:
        lines += [usage_line(f"{use['model']} at {use['endpoint']}", use) for use in facts["models"]]
    lines += tokens_lines(facts["tokens_a_sample"])
    lines += _cost_lines(facts)
    if facts["stopped"]:
        lines.append(f"stopped: {facts['stopped']}")
    lines += [f"failed: {f['count']} {f['kind']} in {f['stage']}" for f in facts["failures"]]
    return lines


def _cost_lines(facts: dict[str, Any]) -> list[str]:
    """What the run has cost, for each kept sample, and what it is projected to."""
    each, usage = facts["cost_per_sample"], facts["usage"].values()
    line = f"dollars: {money(facts['cost'], facts['unpriced'])}"
    if each:
        line += f", {money(each)} a kept sample"
    if flying := sum(use["in_flight"] for use in usage):
        line += f"; {money(sum(use['in_flight_cost'] for use in usage))} of it set aside for {flying} calls in flight"
    if reserved := sum(use["reserved"] for use in usage):
        line += f"; {money(reserved)} of it set aside for calls that never told"
    if facts["price_source"]:
        line += f" (prices of {facts['price_source']})"
    lines = [line]
    if (told := facts["projected"]) is not None:
        worth = "dollars unknown"
        if told["cost"] is not None:
            worth = f"{money(told['cost'])} ({money(told['low'])} to {money(told['high'])})"
        lines.append(f"projected for {told['size']} samples: {worth}, {told['calls']} calls")
    return lines


def main() -> None:
    """The console script."""
    logging.basicConfig(format="refed: %(message)s", level=logging.ERROR)
    for part in ("optimizers", "teachers", "tracking"):  # what they warn of is told nowhere else
        logging.getLogger(f"refed_dspy.{part}").setLevel(logging.WARNING)
    logging.getLogger("refed_dspy.batches").setLevel(logging.INFO)  # hours may pass between two words
    app()


if __name__ == "__main__":
    main()

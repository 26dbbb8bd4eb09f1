"""The commands of a run: synth, resume, status, show, export."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refed_dspy.cli.lines import (
    batch_line,
    compile_lines,
    filtering_lines,
    given_up_line,
    listing_lines,
    run_lines,
    simulated_lines,
    token_lines,
    work_lines,
)
from refed_dspy.cli.options import (
    NO_TEACHER,
    JsonOption,
    RunDir,
    WorkDir,
    given,
    needed,
    paid,
    print_lines,
    reporting,
    say_where_tracked,
    settings_of,
    taking,
)
from refed_dspy.cli.printing import printable, say, written
from refed_dspy.concurrency import current_environ
from refed_dspy.errors import CAPS, InputError, NothingKept, one_line
from refed_dspy.text import counted

if TYPE_CHECKING:
    from refed_dspy.config.run import RunConfig

app = typer.Typer()

_CAPS = ("REFED_MAX_COST", "REFED_MAX_CALLS", "REFED_MAX_MINUTES")
"""The variables that a resume reads, with those that refine a model which an option names: a run keeps its other
settings."""
FORMATS = ("jsonl", "parquet", "messages", "sharegpt", "alpaca", "prompt-completion", "preference", "kto")
METHODS = ("reference-level", "sample-level", "instruction-only")
_OPENING, _LONGEST = 60, 2_000
"""Characters shown of a sample's reference, and of each text."""
_COMPARING = ("rouge", "near_duplicates")
"""Filters whose detail is the kept text that a dropped one is like."""


@app.command(options_metavar="--teacher FILE_OR_NAME [OPTIONS]")
@reporting
@paid("references", "teacher", "program", "accept_changed", "seed", "judge", "cluster", "track")
def synth(
    context: typer.Context,
    size: Annotated[int | None, typer.Option(help="Samples to keep.", metavar="N", show_default="100")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The run's folder.", metavar="DIR", show_default="a new one in refed-runs/")
    ] = None,
    per_reference: Annotated[
        int | None,
        typer.Option(help="Samples of a reference before the next.", metavar="N", show_default="an even share"),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(METHODS)}.",
            metavar="NAME",
            show_default="reference-level",
            autocompletion=lambda: METHODS,
        ),
    ] = None,
    reuse: Annotated[
        Path | None, typer.Option(help="Reuse this run's answers to identical questions, at no cost.", metavar="DIR")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Make a few samples (paid and kept) and forecast the whole run.")
    ] = False,
    preview: Annotated[
        bool, typer.Option("--preview", help="Only show each stage's prompt for the first reference.")
    ] = False,
    sample: Annotated[
        bool, typer.Option("--sample", help="With --preview, also make one sample: a paid call per stage, not kept.")
    ] = False,
) -> None:
    """Make samples from references. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.run import RunConfig
    from refed_dspy.runs.estimate import estimate as forecast
    from refed_dspy.runs.synthesize import synthesize

    settings = settings_of(RunConfig, context)
    if (sample and not preview) or (preview and estimate):
        raise InputError(
            "--sample: goes with --preview" if sample else "--estimate: makes samples; leave out --preview"
        )
    if preview:
        _preview(settings, sample)
        return
    needed(settings.teacher, NO_TEACHER)
    source, keywords = settings.references or "builtin", given(settings, "program", "references")
    if estimate:
        lines = shown(forecast, settings.program, source, **keywords).lines()
        print_lines([*lines, "to continue, run the same command without --estimate"])
        return
    _finish(settings.run_dir is None, synthesize, settings.program, source, **keywords)


@app.command()
@reporting
@taking("teacher", "judge", "cluster", last=CAPS)
def resume(
    context: typer.Context,
    run_dir: RunDir,
    size: Annotated[int | None, typer.Option(help="A new number of samples to keep.", metavar="N")] = None,
    max_failure_share: Annotated[
        float | None, typer.Option(help="A new share of failed calls that stops the run.", metavar="SHARE")
    ] = None,
) -> None:
    """Continue a run that was stopped, or make it larger."""
    from refed_dspy.config.environment import variable
    from refed_dspy.config.run import RunConfig
    from refed_dspy.runs.resume import resume as go_on

    refining = tuple(variable(role, "") for role in ("teacher", "judge") if context.params[role])
    read = {name: text for name, text in current_environ().items() if name in _CAPS or name.startswith(refining)}
    settings = settings_of(RunConfig, context, read)
    _finish(False, go_on, run_dir, **given(settings, "run_dir"))


@app.command()
@reporting
def status(
    run_dir: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR", help="Folder of a run or other work; without it, all below this folder are listed."
        ),
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="Add calls, tokens and dollars by stage.")] = False,
    give_up: Annotated[
        bool, typer.Option("--give-up", help="Abandon open batches; their calls stay charged and are sent again.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the state of a run, a compile or other work, and its batches; without DIR, list all work here."""
    if run_dir is None:
        if give_up:
            raise InputError("--give-up: name the folder of the batches to abandon")
        _list_here(as_json)
        return
    if give_up:
        say(_give_up(run_dir), err=as_json)
    facts, to_lines = _status_in(run_dir)
    if as_json:
        say(json.dumps(facts, ensure_ascii=False, indent=2))
        return
    lines = [*to_lines(facts), *simulated_lines(facts), *map(batch_line, facts["batches"])]
    say("\n".join([*lines, *(token_lines(facts) if tokens else [])]))


def _give_up(folder: Path) -> str:
    """Abandon the open batches. Returns what became of their calls."""
    from refed_dspy.ledger.batches import abandoned, left_batches
    from refed_dspy.ledger.ledger import Ledger

    with Ledger.read(folder), Ledger.create(folder) as ledger:
        left = left_batches(ledger)
        ledger.commit(abandoned(batch["id"] for batch in left))
    return given_up_line(left)


def _status_in(folder: Path) -> tuple[dict[str, Any], Callable[[dict[str, Any]], list[str]]]:
    """How the work in `folder` stands, and what makes lines of it."""
    from refed_dspy.ledger.account import status_of
    from refed_dspy.ledger.batches import all_batches
    from refed_dspy.ledger.ledger import Ledger
    from refed_dspy.ledger.states import FUNNEL
    from refed_dspy.ledger.summary import OF_SAMPLES
    from refed_dspy.runs.result import full_status

    if (folder / FUNNEL).is_file():
        from refed_dspy.runs.filter.result import filtering_status

        return filtering_status(folder), filtering_lines
    to_lines: Callable[[dict[str, Any]], list[str]]
    with Ledger.read(folder) as ledger:
        holds = ledger.holds()
        if holds == "compile":
            from refed_dspy.optimizers.result import compile_status  # which imports DSPy

            facts, to_lines = compile_status(ledger), compile_lines
        elif holds in OF_SAMPLES:
            facts, to_lines = full_status(ledger), run_lines
        else:
            facts, to_lines = status_of(ledger), work_lines
        return {**facts, "batches": all_batches(ledger)}, to_lines


def _list_here(as_json: bool) -> None:
    from refed_dspy.ledger.summary import works_below

    works, unreadable = works_below(Path())
    if as_json:
        say(json.dumps(works, ensure_ascii=False, indent=2))
    elif works:
        say("\n".join(listing_lines(works)))
    elif not unreadable:
        say("no runs here or up to three folders down")
    for line in unreadable:
        say(f"refed: {line}", err=True)


@app.command()
@reporting
def show(
    run_dir: WorkDir,
    number: Annotated[int, typer.Option("--number", "-n", min=1, help="How many.", metavar="N")] = 3,
    dropped: Annotated[
        bool, typer.Option("--dropped", help="Show dropped rows instead, each with its filter and reason.")
    ] = False,
) -> None:
    """Show a few samples or rows: the instruction, and what the improvement changed in the response."""
    from refed_dspy.data.stored import ROWS, rows_in, work_in

    if dropped:
        _show_dropped(run_dir, number)
    elif (work := work_in(run_dir)) in ROWS:
        from refed_dspy.data.dataset import load_dataset
        from refed_dspy.data.sources import as_trained, simulated_in

        if next(rows_in(run_dir, work), None) is None:
            raise InputError(f"{run_dir}: no row was kept")
        made = load_dataset(run_dir).rows
        if note := simulated_in(run_dir):
            say(f"{note}\n")
        for place, row in enumerate(made[:number], start=1):
            say(f"── row {place} of {len(made)}")
            _show(row.instruction, as_trained(row)["response"], row.response)
    else:
        _show_samples(run_dir, number)


def _show_samples(run_dir: Path, number: int) -> None:
    from refed_dspy.data.rows import data_rows
    from refed_dspy.ledger.ledger import Ledger
    from refed_dspy.runs.result import read_run

    made = read_run(run_dir)
    if not made.samples:
        raise InputError(f"{run_dir}: no samples yet")
    if made.status["simulated"]:
        say(f"{made.status['simulated']}\n")
    with Ledger.read(run_dir) as ledger:
        rows = list(islice(data_rows(ledger), number))
        begins = {each.id: each.instruction for each in ledger.references({row["reference"] for row in rows})}
    for place, row in enumerate(rows, start=1):
        say(f"── sample {place} of {len(made.samples)}{_origin(row, begins)}")
        _show(row["instruction"], row["response"], row["improved_response"])


def _origin(row: Mapping[str, Any], begins: Mapping[str, str]) -> str:
    """From which reference a sample was made, how that begins, and what the sample cost."""
    from refed_dspy.records import money

    reference = f", from {one_line(row['reference_source'] or row['reference'], 60)}"
    if begin := begins.get(row["reference"]):
        reference += f": {one_line(begin, _OPENING)}"
    return f"{reference} ({money(row['cost'])})"


def _show_dropped(run_dir: Path, number: int) -> None:
    from refed_dspy.data.sources import dropped_in

    rows = list(islice(dropped_in(run_dir), number))
    if not rows:
        raise InputError(f"{run_dir}: nothing was dropped")
    for row in rows:
        score = "" if row.score is None else f", score {row.score:.4g}"
        say(f"── dropped by {one_line(row.filter, 60)}: {one_line(row.reason, 200)}{score}")
        if row.detail:
            detail = one_line(row.detail, 300)
            compared = row.filter.partition(" ")[0] in _COMPARING
            say(f"kept:\n  {detail}\ndropped:" if compared else f"   {detail}")
        _show(row.instruction, row.plain, row.response)


def _show(instruction: str, plain: str | None, response: str | None) -> None:
    """A row. `plain`: the response before it was improved, None where there is no other than `response`."""
    say(indent(_short(instruction), "  "))
    if response is None:
        say("no response\n")
    elif plain is None:
        say("response:\n" + indent(_short(response), "  ") + "\n")
    else:
        say("response, with [-removed-] and {+added+} text:" if not _coloured() else "response:")
        typer.echo(indent(changed(_short(plain), _short(response)), "  ") + "\n")


def changed(before: str, after: str) -> str:
    """`after` with what is new in it, and what is gone from `before`, marked: by colour in a terminal."""
    from refed_dspy.data.differences import IMPROVED, PLAIN, segments

    marks = {PLAIN: ("[-", "-]", typer.colors.RED), IMPROVED: ("{+", "+}", typer.colors.GREEN)}
    parts = []
    for kind, text in segments(before, after):
        text = printable(text)
        if kind in marks:
            begin, end, colour = marks[kind]
            text = typer.style(text, fg=colour) if _coloured() else f"{begin}{text}{end}"
        parts.append(text)
    return "".join(parts)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _coloured() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


@app.command()
@reporting
def export(
    run_dir: WorkDir,
    format: Annotated[  # noqa: A002 — the flag's name
        str, typer.Option(help=f"{', '.join(FORMATS)}.", metavar="NAME", autocompletion=lambda: FORMATS)
    ] = "jsonl",
    out: Annotated[
        Path | None,
        typer.Option(
            help="File to write; - for stdout.", metavar="FILE", show_default="samples.jsonl, or dropped.jsonl"
        ),
    ] = None,
    dropped: Annotated[
        bool, typer.Option("--dropped", help="Write the dropped rows instead, with reason and score (jsonl).")
    ] = False,
    reasoning: Annotated[
        bool, typer.Option("--reasoning", help="Include the teacher's reasoning behind each improved response.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Write a run's samples, filtered or recycled rows, or the rows that filters dropped, to a file."""
    from refed_dspy.cli.display import rows_shown
    from refed_dspy.data.export import PAIRED, export_dropped
    from refed_dspy.data.export import export as write
    from refed_dspy.data.stored import ROWS, work_in

    if out is not None and out.suffix == ".parquet" and format != "parquet":
        raise InputError(f"{out}: is named as Parquet, and would hold {one_line(format, 40)}; add --format parquet")
    if (work := work_in(run_dir)) == "comparison":
        file = run_dir / ("pairs.jsonl" if format in PAIRED else "rows.jsonl")
        raise InputError(f"{run_dir}: contains a comparison; its {file.stem} are already in {file}")
    if dropped:
        if format != "jsonl" or reasoning:
            what = "--reasoning" if format == "jsonl" else f"--format {one_line(format, 40)}"
            raise InputError(f"{what}: remove it; dropped rows are written as jsonl, without reasoning")
        with written(out or Path("dropped.jsonl")) as (path, report):
            report(counted(export_dropped(run_dir, path, force=force), "dropped row"))
        return
    with written(out or Path("samples.parquet" if format == "parquet" else "samples.jsonl")) as (path, report):
        with rows_shown() as through:
            made = write(run_dir, format, path, force=force, reasoning=reasoning, through=through)
        noun = "pair" if format in PAIRED else "row" if work in ROWS else "sample"
        report(counted(made.count, noun), made.told)


def _preview(settings: RunConfig, sample: bool) -> None:
    """Show each stage's prompt for the first reference; also make one `sample`, where it is asked for."""
    from refed_dspy.cli.preview import one_sample, rendered_prompts
    from refed_dspy.concurrency import run_blocking
    from refed_dspy.data.references import load_references
    from refed_dspy.programs.asking import stages_of
    from refed_dspy.programs.load import open_program
    from refed_dspy.teachers.by_stage import open_teachers

    loaded = load_references(settings.references or "builtin", settings.columns or None, settings.turns)
    module = open_program(settings.program, settings)
    for stage, messages in rendered_prompts(module, loaded[0]).items():
        for message in messages:
            say(f"───── {stage}: {message['role']}\n{message['content']}\n")
    if sample:
        by_stage = open_teachers(needed(settings.teacher, NO_TEACHER), settings.teachers, stages_of(module))
        made = run_blocking(one_sample(module, loaded[0], by_stage))
        say(f"───── one sample\n{made.model_dump_json(indent=2)}")


def _finish(tell_folder: bool, work: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    """Run the `work` and say what came of it, also where its filters end it. Raises typer.Exit(1) where it is not
    done."""
    from refed_dspy.cli.display import shown
    from refed_dspy.runs.result import read_run

    try:
        made, ended = shown(work, *arguments, **keywords), None
    except NothingKept as error:
        if error.run_dir is None:
            raise
        made, ended = read_run(error.run_dir), error
    to_stdout = {**made.status, "reason": ""}  # the reason goes to stderr
    for line in [*run_lines(to_stdout), *simulated_lines(made.status)]:
        say(line)
    if tell_folder:
        say(f"folder: {made.run_dir}")
    say_where_tracked(made.run_dir)
    if ended is not None:
        raise ended
    if made.reason:
        say("refed: " + made.reason, err=True)
        raise typer.Exit(1)

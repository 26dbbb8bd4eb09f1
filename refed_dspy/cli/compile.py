"""The commands around compiling: compile, plan-compile, judge agreement, judge train, promote, track."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refed_dspy.cli.options import (
    NO_OUT,
    NO_TEACHER,
    AcceptChanged,
    AnyDir,
    ConfigOption,
    CriteriaOption,
    JudgeOption,
    MaxCalls,
    MaxCost,
    MaxMinutes,
    OutOption,
    ProgramOption,
    ReferencesOption,
    TeacherOption,
    TrackOption,
    ended_short,
    given,
    names_in,
    needed,
    print_lines,
    reporting,
    say_where_tracked,
    settings_of,
)
from refed_dspy.cli.printing import as_options, say
from refed_dspy.cli.stopping import at_work

if TYPE_CHECKING:  # the commands import what they need when they run: help should not wait for DSPy
    from refed_dspy.optimizers.result import Compiled

NO_JUDGE = "no judge: choose one with --judge (PROVIDER/NAME, a teacher file, embedded or simulated) or REFED_JUDGE"
OPTIMIZERS = ("bootstrap", "gepa", "mipro", "simba")
judge_app = typer.Typer(no_args_is_help=True, help="Compare a judge with people, and train it on what they say.")
PairsOption = Annotated[str | None, typer.Option(help="Pairs of answers with human verdicts.", metavar="FILE")]


app = typer.Typer()
app.add_typer(judge_app, name="judge")


@app.command("compile", options_metavar="--teacher FILE_OR_NAME --out DIR [OPTIONS]")
@reporting
def compile_(
    context: typer.Context,
    references: ReferencesOption = None,
    pairs: PairsOption = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(OPTIMIZERS)}, or a dotted name.", metavar="NAME", autocompletion=lambda: OPTIMIZERS
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The compile's folder.", metavar="DIR")] = None,
    teacher: TeacherOption = None,
    judge: JudgeOption = None,
    reflection: Annotated[
        str | None, typer.Option(help="The model that rewrites prompts, given like --teacher.", metavar="FILE_OR_NAME")
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Approximate number of evaluations in all.", metavar="N")
    ] = None,
    program: ProgramOption = None,
    metric: Annotated[str | None, typer.Option(help="Your own metric.", metavar="MODULE:NAME")] = None,
    accept_changed: AcceptChanged = None,
    config: ConfigOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed for the split and the optimizer.", metavar="N", show_default="0")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The registered model's name.", metavar="NAME", show_default="refed")
    ] = None,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
    track: TrackOption = None,
    prove: Annotated[
        bool | None,
        typer.Option("--prove/--no-prove", help="Prove the gain on the test references.", show_default="prove"),
    ] = None,
    accept_longer: Annotated[
        bool | None, typer.Option("--accept-longer", help="Accept a gain that rests on longer answers.")
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Score only the uncompiled program and forecast the whole compile.")
    ] = False,
) -> None:
    """Tune a program's prompts and prove the gain. Run it again to continue."""
    from refed_dspy.cli.display import CompileDisplay
    from refed_dspy.config.compile import CompileConfig
    from refed_dspy.optimizers.compile import compile as tune

    settings = settings_of(CompileConfig, context)
    needed(settings.out, "out: no folder for the compile; set one with --out DIR")
    needed(settings.teacher, NO_TEACHER)
    with CompileDisplay().showing() as display:
        made = tune(
            settings.program,
            **given(settings, "program"),
            estimate=estimate,
            progress=False,
            on_progress=display.watch,
        )
    _print_outcome(made, estimate)


@app.command("plan-compile")
@reporting
def plan_compile_(
    folder: Annotated[Path, typer.Argument(help="The folder of a compile, ended or not.", metavar="DIR")],
    gain: Annotated[
        list[float] | None,
        typer.Option(help="A gain to prove, from 0 to 1; may be repeated.", metavar="G", show_default="0.05 to 0.2"),
    ] = None,
) -> None:
    """Show how many references a compile must hold out to prove a gain."""
    from refed_dspy.optimizers.planning import GAINS, plan_compile

    for line in plan_compile(folder, gain or GAINS).lines():
        say(line)


def _print_outcome(made: Compiled, estimate: bool) -> None:
    """Print the outcome. Raises typer.Exit where a cap or an endpoint ended it early."""
    for line in made.estimate_lines() if estimate else made.lines():
        say(as_options(line))
    say_where_tracked(made.folder)
    if made.stopped:
        say(f"refed: {made.why}", err=True)
        raise typer.Exit(1)


@judge_app.command(options_metavar="--pairs PATH --judge FILE_OR_NAME [OPTIONS]")
@reporting
def agreement(
    pairs: Annotated[
        str, typer.Option(help="Pairs of answers with human verdicts: a file, or a folder of pages.", metavar="PATH")
    ],
    judge: Annotated[
        str | None,
        typer.Option(help="The judge, given like --teacher; default: REFED_JUDGE.", metavar="FILE_OR_NAME"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to keep the verdicts in.", metavar="DIR")] = None,
    criteria: CriteriaOption = None,
    count: Annotated[int | None, typer.Option(help="Number of pairs to draw at random.", metavar="N")] = None,
    program: Annotated[str | None, typer.Option(help="A compiled or trained judge.", metavar="FILE_OR_URI")] = None,
    judge_scorer: Annotated[
        str | None,
        typer.Option(
            help="The model of perplexities of a judge trained with them: folder or Hub name.", metavar="NAME"
        ),
    ] = None,
    accept_changed: AcceptChanged = None,
    seed: Annotated[int, typer.Option(help="Seed for the draw.", metavar="N")] = 0,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
) -> None:
    """Measure how well a judge agrees with people. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.jobs import StatsConfig
    from refed_dspy.config.loading import load_config
    from refed_dspy.optimizers.judge_agreement import measure_agreement

    at_work()
    model = load_config(StatsConfig, judge=judge).judge
    needed(model, f"{NO_JUDGE}; how people agree with each other needs none: refed judge people PATH")
    measured = shown(
        measure_agreement, pairs, model, out, criteria=names_in(criteria), count=count, program=program,
        judge_scorer=judge_scorer and {"model": judge_scorer}, accept_changed=bool(accept_changed), seed=seed,
        max_cost=max_cost, max_calls=max_calls, max_minutes=max_minutes,
    )  # fmt: skip
    for line in measured.lines():
        say(line)
    if measured.stopped:
        raise typer.Exit(1)


@judge_app.command(options_metavar="--pairs FILE --judge FILE_OR_NAME --out DIR [OPTIONS]")
@reporting
def train(
    context: typer.Context,
    pairs: PairsOption = None,
    judge: JudgeOption = None,
    out: OutOption = None,
    criteria: CriteriaOption = None,
    program: Annotated[str | None, typer.Option(help="A compiled judge to start from.", metavar="FILE_OR_URI")] = None,
    accept_changed: AcceptChanged = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help=f"First compile its prompts: {', '.join(OPTIMIZERS)}.",
            metavar="NAME",
            autocompletion=lambda: OPTIMIZERS,
        ),
    ] = None,
    scorer: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a model whose perplexities to use.", metavar="NAME")
    ] = None,
    reuse: Annotated[
        Path | None, typer.Option(help="Use what was paid for in another folder, an agreement say.", metavar="DIR")
    ] = None,
    config: ConfigOption = None,
    seed: Annotated[int | None, typer.Option(help="Seed for what is held out.", metavar="N", show_default="0")] = None,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
) -> None:
    """Train a judge on people's verdicts, and measure it on what it did not see. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.judge_training import JudgeTrainingConfig
    from refed_dspy.optimizers.judge_training.train import train_judge

    at_work()
    model_of_scorer = scorer and {"model": scorer}
    settings = settings_of(JudgeTrainingConfig, context, criteria=names_in(criteria), scorer=model_of_scorer)
    source = needed(settings.pairs, "pairs: no verdicts of people; name their file with --pairs FILE")
    folder = needed(settings.out, NO_OUT)
    model = needed(settings.judge, NO_JUDGE)
    made = shown(train_judge, source, model, **given(settings, "pairs", "judge"))
    print_lines(made.lines())
    ended_short(made.stopped, folder)


@app.command()
@reporting
def promote(
    name: Annotated[str, typer.Argument(help="The registered model.")] = "refed",
    version: Annotated[
        str | None, typer.Option(help="The version.", metavar="N", show_default="the challenger")
    ] = None,
    accept_longer: Annotated[
        bool, typer.Option("--accept-longer", help="Promote even if the gain rests on longer answers.")
    ] = False,
    unproved: Annotated[bool, typer.Option("--unproved", help="Promote even if the gain was not proved.")] = False,
) -> None:
    """Make a version of the registered model the champion."""
    from refed_dspy.tracking.registry import promote as make_champion

    at_work()
    chosen = make_champion(name, version, accept_longer, unproved)
    say(f"{name} version {chosen} is champion: models:/{name}@champion")


@app.command()
@reporting
def track(folder: AnyDir) -> None:
    """Log a run, a compile, a comparison or an evaluation to MLflow, or add what is still missing there."""
    from refed_dspy.tracking.track import track as track_folder

    at_work()
    say(f"logged to MLflow: run {track_folder(folder)}")
    say_where_tracked(folder)

"""`refed compile`, with `plan`, `show` and `promote`; `refed track`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from refed_dspy.cli.options import (
    NO_TEACHER,
    OPTIMIZERS,
    AnyDir,
    given,
    needed,
    paid,
    print_lines,
    reporting,
    say_where_tracked,
    settings_of,
    tell,
)
from refed_dspy.cli.printing import say
from refed_dspy.errors import InputError

if TYPE_CHECKING:  # the commands import what they need when they run: help should not wait for DSPy
    from refed_dspy.optimizers.result import Compiled


compile_app = typer.Typer()
app = typer.Typer()
app.add_typer(compile_app, name="compile")
OutOption = Annotated[Path | None, typer.Option(help="The compile's folder.", metavar="DIR")]
ReflectionOption = Annotated[
    str | None, typer.Option(help="The model that rewrites prompts, given like --teacher.", metavar="FILE_OR_NAME")
]
MetricOption = Annotated[str | None, typer.Option(help="Your own metric.", metavar="MODULE:NAME")]
SeedOption = Annotated[
    int | None, typer.Option(help="Seed for the split and the optimizer.", metavar="N", show_default="0")
]


@compile_app.callback(
    invoke_without_command=True,
    subcommand_metavar="[plan|show|promote]",
    options_metavar="--teacher FILE_OR_NAME --out DIR [OPTIONS]",
)
@reporting
@paid("references", "pairs", "teacher", "judge", "program", "accept_changed", "track")
def compile_(
    context: typer.Context,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help=f"{', '.join(OPTIMIZERS)}, or a dotted name; several with commas between.",
            metavar="NAMES",
            autocompletion=lambda: OPTIMIZERS,
        ),
    ] = None,
    out: OutOption = None,
    reflection: ReflectionOption = None,
    proof_judge: Annotated[
        str | None, typer.Option(help="A second judge, which must find the gain, too.", metavar="FILE_OR_NAME")
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Approximate number of evaluations of an optimizer.", metavar="N")
    ] = None,
    metric: MetricOption = None,
    seed: SeedOption = None,
    name: Annotated[
        str | None, typer.Option(help="The registered model's name.", metavar="NAME", show_default="refed")
    ] = None,
    prove: Annotated[
        bool | None,
        typer.Option("--prove/--no-prove", help="Prove the gain on the test references.", show_default="prove"),
    ] = None,
    accept_longer: Annotated[
        bool | None, typer.Option("--accept-longer", help="Accept a gain that rests on longer answers.")
    ] = None,
    reuse: Annotated[
        Path | None,
        typer.Option(help="Reuse the answers in this folder to identical questions, at no cost.", metavar="DIR"),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Score only the uncompiled program and forecast the whole compile.")
    ] = False,
) -> None:
    """Tune a program's prompts and prove the gain. Run it again to continue."""
    from refed_dspy.cli.display import Display
    from refed_dspy.config.compile import CompileConfig
    from refed_dspy.optimizers.compile import compile as tune

    if context.invoked_subcommand is not None:
        return
    settings = settings_of(CompileConfig, context)
    needed(settings.out, "out: no folder for the compile; set one with --out DIR")
    needed(settings.teacher, NO_TEACHER)
    with Display().showing() as display:
        made = tune(
            settings.program,
            **given(settings, "program"),
            estimate=estimate,
            progress=False,
            on_progress=display.watch,
        )
    _print_outcome(made, estimate)


@compile_app.command("plan")
@reporting
@paid("references", "pairs", "teacher", "judge", "program", "accept_changed", "track")
def plan_(
    context: typer.Context,
    folder: Annotated[
        Path | None,
        typer.Argument(help="Read this compile or test, and pay nothing.", metavar="DIR"),
    ] = None,
    gain: Annotated[
        list[float] | None,
        typer.Option(help="A gain to prove, from 0 to 1; may be repeated.", metavar="G", show_default="0.05 to 0.2"),
    ] = None,
    out: OutOption = None,
    reflection: ReflectionOption = None,
    metric: MetricOption = None,
    seed: SeedOption = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Score only the uncompiled program and forecast the whole test.")
    ] = False,
) -> None:
    """Test for cents whether other prompts gain anything, or read a compile, and show how many references prove it."""
    from refed_dspy.cli.display import Display
    from refed_dspy.config.compile import CompileConfig
    from refed_dspy.optimizers.planning import GAINS, measure_headroom, plan_compile, plan_of

    if folder is not None:
        if out is not None:
            raise InputError(f"out: {folder} is read, and nothing is paid for; name only one of them")
        print_lines(plan_compile(folder, gains=gain or GAINS).lines())
        return
    settings = settings_of(CompileConfig, context)
    needed(settings.out, "out: no folder for the test; set one with --out DIR, or name the folder of a compile")
    needed(settings.teacher, NO_TEACHER)
    with Display().showing() as display:
        test = {**given(settings, "program"), "progress": False, "on_progress": display.watch}
        made = measure_headroom(settings.program, estimate=estimate, **test)
    if estimate:
        _print_outcome(made, estimate)
    else:
        tell(plan_of(made, gain or GAINS).lines(), made.folder, made.why)


@compile_app.command("show")
@reporting
def show_(
    folder: Annotated[Path, typer.Argument(help="The folder of a compile, ended or not.", metavar="DIR")],
) -> None:
    """Show whether a compile helped, and what it changed, stage by stage; of a plan's test what it told."""
    from refed_dspy.cli.lines import compile_lines
    from refed_dspy.optimizers.learned import learned_in
    from refed_dspy.optimizers.planning import plan_compile

    learned = learned_in(folder)
    if learned.status["optimizer"] == "variants":  # a plan's test
        best = ["", "the best of them (program.json):", "", *learned.changed_lines()] if learned.changes else []
        print_lines([*plan_compile(folder).lines(), *best])
        return
    print_lines([*compile_lines(learned.status), *learned.lines()])


def _print_outcome(made: Compiled, estimate: bool) -> None:
    """Print the outcome. Raises typer.Exit where a cap or an endpoint ended it early."""
    print_lines(made.estimate_lines() if estimate else made.lines())
    say_where_tracked(made.folder)
    if made.stopped:
        say("refed: " + made.why, err=True)
        raise typer.Exit(1)


@compile_app.command()
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

    chosen = make_champion(name, version, accept_longer, unproved)
    say(f"{name} version {chosen} is champion: models:/{name}@champion")


@app.command()
@reporting
def track(folder: AnyDir) -> None:
    """Log a run, a compile, a comparison or an evaluation to MLflow, or add what is still missing there."""
    from refed_dspy.tracking.track import track as track_folder

    say(f"logged to MLflow: run {track_folder(folder)}")
    say_where_tracked(folder)

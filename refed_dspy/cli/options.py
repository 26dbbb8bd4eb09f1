"""What the commands share: how they report errors, and the options that several of them take."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from refed_dspy.cli.ending import command_over, exit_code, say_no_more
from refed_dspy.cli.printing import say
from refed_dspy.errors import CAPS, InputError, RefedError, one_line

if TYPE_CHECKING:  # the commands import what they need when they run: help should not wait for DSPy
    from refed_dspy.config.base import Settings

F = TypeVar("F", bound=Callable[..., None])
S = TypeVar("S", bound="Settings")
T = TypeVar("T")
NO_TEACHER = (
    "no teacher: choose one with --teacher (openai/gpt-4.1-mini, a teacher file, embedded, or simulated to try it out)"
)

NO_OUT = "out: no folder for the results; set one with --out DIR"
NO_DATA = "data: no data set; pass a file, a Hub data set or a run's folder"
NO_JUDGE = "no judge: choose one with --judge (PROVIDER/NAME, a teacher file, embedded or simulated) or REFED_JUDGE"
OPTIMIZERS = ("bootstrap", "gepa", "mipro", "simba")


def reporting(command: F) -> F:
    """Turn this package's errors, and Ctrl-C (a SIGTERM, a SIGHUP), into a line, an error's notes below it, and an exit
    code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        context = kwargs.get("context")
        if context is not None and context.invoked_subcommand is not None:
            _refuse_options_before(context)
            return
        try:
            try:
                command(*args, **kwargs)
            finally:
                command_over()
        except RefedError as error:
            for line in ("refed: " + one_line(error, 600), *getattr(error, "__notes__", ())):
                say(line, err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt as interrupt:
            say_no_more()
            kept = str(interrupt) or "everything made so far is kept; continue with the same command"
            say("refed: stopped; " + kept, err=True)
            raise typer.Exit(exit_code()) from None

    return cast(F, wrapped)


def _refuse_options_before(context: typer.Context) -> None:
    """Exits where a group that is a command itself was given options, and then one of its commands."""
    given = [
        name for name in context.params if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    ]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        say(f"refed: {names}: not an option of refed {context.info_name} {context.invoked_subcommand}", err=True)
        raise typer.Exit(2)


def settings_of(kind: type[S], context: typer.Context, environ: Mapping[str, str] | None = None, **changed: Any) -> S:
    """The settings of `kind`: a command's options of the same names, over the environment, over its --config.

    `changed`: the settings that options give in another form. Raises ConfigError.
    """
    from refed_dspy.config.loading import load_config

    options = {**context.params, **changed}
    file = options.pop("config", None)
    keywords = {name: value for name, value in options.items() if name in kind.model_fields}
    return load_config(kind, None if file is None else Path(file), environ, **keywords)


def given(settings: Settings, *positional: str) -> dict[str, Any]:
    """The settings that are set anywhere, as keywords, but those that are passed by position."""
    return {name: getattr(settings, name) for name in settings.model_fields_set - {*positional}}


def say_where_tracked(folder: Path) -> None:
    """Say where MLflow has the work in `folder`, if it has."""
    from refed_dspy.tracking.store import where

    if (place := where(folder)) is not None:
        say(f"in MLflow: {place}")


def print_lines(lines: list[str]) -> None:
    """What came of work."""
    for line in lines:
        say(line)


def ended_short(why: str, folder: Path | None) -> None:
    """Say on stderr what ended the work early, a cap's name or a sentence. Raises typer.Exit(1) where anything did."""
    if not why:
        return
    if why in CAPS:
        where = f" in {folder}" if folder is not None else ""
        why = (
            f"{why} is reached; paid answers are kept{where}: to continue, run the same command with a "
            f"larger --{why.replace('_', '-')}"
        )
    say("refed: " + why, err=True)
    raise typer.Exit(1)


def tell(lines: list[str], folder: Path, why: str = "", written: str = "") -> None:
    """What came of work in `folder`: its `lines`, what is `written` there, and where MLflow has it; then as
    `ended_short`."""
    print_lines(lines)
    if written:
        say(f"{written} in {folder}")
    say_where_tracked(folder)
    ended_short(why, folder)


def needed(value: T | None, message: str) -> T:
    """`value`. Raises InputError with `message` where it is None."""
    if value is None:
        raise InputError(message)
    return value


def names_in(text: str | None) -> list[str] | None:
    """The names of an option that takes several, with commas between."""
    return None if text is None else [name.strip() for name in text.split(",")]


CriteriaOption = Annotated[
    str | None, typer.Option(help="Only these criteria, with commas between.", metavar="NAMES", show_default="all")
]
RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]
AnyDir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run or other work.")]
WorkDir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, a filtering or a recycling.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
Data = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA", help="A file, a Hub data set or a run's folder; default: `data` in the settings file."
    ),
]
ScorerOption = Annotated[
    str | None, typer.Option(help="Folder or Hub name of the model that scores perplexity.", metavar="NAME")
]
OPTIONS: Mapping[str, Any] = {
    "references": Annotated[
        str | None,
        typer.Option(
            help="A file, a Hub data set, builtin or builtin-short.", metavar="FILE_OR_HUB_NAME", show_default="builtin"
        ),
    ],
    "pairs": Annotated[str | None, typer.Option(help="Pairs of answers with human verdicts.", metavar="FILE")],
    "program": Annotated[
        str | None,
        typer.Option(help="A saved program; your own: MODULE:NAME or MODULE:NAME@FILE_OR_URI.", metavar="FILE_OR_URI"),
    ],
    "teacher": Annotated[
        str | None,
        typer.Option(
            help="PROVIDER/NAME, a teacher file, a .gguf file, embedded or simulated.", metavar="FILE_OR_NAME"
        ),
    ],
    "judge": Annotated[str | None, typer.Option(help="The judge, given like --teacher.", metavar="FILE_OR_NAME")],
    "out": Annotated[Path | None, typer.Option(help="Folder for the results.", metavar="DIR")],
    "accept_changed": Annotated[
        bool | None, typer.Option("--accept-changed", help="Accept a saved program even if its prompts were edited.")
    ],
    "seed": Annotated[
        int | None, typer.Option(help="Seed for random draws and orders.", metavar="N", show_default="0")
    ],
    "cluster": Annotated[
        str | None,
        typer.Option(help="Work on a Ray cluster: auto, HOST:PORT, or local:N for N workers here.", metavar="ADDRESS"),
    ],
    "track": Annotated[bool | None, typer.Option("--track/--no-track", help="Log it to MLflow.")],
    "config": Annotated[
        Path | None,
        typer.Option(
            help="YAML settings: filters, batches, teachers by stage, …; options override them.", metavar="FILE"
        ),
    ],
    "max_cost": Annotated[
        float | None,
        typer.Option(
            help="Stop before all starts together cost more, if the endpoint keeps to max_tokens.", metavar="DOLLARS"
        ),
    ],
    "max_calls": Annotated[int | None, typer.Option(help="Stop after this many calls, over all starts.", metavar="N")],
    "max_minutes": Annotated[
        float | None, typer.Option(help="Stop after this many minutes of work, over all starts.", metavar="N")
    ],
}
"""The options that several commands take, by the names of their settings."""


def taking(*names: str, last: Sequence[str] = (), **own: Any) -> Callable[[F], F]:
    """Give a command these OPTIONS, and `own` ones, before those that it names itself; and some after them. It finds
    them in its context (`settings_of`)."""
    first, after = {**{name: OPTIONS[name] for name in names}, **own}, {name: OPTIONS[name] for name in last}

    def with_them(command: F) -> F:
        @functools.wraps(command)
        def wrapped(*args: Any, **kwargs: Any) -> None:
            command(*args, **{name: value for name, value in kwargs.items() if name not in {*first, *after}})

        plain = [*inspect.signature(command, eval_str=True).parameters.values()]
        before, behind = ([_parameter(*each) for each in some.items()] for some in (first, after))
        without = sum(each.default is each.empty for each in plain)
        whole = cast(Any, wrapped)
        whole.__signature__ = inspect.Signature([*plain[:without], *before, *plain[without:], *behind])
        whole.__annotations__ = {each.name: each.annotation for each in whole.__signature__.parameters.values()}
        return cast(F, wrapped)

    return with_them


def _parameter(name: str, kind: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=kind)


def paid(*names: str, **own: Any) -> Callable[[F], F]:
    """As `taking`, with what all paid work takes after the rest: a file of settings, and the caps."""
    return taking(*names, last=("config", *CAPS), **own)

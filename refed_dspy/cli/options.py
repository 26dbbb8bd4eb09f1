"""What the commands share: how they report errors, and the options that several of them take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import typer

from refed_dspy.errors import RefedError, one_line

F = TypeVar("F", bound=Callable[..., None])


def reporting(command: F) -> F:
    """Turn this package's errors, and Ctrl-C, into one line and an exit code."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except RefedError as error:
            typer.echo(f"refed: {one_line(error, 600)}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            where = f"refed resume {kwargs['run_dir']}" if kwargs.get("run_dir") else "the same command"
            typer.echo(f"refed: stopped; what was made is kept; go on with: {where}", err=True)
            raise typer.Exit(130) from None

    return cast(F, wrapped)


RunDir = Annotated[Path, typer.Argument(metavar="DIR", help="The run's folder.")]
ReferencesOption = Annotated[
    str | None, typer.Option(help="File, Hub data set, or builtin.", metavar="FILE_OR_HUB_NAME", show_default="builtin")
]
JudgeOption = Annotated[str | None, typer.Option(help="The model that judges, as --teacher.", metavar="FILE_OR_NAME")]
TeacherOption = Annotated[
    str | None, typer.Option(help="PROVIDER/NAME, a teacher file, a .gguf file, or embedded.", metavar="FILE_OR_NAME")
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(help="Settings in YAML: filters, batches, teachers by stage, …; a flag wins over it.", metavar="FILE"),
]
MaxCost = Annotated[
    float | None, typer.Option(help="Stop before it costs more than this, over all starts.", metavar="DOLLARS")
]
MaxCalls = Annotated[int | None, typer.Option(help="Stop after so many calls, over all starts.", metavar="N")]
MaxMinutes = Annotated[
    float | None, typer.Option(help="Stop after so many minutes at work, over all starts.", metavar="N")
]
ProgramOption = Annotated[str | None, typer.Option(help="A saved program.", metavar="FILE_OR_URI")]
SeedOption = Annotated[int | None, typer.Option(help="Seed of draws and orders.", metavar="N", show_default="0")]
JsonOption = Annotated[bool, typer.Option("--json", help="For scripts.")]

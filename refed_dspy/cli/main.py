"""The `refed` command: its groups of commands, its version, its log."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from refed_dspy.cli import compile as compiling
from refed_dspy.cli import filter as filtering
from refed_dspy.cli import init, runs, teachers
from refed_dspy.cli.ending import told
from refed_dspy.cli.options import reporting
from refed_dspy.cli.printing import PlainFormatter, printable, say
from refed_dspy.errors import PluginMissing, one_line
from refed_dspy.registry import COMMANDS, plugged_in, registered

GROUPS = {
    "Make": ("synth", "init", "resume"),
    "Inspect": ("show", "status", "report", "stats"),
    "Judge and improve": ("filter", "compare", "judge", "compile", "evaluate", "recycle"),
    "Publish": ("export", "share", "push"),
    "Maintain": ("teacher", "track"),
}
"""Every command, in the order in which people need them."""
MOVED = {
    "annotate": "judge annotate",
    "answers": "evaluate answers",
    "batches": "status",
    "plan-compile": "compile plan",
    "preview": "synth --preview",
    "promote": "compile promote",
    "watch": "report --watch",
}
"""A command that was → what to type in its place."""


_ClickError: Any = typer.BadParameter.__mro__[2]  # Typer brings a Click of its own, or takes the one that is there
_LONGEST = 400
"""Characters shown of a message with somebody's words in it."""


class _Grouped(TyperGroup):
    """Lists commands by GROUPS, with their whole first sentence. Refuses empty words, and prints no others raw."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        for before, word in pairwise(["", *args]):
            if before == "--":
                break
            if not word.strip() or (word.endswith("=") and word.startswith("--")):
                name = before if before.startswith("--") and not word else word.rstrip("=").strip() or "an argument"
                say(f"refed: {one_line(name, 60)} is empty: is a shell variable unset?", err=True)
                raise typer.Exit(2)
        if args[0] in MOVED and args[0] not in self.commands:
            say(f"refed: refed {args[0]} is now: refed {MOVED[args[0]]}", err=True)
            raise typer.Exit(2)
        return super().resolve_command(ctx, args)

    def main(self, *arguments: Any, **more: Any) -> Any:
        """Run a command line, and exit: here every command's end is seen, and each mistake is a line."""
        try:
            code = super().main(*arguments, **{**more, "standalone_mode": False})
        except _ClickError as error:
            code = _usage(error)
        except Exception as error:
            if (code := told(error)) is None:
                raise
        raise SystemExit(code or 0)

    def _groups(self) -> dict[str, list[str]]:
        """Group → the commands of it that are there; those of other packages have a group of their own."""
        known = {name for names in GROUPS.values() for name in names}
        there = [name for name, command in self.commands.items() if not command.hidden]
        groups = {group: [name for name in names if name in there] for group, names in GROUPS.items()}
        return {**groups, "Of other packages": sorted({*there} - known)}

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return [name for names in self._groups().values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        widest = max(map(len, self.commands))
        for group, names in self._groups().items():
            if not names:
                continue
            with formatter.section(group):
                summaries = (self.commands[name].get_short_help_str(limit=1_000) for name in names)
                formatter.write_dl([(name.ljust(widest), text) for name, text in zip(names, summaries, strict=True)])


def _usage(error: Any) -> int:
    """Say what is wrong with a command line. Returns the exit code."""
    context = getattr(error, "ctx", None)
    if context is None or error.message != context.get_help():  # the whole help, of a group without a command
        error.message = one_line(printable(error.message), _LONGEST)
    no_such = context is not None and hasattr(error, "possibilities")
    if no_such and (hint := _where_it_is_set(error.option_name, context)):
        error.message, error.possibilities = f"{error.message}; {hint}", None
    with suppress(OSError, ValueError):  # stderr may be full
        error.show()
    return int(error.exit_code)


def _where_it_is_set(option: str, context: Any) -> str:
    """How to set what `option` would, where it is a setting of the command's teacher or of a run; empty: it is none."""
    from refed_dspy.config.run import RunConfig
    from refed_dspy.config.teacher import TeacherConfig

    name, taken = option.removeprefix("--").replace("-", "_"), {parameter.name for parameter in context.command.params}
    if "teacher" in taken and name in TeacherConfig.model_fields:
        return f"it is a setting of the teacher: `{name}:` in a file for --teacher, or REFED_TEACHER__{name.upper()}"
    if context.command.name == "synth":
        for key in (name, f"{name}s"):  # --filter
            if key in RunConfig.model_fields:
                return f"it is a setting of a run: `{key}:` in a --config file, or REFED_{key.upper()}"
    return ""


app = typer.Typer(
    cls=_Grouped,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog="Without a key: refed synth --teacher simulated --size 5 --run-dir first",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (init, runs, filtering, compiling, teachers):
    app.add_typer(commands.app)


def _missing(name: str, error: PluginMissing) -> None:
    """Add the command `name` of a plug-in that is not there: it says so."""

    @app.command(name, hidden=True, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
    @reporting
    def missing() -> None:
        raise error


def _add_registered() -> None:
    """Add the commands of the plug-ins; one app may have several."""
    apps = set()
    for name, point in registered(COMMANDS).items():
        if point.value in apps:
            continue
        try:
            app.add_typer(plugged_in(COMMANDS, name))
            apps.add(point.value)
        except PluginMissing as error:
            _missing(name, error)


_add_registered()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(f"refed-dspy {version('refed-dspy')}")
        raise typer.Exit


@app.callback()
def refed(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Make instruction-tuning data from a few excellent references with a DSPy program."""


def run() -> None:
    """Run the command that the process was started with."""
    log = logging.StreamHandler()
    log.setFormatter(PlainFormatter("refed: %(message)s"))
    logging.basicConfig(handlers=[log], level=logging.ERROR)
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # else each of its retries is two lines
    for package in ("config", "optimizers", "teachers", "tracking"):  # their warnings are printed nowhere else
        logging.getLogger(f"refed_dspy.{package}").setLevel(logging.WARNING)
    for waits in ("batches", "cluster", "environments", "hub"):  # hours may pass between two lines, or Ray begins
        logging.getLogger(f"refed_dspy.{waits}").setLevel(logging.INFO)
    app()

"""The `refed` command: its groups of commands, its version, its log."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from refed_dspy.cli import compile as compiling
from refed_dspy.cli import data, runs, sharing, teachers

GROUPS = {
    "Make": ("synth", "resume", "preview"),
    "Look": ("status", "report", "stats"),
    "Judge and improve": ("filter", "compare", "judge", "compile", "promote", "recycle"),
    "Publish": ("export", "share", "push"),
    "Upkeep": ("teacher", "batches", "track"),
}
"""Every command, in the order in which people need them."""


class _Grouped(TyperGroup):
    """Lists commands by GROUPS, with their whole first sentence."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return [name for names in GROUPS.values() for name in names]

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        widest = max(map(len, self.commands))
        for group, names in GROUPS.items():
            with formatter.section(group):
                summaries = (self.commands[name].get_short_help_str(limit=1_000) for name in names)
                formatter.write_dl([(name.ljust(widest), text) for name, text in zip(names, summaries, strict=True)])


app = typer.Typer(
    cls=_Grouped,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (runs.app, data.app, compiling.app, sharing.app, teachers.app):
    app.add_typer(commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"refed-dspy {version('refed-dspy')}")
        raise typer.Exit


@app.callback()
def refed(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Instruction-tuning data from a few excellent references."""


def main() -> None:
    """The console script. Exit codes: 2 bad input, 1 a run that failed or ended short, 130 Ctrl-C."""
    logging.basicConfig(format="refed: %(message)s", level=logging.ERROR)
    for room in ("optimizers", "teachers", "tracking"):  # their warnings are printed nowhere else
        logging.getLogger(f"refed_dspy.{room}").setLevel(logging.WARNING)
    logging.getLogger("refed_dspy.batches").setLevel(logging.INFO)  # hours may pass between two lines
    app()

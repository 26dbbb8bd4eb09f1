"""The commands around benchmarks: answers."""

from __future__ import annotations

from typing import Annotated

import typer

from refed_dspy.cli.options import (
    NO_OUT,
    ConfigOption,
    MaxCalls,
    MaxCost,
    MaxMinutes,
    OutOption,
    SeedOption,
    ended_short,
    given,
    needed,
    print_lines,
    reporting,
    settings_of,
)

FORMATS = ("jsonl", "alpaca_eval", "arena_hard", "ifeval")
_NO_PROMPTS = "prompts: no prompts; name their file with --prompts FILE"
_NO_MODEL = (
    "no model: choose one with --model (openai/gpt-4.1-mini, a teacher file, embedded, or simulated to try it out)"
)

app = typer.Typer()


@app.command("answers", options_metavar="--prompts FILE --model FILE_OR_NAME --out DIR [OPTIONS]")
@reporting
def answers_(
    context: typer.Context,
    prompts: Annotated[
        str | None, typer.Option(help="A file with an instruction in each row, a benchmark's say.", metavar="FILE")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--model",
            "--teacher",
            help="The model: PROVIDER/NAME, a teacher file, a .gguf file, embedded or simulated.",
            metavar="FILE_OR_NAME",
        ),
    ] = None,
    out: OutOption = None,
    format: Annotated[  # noqa: A002 — the flag's name
        str | None,
        typer.Option(
            help=f"{', '.join(FORMATS)}.", metavar="NAME", show_default="jsonl", autocompletion=lambda: FORMATS
        ),
    ] = None,
    generator: Annotated[
        str | None, typer.Option(help="The model's name in the file.", metavar="NAME", show_default="its own")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt for rows that have none.", metavar="TEXT")] = None,
    config: ConfigOption = None,
    seed: SeedOption = None,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
) -> None:
    """Have a model answer a file of prompts, as a benchmark's code reads it. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.jobs import AnswersConfig
    from refed_dspy.runs.answers.answers import answer_prompts

    settings = settings_of(AnswersConfig, context)
    source, folder = needed(settings.prompts, _NO_PROMPTS), needed(settings.out, NO_OUT)
    needed(settings.teacher, _NO_MODEL)
    made = shown(answer_prompts, source, **given(settings, "prompts"))
    print_lines(made.lines())
    ended_short(made.problem or made.stopped, folder)

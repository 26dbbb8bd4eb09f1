"""`refed evaluate`: answers to a benchmark's prompts, and its official code over them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from refed_dspy.cli.options import (
    NO_OUT,
    given,
    needed,
    paid,
    print_lines,
    reporting,
    settings_of,
    taking,
    tell,
)

FORMATS = ("jsonl", "alpaca_eval", "arena_hard", "ifeval")
_NO_ANSWERED = "prompts: no prompts; name their file with --prompts FILE"
_NO_MODEL = (
    "no model: choose one with --model (openai/gpt-4.1-mini, a teacher file, embedded, or simulated to try it out)"
)
NO_JUDGE = "no judge: choose one with --judge (PROVIDER/NAME, or a teacher file) or REFED_JUDGE"
_NO_OUTPUTS = "outputs: no answers to judge; name their file or folder with --outputs"
_NO_BASELINE = "baseline: no answers to compare with; name their file or folder with --baseline"
_NO_CLONE = "clone: no clone of lmarena/arena-hard-auto; name its folder with --clone DIR"
_NO_PROMPTS = "prompts: no prompts to check; name IFEval's input_data.jsonl with --prompts FILE"

_OFFICIAL: Mapping[str, Any] = {
    "environment": Annotated[
        Path | None,
        typer.Option(
            "--environment",
            "--python",
            help="An environment that has the benchmark's package.",
            metavar="DIR_OR_PYTHON",
            show_default="made once",
        ),
    ],
    "data": Annotated[
        str | None,
        typer.Option(
            help="What the model was trained on; the result says what of it overlaps with the prompts.",
            metavar="DIR_OR_FILE",
        ),
    ],
}
"""The options of all official benchmarks."""
evaluate_app = typer.Typer(
    no_args_is_help=True,
    help="Have a model answer prompts, and run official benchmarks with a judge of your own.",
)
app = typer.Typer()
app.add_typer(evaluate_app, name="evaluate")


@evaluate_app.command("answers", options_metavar="--prompts FILE --model FILE_OR_NAME --out DIR [OPTIONS]")
@reporting
@paid("out", "seed")
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
) -> None:
    """Have a model answer a file of prompts, as a benchmark's code reads it. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.plugins.evaluate.answers.answers import answer_prompts
    from refed_dspy.plugins.evaluate.settings import AnswersConfig

    settings = settings_of(AnswersConfig, context)
    source, folder = needed(settings.prompts, _NO_ANSWERED), needed(settings.out, NO_OUT)
    needed(settings.teacher, _NO_MODEL)
    made = shown(answer_prompts, source, **given(settings, "prompts"))
    tell(made.lines(), folder, made.problem or made.stopped)


@evaluate_app.command("alpaca-eval", options_metavar="--outputs FILE --baseline FILE --judge NAME --out DIR [OPTIONS]")
@reporting
@paid("judge", "out", "track", **_OFFICIAL)
def alpaca_eval_(
    context: typer.Context,
    outputs: Annotated[
        str | None, typer.Option(help="The model's answers: model_outputs.json.", metavar="FILE_OR_DIR")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Another model's answers to the same prompts.", metavar="FILE_OR_DIR")
    ] = None,
    gamed: Annotated[
        Path | None,
        typer.Option(
            help="AlpacaEval's df_gamed.csv, for its own length-controlled figure.",
            metavar="FILE",
            show_default="a fit of our own",
        ),
    ] = None,
) -> None:
    """Run AlpacaEval 2's own code on answers. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.plugins.evaluate.alpaca_eval.evaluate import alpaca_eval
    from refed_dspy.plugins.evaluate.settings import AlpacaEvalConfig

    settings = settings_of(AlpacaEvalConfig, context)
    model, against = needed(settings.outputs, _NO_OUTPUTS), needed(settings.baseline, _NO_BASELINE)
    needed(settings.judge, NO_JUDGE)
    folder = needed(settings.out, NO_OUT)
    made = shown(alpaca_eval, model, against, **given(settings, "outputs", "baseline"))
    why = made.problem or made.stopped
    tell(made.lines(), folder, why, "" if made.stopped else "table, figures, picture and annotations")


@evaluate_app.command("annotations")
@reporting
def annotations_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="AlpacaEval's annotations.json.")],
) -> None:
    """Print figures of AlpacaEval's annotations. Calls no model."""
    from refed_dspy.plugins.evaluate.alpaca_eval.files import annotation_lines, read_annotations

    print_lines(annotation_lines(read_annotations(file)))


@evaluate_app.command(
    "arena-hard", options_metavar="--clone DIR --answers FILE [--answers FILE …] --judge NAME --out DIR [OPTIONS]"
)
@reporting
@paid("judge", "out", "track", **_OFFICIAL)
def arena_hard_(
    context: typer.Context,
    clone: Annotated[Path | None, typer.Option(help="A clone of lmarena/arena-hard-auto.", metavar="DIR")] = None,
    answers: Annotated[
        list[Path] | None, typer.Option(help="A model's answers: NAME.jsonl; may be repeated.", metavar="FILE")
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(help="arena-hard-v2.0, arena-hard-v0.1.", metavar="NAME", show_default="arena-hard-v2.0"),
    ] = None,
    category: Annotated[
        str | None, typer.Option(help="hard_prompt, creative_writing.", metavar="NAME", show_default="hard_prompt")
    ] = None,
    questions: Annotated[
        int | None, typer.Option(help="How many questions are judged.", metavar="N", show_default="all")
    ] = None,
    style_control: Annotated[
        bool | None, typer.Option("--style-control/--no-style-control", help="Also score at equal style.")
    ] = None,
) -> None:
    """Run Arena-Hard's own code on answers. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.plugins.evaluate.arena_hard.evaluate import arena_hard
    from refed_dspy.plugins.evaluate.settings import ArenaHardConfig

    settings = settings_of(ArenaHardConfig, context, answers=answers or None)
    repository = needed(settings.clone, _NO_CLONE)
    needed(settings.judge, NO_JUDGE)
    folder = needed(settings.out, NO_OUT)
    made = shown(arena_hard, repository, settings.answers, **given(settings, "clone", "answers"))
    why = made.problem or made.stopped
    tell(made.lines(), folder, why, "" if made.stopped else "table, figures, picture and judgments")


@evaluate_app.command(
    "ifeval", options_metavar="--prompts FILE --answers FILE_OR_DIR [--answers …] --out DIR [OPTIONS]"
)
@reporting
@taking("out", "track", "config", **_OFFICIAL)
def ifeval_(
    context: typer.Context,
    prompts: Annotated[Path | None, typer.Option(help="IFEval's input_data.jsonl.", metavar="FILE")] = None,
    answers: Annotated[
        list[Path] | None, typer.Option(help="A model's responses; may be repeated.", metavar="FILE_OR_DIR")
    ] = None,
) -> None:
    """Check answers by IFEval's own checker. Calls no model."""
    from refed_dspy.plugins.evaluate.ifeval.evaluate import ifeval
    from refed_dspy.plugins.evaluate.settings import IFEvalConfig

    settings = settings_of(IFEvalConfig, context, answers=answers or None)
    source, folder = needed(settings.prompts, _NO_PROMPTS), needed(settings.out, NO_OUT)
    made = ifeval(source, settings.answers, **given(settings, "prompts", "answers"))
    tell(made.lines(), folder, written="table and figures")

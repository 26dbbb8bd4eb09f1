"""`refed judge`: pages on which people judge answers, how well they agree, and what a judge makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refed_dspy.cli.options import (
    NO_JUDGE,
    NO_OUT,
    OPTIMIZERS,
    CriteriaOption,
    ended_short,
    given,
    names_in,
    needed,
    paid,
    print_lines,
    reporting,
    settings_of,
    taking,
    tell,
)
from refed_dspy.cli.printing import say
from refed_dspy.errors import CAPS, ConfigError
from refed_dspy.text import counted

judge_app = typer.Typer(no_args_is_help=True, help="Compare a judge with people, and train it on what they say.")
app = typer.Typer()
app.add_typer(judge_app, name="judge")


@judge_app.command("annotate", options_metavar="--pairs N --out FOLDER [OPTIONS]")
@reporting
def annotate_(
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="Folder of a run, a filtering, a comparison or a compile; a file; a Hub data set."
        ),
    ],
    pairs: Annotated[int, typer.Option(help="Pairs of answers, drawn at random.", metavar="N")],
    out: Annotated[Path, typer.Option(help="Folder to create.", metavar="FOLDER")],
    annotators: Annotated[int, typer.Option(help="How many people: each gets a page.", metavar="K")] = 2,
    criteria: Annotated[
        list[str] | None,
        typer.Option(
            help="Grade answers by these, too: names with commas between, or 'NAME: what it means'; may be repeated.",
            metavar="NAMES",
        ),
    ] = None,
    between: Annotated[
        str | None,
        typer.Option(help="Two programs of a comparison.", metavar="A,B", show_default="the others against its own"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed for the draw, the order and the sides.", metavar="N")] = 0,
) -> None:
    """Make pages on which people compare two answers, one for each annotator; they need no server."""
    from refed_dspy.plugins.judge.annotate.annotate import annotate

    made = annotate(
        data,
        out,
        pairs=pairs,
        annotators=annotators,
        criteria=_criteria(criteria or []),
        between=names_in(between),
        seed=seed,
    )
    for file in made.files:
        say(file)
    people = "each person a page" if len(made.files) > 1 else "the page to its annotator"
    say(f"{counted(made.pairs, 'pair')} on each page; send {people} and keep key.json, which says what was whose;")
    from refed_dspy.data.stored import work_in

    judged = Path(data).is_dir() and work_in(Path(data)) in {"compile", "comparison"}
    of = f" --judged {data}" if judged else ""
    say(f"put the files that come back into {out}, then: refed judge people {out}{of}")


def _criteria(options: list[str]) -> dict[str, str]:
    """Name → what it means, empty where that is not said."""
    found: dict[str, str] = {}
    for option in options:
        name, colon, meaning = option.partition(":")
        found |= {name.strip(): meaning.strip()} if colon else dict.fromkeys(names_in(option) or [], "")
    return found


@judge_app.command(options_metavar="[OPTIONS]")
@reporting
def people(
    pairs: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder of pages, or a file of pairs with annotators.")
    ],
    judged: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the comparison, compile or run that the pairs are of: correct its judge by people.",
            metavar="DIR",
        ),
    ] = None,
    criteria: CriteriaOption = None,
    seed: Annotated[int, typer.Option(help="Seed for the intervals' resampling.", metavar="N")] = 0,
) -> None:
    """Measure how well people agree with each other, and what they prefer. No judge is asked."""
    from refed_dspy.plugins.judge.people import people_agreement

    if judged is not None:
        from refed_dspy.plugins.judge.corrected import people_gain

        if criteria is not None:
            raise ConfigError("criteria: the judge compared answers by their overall quality; leave it out")
        print_lines(people_gain(judged, pairs, seed=seed).lines())
        return
    for line in people_agreement(pairs, criteria=names_in(criteria), seed=seed).lines():
        say(line)


@judge_app.command(options_metavar="--pairs PATH --judge FILE_OR_NAME [OPTIONS]")
@reporting
@taking("accept_changed", last=CAPS)
def agreement(
    context: typer.Context,
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
    seed: Annotated[int, typer.Option(help="Seed for the draw.", metavar="N")] = 0,
) -> None:
    """Measure how well a judge agrees with people. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.loading import load_config
    from refed_dspy.plugins.judge.agree import measure_agreement
    from refed_dspy.plugins.metrics.settings import StatsConfig

    model = load_config(StatsConfig, judge=judge).judge
    needed(model, f"{NO_JUDGE}; how people agree with each other needs none: refed judge people PATH")
    measured = shown(
        measure_agreement, pairs, model, out, criteria=names_in(criteria), count=count, program=program,
        judge_scorer=judge_scorer and {"model": judge_scorer}, seed=seed,
        accept_changed=bool(context.params["accept_changed"]), **{cap: context.params[cap] for cap in CAPS},
    )  # fmt: skip
    print_lines(measured.lines())
    ended_short(measured.stopped, out)


@judge_app.command(options_metavar="--pairs FILE --judge FILE_OR_NAME --out DIR [OPTIONS]")
@reporting
@paid("pairs", "judge", "out", "accept_changed")
def train(
    context: typer.Context,
    criteria: CriteriaOption = None,
    program: Annotated[str | None, typer.Option(help="A compiled judge to start from.", metavar="FILE_OR_URI")] = None,
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
    seed: Annotated[int | None, typer.Option(help="Seed for what is held out.", metavar="N", show_default="0")] = None,
) -> None:
    """Train a judge on people's verdicts, and measure it on what it did not see. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.plugins.judge.settings import JudgeTrainingConfig
    from refed_dspy.plugins.judge.training.train import train_judge

    model_of_scorer = scorer and {"model": scorer}
    settings = settings_of(JudgeTrainingConfig, context, criteria=names_in(criteria), scorer=model_of_scorer)
    source = needed(settings.pairs, "pairs: no verdicts of people; name their file with --pairs FILE")
    folder = needed(settings.out, NO_OUT)
    model = needed(settings.judge, NO_JUDGE)
    made = shown(train_judge, source, model, **given(settings, "pairs", "judge"))
    tell(made.lines(), folder, made.stopped)

"""`refed annotate` and `refed judge people`: pages on which people judge answers, and how well they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from refed_dspy.cli.compile import judge_app
from refed_dspy.cli.options import CriteriaOption, names_in, reporting
from refed_dspy.cli.printing import say
from refed_dspy.cli.stopping import at_work
from refed_dspy.text import counted

app = typer.Typer()


@app.command("annotate", options_metavar="--pairs N --out FOLDER [OPTIONS]")
@reporting
def annotate_(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="Folder of a run, a filtering or a comparison; a file; a Hub data set."),
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
    from refed_dspy.sharing.annotate.annotate import annotate

    at_work()
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
    say(f"put the files that come back into {out}, then: refed judge people {out}")


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
    criteria: CriteriaOption = None,
    seed: Annotated[int, typer.Option(help="Seed for the intervals' resampling.", metavar="N")] = 0,
) -> None:
    """Measure how well people agree with each other, and what they prefer. No judge is asked."""
    from refed_dspy.optimizers.people import people_agreement

    at_work()
    for line in people_agreement(pairs, criteria=names_in(criteria), seed=seed).lines():
        say(line)

"""`refed stats`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from refed_dspy.cli.options import (
    NO_DATA,
    Data,
    JsonOption,
    ScorerOption,
    ended_short,
    given,
    needed,
    paid,
    print_lines,
    reporting,
    settings_of,
)
from refed_dspy.cli.printing import say

app = typer.Typer()


@app.command("stats")
@reporting
@paid("judge", "out", "seed", "cluster")
def stats_(
    context: typer.Context,
    data: Data = None,
    scorer: ScorerOption = None,
    sample: Annotated[int | None, typer.Option(help="Rows to draw for slow or paid measurements.", metavar="N")] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure a data set: lengths, diversity, coherence, perplexity, win rate of improved over first responses."""
    from refed_dspy.cli.display import shown
    from refed_dspy.plugins.metrics.settings import StatsConfig
    from refed_dspy.plugins.metrics.stats import measure

    settings = settings_of(StatsConfig, context, scorer=scorer and {"model": scorer})
    source = needed(settings.data, NO_DATA)
    made = shown(measure, source, **given(settings, "data"))
    if as_json:
        say(json.dumps(made.facts(), ensure_ascii=False, indent=1))
    else:
        print_lines(made.lines())
    ended_short(made.wins.stopped if made.wins is not None else "", settings.out)

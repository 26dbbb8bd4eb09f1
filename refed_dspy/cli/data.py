"""The commands around data sets: compare, filter, recycle, stats."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from refed_dspy.cli.options import (
    NO_OUT,
    NO_TEACHER,
    AcceptChanged,
    ClusterOption,
    ConfigOption,
    JsonOption,
    JudgeOption,
    MaxCalls,
    MaxCost,
    MaxMinutes,
    OutOption,
    ReferencesOption,
    SeedOption,
    TeacherOption,
    TrackOption,
    ended_short,
    given,
    needed,
    print_lines,
    reporting,
    say_where_tracked,
    settings_of,
)
from refed_dspy.cli.printing import say
from refed_dspy.errors import ConfigError, one_line
from refed_dspy.text import nearest

Data = Annotated[
    str | None,
    typer.Argument(
        metavar="DATA", help="A file, a Hub data set or a run's folder; default: `data` in the settings file."
    ),
]
ScorerOption = Annotated[
    str | None, typer.Option(help="Folder or Hub name of the model that scores perplexity.", metavar="NAME")
]
_NO_DATA = "data: no data set; pass a file, a Hub data set or a run's folder"

app = typer.Typer()


@app.command("compare", options_metavar="--teacher FILE_OR_NAME --out DIR [OPTIONS]")
@reporting
def compare_(
    context: typer.Context,
    references: ReferencesOption = None,
    size: Annotated[
        int | None, typer.Option(help="Instructions that every program answers.", metavar="N", show_default="100")
    ] = None,
    out: OutOption = None,
    teacher: TeacherOption = None,
    judge: JudgeOption = None,
    against: Annotated[str | None, typer.Option(help="The program to compare the others with.", metavar="NAME")] = None,
    accept_changed: AcceptChanged = None,
    config: ConfigOption = None,
    seed: SeedOption = None,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
    track: TrackOption = None,
) -> None:
    """Compare programs on the same references: win rates, costs, filters. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.jobs import CompareConfig
    from refed_dspy.runs.compare.compare import compare

    settings = settings_of(CompareConfig, context)
    folder = needed(settings.out, NO_OUT)
    needed(settings.teacher, NO_TEACHER)
    _check_programs(settings.programs)
    references_ = settings.references or "builtin"
    made = shown(compare, settings.programs, references_, **given(settings, "programs", "references"))
    print_lines(made.lines())
    say(f"table, rows, pairs and pictures in {folder}")
    say_where_tracked(folder)
    ended_short(made.stopped, folder)


@app.command("filter", options_metavar="--filter NAME_OR_YAML --out DIR [OPTIONS]")
@reporting
def filter_(
    context: typer.Context,
    data: Data = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", help="refusals, or 'rouge: {threshold: 0.7}'; may be repeated.", metavar="NAME_OR_YAML"
        ),
    ] = None,
    out: OutOption = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another filtering in the folder.")] = False,
    judge: JudgeOption = None,
    accept_changed: AcceptChanged = None,
    config: ConfigOption = None,
    seed: SeedOption = None,
    cluster: ClusterOption = None,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
) -> None:
    """Filter a data set: write kept and dropped rows with reasons and scores. The data itself is not changed."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.jobs import FilterRunConfig
    from refed_dspy.runs.filter.filter import filter_data

    chosen = [_as_yaml(text) for text in filters] if filters else None
    settings = settings_of(FilterRunConfig, context, filters=chosen)
    folder, source = needed(settings.out, NO_OUT), needed(settings.data, _NO_DATA)
    made = shown(filter_data, source, settings.filters, force=force, **given(settings, "data", "filters"))
    print_lines(made.lines())
    ended_short(made.problem or made.stopped, folder)


@app.command("recycle", options_metavar="--teacher FILE_OR_NAME --out DIR [OPTIONS]")
@reporting
def recycle_(
    context: typer.Context,
    data: Data = None,
    size: Annotated[
        int | None, typer.Option(help="Rows to recycle, drawn at random.", metavar="N", show_default="all")
    ] = None,
    out: OutOption = None,
    teacher: TeacherOption = None,
    selective: Annotated[
        bool | None,
        typer.Option("--selective", help="Keep a new part only if IFD or r-IFD favours it; needs --scorer."),
    ] = None,
    scorer: ScorerOption = None,
    config: ConfigOption = None,
    seed: SeedOption = None,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
) -> None:
    """Improve an existing data set's instructions and responses by Reflection-Tuning. Run it again to continue."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.jobs import RecycleConfig
    from refed_dspy.runs.recycle.recycle import recycle

    settings = settings_of(RecycleConfig, context, scorer=scorer and {"model": scorer})
    folder, source = needed(settings.out, NO_OUT), needed(settings.data, _NO_DATA)
    needed(settings.teacher, NO_TEACHER)
    made = shown(recycle, source, **given(settings, "data"))
    print_lines(made.lines())
    say(f"rows and table in {folder}")
    ended_short(made.stopped, folder)


@app.command("stats")
@reporting
def stats_(
    context: typer.Context,
    data: Data = None,
    scorer: ScorerOption = None,
    judge: JudgeOption = None,
    sample: Annotated[int | None, typer.Option(help="Rows to draw for slow or paid measurements.", metavar="N")] = None,
    out: OutOption = None,
    config: ConfigOption = None,
    seed: SeedOption = None,
    cluster: ClusterOption = None,
    as_json: JsonOption = False,
    max_cost: MaxCost = None,
    max_calls: MaxCalls = None,
    max_minutes: MaxMinutes = None,
) -> None:
    """Measure a data set: lengths, diversity, coherence, perplexity, win rate of improved over first responses."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.jobs import StatsConfig
    from refed_dspy.runs.stats import measure

    settings = settings_of(StatsConfig, context, scorer=scorer and {"model": scorer})
    source = needed(settings.data, _NO_DATA)
    made = shown(measure, source, **given(settings, "data"))
    if as_json:
        say(json.dumps(made.facts(), ensure_ascii=False, indent=1))
    else:
        print_lines(made.lines())
    ended_short(made.wins.stopped if made.wins is not None else "", settings.out)


def _as_yaml(text: str) -> Any:
    """A filter as an option gives it: its name, or a line of YAML."""
    import yaml

    from refed_dspy.files import parse_yaml

    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--filter {one_line(text, 60)!r}: not YAML; write NAME or 'NAME: {{key: value}}'") from None


def _check_programs(programs: Mapping[str, str]) -> None:
    """Raises ConfigError for a program that is no method, no file and no MLflow address. It suggests what was meant,
    where a file's reader could only say that there is no such file."""
    from refed_dspy.programs.baselines import METHODS
    from refed_dspy.programs.load import names_own_program
    from refed_dspy.programs.mlflow_address import is_address
    from refed_dspy.programs.saved import OWN

    methods = ["seed-only", *METHODS, *OWN]
    for name, program in programs.items():
        known = program in methods or is_address(program) or names_own_program(program)
        if not known and not Path(program).exists():
            near = nearest(program, methods)
            hint = f"did you mean {near}?" if near else f"give a program's file or one of {', '.join(methods)}"
            raise ConfigError(f"programs: {one_line(name, 40)}: no program {one_line(program, 80)!r}; {hint}")

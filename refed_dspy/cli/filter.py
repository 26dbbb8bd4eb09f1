"""`refed filter`: filters over a data set."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from refed_dspy.cli.options import (
    NO_DATA,
    NO_OUT,
    Data,
    given,
    needed,
    paid,
    reporting,
    settings_of,
    tell,
)
from refed_dspy.errors import ConfigError, one_line

app = typer.Typer()


@app.command("filter", options_metavar="--filter NAME_OR_YAML --out DIR [OPTIONS]")
@reporting
@paid("out", "judge", "accept_changed", "seed")
def filter_(
    context: typer.Context,
    data: Data = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", help="refusals, or 'rouge: {threshold: 0.7}'; may be repeated.", metavar="NAME_OR_YAML"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another filtering in the folder.")] = False,
) -> None:
    """Filter a data set: write kept and dropped rows with reasons and scores. The data itself is not changed."""
    from refed_dspy.cli.display import shown
    from refed_dspy.config.jobs import FilterRunConfig
    from refed_dspy.runs.filter.filter import filter_data

    chosen = [_as_yaml(text) for text in filters] if filters else None
    settings = settings_of(FilterRunConfig, context, filters=chosen)
    folder, source = needed(settings.out, NO_OUT), needed(settings.data, NO_DATA)
    made = shown(filter_data, source, settings.filters, force=force, **given(settings, "data", "filters"))
    tell(made.lines(), folder, made.problem or made.stopped)


def _as_yaml(text: str) -> Any:
    """A filter as an option gives it: its name, or a line of YAML."""
    import yaml

    from refed_dspy.files import parse_yaml

    try:
        return parse_yaml(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"--filter {one_line(text, 60)!r}: not YAML; write NAME or 'NAME: {{key: value}}'") from None

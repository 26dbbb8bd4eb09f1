"""`refed batches`: what a folder's batches at a provider have come to."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from refed_dspy.cli.options import RunDir, reporting
from refed_dspy.errors import one_line


def add_to(app: typer.Typer) -> None:
    app.command()(batches)


@reporting
def batches(
    run_dir: RunDir,
    give_up: Annotated[
        bool, typer.Option("--give-up", help="Ask about open batches no more; their calls stay charged, and go again.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For scripts.")] = False,
) -> None:
    """The batches of a run, a compile or other work: which are under way, and how the others ended."""
    from refed_dspy.ledger.batches import all_batches, given_up, left_batches
    from refed_dspy.ledger.ledger import Ledger

    if give_up:
        with Ledger.read(run_dir), Ledger.create(run_dir) as ledger:
            left = left_batches(ledger)
            ledger.commit(given_up(batch["id"] for batch in left))
            typer.echo(given_up_line(left))
            return
    with Ledger.read(run_dir) as ledger:
        facts = all_batches(ledger)
    if as_json:
        typer.echo(json.dumps(facts))
    else:
        typer.echo("\n".join(map(told, facts)) or f"{run_dir}: no batches; they come with mode: batch or mixed")


def given_up_line(left: Sequence[Mapping[str, Any]]) -> str:
    """What became of the calls in the batches `left`, for people."""
    arrived = sum(batch["arrived"] for batch in left)
    lost = sum(batch["calls"] for batch in left) - arrived
    kept = f"; {arrived} answers that have come are kept for a run in batches" if arrived else ""
    return f"{len(left)} given up: {lost} calls stay charged in full{kept}"


def told(batch: Mapping[str, Any]) -> str:
    """One batch in a line, for people."""
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(batch["created"]))
    state = batch["state"] or ("under way" if batch["name"] else "not known to be there")
    waiting = f", {batch['calls']} calls not settled" if batch["calls"] else ""
    name = one_line(batch["name"] or f"(refed_batch {batch['nonce']})")
    return f"{name}: {batch['requests']} requests of {begun} to {batch['model']}, {state}{waiting}"

"""The shards of a run: each is an ordinary run folder about its share of the references, fixed for the run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from refed_dspy.data.references import References
from refed_dspy.errors import ConfigError
from refed_dspy.ledger.connection import SHARDS, Fence, take_over
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.runs.spec import RunSpec
from refed_dspy.teachers.caps import NO_CAPS
from refed_dspy.teachers.work import Work

USUAL = 64
"""Shards of a run, unless it is told another number or has few references."""
FEWEST = 4
"""References of a shard, unless a run is told how many shards it has: with fewer, a shard is soon dry."""


def shard_folder(run: Path, number: int) -> Path:
    """The folder of one shard of the run in `run`."""
    return run / SHARDS / f"{number:03}"


def number_of_shards(asked: int | None, references: int) -> int:
    """How many shards a new run has. Raises ConfigError where there are fewer references."""
    if asked is None:
        return max(1, min(USUAL, references // FEWEST))
    if asked > references:
        raise ConfigError(f"shards: {asked} shards of {references} references; use at most {references}")
    return asked


def shard_of(spec: RunSpec, number: int, shards: int) -> RunSpec:
    """The part of the run that one shard is: every `shards`-th reference."""
    config = spec.config.model_copy(update={"run_dir": shard_folder(spec.folder, number), "track": False})
    mine = References(spec.references.items[number::shards])
    return replace(spec, config=config, references=mine)


def prepare_shard(folder: Path, work: Work) -> None:
    """Make a shard's folder, or bring its settings up to date: a worker needs nothing but the folder.

    Raises RunDirError: it is in use, or belongs to another run.
    """
    if Fence.of(folder) is None:
        take_over(folder, 0)
    with Ledger.create(folder) as ledger:
        work.refuse_another(ledger)
        work.record(ledger, NO_CAPS)

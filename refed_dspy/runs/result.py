"""A run's outcome, read from its folder: finished, unfinished, or running right now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refed_dspy.data.export import export, to_dataset
from refed_dspy.data.rows import Samples, dropped_rows
from refed_dspy.data.writers import usage_by_model
from refed_dspy.engine.ledger import Ledger
from refed_dspy.engine.summary import decided_by_filter, run_status
from refed_dspy.errors import ExportError, RunDirError
from refed_dspy.forecast import as_facts, forecast
from refed_dspy.identity import named
from refed_dspy.records import Failure
from refed_dspy.writing import write_lines


@dataclass(frozen=True)
class Synthesis:
    """A run's outcome. `samples` reads from the run's folder as it is looked at."""

    run_dir: Path
    size: int
    samples: Samples
    failures: list[Failure]
    usage: dict[str, dict[str, Any]]
    """Stage → calls, tokens and dollars, over the whole run."""
    left_out: Mapping[str, int]
    """Reason → references left out."""
    status: dict[str, Any]
    stopped: str | None = None
    """Where a cap ended the run before its size: which, what there is, and what more would take. Else None."""

    @property
    def complete(self) -> bool:
        """Whether `size` samples were kept; False where every reference ran dry first."""
        return len(self.samples) >= self.size

    def to_dataset(self) -> Any:
        """The samples as a `datasets.Dataset`."""
        return to_dataset(self.run_dir)

    def export(self, format: str, out: str | Path, *, force: bool = False) -> int:  # noqa: A002
        """Write the samples to a file; see `refed export`."""
        return export(self.run_dir, format, Path(out), force=force)

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The rows that filters dropped, each with filter, reason and score (`data.rows.DROPPED_COLUMNS`)."""
        with Ledger.read(self.run_dir) as ledger:
            yield from dropped_rows(ledger)


def read_run(run_dir: str | Path) -> Synthesis:
    """The outcome, so far, of the run in `run_dir`. Raises RunDirError where there is none."""
    folder = Path(run_dir)
    with Ledger.read(folder) as ledger:
        if (holds := ledger.holds()) not in {"", "run", "comparison"}:
            raise RunDirError(f"{folder}: holds {named(holds)}, not a run")
        status, failures = full_status(ledger), ledger.failures()
    return Synthesis(
        folder,
        status["size"],
        Samples(folder),
        failures,
        status["usage"],
        status["left_out"],
        status,
        status["stopped"],
    )


def export_dropped(run_dir: Path, out: Path, *, force: bool = False) -> int:
    """Write the rows that the run's filters dropped to `out` as JSON lines, whole or not at all; returns how many.

    Raises:
        ExportError: `out` exists and `force` is not set, it cannot be written, or nothing was dropped.
        RunDirError: no run there.
    """
    with Ledger.read(run_dir) as ledger:
        if out.exists() and not force:
            raise ExportError(f"{out}: exists; name another file, or overwrite it with --force")
        count = sum(one["dropped"] for one in decided_by_filter(ledger))
        if not count:
            raise ExportError(f"{run_dir}: no filter dropped anything; without --dropped, its samples are written")
        written = 0

        def counted() -> Iterator[dict[str, Any]]:
            nonlocal written
            for written, row in enumerate(dropped_rows(ledger), start=1):  # noqa: B007 — counted for the return
                yield row

        write_lines(out, counted())
    return written


def full_status(ledger: Ledger) -> dict[str, Any]:
    """`run_status`, what each of the `models` took, and what the whole run is projected to take (None while too little
    was made)."""
    status = run_status(ledger)
    begun = bool(ledger.meta("identity")) and not status["complete"]
    status["models"] = usage_by_model(ledger)
    return {**status, "projected": as_facts(forecast(ledger)) if begun else None}

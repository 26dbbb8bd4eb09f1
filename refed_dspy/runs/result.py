"""A run's outcome, read from its folder: finished, unfinished, or running right now."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from refed_dspy.config.keywords import checked
from refed_dspy.data.export import export, to_dataset
from refed_dspy.data.rows import LINEAGE_COLUMNS, PAPER_COLUMNS, Samples, data_rows, dropped_rows
from refed_dspy.errors import PASSING, CapReached, ExportError, RunDirError, briefly, one_line, setting
from refed_dspy.files import path_of, write_lines
from refed_dspy.ledger.account import status_of
from refed_dspy.ledger.history import simulated_note
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.ledger.states import CAPPED, DONE, RUNNING, End, named_work, state_of
from refed_dspy.ledger.summary import live_numbers, seconds_left
from refed_dspy.records import PICO, Failure, Sample, dollars
from refed_dspy.runs.forecast import Forecast, as_facts, forecast
from refed_dspy.text import Shown, counted

if TYPE_CHECKING:
    import datasets
    import pandas as pd

_FOR_PACE = 20_000
"""The newest samples tell how fast a run is."""
SAMPLES = "samples-at-cap.jsonl"
"""Where in the run's folder a run that ended at a cap leaves its samples."""


@dataclass(frozen=True, repr=False)
class Synthesis(Shown, Sequence[Sample]):
    """A run's outcome, and a sequence of its samples, which are read from the run's folder when they are accessed.

    So are its `size`, `state` and `reason`, and what it shows: the run may go on. `failures`, `usage`, `left_out` and
    `status` are as they were when this was read.
    """

    run_dir: Path
    samples: Samples
    failures: list[Failure]
    usage: dict[str, dict[str, Any]]
    """Stage → calls, tokens and dollars, over the whole run."""
    left_out: Mapping[str, int]
    """Reason → references left out."""
    status: dict[str, Any]

    @property
    def size(self) -> int:
        """How many samples the run shall keep."""
        return int(self.samples.ledger.meta("size") or 0)

    @property
    def state(self) -> str:
        """How the run stands now: running, stopped, killed, ended short, at its cap or done."""
        return str(state_of(self.samples.ledger)["state"])

    @property
    def reason(self) -> str:
        """Why the run is in its state and what to do, where it is not done: at a cap also what more would take."""
        return str(state_of(self.samples.ledger)["reason"])

    @property
    def complete(self) -> bool:
        """Whether `size` samples were kept; False where no reference gave anything new before that."""
        return len(self.samples) >= self.size

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        return self.samples[index]

    def __fspath__(self) -> str:
        return str(self.run_dir)

    def _describe(self) -> str:
        ledger, state = self.samples.ledger, self.state
        simulated = " (simulated: for trying refed out only)" if simulated_note(ledger) else ""
        state = "" if state == DONE else f", {state}"
        return f"{len(self)} of {self.size} samples{simulated}{state}, {spent(ledger).money}, in {self.run_dir}"

    def _table(self) -> tuple[Sequence[str], Iterable[Sequence[object]]]:
        return self.samples._table()

    def to_dataset(self) -> datasets.Dataset:
        """The samples as a `datasets.Dataset`: all columns of a row."""
        return to_dataset(self.run_dir)

    def to_pandas(self) -> pd.DataFrame:
        """The same as a data frame."""
        import pandas as pd

        rows = list(self.samples.rows())
        return pd.DataFrame(rows, columns=None if rows else [*PAPER_COLUMNS, *LINEAGE_COLUMNS])

    @briefly
    def export(self, format: str, out: str | Path, *, force: bool = False, reasoning: bool = False) -> int:  # noqa: A002
        """Write the samples to a file, and return how many samples or pairs; see `refed export`."""
        return export(self.run_dir, format, path_of(out, "out"), force=force, reasoning=reasoning).count

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The rows that filters dropped, each with filter, reason and score (`data.rows.DROPPED_COLUMNS`)."""
        with Ledger.read(self.run_dir) as ledger:
            yield from dropped_rows(ledger)


@briefly
@checked
def read_run(run_dir: str | Path) -> Synthesis:
    """The outcome so far of the run in `run_dir`. Raises RunDirError if there is no run."""
    folder = path_of(run_dir, "run_dir")
    with Ledger.read(folder) as ledger:
        if (holds := ledger.holds()) not in {"", "run", "comparison"}:
            raise RunDirError(f"{folder}: contains {named_work(holds)}, not a run")
        status, failures = full_status(ledger), ledger.failures()
    return Synthesis(
        folder,
        Samples(folder),
        failures,
        status["usage"],
        status["left_out"],
        status,
    )


def full_status(ledger: Ledger) -> dict[str, Any]:
    """`status_of` the run, what the whole is projected to take (None while too little was made), and while it is
    running how many `seconds_left` it has (None while that cannot be told). On a cluster also `cluster`
    (`live_numbers`), which has `kept` and `cost` while it is running."""
    status = status_of(ledger)
    if (cluster := live_numbers(ledger.path.parent)) is not None:
        live = {name: cluster[name] for name in ("kept", "cost")} if status["state"] == RUNNING else {}
        status |= {**live, "cluster": cluster}
    left = _seconds_left(ledger, status) if status["state"] == RUNNING else None
    begun = bool(ledger.meta("identity")) and status["kept"] < status["size"]
    return {**status, "seconds_left": left, "estimate": as_facts(forecast(ledger)) if begun else None}


def _seconds_left(ledger: Ledger, status: Mapping[str, Any]) -> float | None:
    made = "SELECT created FROM samples WHERE created >= (SELECT max(begun) FROM starts) ORDER BY seq DESC LIMIT ?"
    moments = [moment for (moment,) in ledger.db.execute(made, (_FOR_PACE,))][::-1]
    return seconds_left(moments, time.time(), status["size"] - status["kept"], status["used"]["in_flight"])


def why_short(failures: Sequence[Failure], dropped: int = 0) -> str:
    """Why there are fewer samples than asked for, and what to do, in one line: the most frequent of `failures`, with
    the last one's reason, and the rows that filters `dropped`."""
    causes, remedies = [], ["add references", "set a smaller size"]
    if failures:
        (stage, kind), count = Counter((each.stage, each.kind) for each in failures).most_common(1)[0]
        last = [each.reason for each in failures if (each.stage, each.kind) == (stage, kind)][-1]
        causes.append(f"{count} {kind} in {stage}, the last one: {one_line(last, 200)}")
    if dropped:
        causes.append(f"filters dropped {counted(dropped, 'row')}")
        remedies.insert(1, "loosen a filter in a new run")
    if any(each.kind in PASSING for each in failures):
        remedies.insert(0, "run it again to retry unanswered questions")
    why = "; ".join(causes) or "none gave anything new in three rounds"
    return f"{why} — {', '.join(remedies[:-1])}, or {remedies[-1]}"


def end_at_cap(folder: Path, cap: CapReached, go_on: Callable[[str], str]) -> End:
    """Export the samples so far, and return the end whose reason says what there is and how to go on: `go_on` is
    the call with a setting changed. A comparison's samples are not exported: it writes a table of its own."""
    with Ledger.read(folder) as ledger:
        kept, size = ledger.kept(), int(ledger.meta("size"))
        prediction, used, limit = forecast(ledger), spent(ledger), ledger.meta(cap.cap)
        is_run = ledger.holds() == "run"
        failed = Counter(failure.kind for failure in ledger.failures()).most_common(1)
    shown = dollars(limit * PICO) if cap.cap == "max_cost" else f"{limit:,.10g}"
    reached = f"{cap.cap} {shown} is reached after {_used_text(cap.cap, used)}"
    start = f"{reached}: {kept} of {size} samples are kept"
    if kept and is_run:
        start += _export_text(folder)
    if prediction is None:
        why = f"; the most frequent failure was {failed[0][0]}" if failed else ""
        line = f"{start}{why}; too few to forecast the rest; continue with: " + go_on(setting(cap.cap, "MORE"))
    else:
        would_take, enough = _to_go_on(cap, prediction, used, limit)
        line = f"{start}; the other {size - kept} would {would_take}; continue with: " + go_on(setting(cap.cap, enough))
    return End(CAPPED, line, reached)


def drop_samples(folder: Path) -> None:
    """Remove what an earlier start, ended by a cap, exported into the folder: the run has gone past it."""
    with suppress(OSError):
        (folder / SAMPLES).unlink(missing_ok=True)


def _export_text(folder: Path) -> str:
    """Export the samples into the folder. Returns what the message says of it: a file that cannot be written is no
    error."""
    try:
        with Ledger.read(folder) as ledger:
            write_lines(folder / SAMPLES, data_rows(ledger))
    except ExportError as error:
        return f", not exported ({error})"
    return f", in {folder / SAMPLES}"


def _used_text(cap: str, used: Spent) -> str:
    if cap == "max_cost":
        return dollars(used.picodollars)
    return f"{used.calls:,} calls" if cap == "max_calls" else f"{used.seconds / 60:.1f} minutes"


def _to_go_on(cap: CapReached, prediction: Forecast, used: Spent, limit: float) -> tuple[str, str]:
    """What the missing samples would do ("cost about …"), and a cap that should be enough for them: the upper bound of
    the forecast, and room for a call's worst case beyond it."""
    cost = ""
    if prediction.cost is not None and prediction.low is not None and prediction.high is not None:
        about, low, high = (
            dollars((bound - prediction.spent) * PICO) for bound in (prediction.cost, prediction.low, prediction.high)
        )
        cost = f"about {about} ({low} to {high})"
    if cap.cap == "max_cost":
        return f"cost {cost}", _rounded_up(max(prediction.high or 0, limit) + cap.worst_picodollars / PICO)
    also = f", {cost}" if cost else ""
    calls, at_most = prediction.calls_to_come, prediction.calls_to_come * (1 + prediction.spread)
    if cap.cap == "max_calls":
        return f"take about {calls:,} calls{also}", str(max(math.ceil(used.calls + at_most), int(limit) + 1))
    minutes = used.seconds / 60
    a_call = minutes / max(1, used.calls)
    return f"take about {calls * a_call:.1f} minutes{also}", _rounded_up(max(minutes + at_most * a_call, 1.1 * limit))


def _rounded_up(value: float) -> str:
    """`value` rounded up to two significant digits."""
    if value <= 0:
        return "1"
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / step) * step:.10g}"

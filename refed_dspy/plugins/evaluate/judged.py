"""Benchmarks whose official code asks a judge: one runner. The code's requests go to our judge through the proxy, under
the caps and the ledger of a folder, so a second start pays for nothing twice."""

from __future__ import annotations

import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from refed_dspy.concurrency import run_blocking
from refed_dspy.data.dataset import load_dataset
from refed_dspy.data.export import InFolder
from refed_dspy.data.stored import EVALUATION, PICTURE, TABLE
from refed_dspy.errors import ModelError, setting
from refed_dspy.files import as_export_error, check_outputs, write_json, write_text
from refed_dspy.filters.overlap import Contamination, overlap
from refed_dspy.jobs.job import Job, folder_of, job
from refed_dspy.jobs.work import Work, caps_of
from refed_dspy.ledger.connection import FILE
from refed_dspy.ledger.history import simulated_note
from refed_dspy.ledger.ledger import Ledger
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.plugins.evaluate.program import Command, Installed, Package, environment, run_command
from refed_dspy.plugins.evaluate.proxy import JudgeProxy, open_proxy
from refed_dspy.plugins.evaluate.settings import EvaluationConfig
from refed_dspy.plugins.evaluate.tracked import track_evaluation
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.text import table_lines

UNCHECKED = "not checked for overlap with the training data; name it with " + setting("data")
_MOST_AT_ONCE = 64
"""Threads of a benchmark's code that ask: each makes a client of its own for every request."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluated(InFolder):
    """What the results of all of them have, written to `out`. `stopped`: the cap that ended it, or empty; then there
    are no figures."""

    out: Path
    benchmark: str
    baseline: str
    """Whose answers the others are compared with."""
    judge: str
    judge_said: Sequence[str]
    """What the judge's endpoint called itself, in the order of its answers."""
    date: str
    """When the last answer came, in UTC: a judge may be another one later."""
    asked: int
    """How many answers of the judge's are in the folder, those of earlier starts among them."""
    overlap: Contamination | None
    """None where no training data was named."""
    used: Spent
    simulated: str = ""
    """What is to be known where the simulated teacher judged; else empty."""
    stopped: str = ""

    @property
    def problem(self) -> str:
        """In one line, that some questions have no verdict; empty where all have one, or a cap ended it."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What must be known beside the figures, in a line each."""
        return [*([self.simulated] if self.simulated else []), *self._notes(), *overlap_lines(self.overlap)]

    def lines(self) -> list[str]:
        """The table, and what must be known beside it."""
        if self.stopped:
            return [self._describe()]
        heading, rows = self._table()
        cells = [tuple(map(str, row)) for row in (heading, *rows)]
        return [*table_lines(cells), "", *self.notes(), f"paid: {self.used}"]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types: see `facts_of`."""
        return facts_of(self, self._figures())

    def _notes(self) -> list[str]:
        raise NotImplementedError

    def _figures(self) -> dict[str, float]:
        raise NotImplementedError


R = TypeVar("R", bound=Evaluated)


@dataclass(frozen=True)
class Workspace:
    """Where a benchmark's code works: `working` in the evaluation's `folder`, made anew at each start. What the code
    remembers would hide what failed, and the ledger has what was paid for."""

    folder: Path
    installed: Installed

    @property
    def working(self) -> Path:
        return self.folder / "working"

    def write(self, name: str, text: str) -> None:
        """Write a file into `working`, whose folder need not be there."""
        path = self.working / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def clear(self) -> None:
        """Remove the working folder."""
        shutil.rmtree(self.working, ignore_errors=True)


class OfficialCode(ABC, Generic[R]):
    """A benchmark's code over some answers, with a judge of ours. What is wrong with them was told before."""

    name: ClassVar[str]
    """As the ledger and messages call it."""
    unit: ClassVar[str]
    """What the judge is asked about, for people."""
    package: ClassVar[Package]
    outputs: ClassVar[Sequence[str]]
    """What is written beside figures, table and picture."""
    judge: Teacher

    @property
    def at_once(self) -> int:
        """How many of the benchmark's questions go to the judge at the same time."""
        return min(self.judge.concurrency, _MOST_AT_ONCE)

    @property
    @abstractmethod
    def prompts(self) -> Sequence[str]:
        """The benchmark's."""

    @property
    @abstractmethod
    def size(self) -> int:
        """How many questions there are for the judge. Raises InputError where there are none."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What may not change between starts, besides the judge."""

    @abstractmethod
    def command(self, space: Workspace, proxy: JudgeProxy) -> Command:
        """Write what the code reads into `space`; return its command, which asks the `proxy`."""

    @abstractmethod
    async def result(self, space: Workspace, known: Mapping[str, Any]) -> R:
        """What came of it: `known`, which are the fields of `Evaluated`, and the figures, without which it is where it
        was `stopped`. Raises RunStopped where the code wrote something else."""

    @abstractmethod
    def write(self, space: Workspace, made: R) -> None:
        """Write the picture and `outputs`, each whole or not at all. Raises ExportError."""


def open_to_proxy(judge: Teacher) -> Teacher:
    """The judge. Raises ModelError for one that cannot stand behind the proxy, where its settings tell."""
    if judge.batched:
        raise ModelError("a benchmark's code waits for each answer; set mode: interactive", "judge")
    return judge


def judge_with(
    code: OfficialCode[R],
    config: EvaluationConfig,
    out: str | Path | None,
    data: Any,
    watch: Watch[Progress],
    *inputs: Any,
) -> R:
    """Run `code` and write what came of it into `out`; None: `refed-evaluations/` and a name made from what is judged
    and by whom. `data`: what the model was trained on, or None. `inputs`: what was read, as it was named.

    Raises:
        InputError: an argument cannot be used, or the environment cannot be made; nothing was paid for.
        TeacherRefused: the judge cannot do what the code asks; nothing was paid for.
        RunStopped: the judge failed, or the code did (its last lines are in the message).
    """
    work = Work(
        kind="evaluation",
        identity={**code.identity, "judge": code.judge.identity},
        models={"judge": code.judge},
        size=code.size,
        caps=caps_of(config),
        calls_each=1.0,
        unit=code.unit,
    )
    found = overlap_with(data, code.prompts)
    folder = folder_of(out, "refed-evaluations", work.stored_identity)
    check_outputs(folder, (EVALUATION, TABLE, PICTURE, *code.outputs), FILE, *inputs)  # before minutes go by
    space = Workspace(folder, environment(code.package, config.environment))
    with job(folder, work, watch) as at:
        made = run_blocking(_judged(code, space, at, found))
    track_evaluation(folder, config.track)
    return made


async def _judged(code: OfficialCode[R], space: Workspace, at: Job, found: Contamination | None) -> R:
    async with at.asking() as session, open_proxy(session, code.name) as proxy:
        with as_export_error(space.working):
            space.clear()
            command = code.command(space, proxy)
        await proxy.during(run_command(command))
    named = {"out": at.folder, "judge": code.judge.model, "overlap": found, "stopped": at.stopped}
    made = await code.result(space, {**named, **_answers(at.ledger)})
    write_json(at.folder / EVALUATION, made.facts())
    write_text(at.folder / TABLE, made.lines())
    if not at.stopped:
        code.write(space, made)
    space.clear()
    return made


def _answers(ledger: Ledger) -> dict[str, Any]:
    """What the ledger has of the judge, as fields of `Evaluated`."""
    models = "SELECT json_extract(output, '$.model') model FROM answers GROUP BY model ORDER BY min(created)"
    count, last = ledger.db.execute("SELECT count(*), max(created) FROM answers").fetchone()
    return {
        "asked": int(count),
        "judge_said": [str(name) for (name,) in ledger.db.execute(models)],
        "date": time.strftime("%Y-%m-%d", time.gmtime(last)) if last is not None else "",
        "used": spent(ledger),
        "simulated": simulated_note(ledger),
    }


# --- what IFEval has as well


def overlap_with(data: Any, prompts: Sequence[str]) -> Contamination | None:
    """What of `data`, as `load_dataset` takes it, overlaps with the prompts; None where none is named."""
    return None if data is None else overlap(load_dataset(data).rows, prompts)


def overlap_lines(found: Contamination | None) -> list[str]:
    """The same for people."""
    if found is None:
        return [UNCHECKED]
    first, *rows = found.lines()
    return [f"training data: {first}", *rows]


def facts_of(made: Any, figures: Mapping[str, float]) -> dict[str, Any]:
    """The result `made`, a dataclass with `out`, `overlap` and `notes`, in JSON types. `figures` has numbers by their
    names, for MLflow and scripts; money is in dollars, and a number that is not finite is None."""
    share = {} if made.overlap is None else {"overlap_share": made.overlap.share}
    facts = asdict(made) | {"out": str(made.out), "notes": made.notes(), "figures": {**figures, **share}}
    if "used" in facts:
        facts["used"] = {"calls": made.used.calls, "cost": None if made.used.unpriced else made.used.cost}
    return dict(json.loads(json.dumps(facts, default=str), parse_constant=lambda _: None))

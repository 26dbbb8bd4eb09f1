"""Statistics of a data set: its figures, those of the plain responses, and the win rate of improved over plain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.data.dataset import DataSet, OnDisk, data_identity, drawn, load_dataset
from refed_dspy.errors import ConfigError, NothingKept, briefly, one_line
from refed_dspy.files import as_path
from refed_dspy.jobs.job import folder_of, job
from refed_dspy.jobs.work import Work, caps_of
from refed_dspy.ledger.spending import Spent, spent
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.metrics.figures import Figures, Tools, figures, open_tools, scoring, table
from refed_dspy.plugins.metrics.settings import StatsConfig
from refed_dspy.plugins.metrics.win_rates import LC_NOTE, LengthControlled, length_controlled, win_rate
from refed_dspy.programs.judges import OVERALL, Judgements, PairwiseJudge, Verdict
from refed_dspy.programs.saved import program_digests
from refed_dspy.records import DataRow
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.failures import CallPolicy
from refed_dspy.teachers.judge import in_role, open_judge_model
from refed_dspy.teachers.progress import Progress, Watch
from refed_dspy.text import NO_VALUE, Shown

if TYPE_CHECKING:
    import pandas as pd

    from refed_dspy.keywords import StatsKeywords


@dataclass(frozen=True)
class Wins:
    """How often a judge prefers the improved response to the plain one, in percent."""

    judge: str
    rate: Interval | None
    length_controlled: LengthControlled | None
    judgements: Judgements
    """Of the rows that were asked about, of `rows`."""
    rows: int
    used: Spent
    stopped: str
    """The cap that ended it early, or nothing."""


@dataclass(frozen=True, repr=False)
class DataStats(Shown):
    """A data set's figures. `columns`: "improved" and "plain" where it has both, else "data"."""

    data: DataSet
    columns: Mapping[str, Figures]
    wins: Wins | None
    lacking: Sequence[str]
    scored: str = ""
    """The scorer's calls and tokens, where it counts them."""

    def _describe(self) -> str:
        return f"{len(next(iter(self.columns.values())))} figures of {len(self.data.rows)} rows of {self.data.name}"

    def to_pandas(self) -> pd.DataFrame:
        """The figures as a data frame: a row each, a column for each of `columns`."""
        import pandas as pd

        return pd.DataFrame({name: dict(figures) for name, figures in self.columns.items()})

    def lines(self) -> list[str]:
        """All of it for a terminal."""
        lines = table(self.columns)
        if self.data.left_out:
            left = ", ".join(f"{count} {reason}" for reason, count in self.data.left_out.items())
            lines.append(f"not read as a pair: {left}")
        if self.wins is not None:
            lines += ["", *_win_lines(self.wins)]
        ends = [f"scorer: {self.scored}"] if self.scored else []
        ends += [f"not measured: {line}" for line in self.lacking]
        return [*lines, *(["", *ends] if ends else [])]

    def facts(self) -> dict[str, Any]:
        """The same in JSON types."""
        facts: dict[str, Any] = {name: dict(column) for name, column in self.columns.items()}
        if self.wins is not None:
            facts |= _win_facts(self.wins)
        facts |= {"scorer": self.scored} if self.scored else {}
        return {**facts, "left_out": dict(self.data.left_out), "not_measured": list(self.lacking)}


@briefly
@with_keywords(StatsConfig)
def measure(
    data: Any,
    *,
    judge: Any = None,
    out: str | Path | None = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[StatsKeywords],
) -> DataStats:
    """The figures of `data` (whatever `load_dataset` takes). Only the `judge` and the scorer are models that get
    asked.

    Args:
        judge: who judges the win rate of the improved responses over the plain ones, which `data` must have, on
            `sample` rows; None: no win rate.
        out: the folder that keeps the judge's verdicts; None: `refed-verdicts/` and a name made from data and judge.
        progress, on_progress: as `synthesize`, while the judge is asked.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: the judge failed, or abstained on every row; or the scorer failed. Verdicts are kept.
    """
    config = check_config(StatsConfig, settings)
    if out is not None and judge is None:
        raise ConfigError("out: only a judge's verdicts are kept there; name a judge, or remove it")
    data = as_path(data)
    loaded = load_dataset(data, config.columns or None)
    lacking = loaded.without_plain
    _check_plain(loaded, lacking, config.columns.get("plain"), judge is not None)
    with in_role("judge"):
        opened = None if judge is None else open_judge_model(judge)
    with _tools(config) as tools:  # before the judge: what fails here costs nothing
        watch = Watch(on_progress, progress)
        wins = None if opened is None else _wins(data, loaded, opened, out, config, watch)
        with scoring("verdicts are kept; run the same command to continue"):
            columns = _columns(loaded, tools, config)
    partly_plain = (
        [f"plain responses: {lacking} of {len(loaded.rows)} rows have none"] if 0 < lacking < len(loaded.rows) else []
    )
    return DataStats(loaded, columns, wins, [*partly_plain, *tools.lacking], tools.scored())


@contextmanager
def _tools(config: StatsConfig) -> Iterator[Tools]:
    """The models that figures need: in this process, or on the nodes of a cluster."""
    if config.cluster is None:
        yield open_tools(config.embeddings, config.scorer)
        return
    from refed_dspy.plugins.metrics.on_cluster import tools_on  # what needs Ray is not imported without it

    with tools_on(config.cluster, config.embeddings, config.scorer) as tools:
        yield tools


def _check_plain(data: DataSet, lacking: int, column: str | None, judged: bool) -> None:
    """Raises ConfigError where plain responses are needed and missing."""
    if column is not None and lacking == len(data.rows):
        raise ConfigError(f"columns: plain: no row of {data.name} has a text in {one_line(column, 60)!r}")
    if judged and lacking:
        raise ConfigError(
            f"judge: {lacking} of {len(data.rows)} rows of {data.name} have no plain response to compare with; name "
            "the column in a --config file, or in Python, `columns: {plain: …}`, or remove judge"
        )


def _columns(data: DataSet, tools: Tools, config: StatsConfig) -> dict[str, Figures]:
    columns = {"data": OnDisk((row.instruction, row.response) for row in data.rows)}
    if data.has_plain:
        columns = {
            "plain": OnDisk((row.instruction, row.plain or "") for row in data.rows),
            "improved": columns["data"],
        }
    return {name: figures(pairs, tools, config.sample, config.seed) for name, pairs in columns.items()}


def _wins(
    source: Any,
    data: DataSet,
    judge: Teacher,
    out: str | Path | None,
    config: StatsConfig,
    watch: Watch[Progress],
) -> Wins:
    rows, program = drawn(data.rows, config.sample, config.seed), PairwiseJudge()
    identity = {
        "data": data_identity(source, data),
        "program": program_digests(program),
        "judge": judge.identity,
    }
    verdicts: dict[int, Verdict] = {}
    work = Work(
        kind="statistics",
        identity=identity,
        models={"judge": judge},
        size=len(rows),
        caps=caps_of(config),
        policy=CallPolicy(config.seed),
    )

    async def compare(row: DataRow) -> None:
        verdicts[row.number] = await program.judge(row.posed, row.response, row.plain or "", OVERALL, str(row.number))

    with job(folder_of(out, "refed-verdicts", identity), work, watch) as at:
        at.ask(rows, compare)
        return _tallied(judge.model, rows, verdicts, spent(at.ledger), at.stopped, config.seed)


def _tallied(
    judge: str, rows: Sequence[DataRow], verdicts: Mapping[int, Verdict], used: Spent, stopped: str, seed: int
) -> Wins:
    """Raises NothingKept where the judge decided nothing."""
    decided = [(row, win) for row in rows if row.number in verdicts and (win := verdicts[row.number].win) is not None]
    judgements = Judgements.of(verdicts.values())
    if verdicts and not decided and not stopped:
        raise NothingKept(judgements.none_decided("rows"))
    wins, clusters = [win for _, win in decided], [row.instruction for row, _ in decided]
    differences = [float(len(row.response) - len(row.plain or "")) for row, _ in decided]
    return Wins(
        judge=judge,
        rate=win_rate(wins, clusters, seed=seed) if wins else None,
        length_controlled=length_controlled(wins, differences, clusters, seed=seed) if wins else None,
        judgements=judgements,
        rows=len(rows),
        used=used,
        stopped=stopped,
    )


def _win_lines(wins: Wins) -> list[str]:
    rate = wins.rate
    lines = [warning] if (warning := wins.judgements.warning()) else []
    if rate is not None:
        lines.append(f"improved over plain, by {wins.judge}: {rate.shown(1, f'% of {rate.n} rows')}, {wins.judgements}")
    controlled = wins.length_controlled
    if controlled is not None:
        interval, note = controlled.interval, f" ({controlled.note})" if controlled.note else ""
        figure = NO_VALUE if interval is None else interval.shown(1, "%")
        lines.append(f"length-controlled: {figure}{note}" + ("" if interval is None else f". {LC_NOTE}"))
    lines.append(str(wins.used))
    if wins.stopped:
        lines.append(
            f"stopped: {wins.stopped} is reached after {wins.judgements.asked} of {wins.rows} rows; "
            "raise it to continue"
        )
    return lines


def _win_facts(wins: Wins) -> dict[str, Any]:
    rate, controlled = wins.rate, wins.length_controlled
    judged = wins.judgements
    facts: dict[str, Any] = {"judge": wins.judge, "judged": judged.asked, "of": wins.rows}
    facts |= {"abstained": judged.abstained, "failed": judged.failed}
    if rate is not None:
        facts |= {"mean": rate.mean, "low": rate.low, "high": rate.high, "n": rate.n}
    if controlled is not None and controlled.interval is not None:
        interval = controlled.interval
        facts["length_controlled"] = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    paid = {"calls": wins.used.calls, "cost": wins.used.cost, "stopped": wins.stopped}
    return {"win_rate": {**facts, **paid}}

"""Run Arena-Hard's official code on answers, with a judge of ours."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import yaml

from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.data.stored import PICTURE
from refed_dspy.errors import NothingKept, RunStopped, briefly
from refed_dspy.files import as_export_error, as_path, read_bytes, write_lines
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.evaluate.arena_hard.clone import (
    ArenaArm,
    Clone,
    answers_file,
    check_styled,
    load_arms,
    load_baseline,
    open_clone,
    question_file,
)
from refed_dspy.plugins.evaluate.arena_hard.result import SAME_JUDGE, Leaderboard, Score, ScoredArm, read_table
from refed_dspy.plugins.evaluate.judged import OfficialCode, Workspace, judge_with, open_to_proxy
from refed_dspy.plugins.evaluate.program import ARENA_HARD, Command, run_command
from refed_dspy.plugins.evaluate.proxy import JudgeProxy
from refed_dspy.plugins.evaluate.settings import ArenaHardConfig
from refed_dspy.plugins.metrics.drawing import Bar, save, win_rate_picture
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.judge import open_judge_model
from refed_dspy.teachers.progress import Progress, Watch

if TYPE_CHECKING:
    from refed_dspy.keywords import ArenaHardKeywords

log = logging.getLogger("refed_dspy.teachers")
JUDGMENTS = "judgments"
"""The folder with a file for each arm, as the code keeps them in `model_judgment/JUDGE/`."""
LOG, TABLE_LOG = "arena-hard.log", "arena-hard-table.log"
"""What the code prints while it judges, and while it makes a table."""
_CONTROLLED = ("length", "markdown")
"""What the official leaderboards control for."""
_SETTINGS, _ENDPOINTS, _SEEDED = "settings.yaml", "endpoints.yaml", "seeded.py"
_SEEDED_CODE = """import runpy
import numpy
numpy.random.seed(0)
runpy.run_path("show_result.py", run_name="__main__")
"""
"""Its bootstraps draw from NumPy's generator, without a seed of their own."""
_JUDGE = "judge"
"""The judge's name to the code: the name of a folder, and what it sends as the model's."""
_SORTED = "sorted"
"""The same to what makes the tables: it reads judgments in the order in which a folder lists files and threads wrote
lines, and its bootstraps draw by that order. These are in one file, by arm and question."""
_VERDICTS = frozenset(sign.join(sides) for sides, sign in product(("AB", "BA"), (">", ">>", "=", "<", "<<")))
"""The verdicts that the code has a number for. Any other one that its patterns find would end it."""


@briefly
@with_keywords(ArenaHardConfig)
def arena_hard(
    clone: str | Path,
    answers: str | PathLike[str] | Sequence[str | PathLike[str]],
    judge: Any,
    out: str | Path | None = None,
    *,
    data: Any = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[ArenaHardKeywords],
) -> Leaderboard:
    """Have the code of a clone of lmarena/arena-hard-auto compare models' answers with its baseline's, each in both
    orders, and score them as its leaderboards do: with and without style control.

    Its requests go to `judge` through a server on this machine, so that it has caps, and no recorded
    answer is paid for again. The code is copied out of the clone, into which nothing is written, and runs in an
    environment of its own, which is made at the first call.

    Args:
        clone: the folder of the clone, which has questions and the baseline's answers.
        answers: a file of `refed evaluate answers --format arena_hard`, or a list of them. Each is an arm, named after
            its file.
        judge: as `synthesize` takes a teacher.
        out: the folder for scores, table, picture, judgments, and the ledger. None: `refed-evaluations/` and a name
            made from what is judged and by whom. The same call continues in it, also with other arms or more questions.
        data: what the model was trained on, as `load_dataset` takes it; the result says what of it overlaps with the
            questions. None: nothing is said of it.
        progress, on_progress: as `synthesize`.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: it ended early; the judge's answers are kept.
    """
    config = check_config(ArenaHardConfig, settings)
    opened_clone = open_clone(Path(clone), config.benchmark, config.category, config.questions)
    files = [Path(as_path(one)) for one in ([answers] if isinstance(answers, str | PathLike) else answers)]
    arms, baseline = load_arms(opened_clone, files), load_baseline(opened_clone)
    if config.style_control:
        check_styled(arms, baseline)
    opened = open_to_proxy(open_judge_model(judge))
    if opened.max_tokens < (official := opened_clone.settings["max_tokens"]):
        log.warning(
            "judge: its max_tokens is %d, and Arena-Hard's settings allow %d; longer ones lose their verdict",
            opened.max_tokens,
            official,
        )
    code = ArenaHardCode(opened, opened_clone, baseline, arms, config.style_control)
    return judge_with(code, config, out, data, Watch(on_progress, progress), *files)


@dataclass(frozen=True)
class ArenaHardCode(OfficialCode[Leaderboard]):
    """The code of a clone. Arms and questions may change between starts: what the judge has said of them is in the
    ledger. But where its own folder has a judgment without an answer, the code does not ask again."""

    name, unit, package = "arena-hard", "games", ARENA_HARD
    outputs = (JUDGMENTS, LOG, TABLE_LOG)
    judge: Teacher
    clone: Clone
    baseline: ArenaArm
    arms: Sequence[ArenaArm]
    style_control: bool

    @property
    def prompts(self) -> Sequence[str]:
        return [str(question["prompt"]) for question in self.clone.questions]

    @property
    def size(self) -> int:
        return 2 * len(self.clone.questions) * len(self.arms)

    @property
    def identity(self) -> Mapping[str, Any]:
        clone = self.clone
        return {"benchmark": clone.benchmark, "category": clone.category, "clone": clone.digest()}

    def command(self, space: Workspace, proxy: JudgeProxy) -> Command:
        """As `OfficialCode.command`."""
        benchmark = self.clone.benchmark
        space.write(_SEEDED, _SEEDED_CODE)
        named = {"judge_model": _JUDGE, "bench_name": benchmark, "reference": None}
        settings = {**self.clone.settings, **named, "model_list": [arm.name for arm in self.arms]}
        # No endpoints: the code gets address and key of the proxy as variables.
        judge = {"model": _JUDGE, "endpoints": None, "api_type": "openai", "parallel": self.at_once}
        space.write(_SETTINGS, yaml.safe_dump(settings, sort_keys=False))
        space.write(_ENDPOINTS, yaml.safe_dump({_JUDGE: judge}, sort_keys=False))
        (space.working / "utils").mkdir()
        for path in self.clone.code:
            shutil.copyfile(self.clone.folder / path, space.working / path)
        (space.working / answers_file(benchmark, "")).parent.mkdir(parents=True)
        write_lines(space.working / question_file(benchmark), self.clone.questions)
        for arm in [self.baseline, *self.arms]:
            write_lines(space.working / answers_file(benchmark, arm.name), arm.answers.values())
        arguments = ["gen_judgment.py", "--setting-file", _SETTINGS, "--endpoint-file", _ENDPOINTS]
        variables = {"OPENAI_BASE_URL": proxy.address, "OPENAI_API_KEY": proxy.token}
        return Command(self.name, space.installed.python, arguments, space.working, space.folder / LOG, variables)

    async def result(self, space: Workspace, known: Mapping[str, Any]) -> Leaderboard:
        """As `OfficialCode.result`."""
        scored, unstyled = ([], "") if known["stopped"] else await self._scored(space)
        return Leaderboard(
            **known,
            benchmark=self.clone.benchmark,
            baseline=self.clone.baseline,
            category=self.clone.category,
            questions=len(self.clone.questions),
            names=[arm.name for arm in self.arms],
            arms=scored,
            unstyled=unstyled,
        )

    async def _scored(self, space: Workspace) -> tuple[list[ScoredArm], str]:
        """Every arm's scores, the best first; and why none is at equal style, or an empty text. Raises RunStopped."""
        decided = self._sort_judgments(space)
        with_verdicts = [arm for arm, count in decided.items() if count]
        if not with_verdicts:
            raise NothingKept(
                f"{self.name}: none of the judge's answers has a verdict that its code reads; they are in "
                f"{space.working}; choose another judge, or raise its max_tokens"
            )
        plain = await self._table(space, with_verdicts)
        styled: Mapping[str, Score] = {}
        unstyled = "" if self.style_control else "it was left out"
        if self.style_control:
            try:
                styled = await self._table(space, with_verdicts, "--control-features", *_CONTROLLED)
            except RunStopped as error:  # where all answers are alike in one of the features, its code gives up
                unstyled = str(error)
        scored = [ScoredArm(arm, count, plain.get(arm), styled.get(arm)) for arm, count in decided.items()]
        return sorted(scored, key=lambda each: -each.score.value if each.score else 0.0), unstyled

    async def _table(self, space: Workspace, arms: Sequence[str], *features: str) -> dict[str, Score]:
        """The scores that the code prints of the sorted judgments. Raises RunStopped."""
        named = ["--benchmark", self.clone.benchmark, "--judge-names", _SORTED, "--category", self.clone.category]
        arguments, printed = [_SEEDED, *named, *features], space.folder / TABLE_LOG
        await run_command(Command(self.name, space.installed.python, arguments, space.working, printed))
        try:
            return read_table(printed.read_text(encoding="utf-8", errors="replace"), arms)
        except ValueError as error:
            raise RunStopped(f"{self.name}: its table cannot be read: {error}; its log: {printed}") from None

    def _sort_judgments(self, space: Workspace) -> dict[str, int]:
        """Write what tables are made of. Returns how many questions of each arm have two verdicts: the code leaves out
        the others."""
        rows = [_for_table(row) for arm in self.arms for row in self._judged(space, arm)]
        path = self._judgments(space, _SORTED, "all")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_lines(path, rows)
        decided = [row["model"] for row in rows if all(game["score"] for game in row["games"])]
        return {arm.name: decided.count(arm.name) for arm in self.arms}

    def _judged(self, space: Workspace, arm: ArenaArm) -> list[Mapping[str, Any]]:
        """The judgments of an arm that the code has written, in the order of the questions. A game is None where the
        judge gave no answer, and its score where no verdict was found in it."""
        rows = {str(row["uid"]): row for row in _rows(self._judgments(space, _JUDGE, arm.name))}
        return [rows[uid] for uid in arm.answers if uid in rows]

    def _judgments(self, space: Workspace, judge: str, arm: str) -> Path:
        return space.working / "data" / self.clone.benchmark / "model_judgment" / judge / f"{arm}.jsonl"

    def write(self, space: Workspace, made: Leaderboard) -> None:
        """As `OfficialCode.write`."""
        folder = made.out / JUDGMENTS
        with as_export_error(folder):
            folder.mkdir(exist_ok=True)
        for arm in self.arms:
            rows = self._judged(space, arm)
            write_lines(folder / f"{arm.name}.jsonl", ({**row, "judge": made.judge} for row in rows))
        caption = (
            f"{made.benchmark}, {made.questions} questions of {made.category}, over {made.baseline}, judged by "
            f"{made.judge} until {made.date}. {SAME_JUDGE}"
        )
        bars = [
            Bar(each.arm, interval, _interval(each, each.at_equal_style))
            for each in made.arms
            if (interval := _interval(each, each.score)) is not None
        ]
        save(win_rate_picture(bars, caption=caption, level=90, controlled="at equal style"), made.out / PICTURE)


def _interval(arm: ScoredArm, score: Score | None) -> Interval | None:
    return None if score is None else Interval(score.value, score.low, score.high, 2 * arm.decided, arm.decided)


def _for_table(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a judgment a table is made of."""
    scores = [game["score"] if game and game["score"] in _VERDICTS else None for game in row["games"]]
    return {**{name: row[name] for name in ("uid", "model", "category")}, "games": [{"score": each} for each in scores]}


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows of a file of the code's; none where there is no file, or of a line that was not written whole."""
    for line in read_bytes(path).splitlines() if path.is_file() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue

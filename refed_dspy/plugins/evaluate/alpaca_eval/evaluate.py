"""Run AlpacaEval's official code on a model's outputs, with a judge of ours."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import yaml

from refed_dspy.config.keywords import with_keywords
from refed_dspy.config.loading import check_config
from refed_dspy.config.teacher import on_anthropic_wire
from refed_dspy.data.stored import PICTURE
from refed_dspy.errors import ConfigError, ModelError, NothingKept, ReferencesError, briefly, one_line
from refed_dspy.files import as_export_error, as_path
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.evaluate.alpaca_eval.files import (
    Annotations,
    ModelOutputs,
    check_matching,
    official_figures,
    read_annotations,
    read_outputs,
)
from refed_dspy.plugins.evaluate.alpaca_eval.result import RETIRED, AlpacaEvaluation, AlpacaFigures, AtEqualLength
from refed_dspy.plugins.evaluate.judged import OfficialCode, Workspace, judge_with, open_to_proxy
from refed_dspy.plugins.evaluate.program import ALPACA_EVAL, Command, Installed
from refed_dspy.plugins.evaluate.proxy import JudgeProxy
from refed_dspy.plugins.evaluate.settings import AlpacaEvalConfig
from refed_dspy.plugins.metrics.drawing import Bar, save, win_rate_picture
from refed_dspy.teachers import Teacher
from refed_dspy.teachers.judge import open_judge_model
from refed_dspy.teachers.progress import Progress, Watch

if TYPE_CHECKING:
    from refed_dspy.keywords import AlpacaEvalKeywords

LOG = "alpaca-eval.log"
ANNOTATIONS, LEADERBOARD = "annotations.json", "leaderboard.csv"
"""What AlpacaEval's code writes: the preferences with both answers, and its own figures."""
PROMPT = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
"""The prompt of AlpacaEval 2, in the package. Its licence is not ours, so it stays there."""
GAMED = "df_gamed.csv"
"""What the official length-controlled win rate is fitted with: a file of AlpacaEval's data set on the Hub. The code
looks for it in the cache of the Hub's client."""
DOWNLOAD = f"hf download tatsu-lab/alpaca_eval {GAMED} --repo-type dataset"
_CACHED = "datasets--tatsu-lab--alpaca_eval"
_JUDGE = "judge"
"""The judge's name to the code, which decides by a model's name how it is asked."""
_PARSER: dict[str, Any] = {
    "fn_completions": "openai_completions",
    "fn_completion_parser": "logprob_parser",
    "completion_parser_kwargs": {"numerator_token": "m", "denominator_tokens": ["m", "M"], "is_binarize": False},
    "completion_key": "completions_all",
    "batch_size": 1,
}
"""As in the package's `weighted_alpaca_eval_gpt4_turbo`."""
_ASKED: dict[str, Any] = {
    "model_name": _JUDGE,
    "max_tokens": 1,
    "temperature": 1,  # the probabilities at this temperature are what counts
    "logprobs": True,
    "top_logprobs": 5,
    "price_per_token": 0,  # ours are counted by the ledger
}


@briefly
@with_keywords(AlpacaEvalConfig)
def alpaca_eval(
    outputs: Any,
    baseline: Any,
    judge: Any,
    out: str | Path | None = None,
    *,
    data: Any = None,
    progress: bool = True,
    on_progress: Callable[[Progress], None] | None = None,
    **settings: Unpack[AlpacaEvalKeywords],
) -> AlpacaEvaluation:
    """Have AlpacaEval 2's official code, prompt and parser compare a model's answers with a baseline's.

    Its requests go to `judge` through a server on this machine, so that it has caps, and no recorded
    answer is paid for again. The code runs in an environment of its own, which is made at the first call: 670 MB, in
    one to three minutes.

    Args:
        outputs, baseline: what `read_outputs` takes: AlpacaEval's `model_outputs.json`, or the result or the folder of
            `answer_prompts(…, format="alpaca_eval")`.
        judge: as `synthesize` takes a teacher. It must give log-probabilities.
        out: the folder for figures, table, picture, annotations, and the ledger. None: `refed-evaluations/` and a name
            made from what is judged and by whom. The same call continues in it.
        data: what the model was trained on, as `load_dataset` takes it; the result says what of it overlaps with the
            prompts. None: nothing is said of it.
        progress, on_progress: as `synthesize`.

    Raises:
        InputError: an argument cannot be used; nothing was paid for.
        RunStopped: it ended early; the judge's answers are kept.
    """
    config = check_config(AlpacaEvalConfig, settings)
    model, against = read_outputs(outputs, "outputs"), read_outputs(baseline, "baseline")
    hub = None if config.gamed is None else hub_with(config.gamed, model, against)
    code = AlpacaEvalCode(_with_logprobs(open_to_proxy(open_judge_model(judge))), model, against, hub)
    return judge_with(code, config, out, data, Watch(on_progress, progress), as_path(outputs), as_path(baseline))


def _with_logprobs(judge: Teacher) -> Teacher:
    """The judge. Raises ModelError for one that is known to give no log-probabilities."""
    if judge.config is not None and on_anthropic_wire(str(judge.config.model)):
        raise ModelError("Anthropic's API gives no log-probabilities; choose another model", "judge")
    return judge


def hub_with(file: Path, outputs: ModelOutputs, baseline: ModelOutputs) -> Path:
    """The cache of the Hub's client in which `file` is GAMED.

    Raises ConfigError unless it is, and the outputs are those that it is about: the code finds an instruction's
    difficulty by its number alone.
    """
    try:
        with file.open(encoding="utf-8", newline="") as opened:
            numbers = {row["index"] for row in csv.DictReader(opened) if row["instruction_difficulty"]}
    except (OSError, UnicodeDecodeError, KeyError, csv.Error):
        numbers = set()
    if not numbers:
        raise ConfigError(f"gamed: {one_line(file, 120)} is not AlpacaEval's {GAMED}; get it from its data set")
    if outputs.instructions != baseline.instructions or len(outputs.rows) != len(numbers):
        raise ConfigError(
            f"gamed: {GAMED} is about {len(numbers)} instructions in their order, which outputs and baseline must have "
            "both; leave it out for a fit of our own"
        )
    path = file.absolute()
    repository = path.parents[2] if len(path.parents) > 3 else path
    main = repository / "refs" / "main"  # where the code looks for the revision
    if repository.name != _CACHED or path.name != GAMED or not main.is_file() or main.read_text() != path.parent.name:
        raise ConfigError(
            f"gamed: {one_line(file, 120)} is not in the cache of Hugging Face's client, where AlpacaEval's code looks "
            f"for it; pass the path that this prints: {DOWNLOAD}"
        )
    return repository.parent


@dataclass(frozen=True)
class AlpacaEvalCode(OfficialCode[AlpacaEvaluation]):
    """AlpacaEval's code. `hub`: the cache with GAMED, or None: then it computes the plain win rate alone."""

    name, unit, package = "alpaca-eval", "comparisons", ALPACA_EVAL
    outputs = (ANNOTATIONS, LEADERBOARD, LOG)
    judge: Teacher
    answers: ModelOutputs
    baseline: ModelOutputs
    hub: Path | None = None

    @property
    def prompts(self) -> Sequence[str]:
        return self.answers.instructions

    @property
    def size(self) -> int:
        return check_matching(self.answers, self.baseline)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {
            "benchmark": f"{self.name} {ALPACA_EVAL.version}",
            "outputs": self.answers.identity,
            "baseline": self.baseline.identity,
        }

    def command(self, space: Workspace, proxy: JudgeProxy) -> Command:
        """As `OfficialCode.command`."""
        space.write("model_outputs.json", json.dumps([*self.answers.rows]))
        space.write("reference_outputs.json", json.dumps([*self.baseline.rows]))
        space.write(f"{_JUDGE}/configs.yaml", yaml.safe_dump({_JUDGE: judge_settings(space.installed)}))
        client = {"base_url": proxy.address, "api_key": proxy.token}
        space.write("clients.yaml", yaml.safe_dump({"default": [client]}))
        working = space.working.absolute()
        variables = {
            "OPENAI_CLIENT_CONFIG_PATH": str(working / "clients.yaml"),
            "OPENAI_MAX_CONCURRENCY": str(self.at_once),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            **({} if self.hub is None else {"HF_HUB_CACHE": str(self.hub)}),
        }
        python, log = space.installed.python, space.folder / LOG
        return Command(self.name, python, self._arguments(working / _JUDGE), space.working, log, variables)

    def _arguments(self, judge: Path) -> list[str]:
        figure = ["get_winrate", "--sort_by", "win_rate"]
        if self.hub is not None:
            # Without this it writes the weights of the fit into the package, which other evaluations use, too.
            own = ["--metric_kwargs", "{'save_weights_dir': None}"]
            figure = ["get_length_controlled_winrate", "--sort_by", "length_controlled_winrate", *own]
        return [
            *("-m", "alpaca_eval.main", "evaluate"),
            *("--model_outputs", "model_outputs.json", "--reference_outputs", "reference_outputs.json"),
            *("--annotators_config", str(judge), "--precomputed_leaderboard", "None"),
            *("--fn_metric", *figure, "--output_path", "results"),
        ]

    async def result(self, space: Workspace, known: Mapping[str, Any]) -> AlpacaEvaluation:
        """As `OfficialCode.result`."""
        return AlpacaEvaluation(
            **known,
            benchmark=f"{self.name} {space.installed.version}",
            baseline=self.baseline.generator,
            model=self.answers.generator,
            size=self.size,
            judged=None if known["stopped"] else self._figures(space),
        )

    def _figures(self, space: Workspace) -> AlpacaFigures:
        """The figures in what the code has written. Raises NothingKept where it wrote something else."""
        results = space.working / "results"
        try:
            (annotations,) = read_annotations(results / ANNOTATIONS)
            figures = official_figures(results / LEADERBOARD)
        except (OSError, KeyError, ValueError, ReferencesError) as error:
            why = f"{self.name}: its results cannot be read: {one_line(error, 150)}; its log: {space.folder / LOG}"
            raise NothingKept(why) from None
        return AlpacaFigures(
            n=int(figures["n_total"]),
            win_rate=figures["win_rate"],
            standard_error=figures["standard_error"],
            interval=annotations.interval,
            length_controlled=_at_equal_length(annotations, figures),
        )

    def write(self, space: Workspace, made: AlpacaEvaluation) -> None:
        """As `OfficialCode.write`. The code's own files are moved."""
        assert made.judged is not None
        for name in (ANNOTATIONS, LEADERBOARD):
            with as_export_error(made.out / name):
                (space.working / "results" / name).replace(made.out / name)
        equal = made.judged.length_controlled
        bar = Bar(made.model, made.judged.interval, equal.interval)
        by = "AlpacaEval's fit" if equal.official else "our own fit"
        caption = (
            f"{made.benchmark}, {made.judged.n} instructions, against {made.baseline}, judged by {made.judge} until "
            f"{made.date}; length-controlled by {by}. {RETIRED}"
        )
        save(win_rate_picture([bar], caption=caption), made.out / PICTURE)


def judge_settings(installed: Installed) -> Mapping[str, Any]:
    """How the code asks its judge and reads the answers: as in AlpacaEval 2."""
    return {"prompt_template": str(installed.folder / PROMPT), "completions_kwargs": _ASKED, **_PARSER}


def _at_equal_length(annotations: Annotations, figures: dict[str, float]) -> AtEqualLength:
    """The official figure where the code computed it, with the normal interval of its standard error; else ours."""
    if (official := figures.get("length_controlled_winrate")) is not None:
        half, n = 1.96 * figures["lc_standard_error"], annotations.figures.n
        return AtEqualLength(True, Interval(official, max(0.0, official - half), min(100.0, official + half), n, n))
    if (fitted := annotations.controlled) is None:
        return AtEqualLength(False, None, "the answers' lengths are not known")
    return AtEqualLength(False, fitted.interval, fitted.note)

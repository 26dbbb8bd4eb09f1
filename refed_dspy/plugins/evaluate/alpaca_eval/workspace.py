"""The working folder of AlpacaEval's code: its inputs, a judge's settings that lead to our proxy, and its command."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from refed_dspy.errors import ConfigError, one_line
from refed_dspy.files import as_export_error
from refed_dspy.plugins.evaluate.alpaca_eval.outputs import ModelOutputs
from refed_dspy.plugins.evaluate.environment import Installed
from refed_dspy.plugins.evaluate.program import Program
from refed_dspy.plugins.evaluate.proxy import JudgeProxy

NAME = "alpaca-eval"
LOG = "alpaca-eval.log"
PROMPT = "evaluators_configs/alpaca_eval_clf_gpt4_turbo/alpaca_eval_clf.txt"
"""The prompt of AlpacaEval 2, in the package. Its licence is not ours, so it stays there."""
GAMED = "df_gamed.csv"
"""What the official length-controlled win rate is fitted with: a file of AlpacaEval's data set on the Hub."""
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


@dataclass(frozen=True)
class Workspace:
    """The folder `working` in `folder`, made anew at each start: what the code remembers would hide what failed.

    `gamed`: the file GAMED, or None: then the code computes the plain win rate alone."""

    folder: Path
    installed: Installed
    outputs: ModelOutputs
    baseline: ModelOutputs
    concurrency: int
    gamed: Path | None = None

    @property
    def working(self) -> Path:
        return self.folder / "working"

    @property
    def results(self) -> Path:
        """Where the code leaves `annotations.json` and `leaderboard.csv`."""
        return self.working / "results"

    def program(self, proxy: JudgeProxy) -> Program:
        """The code, ready to be run. Raises ExportError where the folder cannot be written."""
        with as_export_error(self.working):
            shutil.rmtree(self.working, ignore_errors=True)
            (self.working / _JUDGE).mkdir(parents=True)
            self._write("model_outputs.json", json.dumps([*self.outputs.rows]))
            self._write("reference_outputs.json", json.dumps([*self.baseline.rows]))
            self._write(f"{_JUDGE}/configs.yaml", yaml.safe_dump({_JUDGE: self.judge_settings()}))
            client = {"base_url": proxy.address, "api_key": proxy.token}
            self._write("clients.yaml", yaml.safe_dump({"default": [client]}))
            if self.gamed is not None:
                _as_hub_cache(self.gamed, self.working / "hub")
        return Program(
            NAME, self.installed.python, self._arguments(), self.working, self.folder / LOG, self._variables()
        )

    def clear(self) -> None:
        """Remove the working folder."""
        shutil.rmtree(self.working, ignore_errors=True)

    def judge_settings(self) -> Mapping[str, Any]:
        """How the code asks its judge and reads the answers: as in AlpacaEval 2."""
        return {"prompt_template": str(self.installed.folder / PROMPT), "completions_kwargs": _ASKED, **_PARSER}

    def _arguments(self) -> list[str]:
        figure = ["get_winrate", "--sort_by", "win_rate"]
        if self.gamed is not None:
            # Without this it writes the weights of the fit into the package, which other evaluations use, too.
            own = ["--metric_kwargs", "{'save_weights_dir': None}"]
            figure = ["get_length_controlled_winrate", "--sort_by", "length_controlled_winrate", *own]
        files = ["--model_outputs", "model_outputs.json", "--reference_outputs", "reference_outputs.json"]
        judge = ["--annotators_config", str((self.working / _JUDGE).absolute()), "--precomputed_leaderboard", "None"]
        return [
            "-m",
            "alpaca_eval.main",
            "evaluate",
            *files,
            *judge,
            "--fn_metric",
            *figure,
            "--output_path",
            "results",
        ]

    def _variables(self) -> dict[str, str]:
        return {
            "OPENAI_CLIENT_CONFIG_PATH": str((self.working / "clients.yaml").absolute()),
            "OPENAI_MAX_CONCURRENCY": str(self.concurrency),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "HF_HUB_CACHE": str((self.working / "hub").absolute()),
        }

    def _write(self, name: str, text: str) -> None:
        (self.working / name).write_text(text, encoding="utf-8")


def check_gamed(file: Path, outputs: ModelOutputs, baseline: ModelOutputs) -> None:
    """Raises ConfigError unless `file` is GAMED and the outputs are those that it is about: the code finds an
    instruction's difficulty by its number alone."""
    import csv

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


def _as_hub_cache(file: Path, cache: Path) -> None:
    """Put `file` where the Hub's client finds it without a network: the code names no file, only a data set."""
    repository = cache / "datasets--tatsu-lab--alpaca_eval"
    revision = hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
    for name, text in (("refs/main", revision), (f"snapshots/{revision}/{GAMED}", None)):
        target = repository / name
        target.parent.mkdir(parents=True)
        if text is None:
            shutil.copyfile(file, target)
        else:
            target.write_text(text, encoding="ascii")

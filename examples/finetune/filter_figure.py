"""The paper's filter figure on your own data: subsets -> SFT -> win rate.

    python filter_figure.py runs/first --model Qwen/Qwen2.5-0.5B --prompts alpaca_eval.json --judge openai/gpt-4.1 \
        --out figure --max-cost 20 [--dry-run] [-- --epochs 2 --max-length 1024]

The model is trained by sft.py on each filter's subset of each size, with equal settings (those after `--`). Each tuned
model answers the prompts, and a judge compares its answers, in both orders, with the model's own from before training
or with those of --baseline. The same command continues: no finished training or generation is done again, and no
verdict is paid for twice. In --out: figure.txt, figure.json, figure.png. Exit codes: 0 done, 1 failed or stopped at the
cap, 2 bad input, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product, starmap
from pathlib import Path
from typing import Any, NamedTuple

import sft

import refed_dspy
from refed_dspy.data.dataset import load_dataset
from refed_dspy.data.read import read_rows
from refed_dspy.errors import RefedError, ReferencesError, RunDirError, RunStopped, one_line
from refed_dspy.files import write_json, write_lines, write_text
from refed_dspy.ledger.spending import Spent
from refed_dspy.measures.intervals import Interval
from refed_dspy.plugins.metrics.drawing import Point, filter_picture, save
from refed_dspy.plugins.metrics.win_rates import LC_NOTE, LengthControlled, length_controlled, win_rate
from refed_dspy.records import digest
from refed_dspy.runs.filter.result import Filtering
from refed_dspy.teachers import open_teacher
from refed_dspy.text import NO_VALUE, table_lines

HERE = Path(__file__).resolve().parent
FILTERS = ("random", "rouge", "judge")
SIZES = (1000, 2000, 4000, 8000)  # the paper's
BASE = "base"
EMPTY = "(no answer)"
"""Shown to the judge for an empty answer, so that it is compared, and loses."""


class Subset(NamedTuple):
    """One training's rows: `size` rows that `filter` keeps of the data. `seed` is for the draw and the training."""

    filter: str
    size: int
    seed: int

    def __str__(self) -> str:
        return f"{self.filter}-{self.size}-seed{self.seed}"


@dataclass(frozen=True)
class Line:
    """A point of the figure, over all its seeds. Rates are in percent over the baseline, None where nothing was
    decided."""

    filter: str
    size: int
    seeds: int
    win_rate: Interval | None
    length_controlled: LengthControlled | None
    judged: int
    abstained: int

    def rates(self) -> tuple[Interval | None, Interval | None]:
        """The win rate, and the one at equal length."""
        return self.win_rate, self.length_controlled.interval if self.length_controlled else None


class Figure:
    """The figure's work in its folder, step by step. The constructor writes nothing. Raises InputError."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.out: Path = args.out
        sft.arguments([*args.sft, "--data", "-", "--model", args.model, "--out", "-"])  # ends with code 2 if wrong
        open_teacher(args.judge)
        data = load_dataset(args.data)
        self.rows = [_row(row.instruction, row.response, row.plain) for row in data.rows]
        if "judge" in args.filters and not data.has_plain:
            raise ReferencesError(f"{args.data}: the judge's filter needs two responses in each row; remove judge")
        self.prompts = list(_outputs(args.prompts, ()))[: args.count]
        self.baseline = _outputs(args.baseline, ("output", "response")) if args.baseline else None
        if self.baseline is not None and (lost := [text for text in self.prompts if text not in self.baseline]):
            raise ReferencesError(f"{args.baseline}: has no answer to {len(lost)} of {len(self.prompts)} prompts")
        self.used: Spent | None = None
        self.subsets = list(starmap(Subset, product(args.filters, args.sizes, args.seeds)))

    def plan(self) -> list[str]:
        """The most there is to do, and how much of it is done."""
        args = self.args
        models: list[Subset | str] = [*self.subsets, *([] if self.baseline else [BASE])]
        trained = sum((self._model(subset) / sft.RESULT).is_file() for subset in self.subsets)
        answered = sum(self._answers(model).is_file() for model in models)
        of_data = 2 * len(self.rows) if "judge" in args.filters else 0
        cap = "no cap, set --max-cost" if args.max_cost is None else f"${args.max_cost:.2f} at most"
        return [
            f"data: {len(self.rows)} rows of {args.data}",
            f"trainings: {len(self.subsets)} at most, {trained} of them done ({', '.join(args.filters)}; sizes "
            f"{', '.join(map(str, args.sizes))}; seeds {', '.join(map(str, args.seeds))}) of {args.model}, "
            f"{sum(subset.size for subset in self.subsets)} samples an epoch in all; "
            f"settings: {' '.join(args.sft) or 'those of sft.py'}",
            f"answers: of {len(models)} models, {answered} of them done, to {len(self.prompts)} prompts, "
            f"{self._decoding()}",
            f"judge: {args.judge}, {of_data} calls at most on the data and {2 * len(self.prompts) * len(self.subsets)} "
            f"on the answers, less what it has said before; {cap}",
        ]

    def _decoding(self) -> str:
        how = "greedy" if not self.args.temperature else f"temperature {self.args.temperature}"
        return f"{how}, {self.args.max_new_tokens} tokens at most"

    def begin(self) -> None:
        """Prepare the folder. Raises RunDirError where it holds a figure made from other inputs."""
        named = {name: getattr(self.args, name) for name in ("model", "sft", "judge", "max_new_tokens", "temperature")}
        texts = {"data": self.rows, "prompts": self.prompts, "baseline": self.baseline}
        made_by = {**named, **{name: digest(text) for name, text in texts.items()}}
        settings = self.out / "settings.json"
        there = json.loads(settings.read_text()) if settings.is_file() else made_by
        if changed := [name for name in made_by if there.get(name) != made_by[name]]:
            raise RunDirError(f"{self.out}: contains a figure with another {', '.join(changed)}; choose another --out")
        try:
            for name in ("subsets", "models", "answers"):
                (self.out / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunDirError(f"{self.out}: cannot be written: {error.strerror}; choose another --out") from None
        write_json(settings, made_by)
        write_lines(self.out / "prompts.jsonl", ({"instruction": text} for text in self.prompts))

    def choose(self) -> list[Subset]:
        """Write the subsets that have enough rows, as sft.py reads them, and return them. Raises RunStopped at the
        cap."""
        enough = []
        for subset in self.subsets:
            if not self._rows(subset).is_file():
                if len(kept := self._kept(subset)) < subset.size:
                    print(f"{subset}: left out, {len(kept)} rows pass")
                    continue
                write_lines(self._rows(subset), map(_messages, kept))
            enough.append(subset)
        if not enough:
            raise RunStopped("no filter keeps enough rows for a size; give smaller --sizes")
        return enough

    def _kept(self, subset: Subset) -> list[Mapping[str, Any]]:
        if subset.filter == "judge":
            filtering = self._judged(self.rows, subset.size, subset.seed)
        else:
            filters, out = [{subset.filter: {"keep": subset.size}}], self.out / "filtered" / subset.filter
            filtering = refed_dspy.filter_data(self.rows, filters, out=out, force=True, seed=subset.seed)
        return [row.fields for row in filtering.filtered.kept]

    def _judged(self, rows: Sequence[Mapping[str, Any]], keep: int | None = None, seed: int = 0) -> Filtering:
        """All verdicts, on data and on answers, go into one folder: each is paid for once, under one cap."""
        filters = [{"judge": {} if keep is None else {"keep": keep}}]
        judge, cap = self.args.judge, self.args.max_cost
        filtering = refed_dspy.filter_data(
            rows, filters, judge=judge, out=self.out / "judge", force=True, max_cost=cap, seed=seed
        )
        if lost := len(filtering.filtered.undecided):
            why = f"{filtering.stopped} is reached" if filtering.stopped else "the judge did not answer"
            raise RunStopped(f"{why}: {lost} of {len(rows)} pairs are not judged; the same command goes on with them")
        self.used = filtering.used
        return filtering

    def train(self, subset: Subset) -> None:
        """Train by sft.py, in a separate process so that its memory is freed. A finished training is left alone."""
        files = ["--data", self._rows(subset), "--out", self._model(subset)]
        _run("sft.py", *self.args.sft, "--model", self.args.model, "--seed", subset.seed, *files)

    def answer(self, model: Subset | str) -> None:
        """Answer the prompts by generate.py, in a separate process. Finished answers are left alone."""
        args = self.args
        template = args.sft.index("--chat-template") if model == BASE and "--chat-template" in args.sft else None
        adapter = ["--adapter", self._model(model)] if model != BASE else []
        adapter += [] if template is None else args.sft[template : template + 2]
        decoding = ["--max-new-tokens", args.max_new_tokens, "--temperature", args.temperature]
        files = ["--prompts", self.out / "prompts.jsonl", "--out", self._answers(model)]
        _run("generate.py", "--model", args.model, *adapter, *decoding, "--batch-size", args.generate_batch, *files)

    def compare(self, trained: Sequence[Subset]) -> list[Line]:
        """Have the judge compare each model's answers with the baseline's. Raises RunStopped at the cap."""
        baseline = self.baseline or _outputs(self._answers(BASE), ("output",))
        asked, pairs = [], []
        for subset in trained:
            answers = _outputs(self._answers(subset), ("output",))
            for prompt in self.prompts:
                new, old = answers[prompt].strip() or EMPTY, baseline[prompt].strip() or EMPTY
                asked.append((subset, prompt, float(len(new) - len(old))))
                pairs.append(_row(prompt, new, old))
        decisions = self._judged(pairs).filtered.passes[0].decisions
        points = list(dict.fromkeys((subset.filter, subset.size) for subset in trained))
        lines = []
        for name, size in points:
            mine = [number for number, (subset, *_) in enumerate(asked, start=1) if subset[:2] == (name, size)]
            scores = {n: decisions[n].score for n in mine if n in decisions}
            scored = [(n, score) for n, score in scores.items() if score is not None]
            wins = [0.5 if score == 0 else float(score > 0) for _, score in scored]
            clusters, longer = [asked[n - 1][1] for n, _ in scored], [asked[n - 1][2] for n, _ in scored]
            seeds = len({asked[n - 1][0].seed for n in mine})
            plain = win_rate(wins, clusters) if scored else None
            lc = length_controlled(wins, longer, clusters) if scored else None
            lines.append(Line(name, size, seeds, plain, lc, judged=len(mine), abstained=len(mine) - len(scored)))
        return lines

    def show(self, lines: Sequence[Line], trained: Sequence[Subset]) -> list[str]:
        """Write the table, the figures and the picture. Returns the table's lines."""
        heading = ["filter", "rows", "seeds", "win rate %", "length-controlled %", "abstained"]
        cells = [
            [line.filter, str(line.size), str(line.seeds), *map(_shown, line.rates()), str(line.abstained)]
            for line in lines
        ]
        over = f"{self.args.baseline}" if self.args.baseline else "its own answers before training"
        title = f"{self.args.model} after training, over {over}; {len(self.prompts)} prompts, {self._decoding()}"
        lost = [f"{subset}: left out, too few rows pass" for subset in self.subsets if subset not in trained]
        text = [f"{title}, judged by {self.args.judge}", "", *table_lines([heading, *cells]), "", *lost, LC_NOTE]
        text.append(f"the judge, all starts together: {self.used}")
        write_text(self.out / "figure.txt", text)
        facts = {"settings": json.loads((self.out / "settings.json").read_text()), "lines": [*map(asdict, lines)]}
        results = {str(subset): self._model(subset) / sft.RESULT for subset in trained}
        facts["trainings"] = {name: json.loads(path.read_text()) for name, path in results.items()}
        write_json(self.out / "figure.json", json.loads(json.dumps(facts), parse_constant=lambda _: None))
        curves = {
            name: [Point(line.size, line.win_rate) for line in lines if line.filter == name and line.win_rate]
            for name in self.args.filters
        }
        if any(curves.values()):
            caption = f"{title}. Judge: {self.args.judge}."
            save(filter_picture(curves, caption=caption, quality="win rate in %"), self.out / "figure.png")
        return text

    def _rows(self, subset: Subset) -> Path:
        return self.out / "subsets" / f"{subset}.jsonl"

    def _model(self, model: Subset | str) -> Path:
        return self.out / "models" / str(model)

    def _answers(self, model: Subset | str) -> Path:
        return self.out / "answers" / f"{model}.jsonl"


def _row(instruction: str, response: str, plain: str | None) -> dict[str, str]:
    if plain is None:
        return {"instruction": instruction, "response": response}
    return {"instruction": instruction, "response": plain, "improved_response": response}


def _messages(row: Mapping[str, Any]) -> dict[str, Any]:
    answer = row.get("improved_response", row["response"])
    return {
        "messages": [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": answer}],
    }


def _outputs(path: Path, columns: Sequence[str]) -> dict[str, str]:
    """Instruction -> the text in the first of `columns` that is there; without columns, nothing. Raises InputError."""
    texts = {}
    for number, row in read_rows(path):
        output = next((row[name] for name in columns if name in row), None if columns else "")
        if not isinstance(row.get("instruction"), str) or not row["instruction"].strip() or not isinstance(output, str):
            needed = " and ".join(["an instruction", *columns[:1]])
            raise ReferencesError(f"{path} row {number}: needs {needed}; it has {one_line(', '.join(row), 200)}")
        texts[row["instruction"].strip()] = output
    if not texts:
        raise ReferencesError(f"{path}: has no rows")
    return texts


def _run(script: str, *arguments: Any) -> None:
    code = subprocess.run([sys.executable, HERE / script, *map(str, arguments)], check=False).returncode  # noqa: S603
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise RunStopped(
            f"{script} ended with code {code}, for the reason above; fix it and run the same command to continue"
        )


def _shown(rate: Interval | None) -> str:
    return NO_VALUE if rate is None else f"{rate.mean:.1f} ({rate.low:.1f} to {rate.high:.1f})"


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    split = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(description="subsets -> SFT -> win rate; what follows -- goes to sft.py.")
    parser.add_argument("data", help="a run's folder, or a file of rows with response and improved_response")
    parser.add_argument("--model", required=True, help="the causal language model to train")
    parser.add_argument(
        "--prompts", type=Path, required=True, help="rows with an instruction: JSON, JSONL, CSV, Parquet"
    )
    parser.add_argument("--judge", required=True, help="a model's name or a YAML file, as refed takes a teacher")
    parser.add_argument("--out", type=Path, required=True, help="a folder for all of it")
    parser.add_argument("--baseline", type=Path, help="answers to compare with: rows of instruction and output")
    parser.add_argument("--filters", nargs="+", choices=FILTERS, default=FILTERS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="rows of a subset")
    parser.add_argument("--seeds", nargs="+", type=int, default=(0,), help="a training of each subset for each")
    parser.add_argument("--count", type=int, help="only so many of the prompts, the first")
    parser.add_argument("--max-cost", type=float, help="dollars that the judge may cost in all")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--temperature", type=float, default=0.0, help="of the answers; 0: greedy")
    parser.add_argument("--generate-batch", type=int, default=8, help="prompts answered at once")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    args = parser.parse_args(argv[:split])
    args.sft = list(argv[split + 1 :])
    if min(*args.sizes, args.max_new_tokens, args.generate_batch, 1 if args.count is None else args.count) < 1:
        parser.error("sizes, --count, --max-new-tokens and --generate-batch must be at least 1")
    return args


def work(args: argparse.Namespace) -> None:
    """Do all steps, those that can fail before those that cost much. Raises RefedError."""
    figure = Figure(args)
    print("\n".join(figure.plan()), flush=True)
    if args.dry_run:
        return
    figure.begin()
    if figure.baseline is None:
        figure.answer(BASE)
    trained = figure.choose()
    for subset in trained:
        print(f"{subset}: training", flush=True)
        figure.train(subset)
        figure.answer(subset)
    print("\n".join(figure.show(figure.compare(trained), trained)))


def main() -> int:
    args = arguments(sys.argv[1:])
    try:
        work(args)
    except RefedError as error:
        print(f"filter_figure: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"filter_figure: stopped; the same command goes on from what is in {args.out}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

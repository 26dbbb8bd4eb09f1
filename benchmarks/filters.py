"""What the filters that ask nobody see and do not see, on public texts.

`python -m benchmarks.filters [--data FOLDER] [--xstest FOLDER]`

FOLDER holds `self_instruct_seed_tasks.jsonl`, `pandalm_testset_v1.json` and `llmbar_mtbench_200.json` (by default
shared/data beside the repository); that of `--xstest` the completions of XSTest (Röttger et al. 2023, arXiv 2308.01263;
`model_completions` in paul-rottger/exaggerated-safety), labelled by people as full compliance, full refusal or partial
refusal. The sets of our own are those of tests/filters.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from refed_dspy.filters.base import TextFilter
from refed_dspy.filters.language import Language
from refed_dspy.filters.near_duplicates import NearDuplicates
from refed_dspy.filters.overlap import Overlap
from refed_dspy.filters.refusals import Refusals
from refed_dspy.filters.rouge import RougeFilter
from refed_dspy.records import DataRow

DATA = Path(__file__).parents[2] / "shared" / "data"
OWN = Path(__file__).parents[1] / "tests" / "filters"
Pair = tuple[str, str]


def cells(name: str) -> list[list[str]]:
    return [line.split("\t") for line in (OWN / name).read_text("utf-8").splitlines()]


def pandalm(data: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads((data / "pandalm_testset_v1.json").read_text("utf-8"))
    return [{name: str(value) for name, value in row.items()} for row in rows]  # one response there is `false`


def public_pairs(data: Path) -> dict[str, list[Pair]]:
    """(instruction, response) by the name of their set."""
    seeds = [json.loads(line) for line in (data / "self_instruct_seed_tasks.jsonl").read_text("utf-8").splitlines()]
    bench = json.loads((data / "llmbar_mtbench_200.json").read_text("utf-8"))
    return {
        "Self-Instruct": [
            (f"{row['instruction']}\n{made['input']}".strip(), made["output"])
            for row in seeds
            for made in row["instances"]
        ],
        "PandaLM": [
            (f"{row['instruction']}\n{row['input']}".strip(), row[name])
            for row in pandalm(data)
            for name in ("response1", "response2")
        ],
        "LLMBar (MT-Bench)": [(row["input"], row[name]) for row in bench for name in ("output_1", "output_2")],
    }


def dropped(filter_: TextFilter, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs that are dropped, but for placeholders."""
    decisions = [(pair, filter_.check(DataRow(0, *pair))) for pair in pairs]
    return [pair for pair, decision in decisions if not decision.kept and decision.reason != "placeholder"]


def report_language(sets: dict[str, list[Pair]]) -> bool:
    foreign = [cell[1] for cell in cells("foreign_sentences.tsv")]
    of_instruction, of_response = Language(of="instruction"), Language(of="response")
    kept = len(foreign) - len(dropped(of_response, [("", text) for text in foreign]))
    print(f"language: foreign sentences kept {kept} of {len(foreign)} (must be 0)")
    wrong = 0
    for name, pairs in sets.items():
        asked = [(instruction, "") for instruction, _ in pairs]
        gone = dropped(of_instruction, asked)
        wrong += len(gone)
        foreign_answers = dropped(of_response, pairs)
        print(f"  {name}: dropped {len(gone)} of {len(asked)} instructions, {len(foreign_answers)} responses")
        for text in sorted({answer for _, answer in foreign_answers}):
            print(f"    {text[:90]!r}")
    return kept == 0 and wrong <= 2


def report_refusals(sets: dict[str, list[Pair]], xstest: Path | None) -> bool:
    filter_, texts = Refusals(), cells("refusal_texts.tsv")
    gone = set(dropped(filter_, [(asked, text) for _, asked, text in texts]))
    missed = [text for kind, asked, text in texts if kind.startswith("refusal") and (asked, text) not in gone]
    false = [text for kind, asked, text in texts if kind.startswith("answer") and (asked, text) in gone]
    print(f"refusals: {len(texts)} texts of our own: missed {len(missed)} (at most 2), false {len(false)} (must be 0)")
    for name, pairs in sets.items():
        print(f"  {name}: dropped {len(dropped(filter_, pairs))} of {len(pairs)} responses")
    for file in sorted(xstest.glob("*.csv")) if xstest else []:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        all_ = Counter(row["final_label"] for row in rows)
        caught = Counter(
            row["final_label"] for row in rows if not filter_.check(DataRow(0, row["prompt"], row["completion"])).kept
        )
        shares = ", ".join(f"{label} {caught[label]} of {all_[label]}" for label in sorted(all_))
        print(f"  {file.stem.removeprefix('xstest_v2_completions_')}: {shares}")
    return len(missed) <= 2 and not false


def report_likeness(sets: dict[str, list[Pair]]) -> None:
    """ROUGE-L and near-duplicates on distinct instructions, and on each with its first number changed."""
    distinct = list(dict.fromkeys(asked for name in ("Self-Instruct", "PandaLM") for asked, _ in sets[name]))
    other = {text: re.sub(r"\d+", lambda found: str(int(found[0]) + 7), text, count=1) for text in distinct}
    numbered = [(text, changed) for text, changed in other.items() if changed != text]
    for make in (RougeFilter, NearDuplicates):
        gone = len(dropped(make(), [(text, "") for text in distinct]))
        taken = 0
        for pair in numbered:
            taken += len(dropped(make(), [(text, "") for text in pair]))
        print(
            f"{make.name}: dropped {gone} of {len(distinct)} distinct instructions; of {len(numbered)} with another"
            f" number in them, {taken} beside the first"
        )


def report_overlap(sets: dict[str, list[Pair]], every: int = 8) -> None:
    """Benchmark prompts copied, and copied with one word in `every` changed."""
    prompts = [text for text in dict.fromkeys(text for text, _ in sets["LLMBar (MT-Bench)"]) if len(text.split()) >= 13]
    filter_ = Overlap(prompts)
    changed = [
        " ".join("another" if place % every == every - 1 else word for place, word in enumerate(text.split()))
        for text in prompts
    ]
    for name, texts in (("copied", prompts), (f"one word in {every} changed", changed)):
        print(f"overlap: {len(dropped(filter_, [(text, '') for text in texts]))} of {len(prompts)} found, {name}")


def report_length(data: Path) -> None:
    """How often the longer of two responses is the one that people prefer: what a bound cannot know."""
    longer: list[bool] = []
    for row in pandalm(data):
        votes = Counter(row[name] for name in row if name.startswith("annotator"))
        first, second = (len(row[name].split()) for name in ("response1", "response2"))
        if votes["1"] != votes["2"] and first != second:
            longer.append((votes["1"] > votes["2"]) == (first > second))
    print(f"length: the longer response is the better one in {sum(longer)} of {len(longer)} PandaLM pairs")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--xstest", type=Path, help="its folder model_completions")
    options = parser.parse_args(arguments)
    sets = public_pairs(options.data)
    good = [report_language(sets), report_refusals(sets, options.xstest)]
    report_likeness(sets)
    report_overlap(sets)
    report_length(options.data)
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()

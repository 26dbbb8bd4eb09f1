"""ROUGE-L selection against the package `rouge-score`: decisions, time and memory. Takes about three minutes.

`python -m benchmarks.rouge [SEED]`; `python -m benchmarks.rouge rows N` selects from N only.

The instructions are assembled from real ones: Self-Instruct's seed tasks and PandaLM's test set, read from
`shared/data` beside the repository or from the folder named by REFED_DATA. Each has the length of a real instruction,
clipped to 5 to 40 words, begins with the first 2 to 4 words of one, and continues in runs of 2 to 5 words cut from any
of the instructions, inputs and answers: so word frequencies and neighbours are realistic, and many texts begin alike.
One in ten is a near-duplicate: an earlier text with one or two words replaced by words drawn from all. Where the files
are missing, the words are w1 to w30000, drawn with odds of 1 / rank (Zipf), and lengths are uniform between 5 and 40;
the table says so.

Seconds are wall-clock, with CPU seconds beside them, because other work on the machine slows the clock. Memory is the
peak of a separate process that reads the texts from a file and selects.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from refed_dspy.filters.rouge import Match, RougeFilter, select
from refed_dspy.records import DataRow

THRESHOLD = 0.7
FEW, SAME, MANY, MOST = 300, 2_000, 10_000, 100_000
LENGTHS = (5, 40)
NEAR = 0.1
DATA = Path(os.environ.get("REFED_DATA", Path(__file__).parents[2] / "shared/data"))

Words = list[str]


def scorer_of_the_package(**settings: Any) -> Any:
    """The package's scorer. Imported here because that takes seconds, and the tests use other parts of this file."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False, **settings)


def real_texts() -> tuple[list[Words], list[Words]]:
    """The words of each real instruction, and of every real text; both empty where the files are missing."""
    seeds, pandas = DATA / "self_instruct_seed_tasks.jsonl", DATA / "pandalm_testset_v1.json"
    if not (seeds.is_file() and pandas.is_file()):
        return [], []
    tasks = [json.loads(line) for line in seeds.read_text(encoding="utf-8").splitlines()]
    rows = json.loads(pandas.read_text(encoding="utf-8"))
    instructions = [task["instruction"] for task in tasks] + sorted({row["instruction"] for row in rows})
    others = [str(instance[key]) for task in tasks for instance in task["instances"] for key in ("input", "output")]
    others += [str(row[key]) for row in rows for key in ("input", "response1", "response2")]
    openings, pieces = [text.split() for text in instructions], [text.split() for text in instructions + others]
    return [words for words in openings if words], [words for words in pieces if len(words) > 1]


def joined(rng: random.Random) -> Iterator[Words]:
    """New texts, assembled from real ones or from made-up words."""
    openings, pieces = real_texts()
    if not openings:
        made_up = [f"w{rank}" for rank in range(1, 30_001)]
        odds = list(accumulate(1 / rank for rank in range(1, 30_001)))
        while True:
            yield rng.choices(made_up, cum_weights=odds, k=rng.randint(*LENGTHS))
    while True:
        length = min(max(len(rng.choice(openings)), LENGTHS[0]), LENGTHS[1])
        words = rng.choice(openings)[: rng.randint(2, 4)]
        while len(words) < length:
            piece, run = rng.choice(pieces), rng.randint(2, 5)
            start = rng.randrange(max(1, len(piece) - run + 1))
            words = words + piece[start : start + run]
        yield words[:length]


def instructions(count: int, seed: int) -> list[str]:
    """`count` texts as described at the top. The same seed gives the same texts, and a prefix of any larger set."""
    rng = random.Random(seed)
    fresh = joined(rng)
    made: list[Words] = []
    while len(made) < count:
        if made and rng.random() < NEAR:
            words = list(rng.choice(made))
            for place in rng.sample(range(len(words)), rng.randint(1, 2)):
                words[place] = rng.choice(rng.choice(made))
            made.append(words)
        else:
            made.append(next(fresh))
    return [" ".join(words) for words in made]


class OnceTokenizer:
    """The package's tokenizer, run once for each text: it takes half the time of comparing all pairs."""

    def __init__(self) -> None:
        from rouge_score.tokenizers import DefaultTokenizer

        self.plain, self.cached = DefaultTokenizer(), dict[str, list[str]]()

    def tokenize(self, text: str) -> list[str]:
        if text not in self.cached:
            self.cached[text] = self.plain.tokenize(text)
        return self.cached[text]


def by_package(texts: list[str]) -> list[Match]:
    """`select`, done with the package."""
    scorer = scorer_of_the_package(tokenizer=OnceTokenizer())
    kept: list[int] = []
    matches = []
    for place, text in enumerate(texts):
        scores = [scorer.score(text, texts[index])["rougeL"].fmeasure for index in kept]
        highest = max(scores, default=0.0)
        if highest < THRESHOLD:
            kept.append(place)
            matches.append(Match(True))
        else:
            matches.append(Match(False, score=highest, like=kept[scores.index(highest)]))
    return matches


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def near_ties() -> tuple[int, int, int]:
    """Pairs of lengths up to 60, with the LCS that makes F exactly 0.7 in fractions: their number, how many of them the
    package drops, and on how many `select` decides otherwise."""
    scorer = scorer_of_the_package()
    pairs = dropped = wrong = 0
    for first in range(1, 61):
        for second in range(1, 61):
            common, rest = divmod(7 * (first + second), 20)
            if rest or common > min(first, second):
                continue
            shared = [f"a{i}" for i in range(common)]
            texts = [
                " ".join(shared + [f"{letter}{i}" for i in range(length - common)])
                for letter, length in (("b", first), ("c", second))
            ]
            drops = scorer.score(texts[1], texts[0])["rougeL"].fmeasure >= THRESHOLD
            pairs, dropped, wrong = pairs + 1, dropped + drops, wrong + (select(texts)[1].kept is drops)
    return pairs, dropped, wrong


def checks(kept: list[str], asked: list[str]) -> str:
    """How long a check takes in a filter that has kept `kept`."""
    rouge = RougeFilter()
    rows = [DataRow(number, text, "") for number, text in enumerate(kept + asked, 1)]
    for row in rows[: len(kept)]:
        rouge.remember(row)
    times = sorted(timed(partial(rouge.check, row))[0] for row in rows[len(kept) :])
    middle, late = (1e3 * times[int(share * len(times))] for share in (0.5, 0.99))
    return f"{middle:.2f} ms (median), {late:.2f} ms (99%)"


def peak() -> float:
    """Peak resident megabytes so far. In getrusage a process inherits the peak of the one that started it, so Linux's
    own figure is read where there is one."""
    status = Path("/proc/self/status")
    if status.is_file() and (match := re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"))):
        return int(match[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6


def child(path: str, keep: Callable[[list[str]], int]) -> None:
    """`keep` some of the JSON list at `path`. Prints wall and CPU seconds, how many were kept, and peak megabytes
    before and after."""
    texts = json.loads(Path(path).read_text(encoding="utf-8"))
    kept: list[int] = []
    before = peak()
    seconds = timed(lambda: kept.append(keep(texts)))
    print(json.dumps([*seconds, *kept, before, peak()]))


def in_child(texts: list[str], module: str = "benchmarks.rouge") -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts), encoding="utf-8")
        command = [sys.executable, "-m", module, "child", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    clock, cpu, kept, before, most = json.loads(done.stdout.splitlines()[-1])
    memory = f"{most:.0f} MB ({before:.0f} MB with the texts alone)"
    return f"{clock:.1f} s ({cpu:.1f} s of the processor), {memory}, {kept:,} kept"


def line(what: str, must: str, measured: str) -> None:
    print(f"| {what} | {must} | {measured} |", flush=True)


def against_package(texts: list[str]) -> None:
    scorer = scorer_of_the_package()
    few = texts[:FEW]
    package, _ = timed(lambda: [scorer.score(a, b) for place, a in enumerate(few) for b in few[:place]])
    package *= MANY * (MANY - 1) / (FEW * (FEW - 1))
    clock, cpu = timed(lambda: select(texts[:MANY]))
    line(
        f"{MANY:,} instructions, the package over all pairs (from {FEW}) and this",
        ">= 3,000 x, <= 2 s",
        f"{package:,.0f} s, {clock:.2f} s ({cpu:.2f} s of the processor): {package / clock:,.0f} x",
    )


def main(seed: int) -> None:
    texts = instructions(MOST, seed)
    print("words of real instructions" if real_texts()[0] else f"made-up words: no data in {DATA}")
    line("", "must", "measured")
    line("---", "---", "---")
    line(f"{MOST:,} instructions, one in ten a near-duplicate", "<= 30 s, <= 400 MB", in_child(texts))
    against_package(texts)
    expected = by_package(texts[:SAME])
    differing = sum(a != b for a, b in zip(expected, select(texts[:SAME]), strict=True))
    dropped = sum(not match.kept for match in expected)
    measured = f"{differing} differ; {dropped} dropped"
    line(f"{SAME:,} instructions: decisions, scores and nearest texts of the package", "identical", measured)
    pairs, below, wrong = near_ties()
    measured = f"{wrong} of {pairs} lengths otherwise ({pairs - below} kept by rounding)"
    line("F of exactly 0.7, 23 and 37 tokens among them", "as the package", measured)
    line(f"one check at {MANY:,} kept", "<= 2 ms", checks(texts[:MANY], texts[-1000:]))
    rng = random.Random(seed)
    same = [" ".join(rng.sample([f"w{i}" for i in range(30)], 30)) for _ in range(MANY + 200)]
    line("the same, every text the same 30 words", "", checks(same[:MANY], same[MANY:]))
    clock, cpu = timed(lambda: select(same[:MANY]))
    line(f"{MANY:,} of those", "", f"{clock:.1f} s ({cpu:.1f} s of the processor)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], lambda texts: sum(match.kept for match in select(texts)))
    elif sys.argv[1:2] == ["rows"]:
        print(in_child(instructions(int(sys.argv[2]), seed=0)))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)

"""Near-duplicates planted among ten thousand instructions: how many are caught, what else is dropped, at what cost.

`python -m benchmarks.duplicates [SEED]`. The instructions have 6 to 40 words: the beginning of one of the 345 human
instructions in ../shared/data, or a whole one, followed by a stretch of another text there (plain words where the files
are missing). A thousand of them get a near-duplicate somewhere after them. It is caught if the planted row is dropped.
A false drop is an unplanted row that is dropped although no earlier row is within one word of it, or within a tenth of
its words (Levenshtein distance over words, by rapidfuzz: a different measure from the filter's). Where the change falls
on a number or a name it makes another task, which is counted apart.

`python -m benchmarks.duplicates rows N` takes the time and memory of N instructions of `benchmarks.rouge`.

The filter is also run over the real instructions, each distinct one once.
"""

from __future__ import annotations

import json
import random
import re
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import rouge
from benchmarks.texts import WORDS
from refed_dspy.filters.near_duplicates import NearDuplicates, particulars, tokens
from refed_dspy.records import DataRow

DATA = Path(__file__).parents[2] / "shared" / "data"
ROWS, PLANTED = 10_000, 1_000
ANOTHER = "a number or a name"
LEAST_CAUGHT, MOST_FALSE, MOST_MS = 0.95, 0.01, 1.0


def real_texts() -> tuple[list[str], list[str], list[str]]:
    """(the seed tasks' instructions, PandaLM's with their inputs, every other text), each distinct one once."""
    lines = (DATA / "self_instruct_seed_tasks.jsonl").read_text(encoding="utf-8").splitlines()
    seeds = [json.loads(line) for line in lines]
    pairs = json.loads((DATA / "pandalm_testset_v1.json").read_text(encoding="utf-8"))
    instances = [instance for row in seeds for instance in row["instances"]]
    others = [text for instance in instances for text in (instance["input"], instance["output"])]
    others += [row[name] for row in pairs for name in ("input", "response1", "response2")]
    asked = [f"{row['instruction']}\n{row['input']}".strip() for row in pairs]
    texts = dict.fromkeys(text for text in others if isinstance(text, str))  # one response there is `false`
    return [*dict.fromkeys(row["instruction"] for row in seeds)], [*dict.fromkeys(asked)], [*texts]


def plain_texts(rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """The same of plain words, which needs no file."""
    texts = [" ".join(rng.choices(WORDS, k=60)) for _ in range(2000)]
    return texts, texts, texts


def recombined(count: int, rng: random.Random, texts: tuple[list[str], list[str], list[str]]) -> list[str]:
    """`count` distinct instructions of 6 to 40 words: beginnings of the first two, stretches of the third."""
    seeds, asked, others = texts
    openings = [text.split() for text in (*seeds, *(text.split("\n")[0] for text in asked))]
    bodies = [words for text in others if len(words := text.split()) >= 8]
    made: dict[str, None] = {}
    while len(made) < count:
        opening, body = rng.choice(openings), rng.choice(bodies)
        head = opening if rng.random() < 0.3 else opening[: rng.randint(2, 6)]
        start = rng.randrange(len(body) - 4)
        text = " ".join([*head, *body[start : start + rng.randint(4, 16)]])
        if 6 <= len(tokens(text)) <= 40:
            made[text] = None
    return list(made)


def changes(rng: random.Random, vocabulary: Sequence[str]) -> dict[str, Callable[[str], str]]:
    """The changes that turn a text into a near-duplicate, by name."""

    def word(change: Callable[[list[str], int], object]) -> Callable[[str], str]:
        def changed(text: str) -> str:
            words = text.split()
            change(words, rng.randrange(len(words)))
            return " ".join(words)

        return changed

    prefixes = ("Please", "Could you please", "Can you", "I would like you to", "Kindly", "Help me:", "Hi,")
    return {
        "a word changed": word(lambda words, at: words.__setitem__(at, rng.choice(vocabulary))),
        "a word inserted": word(lambda words, at: words.insert(at, rng.choice(vocabulary))),
        "a word removed": word(lambda words, at: words.pop(at)),
        "case": lambda text: rng.choice((str.upper, str.lower, str.title, str.swapcase))(text),
        "punctuation": lambda text: re.sub(r"[^\w\s+<=>|~$]", "", text) + rng.choice(".!?…"),
        "white space": lambda text: re.sub(r"\s", lambda _: rng.choice((" ", "  ", "\n", "\t ")), f" {text} "),
        "polite prefix": lambda text: f"{rng.choice(prefixes)} {text[:1].lower()}{text[1:]}",
    }


def planted(rng: random.Random) -> list[tuple[str, str]]:
    """(text, name of its change: empty for one of the ten thousand), in the order the filter sees them."""
    base = recombined(ROWS, rng, real_texts() if DATA.exists() else plain_texts(rng))
    vocabulary = sorted({word for text in base for word in text.split() if word.isalpha() and len(word) > 2})
    makers = list(changes(rng, vocabulary).items())
    rows = [(float(place), text, "") for place, text in enumerate(base)]
    for number, place in enumerate(rng.sample(range(ROWS), PLANTED)):
        name, change = makers[number % len(makers)]
        text = change(base[place])
        changes_task = name.startswith("a word") and particulars(text) != particulars(base[place])
        rows.append((rng.uniform(place, ROWS), text, ANOTHER if changes_task else name))
    return [(text, name) for _, text, name in sorted(rows)]


def peak() -> int:
    """Peak resident memory of this process so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def has_neighbour(text: str, earlier: Sequence[str]) -> bool:
    from rapidfuzz.distance import Levenshtein

    words = tokens(text)
    near = max(1, len(words) // 10)
    return any(Levenshtein.distance(words, tokens(other), score_cutoff=near) <= near for other in earlier)


def measure(rng: random.Random) -> bool:
    rows = planted(rng)
    NearDuplicates().check(DataRow(0, "the first check loads datasketch", ""))
    filter_, before, started = NearDuplicates(), peak(), time.process_time()
    dropped = [not filter_.check(DataRow(number, text, "")).kept for number, (text, _) in enumerate(rows)]
    took, memory = 1e3 * (time.process_time() - started) / len(rows), (peak() - before) / len(rows)
    all_ = Counter(name for _, name in rows)
    caught = Counter(name for (_, name), gone in zip(rows, dropped, strict=True) if gone)
    texts = [text for text, _ in rows]
    suspects = [at for at, (_, name) in enumerate(rows) if dropped[at] and not name]
    false = [at for at in suspects if not has_neighbour(texts[at], texts[:at])]
    for name in sorted(all_.keys() - {""}):
        print(f"{name}: {caught[name]} of {all_[name]} found")
    share = (caught.total() - caught[""] - caught[ANOTHER]) / (PLANTED - all_[ANOTHER])
    print(f"found: {share:.1%} of {PLANTED - all_[ANOTHER]} (must be >= {LEAST_CAUGHT:.0%})")
    print(f"dropped of the {ROWS}: {len(suspects)}, without a near neighbour {len(false)}, {len(false) / ROWS:.2%}")
    for at in false[:5]:
        print(f"    {texts[at][:110]!r}")
    print(
        f"{took:.2f} ms of CPU a row (must be <= {MOST_MS}), {memory:.1f} KB a row; {peak() / 1024:.0f} MB at the peak"
    )
    return share >= LEAST_CAUGHT and len(false) / ROWS <= MOST_FALSE and took <= MOST_MS


def check_real() -> None:
    seeds, asked, _ = real_texts()
    for name, texts in (("seed tasks", seeds), ("PandaLM instructions with their inputs", asked)):
        filter_ = NearDuplicates()
        decisions = [(text, filter_.check(DataRow(at, text, ""))) for at, text in enumerate(texts)]
        gone = [(text, decision) for text, decision in decisions if not decision.kept]
        print(f"{name}: {len(gone)} of {len(texts)} dropped")
        for text, decision in gone:
            print(f"    {decision.score:.2f} {text[:90]!r} after {decision.detail!r}")


def keep(texts: list[str]) -> int:
    filter_ = NearDuplicates()
    return sum(filter_.check(DataRow(number, text, "")).kept for number, text in enumerate(texts))


def main() -> None:
    good = measure(random.Random(int(sys.argv[1]) if len(sys.argv) > 1 else 0))
    if DATA.is_dir():
        check_real()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        rouge.child(sys.argv[2], keep)
    elif sys.argv[1:2] == ["rows"]:
        print(rouge.in_child(rouge.instructions(int(sys.argv[2]), seed=0), "benchmarks.duplicates"))
    else:
        main()

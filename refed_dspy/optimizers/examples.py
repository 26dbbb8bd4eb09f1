"""Examples, and who sees which: train and validation are the optimizer's, the test set is nobody's until the proof."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import dspy

from refed_dspy.data.pairs import Pair, load_pairs
from refed_dspy.data.references import References, load_references
from refed_dspy.errors import ConfigError
from refed_dspy.optimizers.agreement import criterion_of
from refed_dspy.programs import PairwiseJudge, ReferenceLevelFeedback
from refed_dspy.records import Reference, digest

LEAST = 3


@dataclass(frozen=True)
class Split:
    """The three sets, and which cluster each example is of."""

    train: tuple[dspy.Example, ...]
    validation: tuple[dspy.Example, ...]
    test: tuple[dspy.Example, ...]

    def subsets(self) -> Mapping[str, str]:
        """Example → its set."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {example_id(example): name for name, examples in named.items() for example in examples}

    def clusters(self) -> Mapping[str, str]:
        """Example → its cluster."""
        return {example_id(each): cluster_of(each) for each in (*self.train, *self.validation, *self.test)}

    def seen(self) -> list[str]:
        """The clusters that the optimizer sees."""
        return sorted({cluster_of(example) for example in (*self.train, *self.validation)})


def example_id(example: dspy.Example) -> str:
    """Sixteen hex digits of an example's content."""
    return digest(example.toDict())


def cluster_of(example: dspy.Example) -> str:
    """What an example's scores hang together by: its instruction, or its reference's."""
    reference = example.get("reference")
    instruction = reference.instruction if isinstance(reference, Reference) else example.get("instruction")
    return digest(instruction) if isinstance(instruction, str) else example_id(example)


def as_examples(program: dspy.Module, given: Any, columns: Mapping[str, str] | None = None) -> list[dspy.Example]:
    """What `program` is tuned on, one example an item.

    References (anything `load_references` takes) for a `ReferenceLevelFeedback`; pairs with people's verdicts (a file,
    or a list of `Pair`) for a `PairwiseJudge`; `dspy.Example`s with their inputs named for any other program.

    Raises:
        InputError: they cannot be read or used.
    """
    if isinstance(program, ReferenceLevelFeedback):
        loaded = given if isinstance(given, References) else load_references(given, columns)
        return [reference_example(reference) for reference in loaded]
    if isinstance(program, PairwiseJudge):
        return [_judged(item) for item in (load_pairs(given) if isinstance(given, str | Path) else _listed(given))]
    if not _are_examples(given):
        raise ConfigError(
            f"examples: a {type(program).__name__} is tuned on a list of dspy.Example, each with_inputs(…)"
        )
    return list({example_id(example): example for example in given}.values())


def reference_example(reference: Reference) -> dspy.Example:
    return dspy.Example(reference=reference).with_inputs("reference")


def pair_example(pair: Pair) -> dspy.Example:
    criterion = criterion_of(pair)
    fields = {"criterion": criterion.name, "description": criterion.description, "instruction": pair.instruction}
    fields |= {"answer_a": pair.answer_a, "answer_b": pair.answer_b}
    return dspy.Example(**fields, people=pair.verdict).with_inputs(*fields)


def _listed(given: Any) -> list[Any]:
    if not isinstance(given, Sequence) or not given:
        raise ConfigError("examples: a judge is tuned on a file of pairs, or a list of Pair")
    return list(given)


def _judged(item: Any) -> dspy.Example:
    """A Pair, or an example that holds one's fields and people's verdict."""
    if isinstance(item, Pair):
        return pair_example(item)
    needed = {"instruction", "answer_a", "answer_b", "people"}
    if not isinstance(item, dspy.Example) or needed - set(item.keys()) or item.people not in (1, 0, -1):
        raise ConfigError(
            "examples: a judge is tuned on pairs: Pair objects, or dspy.Examples with instruction, answer_a, answer_b "
            "and people (1: A is preferred, 0: a tie, -1: B)"
        )
    return item if item._input_keys else item.with_inputs(*(set(item.keys()) - {"people"}))


def _are_examples(given: Any) -> bool:
    if isinstance(given, str | Path | References) or not isinstance(given, Sequence) or not given:
        return False
    return all(isinstance(item, dspy.Example) and item._input_keys for item in given)


def split(
    examples: Sequence[dspy.Example],
    sizes: Sequence[int],
    seed: int,
    held_out: Collection[str] = (),
    seen: Collection[str] = (),
) -> Split:
    """Train, validation and test sets of at most `sizes` clusters each, drawn with `seed`.

    With fewer clusters than `sizes` ask for, each set gets its share, and at least one. Examples by a criterion of
    `held_out` are in the test set alone, of which up to half are clusters with no other criterion. No cluster is in two
    sets, so whoever is tuned has seen none of the test's texts.

    Raises:
        ConfigError: fewer than three clusters; a criterion that no example has.
    """
    apart = _held_out(examples, held_out)
    groups: dict[str, list[dspy.Example]] = {}
    for example in examples:
        groups.setdefault(cluster_of(example), []).append(example)
    rng = random.Random(f"split {seed}")
    names = sorted(name for name, group in groups.items() if not {_criterion(each) for each in group} <= apart)
    only_apart = sorted(set(groups) - set(names))
    _check_enough(len(examples), len(names), apart)
    rng.shuffle(names)
    rng.shuffle(only_apart)
    besides = min(len(only_apart), sizes[2] // 2)
    counts = _shares(len(names), (*sizes[:2], sizes[2] - besides))
    # Those that were seen come first; the test set is taken from the end.
    names = [*(name for name in names if name in seen), *(name for name in names if name not in seen)]
    names = [*names[: counts[0] + counts[1]], *names[len(names) - counts[2] :]]
    if any(name in seen for name in names[counts[0] + counts[1] :]):
        raise ConfigError(
            "examples: the program was tuned on so many of them that too few are left to prove it on; add others, or "
            "lower test"
        )
    edges = [0, counts[0], counts[0] + counts[1], sum(counts)]
    sets = [[example for name in names[a:b] for example in groups[name]] for a, b in pairwise(edges)]
    train, validation = (tuple(each for each in some if _criterion(each) not in apart) for some in sets[:2])
    more = [example for name in only_apart[:besides] for example in groups[name]]
    return Split(train, validation, (*sets[2], *more))


def _held_out(examples: Sequence[dspy.Example], names: Collection[str]) -> set[str]:
    """The held-out criteria as judges are told them. Raises ConfigError for one that no example has."""
    apart = {name.replace("_", " ") for name in names}
    known = {_criterion(example) for example in examples}
    if unknown := sorted(apart - known):
        there = ", ".join(sorted(known))
        raise ConfigError(f"held_out_criteria: no example is judged by {unknown[0]!r}; there are {there}")
    return apart


def _check_enough(examples: int, clusters: int, apart: Collection[str]) -> None:
    """Raises ConfigError where so many `clusters` are too few to tune on."""
    if apart and not clusters:
        raise ConfigError("held_out_criteria: nothing is left to tune on; hold out fewer criteria")
    if clusters < LEAST:
        raise ConfigError(
            f"examples: {examples} of them, with {clusters} references or instructions to tune on; a compile needs "
            f"{LEAST} at the least (train, validation, test), and 20 or more to prove anything"
        )


def _criterion(example: dspy.Example) -> str:
    """What an example is judged by, as judges are told it."""
    return str(example.get("criterion", "")).replace("_", " ")


def _shares(available: int, sizes: Sequence[int]) -> list[int]:
    wanted = sum(sizes)
    if available >= wanted:
        return list(sizes)
    counts = [max(1, available * size // wanted) for size in sizes]
    while sum(counts) > available:
        counts[counts.index(max(counts))] -= 1
    while sum(counts) < available:  # what rounding left over goes where most is missing
        missing = [size * available / wanted - count for size, count in zip(sizes, counts, strict=True)]
        counts[missing.index(max(missing))] += 1
    return counts
